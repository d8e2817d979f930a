//! Sockets: Unix sockets with their queues, Internet sockets without connections, idle netlink sockets.
//!
//! Each is asked through the controller's own copy (pidfd_getfd) and through sock_diag; nothing is taken out of a queue. A restore makes them
//! by [`SocketStep`](crate::plan::sockets::SocketStep)s before there is any process, so that all recorded process ids are free for the
//! calls that leave one in SO_PEERCRED or SCM_CREDENTIALS.

pub mod diag;
pub mod flight;
pub mod groups;
pub mod inet;
pub mod make;
pub mod name;
pub mod netlink;
pub mod options;
pub mod unix;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Errno, Error, Result};
use crate::files::dump::{Description, Table};
use crate::files::kind::FileKind;
use crate::files::ofd::{OfdId, OfdTable};
use crate::files::outside::{self, LetGo, LetGoOf};
use crate::ids::Pid;
use crate::image::{Images, pb};
use crate::task::survey::SurveyMode;

use diag::{Diag, Unix};

/// The sockets of a tree.
#[derive(Debug)]
pub struct Sockets<'a> {
    let_go: &'a LetGoOf,
    /// Those that the user names, by inode.
    chosen: BTreeSet<u64>,
    mode: SurveyMode,
    unix: BTreeMap<u32, Unix>,
    ids: BTreeMap<u32, OfdId>,
    /// The first process that has each.
    holders: BTreeMap<u32, Pid>,
    /// Who holds a socket outside the tree, by inode.
    outside: BTreeMap<u32, Pid>,
}

impl<'a> Sockets<'a> {
    /// Finds all sockets that the tables lead to, and who else has them or their peers.
    pub fn find(tables: &[Table<'_>], ofds: &OfdTable, mode: SurveyMode, let_go: &'a LetGoOf) -> Result<Sockets<'a>> {
        let chosen = let_go.unix.inodes(tables)?.into_iter().chain(let_go.tcp.inodes(tables)?).collect();
        let (unix, ids, holders, outside) = Default::default();
        let mut sockets = Sockets { let_go, chosen, mode, unix, ids, holders, outside };
        let mut wanted = BTreeSet::new();
        let mut diag = None;
        for table in tables {
            for descriptor in table.descriptors {
                let FileKind::Socket { protocol } = &descriptor.kind else { continue };
                let inode = descriptor.stat.inode as u32;
                let id = ofds.get(&(table.pid, descriptor.fd)).ok_or(Error::Gone(table.pid))?;
                if sockets.ids.insert(inode, *id).is_some() || !is_unix(protocol.as_deref()) {
                    continue;
                }
                sockets.holders.insert(inode, table.pid);
                if diag.is_none() {
                    diag = Some(Diag::open()?);
                }
                let Some(found) = diag.as_ref().map(|diag| diag.unix(inode)).transpose()?.flatten() else { continue };
                wanted.extend([inode].into_iter().chain(found.peer).chain(found.waiting.iter().copied()));
                sockets.unix.insert(inode, found);
            }
        }
        let inside: Vec<Pid> = tables.iter().map(|table| table.pid).collect();
        sockets.outside = outside_holders(&inside, &wanted);
        Ok(sockets)
    }

    /// The entry of one socket, and our own record with it. What the user allows to be lost is noted in the images.
    pub fn record(&self, images: &mut Images, found: &Description<'_>) -> Result<pb::FileEntry> {
        let FileKind::Socket { protocol } = &found.descriptor.kind else {
            return Err(Error::unexpected("a socket", found.descriptor.to_string()));
        };
        let protocol = protocol.as_deref().unwrap_or_default();
        match protocol {
            _ if is_unix(Some(protocol)) => unix::record(self, images, found),
            "NETLINK" => netlink::record(self, images, found),
            _ => inet::record(self, images, found),
        }
    }

    /// The type of a socket and its peer's inode, where each is the other's peer: nobody else sends to it.
    fn kind_with_one_peer(&self, inode: u32) -> Option<(u32, u32)> {
        let unix = self.unix.get(&inode)?;
        let peer = unix.peer.filter(|peer| self.unix.get(peer).is_some_and(|other| other.peer == Some(inode)))?;
        Some((unix.kind, peer))
    }

    fn dumps(&self) -> bool {
        self.mode == SurveyMode::Dump
    }

    /// Refuses, or notes a loss that the user has allowed with a flag.
    fn lose(&self, images: &mut Images, found: &Description<'_>, policy: &LetGo, text: &str, flag: &str) -> Result<()> {
        if self.dumps() && !policy.covers(&self.chosen, found.descriptor) {
            let remedy =
                format!("end the program that uses it, or {}", outside::offer(flag, found.table, found.descriptor));
            return Err(found.refuse(text, &remedy));
        }
        let loss = outside::loss(found.table, found.descriptor, text);
        images.own.get_or_insert_default().losses.push(loss);
        Ok(())
    }
}

/// Whether the kernel's name of a protocol is that of Unix sockets.
pub fn is_unix(protocol: Option<&str>) -> bool {
    matches!(protocol, Some("UNIX" | "UNIX-STREAM"))
}

/// What kind of description CRIU calls a socket of this protocol.
pub fn type_of(protocol: Option<&str>) -> pb::FdTypes {
    match protocol {
        Some("NETLINK") => pb::FdTypes::Netlinksk,
        protocol if is_unix(protocol) => pb::FdTypes::Unixsk,
        _ => pb::FdTypes::Inetsk,
    }
}

/// What poll(2) tells of a socket at once.
fn events(copy: BorrowedFd<'_>) -> std::result::Result<PollFlags, Errno> {
    let mut slots = [PollFd::new(copy, PollFlags::POLLIN)];
    poll(&mut slots, PollTimeout::ZERO)?;
    Ok(slots[0].revents().unwrap_or(PollFlags::empty()))
}

/// The inode of a socket, which the kernel keeps in 32 bits.
fn inode(found: &Description<'_>) -> u32 {
    found.descriptor.stat.inode as u32
}

/// Whether sockets of this protocol are carried, connections apart.
pub fn is_carried(protocol: Option<&str>) -> bool {
    is_unix(protocol) || matches!(protocol, Some("NETLINK" | "TCP" | "TCPv6" | "UDP" | "UDPv6"))
}

/// Which sockets processes outside the tree have open, by inode. One that cannot be looked into counts as not having it.
fn outside_holders(inside: &[Pid], wanted: &BTreeSet<u32>) -> BTreeMap<u32, Pid> {
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return found;
    }
    let us = Pid(std::process::id() as i32);
    for pid in crate::procfs::tree::all().unwrap_or_default() {
        if inside.contains(&pid) || pid == us {
            continue;
        }
        for path in crate::procfs::fdinfo::links(pid) {
            let Ok(link) = std::fs::read_link(path) else { continue };
            let number = link.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = number.filter(|inode| wanted.contains(inode)) {
                found.entry(inode).or_insert(pid);
            }
        }
    }
    found
}
