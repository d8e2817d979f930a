//! How much a call would still have moved that came back with less than it was asked for, where only a stop can be the reason.

use std::os::fd::{AsFd, OwnedFd};

use crate::files::kind::{Descriptor, FileKind};
use crate::inject::rest::{Left, Through, Transfer};
use crate::sys::process::pidfd_getfd;
use crate::sys::{socket, tty};

/// The process that made the call.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    pub pidfd: &'a OwnedFd,
    pub descriptors: &'a [Descriptor],
    /// It has seccomp filters.
    pub filtered: bool,
}

/// What is left of a call.
///
/// A blocking write to a terminal, a pipe or a stream moves all its bytes, and so do copies between files and reads of what never ends. A read
/// of a terminal that is not canonical waits for VMIN bytes; with VTIME it may end earlier by itself, and is left alone. A read of a
/// stream waits for SO_RCVLOWAT bytes, or with MSG_WAITALL for all. Everything else is free to move less.
pub fn left(caller: &Caller<'_>, transfer: &Transfer) -> Left {
    let found = caller.descriptors.iter().find(|descriptor| descriptor.fd.0 == transfer.call.fd());
    let count = match (transfer.call.nr, found) {
        (libc::SYS_getrandom, _) => transfer.wanted - transfer.moved,
        (_, Some(descriptor)) => count(caller, descriptor, transfer),
        _ => 0,
    };
    let through = match found.map(|descriptor| &descriptor.kind) {
        _ if caller.filtered => Through::Filtered,
        Some(FileKind::Socket { .. }) => Through::Socket,
        _ => Through::File,
    };
    Left { count, through }
}

fn count(caller: &Caller<'_>, descriptor: &Descriptor, transfer: &Transfer) -> u64 {
    let (call, rest) = (&transfer.call, transfer.wanted - transfer.moved);
    let waits = descriptor.info.flags & libc::O_NONBLOCK as u32 == 0 && call.flags() & libc::MSG_DONTWAIT == 0;
    let copy = || pidfd_getfd(caller.pidfd.as_fd(), descriptor.fd).ok();
    let option = |name| copy().and_then(|copy| socket::number(copy.as_fd(), libc::SOL_SOCKET, name).ok());
    let is_stream = || option(libc::SO_TYPE) == Some(libc::SOCK_STREAM);
    let when = |certain: bool| if certain { rest } else { 0 };
    use FileKind::*;
    match (call.nr, &descriptor.kind) {
        (libc::SYS_copy_file_range, _) | (libc::SYS_sendfile, Regular) => rest,
        (libc::SYS_read | libc::SYS_readv, Zero | Random | Urandom) => rest,
        (libc::SYS_read | libc::SYS_readv, kind) if waits && kind.is_tty() => minimum(copy(), transfer),
        (libc::SYS_write | libc::SYS_writev | libc::SYS_sendfile, kind) if kind.is_tty() => when(waits),
        // sendfile(2) to a pipe moves what there is room for (do_sendfile, fs/read_write.c, since Linux 5.12).
        (libc::SYS_write | libc::SYS_writev, Pipe { .. } | Fifo) => when(waits),
        (
            libc::SYS_write | libc::SYS_writev | libc::SYS_sendfile | libc::SYS_sendto | libc::SYS_sendmsg,
            Socket { .. },
        ) => when(waits && is_stream()),
        (libc::SYS_sendmmsg, Socket { .. }) => when(waits && !is_stream()),
        (libc::SYS_recvmmsg, Socket { .. }) => {
            // The kernel keeps the interruption for the next call to tell (do_recvmmsg, net/socket.c), as an error that no program knows.
            _ = option(libc::SO_ERROR);
            when(waits && call.flags() & libc::MSG_WAITFORONE == 0)
        }
        (libc::SYS_read | libc::SYS_readv | libc::SYS_recvfrom | libc::SYS_recvmsg, Socket { .. }) => {
            if !waits || call.flags() & libc::MSG_PEEK != 0 || !is_stream() {
                return 0;
            }
            let low = option(libc::SO_RCVLOWAT).map_or(1, |low| low.max(1) as u64);
            let target = if call.flags() & libc::MSG_WAITALL != 0 { u64::MAX } else { low };
            target.min(transfer.before + transfer.wanted).saturating_sub(transfer.done())
        }
        _ => 0,
    }
}

/// How many bytes a read of a terminal still waits for.
fn minimum(copy: Option<OwnedFd>, transfer: &Transfer) -> u64 {
    const ICANON: u32 = 2;
    let Some(termios) = copy.and_then(|copy| tty::get_termios(copy.as_fd()).ok()) else { return 0 };
    let [min, time] = [libc::VMIN, libc::VTIME].map(|at| u64::from(termios.c_cc[at]));
    match termios.c_lflag & ICANON == 0 && time == 0 {
        true => min.min(transfer.before + transfer.wanted).saturating_sub(transfer.done()),
        false => 0,
    }
}
