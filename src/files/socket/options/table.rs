//! What getsockopt(2) can be asked for, one line for each option: level, name, room for its value in bytes, and what becomes of it.
//!
//! Left out is what only tells (SO_ERROR, SO_COOKIE, TCP_INFO), what another part of the record holds (names, buffers, filters, device,
//! groups), and what only SOCK_RAW takes. What is set and never told, so that nobody can see it: TCP_MD5SIG, IPV6_MTU, IP_IPSEC_POLICY,
//! SO_BUSY_POLL_BUDGET, SO_ATTACH_REUSEPORT_CBPF and _EBPF, an interface for multicast that was given by its number to IPv4, flow labels.

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_NETLINK, SOL_SOCKET};

/// What becomes of an option that is not as in a new socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Kept,
    /// Refused under this name.
    Refused(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub level: i32,
    pub name: i32,
    /// In bytes.
    pub room: usize,
    pub rule: Rule,
}

const fn kept(level: i32, name: i32, room: usize) -> Entry {
    Entry { level, name, room, rule: Rule::Kept }
}

const fn refused(level: i32, name: i32, called: &'static str) -> Entry {
    Entry { level, name, room: 256, rule: Rule::Refused(called) }
}

const LINGER: usize = 8;
pub const TIME: usize = 16;

/// Of every socket. The order is that of setting: what changes others comes first. include/uapi/asm-generic/socket.h.
const COMMON: &[Entry] = &[
    kept(SOL_SOCKET, libc::SO_DEBUG, 4),
    kept(SOL_SOCKET, libc::SO_REUSEADDR, 4),
    kept(SOL_SOCKET, libc::SO_DONTROUTE, 4),
    kept(SOL_SOCKET, libc::SO_BROADCAST, 4),
    kept(SOL_SOCKET, libc::SO_KEEPALIVE, 4),
    kept(SOL_SOCKET, libc::SO_OOBINLINE, 4),
    kept(SOL_SOCKET, libc::SO_NO_CHECK, 4),
    kept(SOL_SOCKET, libc::SO_PRIORITY, 4),
    kept(SOL_SOCKET, libc::SO_LINGER, LINGER),
    kept(SOL_SOCKET, libc::SO_REUSEPORT, 4),
    kept(SOL_SOCKET, libc::SO_RCVLOWAT, 4),
    kept(SOL_SOCKET, libc::SO_RCVTIMEO, TIME),
    kept(SOL_SOCKET, libc::SO_SNDTIMEO, TIME),
    // Each of the old form takes back that the program has asked for the new one.
    kept(SOL_SOCKET, libc::SO_TIMESTAMPING, 8),
    kept(SOL_SOCKET, libc::SO_TIMESTAMP, 4),
    kept(SOL_SOCKET, libc::SO_TIMESTAMPNS, 4),
    kept(SOL_SOCKET, SO_TIMESTAMP_NEW, 4),
    kept(SOL_SOCKET, SO_TIMESTAMPNS_NEW, 4),
    kept(SOL_SOCKET, SO_TIMESTAMPING_NEW, 8),
    kept(SOL_SOCKET, libc::SO_PASSSEC, 4),
    kept(SOL_SOCKET, libc::SO_MARK, 4),
    kept(SOL_SOCKET, libc::SO_RXQ_OVFL, 4),
    kept(SOL_SOCKET, libc::SO_WIFI_STATUS, 4),
    kept(SOL_SOCKET, libc::SO_NOFCS, 4),
    kept(SOL_SOCKET, libc::SO_LOCK_FILTER, 4),
    kept(SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE, 4),
    kept(SOL_SOCKET, libc::SO_BUSY_POLL, 4),
    kept(SOL_SOCKET, libc::SO_MAX_PACING_RATE, 8),
    kept(SOL_SOCKET, libc::SO_INCOMING_CPU, 4),
    kept(SOL_SOCKET, libc::SO_ZEROCOPY, 4),
    kept(SOL_SOCKET, libc::SO_TXTIME, 8),
    kept(SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 4),
    kept(SOL_SOCKET, SO_RESERVE_MEM, 4),
    kept(SOL_SOCKET, SO_TXREHASH, 4),
    kept(SOL_SOCKET, libc::SO_PASSCRED, 4),
    kept(SOL_SOCKET, SO_PASSPIDFD, 4),
    kept(SOL_SOCKET, SO_RCVMARK, 4),
    kept(SOL_SOCKET, SO_RCVPRIORITY, 4),
    kept(SOL_SOCKET, SO_PASSRIGHTS, 4),
    kept(SOL_SOCKET, SO_INQ, 4),
    kept(SOL_SOCKET, libc::SO_PEEK_OFF, 4),
];

const SO_TIMESTAMP_NEW: i32 = 63;
const SO_TIMESTAMPNS_NEW: i32 = 64;
pub const SO_TIMESTAMPING_NEW: i32 = 65;
const SO_RESERVE_MEM: i32 = 73;
const SO_TXREHASH: i32 = 74;
const SO_RCVMARK: i32 = 75;
const SO_PASSPIDFD: i32 = 76;
const SO_RCVPRIORITY: i32 = 82;
const SO_PASSRIGHTS: i32 = 83;
const SO_INQ: i32 = 84;

/// include/uapi/linux/in.h.
const IPV4: &[Entry] = &[
    kept(IPPROTO_IP, libc::IP_TOS, 4),
    kept(IPPROTO_IP, libc::IP_TTL, 4),
    kept(IPPROTO_IP, libc::IP_OPTIONS, 40),
    kept(IPPROTO_IP, libc::IP_RECVOPTS, 4),
    kept(IPPROTO_IP, libc::IP_RETOPTS, 4),
    kept(IPPROTO_IP, libc::IP_PKTINFO, 4),
    kept(IPPROTO_IP, libc::IP_MTU_DISCOVER, 4),
    kept(IPPROTO_IP, libc::IP_RECVERR, 4),
    kept(IPPROTO_IP, libc::IP_RECVTTL, 4),
    kept(IPPROTO_IP, libc::IP_RECVTOS, 4),
    kept(IPPROTO_IP, libc::IP_FREEBIND, 4),
    kept(IPPROTO_IP, libc::IP_PASSSEC, 4),
    kept(IPPROTO_IP, libc::IP_TRANSPARENT, 4),
    kept(IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 4),
    kept(IPPROTO_IP, libc::IP_MINTTL, 4),
    kept(IPPROTO_IP, libc::IP_CHECKSUM, 4),
    kept(IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 4),
    kept(IPPROTO_IP, IP_RECVFRAGSIZE, 4),
    kept(IPPROTO_IP, IP_RECVERR_RFC4884, 4),
    kept(IPPROTO_IP, libc::IP_MULTICAST_IF, 4),
    kept(IPPROTO_IP, libc::IP_MULTICAST_TTL, 4),
    kept(IPPROTO_IP, libc::IP_MULTICAST_LOOP, 4),
    kept(IPPROTO_IP, libc::IP_MULTICAST_ALL, 4),
    kept(IPPROTO_IP, libc::IP_UNICAST_IF, 4),
    kept(IPPROTO_IP, IP_LOCAL_PORT_RANGE, 4),
];

const IP_RECVFRAGSIZE: i32 = 25;
const IP_RECVERR_RFC4884: i32 = 26;
const IP_LOCAL_PORT_RANGE: i32 = 51;

/// include/uapi/linux/in6.h.
const IPV6: &[Entry] = &[
    kept(IPPROTO_IPV6, libc::IPV6_V6ONLY, 4),
    kept(IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 4),
    kept(IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, 4),
    kept(IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 4),
    kept(IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 4),
    kept(IPPROTO_IPV6, IPV6_MULTICAST_ALL, 4),
    kept(IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 4),
    kept(IPPROTO_IPV6, libc::IPV6_RECVERR, 4),
    kept(IPPROTO_IPV6, IPV6_RECVERR_RFC4884, 4),
    kept(IPPROTO_IPV6, IPV6_2292PKTINFO, 4),
    kept(IPPROTO_IPV6, IPV6_2292HOPOPTS, 4),
    kept(IPPROTO_IPV6, IPV6_2292DSTOPTS, 4),
    kept(IPPROTO_IPV6, IPV6_2292RTHDR, 4),
    kept(IPPROTO_IPV6, IPV6_2292HOPLIMIT, 4),
    kept(IPPROTO_IPV6, libc::IPV6_FLOWINFO, 4),
    kept(IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 4),
    kept(IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 4),
    kept(IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 4),
    kept(IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS, 4),
    kept(IPPROTO_IPV6, libc::IPV6_RECVRTHDR, 4),
    kept(IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS, 4),
    kept(IPPROTO_IPV6, libc::IPV6_RECVPATHMTU, 4),
    kept(IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 4),
    kept(IPPROTO_IPV6, libc::IPV6_TCLASS, 4),
    kept(IPPROTO_IPV6, libc::IPV6_DONTFRAG, 4),
    kept(IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, 4),
    kept(IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES, 4),
    kept(IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, 4),
    kept(IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR, 4),
    kept(IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 4),
    kept(IPPROTO_IPV6, libc::IPV6_UNICAST_IF, 4),
    kept(IPPROTO_IPV6, IPV6_RECVFRAGSIZE, 4),
    kept(IPPROTO_IPV6, libc::IPV6_FREEBIND, 4),
    refused(IPPROTO_IPV6, libc::IPV6_HOPOPTS, "hop-by-hop options (IPV6_HOPOPTS)"),
    refused(IPPROTO_IPV6, libc::IPV6_RTHDRDSTOPTS, "destination options (IPV6_RTHDRDSTOPTS)"),
    refused(IPPROTO_IPV6, libc::IPV6_RTHDR, "a routing header (IPV6_RTHDR)"),
    refused(IPPROTO_IPV6, libc::IPV6_DSTOPTS, "destination options (IPV6_DSTOPTS)"),
];

const IPV6_2292PKTINFO: i32 = 2;
const IPV6_2292HOPOPTS: i32 = 3;
const IPV6_2292DSTOPTS: i32 = 4;
const IPV6_2292RTHDR: i32 = 5;
const IPV6_2292HOPLIMIT: i32 = 8;
const IPV6_MULTICAST_ALL: i32 = 29;
const IPV6_RECVERR_RFC4884: i32 = 31;
const IPV6_FLOWINFO_SEND: i32 = 33;
const IPV6_RECVFRAGSIZE: i32 = 77;

/// include/uapi/linux/tcp.h.
const TCP: &[Entry] = &[
    kept(IPPROTO_TCP, libc::TCP_NODELAY, 4),
    kept(IPPROTO_TCP, libc::TCP_MAXSEG, 4),
    kept(IPPROTO_TCP, libc::TCP_CORK, 4),
    kept(IPPROTO_TCP, libc::TCP_KEEPIDLE, 4),
    kept(IPPROTO_TCP, libc::TCP_KEEPINTVL, 4),
    kept(IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    kept(IPPROTO_TCP, libc::TCP_SYNCNT, 4),
    kept(IPPROTO_TCP, libc::TCP_LINGER2, 4),
    kept(IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4),
    kept(IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 4),
    kept(IPPROTO_TCP, libc::TCP_QUICKACK, 4),
    kept(IPPROTO_TCP, libc::TCP_CONGESTION, 16),
    kept(IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 4),
    kept(IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4),
    kept(IPPROTO_TCP, libc::TCP_FASTOPEN, 4),
    kept(IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 4),
    kept(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 4),
    kept(IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4),
    kept(IPPROTO_TCP, libc::TCP_SAVE_SYN, 4),
    kept(IPPROTO_TCP, TCP_INQ, 4),
    kept(IPPROTO_TCP, TCP_TX_DELAY, 4),
    kept(IPPROTO_TCP, TCP_RTO_MAX_MS, 4),
    kept(IPPROTO_TCP, TCP_RTO_MIN_US, 4),
    kept(IPPROTO_TCP, TCP_DELACK_MAX_US, 4),
    refused(IPPROTO_TCP, libc::TCP_REPAIR, "repair mode (TCP_REPAIR)"),
    refused(IPPROTO_TCP, libc::TCP_ULP, "an upper layer protocol (TCP_ULP)"),
    refused(IPPROTO_TCP, TCP_FASTOPEN_KEY, "a fast open key of its own (TCP_FASTOPEN_KEY)"),
    refused(IPPROTO_TCP, TCP_AO_INFO, "authentication (TCP_AO)"),
];

const TCP_FASTOPEN_KEY: i32 = 33;
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
const TCP_INQ: i32 = 36;
const TCP_TX_DELAY: i32 = 37;
const TCP_AO_INFO: i32 = 40;
const TCP_RTO_MAX_MS: i32 = 44;
const TCP_RTO_MIN_US: i32 = 45;
const TCP_DELACK_MAX_US: i32 = 46;

/// include/uapi/linux/udp.h.
const UDP: &[Entry] = &[
    kept(IPPROTO_UDP, libc::UDP_CORK, 4),
    kept(IPPROTO_UDP, UDP_NO_CHECK6_TX, 4),
    kept(IPPROTO_UDP, UDP_NO_CHECK6_RX, 4),
    kept(IPPROTO_UDP, libc::UDP_SEGMENT, 4),
    kept(IPPROTO_UDP, libc::UDP_GRO, 4),
    refused(IPPROTO_UDP, UDP_ENCAP, "encapsulation (UDP_ENCAP)"),
];

const UDP_ENCAP: i32 = 100;
const UDP_NO_CHECK6_TX: i32 = 101;
const UDP_NO_CHECK6_RX: i32 = 102;

/// include/uapi/linux/netlink.h.
const NETLINK: &[Entry] = &[
    kept(SOL_NETLINK, libc::NETLINK_PKTINFO, 4),
    kept(SOL_NETLINK, libc::NETLINK_BROADCAST_ERROR, 4),
    kept(SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 4),
    kept(SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID, 4),
    kept(SOL_NETLINK, libc::NETLINK_CAP_ACK, 4),
    kept(SOL_NETLINK, libc::NETLINK_EXT_ACK, 4),
    kept(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 4),
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
    /// The tables, in the order of setting.
    pub fn tables(self) -> &'static [&'static [Entry]] {
        match self {
            Family::Unix => &[COMMON],
            // SO_RCVLOWAT may move TCP_WINDOW_CLAMP.
            Family::Tcp4 => &[IPV4, COMMON, TCP],
            Family::Tcp6 => &[IPV6, IPV4, COMMON, TCP],
            Family::Udp4 => &[IPV4, UDP, COMMON],
            Family::Udp6 => &[IPV6, IPV4, UDP, COMMON],
            Family::Netlink => &[NETLINK, COMMON],
        }
    }
}
