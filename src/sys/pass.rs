//! Messages with descriptors over unix sockets. unix(7), SCM_RIGHTS.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The most descriptors that one message carries here.
pub const MOST: usize = 4;

/// Sends bytes (at least one) and copies of descriptors. EPIPE where the other side is gone, without a signal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Receives bytes and descriptors (close-on-exec), waiting for them; 0 bytes where the other side is gone.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut control = cmsg_space!([RawFd; MOST]);
    loop {
        let mut parts = [IoSliceMut::new(bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let rights = message.cmsgs()?.filter_map(|one| match one {
            ControlMessageOwned::ScmRights(numbers) => Some(numbers),
            _ => None,
        });
        // SAFETY: the kernel has just made these descriptors for us; nobody else knows their numbers.
        let fds = rights.flatten().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
        return Ok((message.bytes, fds));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_and_descriptors_arrive_and_the_end_is_told() {
        let (one, other) = UnixStream::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        send(one.as_fd(), b"hello", &[writer.as_fd()]).unwrap();
        let mut bytes = [0; 16];
        let (count, fds) = receive(other.as_fd(), &mut bytes).unwrap();
        assert_eq!((&bytes[..count], fds.len()), (&b"hello"[..], 1));
        nix::unistd::write(&fds[0], b"x").unwrap();
        assert_eq!(nix::unistd::read(&reader, &mut bytes), Ok(1));
        drop(one);
        assert_eq!(receive(other.as_fd(), &mut bytes).unwrap().0, 0);
        assert_eq!(send(other.as_fd(), b"x", &[]), Err(Errno::EPIPE));
    }
}
