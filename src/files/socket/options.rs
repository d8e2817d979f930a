//! Options of sockets: every one that getsockopt(2) tells and setsockopt(2) takes back in the same form.
//!
//! They are asked through the controller's own copy. At a restore only those are set that the new socket does not have by itself.

use std::os::fd::BorrowedFd;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_NETLINK, SOL_SOCKET};

use crate::error::{Errno, Error, Result};
use crate::image::pb;
use crate::sys::socket;

/// A table entry: level, name, room in bytes.
type Entry = (i32, i32, usize);

const LINGER: usize = 8;
const TIME: usize = 16;

/// Of every socket. The order is that of setting: what changes others comes first. include/uapi/asm-generic/socket.h.
const COMMON: &[Entry] = &[
    (SOL_SOCKET, libc::SO_DEBUG, 4),
    (SOL_SOCKET, libc::SO_REUSEADDR, 4),
    (SOL_SOCKET, libc::SO_DONTROUTE, 4),
    (SOL_SOCKET, libc::SO_BROADCAST, 4),
    (SOL_SOCKET, libc::SO_KEEPALIVE, 4),
    (SOL_SOCKET, libc::SO_OOBINLINE, 4),
    (SOL_SOCKET, libc::SO_NO_CHECK, 4),
    (SOL_SOCKET, libc::SO_PRIORITY, 4),
    (SOL_SOCKET, libc::SO_LINGER, LINGER),
    (SOL_SOCKET, libc::SO_REUSEPORT, 4),
    (SOL_SOCKET, libc::SO_RCVLOWAT, 4),
    (SOL_SOCKET, libc::SO_RCVTIMEO, TIME),
    (SOL_SOCKET, libc::SO_SNDTIMEO, TIME),
    (SOL_SOCKET, libc::SO_TIMESTAMP, 4),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS, 4),
    (SOL_SOCKET, libc::SO_PASSSEC, 4),
    (SOL_SOCKET, libc::SO_MARK, 4),
    (SOL_SOCKET, libc::SO_RXQ_OVFL, 4),
    (SOL_SOCKET, libc::SO_WIFI_STATUS, 4),
    (SOL_SOCKET, libc::SO_NOFCS, 4),
    (SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE, 4),
    (SOL_SOCKET, libc::SO_BUSY_POLL, 4),
    (SOL_SOCKET, libc::SO_MAX_PACING_RATE, 8),
    (SOL_SOCKET, libc::SO_ZEROCOPY, 4),
    (SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 4),
    (SOL_SOCKET, libc::SO_PASSCRED, 4),
    (SOL_SOCKET, SO_PASSPIDFD, 4),
    (SOL_SOCKET, SO_RCVMARK, 4),
    (SOL_SOCKET, SO_PASSRIGHTS, 4),
    (SOL_SOCKET, libc::SO_PEEK_OFF, 4),
];

const SO_BUF_LOCK: i32 = 72;
const SO_RCVMARK: i32 = 75;
const SO_PASSPIDFD: i32 = 76;
const SO_PASSRIGHTS: i32 = 83;

const IPV4: &[Entry] = &[
    (IPPROTO_IP, libc::IP_TOS, 4),
    (IPPROTO_IP, libc::IP_TTL, 4),
    (IPPROTO_IP, libc::IP_RECVOPTS, 4),
    (IPPROTO_IP, libc::IP_RETOPTS, 4),
    (IPPROTO_IP, libc::IP_PKTINFO, 4),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER, 4),
    (IPPROTO_IP, libc::IP_RECVERR, 4),
    (IPPROTO_IP, libc::IP_RECVTTL, 4),
    (IPPROTO_IP, libc::IP_RECVTOS, 4),
    (IPPROTO_IP, libc::IP_FREEBIND, 4),
    (IPPROTO_IP, libc::IP_PASSSEC, 4),
    (IPPROTO_IP, libc::IP_TRANSPARENT, 4),
    (IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 4),
    (IPPROTO_IP, libc::IP_MINTTL, 4),
    (IPPROTO_IP, libc::IP_CHECKSUM, 4),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 4),
    (IPPROTO_IP, libc::IP_MULTICAST_TTL, 4),
    (IPPROTO_IP, libc::IP_MULTICAST_LOOP, 4),
    (IPPROTO_IP, libc::IP_MULTICAST_ALL, 4),
];

const IPV6: &[Entry] = &[
    (IPPROTO_IPV6, libc::IPV6_V6ONLY, 4),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 4),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 4),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 4),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 4),
    (IPPROTO_IPV6, libc::IPV6_RECVERR, 4),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 4),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 4),
    (IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 4),
    (IPPROTO_IPV6, libc::IPV6_TCLASS, 4),
    (IPPROTO_IPV6, libc::IPV6_DONTFRAG, 4),
    (IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 4),
    (IPPROTO_IPV6, libc::IPV6_FREEBIND, 4),
];

const TCP: &[Entry] = &[
    (IPPROTO_TCP, libc::TCP_NODELAY, 4),
    (IPPROTO_TCP, libc::TCP_MAXSEG, 4),
    (IPPROTO_TCP, libc::TCP_CORK, 4),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE, 4),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL, 4),
    (IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    (IPPROTO_TCP, libc::TCP_SYNCNT, 4),
    (IPPROTO_TCP, libc::TCP_LINGER2, 4),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4),
    (IPPROTO_TCP, libc::TCP_CONGESTION, 16),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4),
    (IPPROTO_TCP, libc::TCP_FASTOPEN, 4),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4),
    (IPPROTO_TCP, libc::TCP_SAVE_SYN, 4),
];

const UDP: &[Entry] =
    &[(IPPROTO_UDP, libc::UDP_CORK, 4), (IPPROTO_UDP, libc::UDP_SEGMENT, 4), (IPPROTO_UDP, libc::UDP_GRO, 4)];

const NETLINK: &[Entry] = &[
    (SOL_NETLINK, libc::NETLINK_PKTINFO, 4),
    (SOL_NETLINK, libc::NETLINK_BROADCAST_ERROR, 4),
    (SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 4),
    (SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID, 4),
    (SOL_NETLINK, libc::NETLINK_CAP_ACK, 4),
    (SOL_NETLINK, libc::NETLINK_EXT_ACK, 4),
    (SOL_NETLINK, NETLINK_GET_STRICT_CHK, 4),
];

const NETLINK_GET_STRICT_CHK: i32 = 12;

/// Which tables a socket has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Unix,
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
    Netlink,
}

impl Family {
    fn tables(self) -> &'static [&'static [Entry]] {
        match self {
            Family::Unix => &[COMMON],
            Family::Tcp4 => &[IPV4, TCP, COMMON],
            Family::Tcp6 => &[IPV6, IPV4, TCP, COMMON],
            Family::Udp4 => &[IPV4, UDP, COMMON],
            Family::Udp6 => &[IPV6, IPV4, UDP, COMMON],
            Family::Netlink => &[NETLINK, COMMON],
        }
    }
}

/// All options of a socket that the kernel tells, in the order in which they are to be set.
pub fn read(fd: BorrowedFd<'_>, family: Family) -> Vec<pb::PtyagentSockopt> {
    let mut options = Vec::new();
    for (level, name, room) in family.tables().iter().copied().flatten().copied() {
        if let Ok(value) = socket::option(fd, level, name, room) {
            options.push(pb::PtyagentSockopt { level: Some(level), name: Some(name), value: Some(value) });
        }
    }
    options
}

/// Sets what differs.
pub fn restore(fd: BorrowedFd<'_>, own: &pb::PtyagentSocket, entry: &pb::SkOptsEntry) -> Result<()> {
    for option in &own.options {
        let (level, name, value) = (option.level(), option.name(), option.value());
        match socket::option(fd, level, name, value.len().max(4)) {
            Ok(now) if now == value => continue,
            // An older kernel, which does what the newer one did without being asked.
            Err(Errno::ENOPROTOOPT) if value == unasked(level, name, value.len()) => continue,
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
    if !entry.so_filter.is_empty() {
        socket::attach_filter(fd, &entry.so_filter)
            .map_err(|errno| Error::failed(format!("the filter of a socket cannot be attached: {}", errno.desc())))?;
    }
    buffers(fd, entry)
}

/// The value of an option that says what kernels do which do not have it.
fn unasked(level: i32, name: i32, len: usize) -> Vec<u8> {
    let value = u8::from((level, name) == (SOL_SOCKET, SO_PASSRIGHTS));
    (0..len).map(|at| if at == 0 { value } else { 0 }).collect()
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

/// The part that CRIU has fields for. An error names a filter that cannot be carried.
pub fn entry(fd: BorrowedFd<'_>) -> std::result::Result<pb::SkOptsEntry, &'static str> {
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
    let so_filter = socket::filter(fd).map_err(|_| "a socket with a BPF program")?;
    Ok(pb::SkOptsEntry {
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
        so_filter,
        so_reuseport: flag(libc::SO_REUSEPORT),
        so_broadcast: flag(libc::SO_BROADCAST),
        so_keepalive: flag(libc::SO_KEEPALIVE),
        so_oobinline: Some(number(libc::SO_OOBINLINE)),
        so_buf_lock: socket::number(fd, SOL_SOCKET, SO_BUF_LOCK).ok().map(|lock| lock as u32),
        ..Default::default()
    })
}
