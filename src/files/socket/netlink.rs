//! Netlink sockets that wait for nothing: no unread message, no dump in its middle.

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::PollFlags;

use crate::error::{Context, Error, Result, Subject};
use crate::image::{Images, pb};
use crate::sys::socket;

use super::options::{self, Family};
use super::unix::CLOSE;
use super::{Sockets, inode};
use crate::files::dump::Description;

/// The entry of a socket; our own record of it goes into the images.
pub fn record(sockets: &Sockets<'_>, images: &mut Images, found: &Description<'_>) -> Result<pb::FileEntry> {
    let copy = found.copy;
    let failed = super::events(copy).is_ok_and(|events| events.contains(PollFlags::POLLERR));
    if sockets.dumps() && (failed || is_busy(inode(found))) {
        let kind = "a netlink socket with unread messages, an unread error or a request in its middle";
        return Err(found.refuse(kind, "let the program read them, then dump again"));
    }
    let subject = || Subject::Fd(found.table.pid, found.descriptor.fd.0);
    let name = socket::name(copy).during("asking for a socket's name", subject())?;
    let peer = socket::peer_name(copy).ok();
    let groups = socket::option(copy, libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, 512).unwrap_or_default();
    let protocol = socket::number(copy, libc::SOL_SOCKET, libc::SO_PROTOCOL).unwrap_or(0) as u32;
    let (opts, options) = options::record(sockets, found, Family::Netlink)?;
    let entry = pb::NetlinkSkEntry {
        id: found.id.0,
        ino: inode(found),
        protocol,
        state: CLOSE,
        flags: found.flags,
        portid: word(&name, 4),
        groups: groups.chunks_exact(4).map(|bytes| word(bytes, 0)).collect(),
        dst_portid: peer.as_deref().map_or(0, |peer| word(peer, 4)),
        dst_group: peer.as_deref().map_or(0, |peer| word(peer, 8)),
        fown: found.fown,
        opts,
        ns_id: None,
    };
    images.own.get_or_insert_default().sockets.push(pb::PtyagentSocket {
        id: Some(found.id.0),
        name: Some(name),
        peer_name: peer,
        options,
        ..Default::default()
    });
    Ok(pb::FileEntry { r#type: pb::FdTypes::Netlinksk as i32, id: found.id.0, nlsk: Some(entry), ..Default::default() })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// /proc/net/netlink: address, protocol, port, groups, Rmem, Wmem, Dump, locks, drops, inode. A socket without a port is not in it, and can have
/// sent and received nothing.
fn is_busy(inode: u32) -> bool {
    let text = std::fs::read_to_string("/proc/net/netlink").unwrap_or_default();
    let own = inode.to_string();
    let line = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut mine = line.filter(|fields| fields.get(9) == Some(&own.as_str()));
    mine.next().is_some_and(|fields| fields.get(4) != Some(&"0") || fields.get(6) != Some(&"0"))
}

/// Makes a socket with its port and its groups.
pub fn open(entry: &pb::NetlinkSkEntry, own: &pb::PtyagentSocket) -> Result<OwnedFd> {
    let made = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, entry.protocol as i32)
        .during("making a netlink socket", Subject::None)?;
    if entry.portid != 0 {
        // The groups are joined one by one: bind(2) has a bit for the first 32 alone.
        let address = [&(libc::AF_NETLINK as u32).to_ne_bytes()[..], &entry.portid.to_ne_bytes(), &[0; 4]].concat();
        socket::bind(made.as_fd(), &address).map_err(|errno| {
            let remedy = "end the program that has it, then restore again";
            let port = entry.portid;
            Error::failed(format!("port {port} of a netlink socket cannot be taken: {}; {remedy}", errno.desc()))
        })?;
    }
    for (at, bits) in entry.groups.iter().enumerate() {
        for bit in (0..32).filter(|bit| bits >> bit & 1 != 0) {
            let group = (at as u32 * 32 + bit + 1).to_ne_bytes();
            socket::set_option(made.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &group)
                .during("joining a netlink group", Subject::None)?;
        }
    }
    if entry.dst_portid != 0 || entry.dst_group != 0 {
        if let Some(peer) = &own.peer_name {
            socket::connect(made.as_fd(), peer).during("connecting a netlink socket", Subject::None)?;
        }
    }
    Ok(made)
}
