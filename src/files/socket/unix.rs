//! Unix sockets as entries: state, name, peer, options, and what waits in them.
//!
//! Refused: a peer outside the tree (unless the user lets go of it), a socket that is shared with a process outside, data sent into a connection that
//! nobody has accepted yet (no descriptor leads to it), a file that cannot be told.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use nix::poll::PollFlags;

use crate::error::{Context, Error, Result, Subject};
use crate::ids::Pid;
use crate::image::{Images, pb};
use crate::procfs::Status;
use crate::sys::socket;

use super::Sockets;
use super::diag::Unix;
use super::name::{self, Name};
use super::options::{self, Family};
use crate::files::dump::Description;
use crate::files::outside::{LetGo, called};

pub const ESTABLISHED: u32 = 1;
pub const CLOSE: u32 = 7;
pub const LISTEN: u32 = 10;
const BOTH_SHUT_DOWN: u32 = 3;
const SO_PEERGROUPS: i32 = 59;
const EXT_UNIX: &str = "--ext-unix";

/// What has become of a socket's peer.
enum Peer {
    None,
    /// Another socket of the tree, by inode.
    Inside(u32),
    Closed,
    /// It waits in the queue of a listening socket of the tree.
    Waits,
}

/// The entry of a socket; our own record of it, and what was lost, go into the images.
pub fn record(sockets: &Sockets<'_>, images: &mut Images, found: &Description<'_>) -> Result<pb::FileEntry> {
    let inode = super::inode(found);
    let unix = sockets.unix.get(&inode).ok_or_else(|| {
        let remedy = "end the program that holds it, then dump again";
        found.refuse("a socket of another network namespace", remedy)
    })?;
    if let Some(holder) = sockets.outside.get(&inode) {
        let text = format!("a socket that {}, outside the tree, has open too", called(*holder));
        sockets.lose(images, found, policy_of(sockets, unix), &text, EXT_UNIX)?;
    }
    refuse_early_data(sockets, found)?;
    let copy = found.copy;
    let peer = peer(sockets, images, found, unix)?;
    let name = socket::name(copy).during("asking for a socket's name", subject(found))?;
    let (opts, options) = options::record(sockets, found, Family::Unix)?;
    let mut own = pb::PtyagentSocket {
        id: Some(found.id.0),
        peercred: peer_credentials(copy),
        peer_closed: matches!(peer, Peer::Closed).then_some(true),
        peer_name: socket::peer_name(copy).ok().filter(|_| matches!(peer, Peer::Closed)),
        reset: failed(copy).then_some(true),
        options,
        waiting: waiting(sockets, images, found, unix)?,
        unread: crate::sys::tty::unread(copy).ok().filter(|bytes| *bytes > 0).map(|bytes| bytes as u32),
        ..Default::default()
    };
    let mut entry = pb::UnixSkEntry {
        id: found.id.0,
        ino: inode,
        r#type: unix.kind,
        state: unix.state,
        flags: found.flags,
        backlog: unix.backlog,
        peer: if let Peer::Inside(peer) = peer { peer } else { 0 },
        fown: found.fown,
        opts,
        name: unix.name.clone().unwrap_or_default(),
        shutdown: (unix.shutdown != 0).then_some(unix.shutdown as i32),
        ..Default::default()
    };
    if let (Name::Path(_), false) = (Name::of(&name), is_accepted(unix)) {
        bound_file(found, &mut entry, &mut own)?;
    }
    own.name = Some(name).filter(|name| Name::of(name) != Name::None);
    images.own.get_or_insert_default().sockets.push(own);
    Ok(pb::FileEntry { r#type: pb::FdTypes::Unixsk as i32, id: found.id.0, usk: Some(entry), ..Default::default() })
}

fn subject(found: &Description<'_>) -> Subject {
    Subject::Fd(found.table.pid, found.descriptor.fd.0)
}

/// A listening socket or a receiver that somebody else has too cannot be let go of: its name would stay taken.
fn policy_of<'a>(sockets: &Sockets<'a>, unix: &Unix) -> &'a LetGo {
    if unix.peer.is_some() { &sockets.let_go.unix } else { &LetGo::None }
}

/// Whether it is an end of a connection, so that its name is that of the listening socket and the file is that one's.
fn is_accepted(unix: &Unix) -> bool {
    unix.kind != libc::SOCK_DGRAM as u32 && unix.state == ESTABLISHED
}

fn peer(sockets: &Sockets<'_>, images: &mut Images, found: &Description<'_>, unix: &Unix) -> Result<Peer> {
    let inode = super::inode(found);
    let outside = match unix.peer {
        None => return Ok(Peer::None),
        Some(0) if sockets.unix.values().any(|listener| listener.waiting.contains(&inode)) => return Ok(Peer::Waits),
        Some(0) if unix.kind == libc::SOCK_DGRAM as u32 || unix.shutdown == BOTH_SHUT_DOWN => return Ok(Peer::Closed),
        Some(0) => "a Unix socket connected to a socket outside the tree that has not accepted it yet".to_owned(),
        Some(peer) if sockets.unix.contains_key(&peer) => return Ok(Peer::Inside(peer)),
        Some(peer) => match sockets.outside.get(&peer) {
            Some(holder) => {
                format!("a Unix socket whose peer{} {} holds, outside the tree", at(found), called(*holder))
            }
            None => format!("a Unix socket whose peer{} is outside the tree", at(found)),
        },
    };
    sockets.lose(images, found, &sockets.let_go.unix, &outside, EXT_UNIX)?;
    Ok(Peer::Closed)
}

/// The name of a socket's peer, where it has one.
fn at(found: &Description<'_>) -> String {
    let address = socket::peer_name(found.copy).unwrap_or_default();
    name::text(&address).map_or_else(String::new, |name| format!(" at {name}"))
}

/// Clients that wait in a listening socket. Each connects again, so it must not have sent anything yet.
fn waiting(
    sockets: &Sockets<'_>,
    images: &mut Images,
    found: &Description<'_>,
    unix: &Unix,
) -> Result<Vec<pb::PtyagentWaiting>> {
    let mut clients = Vec::new();
    for inode in &unix.waiting {
        match sockets.ids.get(inode).filter(|_| *inode != 0) {
            Some(id) => {
                // Nothing tells who called connect(2); whoever has the socket is who has made it, but for rare transfers.
                let peercred = sockets.holders.get(inode).and_then(|pid| credentials_of(*pid));
                clients.push(pb::PtyagentWaiting { id: Some(id.0), peercred });
            }
            None => {
                let who = match sockets.outside.get(inode) {
                    Some(holder) => format!("from {}, outside the tree", called(*holder)),
                    None => "whose client has closed or is outside the tree".to_owned(),
                };
                let text = format!("a listening socket with a connection {who}, waiting to be accepted");
                sockets.lose(images, found, &sockets.let_go.unix, &text, EXT_UNIX)?;
            }
        }
    }
    Ok(clients)
}

/// Refuses a client that waits to be accepted and has already sent something: no descriptor leads to it.
fn refuse_early_data(sockets: &Sockets<'_>, found: &Description<'_>) -> Result<()> {
    let inode = super::inode(found);
    let waits = sockets.unix.values().any(|listener| listener.waiting.contains(&inode));
    let sent = crate::sys::tty::unsent(found.copy).unwrap_or(0);
    if !waits || sent == 0 || !sockets.dumps() {
        return Ok(());
    }
    let kind = "a Unix socket that has sent something into a connection which nobody has accepted yet";
    Err(found.refuse(kind, "let the server accept it, then dump again"))
}

fn credentials_of(pid: Pid) -> Option<pb::PtyagentCredentials> {
    let status = Status::read(pid).ok()?;
    let (uid, gid) = (Some(status.uid.effective), Some(status.gid.effective));
    Some(pb::PtyagentCredentials { pid: Some(pid.0), uid, gid, groups: status.groups })
}

/// SO_PEERCRED with SO_PEERGROUPS; nobody where it was never set.
pub fn peer_credentials(copy: BorrowedFd<'_>) -> Option<pb::PtyagentCredentials> {
    let words = |bytes: Vec<u8>| -> Vec<u32> {
        bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes).collect()
    };
    let known = words(socket::option(copy, libc::SOL_SOCKET, libc::SO_PEERCRED, 12).ok()?);
    let [pid, uid, gid] = known[..] else { return None };
    if pid == 0 && uid == u32::MAX {
        return None;
    }
    let groups = socket::option(copy, libc::SOL_SOCKET, SO_PEERGROUPS, 4096).map(words).unwrap_or_default();
    Some(pb::PtyagentCredentials { pid: Some(pid as i32), uid: Some(uid), gid: Some(gid), groups })
}

/// Whether an error waits to be told, which asking for it (SO_ERROR) would take.
fn failed(copy: BorrowedFd<'_>) -> bool {
    super::events(copy).is_ok_and(|events| events.contains(PollFlags::POLLERR))
}

/// The file that a socket is bound to: where it is now, whose, and whether it has a name at all any more.
fn bound_file(found: &Description<'_>, entry: &mut pb::UnixSkEntry, own: &mut pb::PtyagentSocket) -> Result<()> {
    let handle = match socket::bound_file(found.copy) {
        Ok(handle) => handle,
        Err(errno) => {
            let kind = format!("a Unix socket whose file cannot be told ({})", errno.desc());
            return Err(found.refuse(kind, "run ptyagent with CAP_NET_ADMIN"));
        }
    };
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle.as_fd()));
    let path =
        std::fs::read_link(&link).map_err(|error| Error::io("asking for a socket's file", subject(found), &error))?;
    let node =
        std::fs::metadata(&link).map_err(|error| Error::io("looking at a socket's file", subject(found), &error))?;
    let here = std::fs::symlink_metadata(&path).is_ok_and(|it| (it.dev(), it.ino()) == (node.dev(), node.ino()));
    entry.deleted = (!here).then_some(true);
    entry.file_perms = Some(pb::FilePermsEntry { mode: node.mode(), uid: node.uid(), gid: node.gid() });
    if here {
        own.path = Some(path.as_os_str().as_bytes().to_vec());
    }
    Ok(())
}
