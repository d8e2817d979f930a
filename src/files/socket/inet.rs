//! TCP and UDP sockets, IPv4 and IPv6: those that listen, those that are bound, those that are neither.
//!
//! A TCP connection has its other end in another machine's memory: it is refused, or comes back reset where the user lets go of it, so that the
//! program finds what a broken network leaves. A connected UDP socket only remembers an address, and is carried.
//!
//! Refused: unread datagrams, one that is not sent yet, errors that nobody has been told. Nothing tells that a UDP socket is shut down for sending
//! alone. A datagram could be sent again in its sender's name through a raw socket alone; it would have another time and come in by the loopback
//! interface, through whatever filters are there by then, and to all others that its address leads to.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;

use crate::error::{Context, Error, Result, Subject};
use crate::image::{Images, pb};
use crate::sys::socket;

use super::groups;
use super::options::{self, Family};
use super::unix::{CLOSE, ESTABLISHED, LISTEN};
use super::{Sockets, inode};
use crate::files::dump::Description;

const TCP_CLOSE: &str = "--tcp-close";
const SO_MEMINFO: i32 = 55;
/// Where struct tcp_info has tcpi_unacked and tcpi_sacked: of a listening socket, how many wait and may wait.
const WAITING: usize = 24;
const BACKLOG: usize = 28;

/// The entry of a socket; our own record of it, and what was lost, go into the images.
pub fn record(sockets: &Sockets<'_>, images: &mut Images, found: &Description<'_>) -> Result<pb::FileEntry> {
    let copy = found.copy;
    let subject = || Subject::Fd(found.table.pid, found.descriptor.fd.0);
    let name = socket::name(copy).during("asking for a socket's name", subject())?;
    let number = |name| socket::number(copy, libc::SOL_SOCKET, name).unwrap_or(0) as u32;
    let (family, kind) = (number(libc::SO_DOMAIN), number(libc::SO_TYPE));
    let tcp = kind == libc::SOCK_STREAM as u32;
    let v6 = family == libc::AF_INET6 as u32;
    let info = socket::option(copy, libc::IPPROTO_TCP, libc::TCP_INFO, 232).unwrap_or_default();
    let field = |at: usize| info.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let mut peer = socket::peer_name(copy).ok();
    let state = match (tcp, &peer) {
        (true, _) => info.first().copied().unwrap_or(0).into(),
        (false, Some(_)) => ESTABLISHED,
        (false, None) => CLOSE,
    };
    let events = super::events(copy).during("asking a socket for its events", subject())?;
    // In this state, only a connection that was there has an end or an error.
    let connection = state != CLOSE || events.intersects(PollFlags::POLLIN | PollFlags::POLLERR);
    let mut closed = false;
    if tcp && state == LISTEN {
        if field(WAITING) > 0 {
            let text = format!("a TCP socket in which {} connections wait to be accepted", field(WAITING));
            sockets.lose(images, found, &sockets.let_go.tcp, &text, TCP_CLOSE)?;
        }
    } else if tcp && connection {
        let to = peer.as_deref().and_then(text).map_or_else(|| " that has ended".into(), |to| format!(" with {to}"));
        let text = format!("a TCP connection{to}");
        sockets.lose(images, found, &sockets.let_go.tcp, &text, TCP_CLOSE)?;
        closed = true;
        peer = None;
    } else if !tcp && sockets.dumps() {
        refuse_busy(found, events)?;
    }
    let table = match (tcp, v6) {
        (true, false) => Family::Tcp4,
        (true, true) => Family::Tcp6,
        (false, false) => Family::Udp4,
        (false, true) => Family::Udp6,
    };
    let groups = if tcp || !sockets.dumps() { Vec::new() } else { groups::record(found)? };
    let (opts, options) = options::record(sockets, found, table)?;
    images.own.get_or_insert_default().sockets.push(pb::PtyagentSocket {
        id: Some(found.id.0),
        name: (!closed).then(|| name.clone()),
        peer_name: peer.clone(),
        peer_closed: closed.then_some(true),
        options,
        groups,
        unread: crate::sys::tty::unread(copy).ok().filter(|bytes| *bytes > 0).map(|bytes| bytes as u32),
        ..Default::default()
    });
    let entry = pb::InetSkEntry {
        id: found.id.0,
        ino: inode(found),
        family,
        r#type: kind,
        proto: number(libc::SO_PROTOCOL),
        state: if closed { CLOSE } else { state },
        src_port: port(&name),
        dst_port: peer.as_deref().map_or(0, port),
        flags: found.flags,
        backlog: if state == LISTEN { field(BACKLOG) } else { 0 },
        src_addr: words(&name),
        dst_addr: peer.as_deref().map_or_else(Vec::new, words),
        fown: found.fown,
        opts,
        shutdown: if tcp { None } else { shut_down(copy, events) },
        v6only: v6.then(|| socket::number(copy, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) == Ok(1)),
        ..Default::default()
    };
    Ok(pb::FileEntry { r#type: pb::FdTypes::Inetsk as i32, id: found.id.0, isk: Some(entry), ..Default::default() })
}

/// Refuses what nobody has read or sent yet.
fn refuse_busy(found: &Description<'_>, events: PollFlags) -> Result<()> {
    let refuse = |kind: &str, remedy: &str| Err(found.refuse(kind, &format!("{remedy}, then dump again")));
    if has_unread(found.copy) {
        return refuse("a UDP socket with unread datagrams", "let the program read them");
    }
    if events.contains(PollFlags::POLLERR) {
        return refuse("a UDP socket with an error that nobody has been told", "let the program read it");
    }
    if crate::sys::tty::unsent(found.copy).is_ok_and(|unsent| unsent > 0) {
        return refuse("a UDP socket with a datagram that is not sent yet (UDP_CORK, MSG_MORE)", "let it be sent");
    }
    Ok(())
}

/// The memory that unread datagrams take, which an empty one takes too: SK_MEMINFO_RMEM_ALLOC.
fn has_unread(copy: BorrowedFd<'_>) -> bool {
    let memory = socket::option(copy, libc::SOL_SOCKET, SO_MEMINFO, 36).unwrap_or_default();
    memory.iter().take(4).any(|byte| *byte != 0)
}

/// How far a UDP socket is shut down, as far as can be seen: RCV_SHUTDOWN 1, with SEND_SHUTDOWN 3.
fn shut_down(copy: BorrowedFd<'_>, events: PollFlags) -> Option<i32> {
    let receive = events.contains(PollFlags::POLLIN) && !has_unread(copy);
    receive.then(|| if events.contains(PollFlags::POLLHUP) { 3 } else { 1 })
}

/// The address of a struct sockaddr_in or sockaddr_in6.
fn parsed(address: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(address.get(2..4)?.try_into().ok()?);
    let v4 = u16::from_ne_bytes(address.get(..2)?.try_into().ok()?) == libc::AF_INET as u16;
    Some(if v4 {
        let ip: [u8; 4] = address.get(4..8)?.try_into().ok()?;
        SocketAddr::new(ip.into(), port)
    } else {
        let ip: [u8; 16] = address.get(8..24)?.try_into().ok()?;
        SocketAddr::new(ip.into(), port)
    })
}

/// An address for a person.
pub fn text(address: &[u8]) -> Option<String> {
    parsed(address).map(|address| address.to_string())
}

fn port(address: &[u8]) -> u32 {
    parsed(address).map_or(0, |address| address.port().into())
}

fn words(address: &[u8]) -> Vec<u32> {
    let octets = match parsed(address) {
        Some(SocketAddr::V4(address)) => address.ip().octets().to_vec(),
        Some(SocketAddr::V6(address)) => address.ip().octets().to_vec(),
        None => Vec::new(),
    };
    octets.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes).collect()
}

/// Makes a socket with its name, its peer's name, and its options, which may decide whether a name can be taken.
pub fn open(entry: &pb::InetSkEntry, own: &pb::PtyagentSocket) -> Result<OwnedFd> {
    if own.peer_closed == Some(true) {
        return reset(entry.family);
    }
    let (family, kind, protocol) = (entry.family as i32, entry.r#type as i32, entry.proto as i32);
    let made = socket::socket(family, kind, protocol).during("making a socket", Subject::None)?;
    options::restore(made.as_fd(), own, &entry.opts)?;
    // IP_BIND_ADDRESS_NO_PORT: an address alone.
    let bound = entry.src_port != 0 || entry.src_addr.iter().any(|word| *word != 0);
    if let Some(name) = own.name.clone().filter(|_| bound) {
        let name = bindable(name, entry, own);
        socket::bind(made.as_fd(), &name).map_err(|errno| {
            let name = text(&name).unwrap_or_default();
            let remedy = "end the program that has it, then restore again";
            Error::failed(format!("the address {name} of a socket cannot be taken: {}; {remedy}", errno.desc()))
        })?;
    }
    groups::restore(made.as_fd(), own)?;
    if entry.state == LISTEN && entry.r#type == libc::SOCK_STREAM as u32 {
        socket::listen(made.as_fd(), entry.backlog as i32).during("listening", Subject::None)?;
    }
    if let Some(peer) = &own.peer_name {
        socket::connect(made.as_fd(), peer).during("connecting a UDP socket", Subject::None)?;
    }
    Ok(made)
}

/// An IPv6 socket that is bound to an address talks IPv6 alone; one that talks both got its address when it was connected, and gets it so again.
fn bindable(mut name: Vec<u8>, entry: &pb::InetSkEntry, own: &pb::PtyagentSocket) -> Vec<u8> {
    if own.peer_name.is_some() && entry.v6only == Some(false) {
        name.iter_mut().skip(8).take(16).for_each(|byte| *byte = 0);
    }
    name
}

/// A TCP socket whose connection was reset by the other side.
fn reset(family: u32) -> Result<OwnedFd> {
    let during = |result, operation| -> Result<()> { Context::during(result, operation, Subject::None) };
    let stream = || socket::socket(family as i32, libc::SOCK_STREAM, 0).during("making a socket", Subject::None);
    let (listener, client) = (stream()?, stream()?);
    let loopback: SocketAddr = match family as i32 {
        libc::AF_INET6 => (Ipv6Addr::LOCALHOST, 0).into(),
        _ => (Ipv4Addr::LOCALHOST, 0).into(),
    };
    during(socket::bind(listener.as_fd(), &bytes(&loopback)), "binding a socket")?;
    during(socket::listen(listener.as_fd(), 1), "listening")?;
    let name = socket::name(listener.as_fd()).during("asking for a socket's name", Subject::None)?;
    during(socket::connect(client.as_fd(), &name), "connecting a socket")?;
    let accepted = socket::accept(listener.as_fd()).during("accepting a connection", Subject::None)?;
    // Closed without lingering, it resets.
    let linger: [u8; 8] = [1i32, 0].map(i32::to_ne_bytes).concat().try_into().unwrap_or_default();
    during(socket::set_option(accepted.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger), "resetting a connection")?;
    Ok(client)
}

fn bytes(address: &SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(address) => {
            [&(libc::AF_INET as u16).to_ne_bytes()[..], &port, &address.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(address) => {
            [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &port, &[0; 4], &address.ip().octets(), &[0; 4]].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were() {
        for address in ["127.0.0.1:8080", "[::1]:9", "[fe80::1]:65535"] {
            let parsed_back = parsed(&bytes(&address.parse().unwrap())).unwrap();
            assert_eq!(parsed_back.to_string(), address);
        }
    }

    #[test]
    fn a_reset_connection_says_so_once() {
        use std::io::{ErrorKind, Read, Write};
        let mut stream = std::net::TcpStream::from(reset(libc::AF_INET as u32).unwrap());
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
