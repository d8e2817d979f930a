//! Sockets: Unix sockets with their queues, Internet sockets without connections, idle netlink sockets.
//!
//! Each is asked through the controller's own copy (pidfd_getfd) and through sock_diag; nothing is taken out of a queue. A restore makes them
//! by [`SocketStep`](crate::plan::sockets::SocketStep)s before there is any process, so that all recorded process ids are free for the
//! calls that leave one in SO_PEERCRED or SCM_CREDENTIALS.

pub mod diag;
pub mod flight;
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
use crate::ids::{Pid, RemoteFd};
use crate::image::{Images, pb};
use crate::procfs::Stat;
use crate::task::survey::SurveyMode;

use diag::{Diag, Unix};

/// Which connections the user lets go of: they come back closed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LetGo {
    #[default]
    None,
    All,
    Only(Vec<Chosen>),
}

/// One socket, as a user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// As `ls -l /proc/PID/fd` shows it.
    Inode(u32),
    Descriptor(Pid, RemoteFd),
}

/// Connections that lead out of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Connections {
    /// Unix sockets whose peer is outside.
    pub unix: LetGo,
    /// TCP connections.
    pub tcp: LetGo,
}

impl LetGo {
    /// The inodes of the chosen ones. Fails for one that is no descriptor of the tree.
    fn inodes(&self, tables: &[Table<'_>]) -> Result<BTreeSet<u32>> {
        let LetGo::Only(chosen) = self else { return Ok(BTreeSet::new()) };
        let all = || tables.iter().flat_map(|table| table.descriptors.iter().map(move |one| (table.pid, one)));
        let inode_of = |chosen: &Chosen| {
            let found = all().find(|(pid, one)| match chosen {
                Chosen::Inode(inode) => one.stat.inode as u32 == *inode,
                Chosen::Descriptor(of, fd) => (pid, one.fd) == (of, *fd),
            });
            let socket = found.filter(|(_, one)| matches!(one.kind, FileKind::Socket { .. }));
            socket.map(|(_, one)| one.stat.inode as u32).ok_or_else(|| {
                let what = match chosen {
                    Chosen::Inode(inode) => format!("no process of the session has socket {inode}"),
                    Chosen::Descriptor(pid, fd) => {
                        format!("descriptor {fd} of process {pid} is no socket of the session")
                    }
                };
                Error::failed(format!("{what}; leave it out, then dump again"))
            })
        };
        chosen.iter().map(inode_of).collect()
    }
}

/// The sockets of a tree.
#[derive(Debug)]
pub struct Sockets<'a> {
    connections: &'a Connections,
    /// Those that the user names, by inode.
    chosen: BTreeSet<u32>,
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
    pub fn find(
        tables: &[Table<'_>],
        ofds: &OfdTable,
        mode: SurveyMode,
        connections: &'a Connections,
    ) -> Result<Sockets<'a>> {
        let chosen = connections.unix.inodes(tables)?.into_iter().chain(connections.tcp.inodes(tables)?).collect();
        let (unix, ids, holders, outside) = Default::default();
        let mut sockets = Sockets { connections, chosen, mode, unix, ids, holders, outside };
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
        let allowed = match policy {
            LetGo::None => false,
            LetGo::All => true,
            LetGo::Only(_) => self.chosen.contains(&inode(found)),
        };
        let (pid, fd) = (found.table.pid, found.descriptor.fd);
        if self.dumps() && !allowed {
            let one = if found.table.is_in_flight() { inode(found).to_string() } else { format!("{pid}:{fd}") };
            let remedy = format!(
                "end the program that uses it, or dump with {flag}={one} ({flag} for all such), which brings it back closed"
            );
            return Err(found.refuse(text, &remedy));
        }
        let (pid, fd) = (Some(pid.0 as u32), Some(fd.0));
        let text = Some(format!("{text}: it comes back closed"));
        images.own.get_or_insert_default().losses.push(pb::PtyagentLoss { pid, fd, text });
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

/// A process as a refusal names it: its number and its program's name.
fn called(pid: Pid) -> String {
    match Stat::read(pid) {
        Ok(stat) => format!("process {pid} ({})", stat.comm_text()),
        Err(_) => format!("process {pid}"),
    }
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
        let Ok(directory) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in directory.flatten() {
            let Ok(link) = std::fs::read_link(entry.path()) else { continue };
            let number = link.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = number.filter(|inode| wanted.contains(inode)) {
                found.entry(inode).or_insert(pid);
            }
        }
    }
    found
}
