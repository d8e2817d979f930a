//! Options of sockets: every one that getsockopt(2) tells and setsockopt(2) takes back in the same form, and what is refused instead.
//!
//! They are asked through the controller's own copy. At a restore only those are set that the new socket does not have by itself.

mod table;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::SOL_SOCKET;

use crate::error::{Errno, Error, Result};
use crate::files::dump::Description;
use crate::image::pb;
use crate::sys::socket;

use super::Sockets;
use table::{Rule, SO_TIMESTAMPING_NEW, TIME};

pub use table::Family;

const SO_BUF_LOCK: i32 = 72;
/// In SO_TIMESTAMPING: each thing sent has a number, from a counter that nothing tells.
const SOF_TIMESTAMPING_OPT_ID: u8 = 1 << 7;

/// What CRIU has fields for, and all options that the kernel tells, in the order in which they are to be set. Refused for a dump: what cannot be
/// carried.
pub fn record(
    sockets: &Sockets<'_>,
    found: &Description<'_>,
    family: Family,
) -> Result<(pb::SkOptsEntry, Vec<pb::PtyagentSockopt>)> {
    let refuse = |what: &str| match sockets.dumps() {
        true => Err(found.refuse(format!("a socket with {what}"), "end that program, then dump again")),
        false => Ok(()),
    };
    let mut entry = entry(found.copy);
    match socket::filter(found.copy) {
        Ok(filter) => entry.so_filter = filter,
        // SO_GET_FILTER shows classic filters alone.
        Err(_) => refuse("a BPF program (SO_ATTACH_BPF)")?,
    }
    let new = new_like(found.copy);
    let mut options = Vec::new();
    for option in family.tables().iter().copied().flatten() {
        let (level, name) = (option.level, option.name);
        let Ok(value) = socket::option(found.copy, level, name, option.room) else { continue };
        let unasked = new.as_ref().and_then(|new| socket::option(new.as_fd(), level, name, option.room).ok());
        let unchanged = unasked.is_some_and(|unasked| unasked == value);
        match option.rule {
            Rule::Refused(what) if !unchanged => refuse(what)?,
            Rule::Refused(_) => continue,
            Rule::Kept => {}
        }
        let timestamps = level == SOL_SOCKET && [libc::SO_TIMESTAMPING, SO_TIMESTAMPING_NEW].contains(&name);
        if timestamps && value.first().is_some_and(|flags| flags & SOF_TIMESTAMPING_OPT_ID != 0) {
            refuse("numbered timestamps (SOF_TIMESTAMPING_OPT_ID)")?;
        }
        let unchanged = unchanged.then_some(true);
        options.push(pb::PtyagentSockopt { level: Some(level), name: Some(name), value: Some(value), unchanged });
    }
    Ok((entry, options))
}

/// A new socket of the same kind; none where this machine has no such thing (any more).
fn new_like(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    let number = |name| socket::number(fd, SOL_SOCKET, name).ok();
    let (domain, kind, protocol) = (number(libc::SO_DOMAIN)?, number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?);
    socket::socket(domain, kind, protocol).ok()
}

/// Sets what differs.
pub fn restore(fd: BorrowedFd<'_>, own: &pb::PtyagentSocket, entry: &pb::SkOptsEntry) -> Result<()> {
    // A buffer's size moves TCP_WINDOW_CLAMP (Linux 7), and SO_LOCK_FILTER is among the options, too.
    buffers(fd, entry)?;
    if !entry.so_filter.is_empty() {
        socket::attach_filter(fd, &entry.so_filter)
            .map_err(|errno| Error::failed(format!("the filter of a socket cannot be attached: {}", errno.desc())))?;
    }
    for option in &own.options {
        let (level, name, value) = (option.level(), option.name(), option.value());
        match socket::option(fd, level, name, value.len().max(4)) {
            Ok(now) if now == value => continue,
            // A kernel that does not have it does what the other did without being asked.
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) if option.unchanged() => continue,
            _ => {}
        }
        socket::set_option(fd, level, name, value).map_err(|errno| {
            Error::failed(format!("option {name} of level {level} of a socket cannot be set: {}", errno.desc()))
        })?;
    }
    if let Some(device) = entry.so_bound_dev.as_ref().filter(|device| !device.is_empty()) {
        socket::set_option(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, device.as_bytes())
            .map_err(|errno| Error::failed(format!("a socket cannot be bound to device {device}: {}", errno.desc())))?;
    }
    Ok(())
}

/// The kernel tells twice what it was given. A size that nobody chose is the kernel's to change, which SO_BUF_LOCK tells (Linux 5.14).
fn buffers(fd: BorrowedFd<'_>, entry: &pb::SkOptsEntry) -> Result<()> {
    let sizes = [
        (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, entry.so_sndbuf),
        (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, entry.so_rcvbuf),
    ];
    for (name, force, wanted) in sizes {
        if socket::number(fd, SOL_SOCKET, name).is_ok_and(|now| now as u32 == wanted) {
            continue;
        }
        let half = (wanted / 2).to_ne_bytes();
        socket::set_option(fd, SOL_SOCKET, force, &half)
            .or_else(|_| socket::set_option(fd, SOL_SOCKET, name, &half))
            .map_err(|errno| Error::failed(format!("a socket's buffer cannot be sized: {}", errno.desc())))?;
    }
    if let Some(lock) = entry.so_buf_lock {
        if socket::number(fd, SOL_SOCKET, SO_BUF_LOCK).is_ok_and(|now| now as u32 != lock) {
            _ = socket::set_option(fd, SOL_SOCKET, SO_BUF_LOCK, &lock.to_ne_bytes());
        }
    }
    Ok(())
}

/// The part that CRIU has fields for, without its filter.
fn entry(fd: BorrowedFd<'_>) -> pb::SkOptsEntry {
    let number = |name| socket::number(fd, SOL_SOCKET, name).unwrap_or(0) as u32;
    let flag = |name| Some(number(name) != 0);
    let time = |name| {
        let value = socket::option(fd, SOL_SOCKET, name, TIME).unwrap_or_default();
        let word = |at: usize| value.get(at..at + 8).and_then(|v| v.try_into().ok()).map_or(0, u64::from_ne_bytes);
        (word(0), word(8))
    };
    let (send, receive) = (time(libc::SO_SNDTIMEO), time(libc::SO_RCVTIMEO));
    let device = socket::option(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, 16).unwrap_or_default();
    let device: Vec<u8> = device.into_iter().take_while(|byte| *byte != 0).collect();
    pb::SkOptsEntry {
        so_sndbuf: number(libc::SO_SNDBUF),
        so_rcvbuf: number(libc::SO_RCVBUF),
        so_snd_tmo_sec: send.0,
        so_snd_tmo_usec: send.1,
        so_rcv_tmo_sec: receive.0,
        so_rcv_tmo_usec: receive.1,
        reuseaddr: flag(libc::SO_REUSEADDR),
        so_priority: Some(number(libc::SO_PRIORITY)),
        so_rcvlowat: Some(number(libc::SO_RCVLOWAT)),
        so_mark: Some(number(libc::SO_MARK)),
        so_passcred: flag(libc::SO_PASSCRED),
        so_passsec: flag(libc::SO_PASSSEC),
        so_dontroute: flag(libc::SO_DONTROUTE),
        so_no_check: flag(libc::SO_NO_CHECK),
        so_bound_dev: (!device.is_empty()).then(|| String::from_utf8_lossy(&device).into_owned()),
        so_reuseport: flag(libc::SO_REUSEPORT),
        so_broadcast: flag(libc::SO_BROADCAST),
        so_keepalive: flag(libc::SO_KEEPALIVE),
        so_oobinline: Some(number(libc::SO_OOBINLINE)),
        so_buf_lock: socket::number(fd, SOL_SOCKET, SO_BUF_LOCK).ok().map(|lock| lock as u32),
        ..Default::default()
    }
}
