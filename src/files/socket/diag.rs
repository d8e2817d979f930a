//! What the kernel tells of a Unix socket by its inode: sock_diag(7), net/unix/diag.c. Linux 3.3.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::error::{Context, Error, Result, Subject};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// UDIAG_SHOW_: name, file, peer, waiting connections, queue lengths.
const SHOW: u32 = 1 | 2 | 4 | 8 | 16;

/// One socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unix {
    /// SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET.
    pub kind: u32,
    /// TCP_ESTABLISHED 1, TCP_CLOSE 7, TCP_LISTEN 10.
    pub state: u32,
    /// The bound name without family and terminator; an abstract one begins with NUL; absent where it is not bound.
    pub name: Option<Vec<u8>>,
    /// Inode and device of the file that it is bound to.
    pub file: Option<(u32, u32)>,
    /// The peer's inode; `Some(0)` where the peer is closed or has not been accepted yet.
    pub peer: Option<u32>,
    /// Of a listening socket: inodes of the clients that wait, oldest first; 0 for one that has closed.
    pub waiting: Vec<u32>,
    /// RCV_SHUTDOWN 1, SEND_SHUTDOWN 2.
    pub shutdown: u32,
    /// Of a listening socket: the length that its queue may have.
    pub backlog: u32,
}

/// A conversation with the kernel.
#[derive(Debug)]
pub struct Diag {
    socket: OwnedFd,
}

impl Diag {
    /// Fails where the kernel has no sock_diag.
    pub fn open() -> Result<Diag> {
        let protocol = SockProtocol::NetlinkSockDiag;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
        Ok(Diag { socket: socket.during("asking for sockets (NETLINK_SOCK_DIAG)", Subject::None)? })
    }

    /// The socket with this inode, or `None` where our network namespace has none.
    pub fn unix(&self, inode: u32) -> Result<Option<Unix>> {
        let mut request = Vec::with_capacity(40);
        request.extend(40u32.to_ne_bytes());
        request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
        for word in [u32::MAX, inode, SHOW, u32::MAX, u32::MAX] {
            request.extend(word.to_ne_bytes());
        }
        let operation = "asking for a Unix socket (sock_diag)";
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty()).during(operation, Subject::None)?;
        let mut reply = vec![0; 1 << 16];
        let len = recv(self.socket.as_raw_fd(), &mut reply, MsgFlags::empty()).during(operation, Subject::None)?;
        reply.truncate(len);
        parse(&reply)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// One reply: a header of 16 bytes, the fixed part of 16, then attributes.
fn parse(reply: &[u8]) -> Result<Option<Unix>> {
    let unexpected = || Error::unexpected("an answer of sock_diag", format!("{} bytes", reply.len()));
    match half(reply, 4).ok_or_else(unexpected)? {
        NLMSG_ERROR => match word(reply, 16).map(|errno| errno as i32) {
            Some(errno) if errno == -libc::ENOENT => Ok(None),
            Some(errno) => {
                let errno = crate::error::Errno::from_raw(-errno);
                Err(Error::sys("asking for a Unix socket (sock_diag)", Subject::None, errno))
            }
            None => Err(unexpected()),
        },
        SOCK_DIAG_BY_FAMILY => {
            let fixed = reply.get(16..32).ok_or_else(unexpected)?;
            let mut socket = Unix { kind: fixed[1].into(), state: fixed[2].into(), ..Unix::default() };
            let mut rest = reply.get(32..).unwrap_or_default();
            while let (Some(len), Some(kind)) = (half(rest, 0), half(rest, 2)) {
                let len = usize::from(len);
                attribute(&mut socket, kind, rest.get(4..len).ok_or_else(unexpected)?);
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
            Ok(Some(socket))
        }
        _ => Err(unexpected()),
    }
}

fn attribute(socket: &mut Unix, kind: u16, value: &[u8]) {
    match kind {
        0 => socket.name = Some(value.to_vec()),
        1 => socket.file = word(value, 0).zip(word(value, 4)),
        2 => socket.peer = word(value, 0),
        3 => socket.waiting = value.chunks_exact(4).filter_map(|inode| word(inode, 0)).collect(),
        4 if socket.state == 10 => socket.backlog = word(value, 4).unwrap_or(0),
        6 => socket.shutdown = value.first().copied().unwrap_or(0).into(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;
    use crate::sys::socket;

    fn inode(fd: impl AsFd) -> u32 {
        nix::sys::stat::fstat(fd).unwrap().st_ino as u32
    }

    #[test]
    fn a_pair_knows_its_peer_and_its_shutdown() {
        let (one, other) = UnixStream::pair().unwrap();
        one.shutdown(std::net::Shutdown::Write).unwrap();
        let diag = Diag::open().unwrap();
        let (one_found, other_found) =
            (diag.unix(inode(&one)).unwrap().unwrap(), diag.unix(inode(&other)).unwrap().unwrap());
        assert_eq!((one_found.state, one_found.peer, one_found.shutdown), (1, Some(inode(&other)), 2));
        assert_eq!((other_found.kind, other_found.shutdown, other_found.name), (1, 1, None));
        let gone = inode(&other);
        drop(other);
        assert_eq!(diag.unix(gone).unwrap(), None);
        assert_eq!(diag.unix(inode(&one)).unwrap().unwrap().peer, Some(0));
    }

    #[test]
    fn a_listener_knows_who_waits() {
        let name = format!("ptyagent-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let clients = [UnixStream::connect_addr(&address).unwrap(), UnixStream::connect_addr(&address).unwrap()];
        let found = Diag::open().unwrap().unix(inode(&listener)).unwrap().unwrap();
        assert_eq!(found.waiting, clients.each_ref().map(inode));
        socket::listen(listener.as_fd(), 7).unwrap();
        let backlog = Diag::open().unwrap().unix(inode(&listener)).unwrap().unwrap().backlog;
        assert_eq!((found.state, backlog), (10, 7));
        assert_eq!(found.name.unwrap(), [b"\0", name.as_bytes()].concat());
    }
}
