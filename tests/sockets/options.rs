//! Options of all sockets: each is set to something that no new socket has, and then every number of every level is asked for.

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_NETLINK, SOL_SOCKET};

use crate::run;
use crate::scene::{DGRAM, STREAM, Sockets, compare, inet, words};
use crate::support::{Arg, room};

const LEVELS: [i32; 6] = [SOL_SOCKET, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_NETLINK];
/// Beyond the last one of any level.
const END: i32 = 120;
/// What tells of anything but an option: a pending error (which is taken), memory in use, a number of the kernel's own, a process handle, clocks.
const PASSING: [(i32, i32); 7] = [
    (SOL_SOCKET, libc::SO_ERROR),
    (SOL_SOCKET, libc::SO_MEMINFO),
    (SOL_SOCKET, libc::SO_INCOMING_NAPI_ID),
    (SOL_SOCKET, libc::SO_COOKIE),
    (SOL_SOCKET, 77),
    (IPPROTO_TCP, libc::TCP_INFO),
    (IPPROTO_TCP, libc::TCP_TIMESTAMP),
];

/// A timeout of 3.5 seconds.
fn time() -> Vec<u8> {
    [3i64, 500_000].map(i64::to_ne_bytes).concat()
}

/// Options of every socket.
fn common() -> Vec<(i32, Vec<u8>)> {
    let number = |name, value| (name, words(&[value]));
    vec![
        number(libc::SO_DEBUG, 1),
        number(libc::SO_REUSEADDR, 1),
        number(libc::SO_DONTROUTE, 1),
        number(libc::SO_BROADCAST, 1),
        number(libc::SO_KEEPALIVE, 1),
        number(libc::SO_OOBINLINE, 1),
        number(libc::SO_NO_CHECK, 1),
        number(libc::SO_PRIORITY, 3),
        (libc::SO_LINGER, words(&[1, 7])),
        number(libc::SO_REUSEPORT, 1),
        number(libc::SO_RCVLOWAT, 3),
        (libc::SO_RCVTIMEO, time()),
        (libc::SO_SNDTIMEO, time()),
        number(libc::SO_SNDBUF, 30_000),
        number(libc::SO_RCVBUF, 40_000),
        number(libc::SO_PASSSEC, 1),
        number(libc::SO_MARK, 7),
        number(libc::SO_RXQ_OVFL, 1),
        number(libc::SO_WIFI_STATUS, 1),
        number(libc::SO_NOFCS, 1),
        number(libc::SO_SELECT_ERR_QUEUE, 1),
        number(libc::SO_BUSY_POLL, 10),
        (libc::SO_MAX_PACING_RATE, 1_000_000u64.to_ne_bytes().to_vec()),
        number(libc::SO_INCOMING_CPU, 0),
        number(libc::SO_ZEROCOPY, 1),
        (libc::SO_TXTIME, words(&[libc::CLOCK_MONOTONIC, 1])),
        number(libc::SO_PREFER_BUSY_POLL, 1),
        number(74, 0),
        number(libc::SO_PASSCRED, 1),
        number(75, 1),
        number(76, 1),
        number(82, 1),
        number(83, 0),
        number(84, 1),
        number(libc::SO_PEEK_OFF, 2),
        (libc::SO_BINDTODEVICE, b"lo\0".to_vec()),
    ]
}

/// Options that are flags, of a level.
fn flags(level: i32, names: &[i32]) -> Vec<(i32, i32, Vec<u8>)> {
    names.iter().map(|name| (level, *name, words(&[1]))).collect()
}

fn ipv4() -> Vec<(i32, i32, Vec<u8>)> {
    let names = [6, 7, 8, 11, 12, 13, 15, 18, 19, 20, 23, 24, 25, 26];
    let mut all = flags(IPPROTO_IP, &names);
    all.extend([
        (IPPROTO_IP, libc::IP_TOS, words(&[0x10])),
        (IPPROTO_IP, libc::IP_TTL, words(&[9])),
        (IPPROTO_IP, libc::IP_OPTIONS, vec![1, 1, 1, 0]),
        (IPPROTO_IP, libc::IP_MTU_DISCOVER, words(&[libc::IP_PMTUDISC_DO])),
        (IPPROTO_IP, libc::IP_MINTTL, words(&[4])),
        (IPPROTO_IP, libc::IP_MULTICAST_IF, vec![127, 0, 0, 1]),
        (IPPROTO_IP, libc::IP_MULTICAST_TTL, words(&[5])),
        (IPPROTO_IP, libc::IP_MULTICAST_LOOP, words(&[0])),
        (IPPROTO_IP, libc::IP_MULTICAST_ALL, words(&[0])),
        (IPPROTO_IP, libc::IP_UNICAST_IF, 1i32.to_be_bytes().to_vec()),
        (IPPROTO_IP, 51, words(&[41_000 << 16 | 40_000])),
    ]);
    all
}

fn ipv6() -> Vec<(i32, i32, Vec<u8>)> {
    let names = [2, 3, 4, 5, 8, 11, 25, 26, 31, 33, 49, 51, 53, 56, 58, 60, 62, 66, 74, 75, 77, 78];
    let mut all = flags(IPPROTO_IPV6, &names);
    all.extend([
        (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, words(&[9])),
        (IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, words(&[1])),
        (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, words(&[5])),
        (IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, words(&[0])),
        (IPPROTO_IPV6, 29, words(&[0])),
        (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, words(&[libc::IPV6_PMTUDISC_DO])),
        (IPPROTO_IPV6, libc::IPV6_TCLASS, words(&[0x20])),
        (IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, words(&[0])),
        (IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES, words(&[0x1])),
        (IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, words(&[3])),
        (IPPROTO_IPV6, libc::IPV6_UNICAST_IF, 1i32.to_be_bytes().to_vec()),
    ]);
    all
}

fn tcp() -> Vec<(i32, i32, Vec<u8>)> {
    let mut all = flags(IPPROTO_TCP, &[1, 3, 16, 23, 27, 30, 34, 36]);
    let numbers = [
        (libc::TCP_MAXSEG, 900),
        (libc::TCP_KEEPIDLE, 77),
        (libc::TCP_KEEPINTVL, 11),
        (libc::TCP_KEEPCNT, 4),
        (libc::TCP_SYNCNT, 3),
        (libc::TCP_LINGER2, 8),
        (libc::TCP_DEFER_ACCEPT, 5),
        (libc::TCP_WINDOW_CLAMP, 20_000),
        (libc::TCP_QUICKACK, 0),
        (libc::TCP_USER_TIMEOUT, 9000),
        (libc::TCP_NOTSENT_LOWAT, 16_384),
        (37, 10),
        (44, 5000),
        (45, 300_000),
        (46, 100_000),
    ];
    all.extend(numbers.map(|(name, value)| (IPPROTO_TCP, name, words(&[value]))));
    all.push((IPPROTO_TCP, libc::TCP_CONGESTION, b"reno".to_vec()));
    all
}

/// Sets all; an option that this kernel or this socket does not have stays out. Yields how many have been set.
fn set_all(all: &mut Sockets, fd: i32, options: &[(i32, i32, Vec<u8>)]) -> usize {
    const ENOTSUPP: i32 = 524;
    let mut done = 0;
    for (level, name, value) in options {
        let len = value.len() as i32;
        let args = [fd.into(), (*level).into(), (*name).into(), Arg::In(value.clone()), len.into()];
        let result = all.stage.sys("root", libc::SYS_setsockopt, &args).result;
        let missing = [libc::ENOPROTOOPT, libc::EOPNOTSUPP, libc::EINVAL, ENOTSUPP]
            .iter()
            .any(|errno| result == -i64::from(*errno));
        assert!(result == 0 || missing, "option {name} of level {level} on {fd}: {result}");
        done += usize::from(result == 0);
    }
    done
}

/// Every option of every number.
fn sweep(all: &mut Sockets, fds: &[i32]) -> Vec<String> {
    let mut lines = Vec::new();
    for fd in fds {
        for level in LEVELS {
            let names: Vec<i32> = (1..END).filter(|name| !PASSING.contains(&(level, *name))).collect();
            for names in names.chunks(40) {
                let ask = |name: &i32| {
                    let args = [(*fd).into(), level.into(), (*name).into(), room(64), Arg::Both(words(&[64]))];
                    (libc::SYS_getsockopt, args.to_vec())
                };
                let answers = all.stage.all("root", &names.iter().map(ask).collect::<Vec<_>>());
                let line = |(name, answer)| format!("{fd} option {name} of level {level}: {answer:?}");
                lines.extend(names.iter().zip(answers).map(line));
            }
        }
    }
    lines
}

/// One socket of each kind with everything that it can have.
#[test]
fn every_option_stays() {
    run(|all| {
        let kinds = [
            (10, libc::AF_UNIX, STREAM),
            (11, libc::AF_UNIX, DGRAM),
            (12, libc::AF_INET, STREAM),
            (13, libc::AF_INET6, STREAM),
            (14, libc::AF_INET, DGRAM),
            (15, libc::AF_INET6, DGRAM),
            (16, libc::AF_NETLINK, libc::SOCK_RAW),
        ];
        let mut fds: Vec<i32> = kinds.iter().map(|(fd, ..)| *fd).collect();
        for (fd, family, kind) in kinds {
            all.socket("root", fd, family, kind, 0);
            let level_of = |(name, value)| (SOL_SOCKET, name, value);
            let mut options: Vec<_> = common().into_iter().map(level_of).collect();
            if [libc::AF_INET, libc::AF_INET6].contains(&family) {
                options.extend(ipv4());
                options.extend(if kind == STREAM { tcp() } else { flags(IPPROTO_UDP, &[1, 101, 102, 104]) });
            }
            match family {
                libc::AF_INET6 => options.extend(ipv6()),
                libc::AF_NETLINK => options.extend(flags(SOL_NETLINK, &[3, 4, 5, 8, 10, 11, 12])),
                _ => {}
            }
            let done = set_all(all, fd, &options);
            assert!(done * 10 > options.len() * 6, "only {done} of {} options of {fd} could be set", options.len());
        }
        // Forms of one thing, of which a socket has one at a time.
        for (at, name) in [libc::SO_TIMESTAMP, libc::SO_TIMESTAMPNS, 63, 64].into_iter().enumerate() {
            let fd = 20 + at as i32;
            fds.push(fd);
            all.socket("root", fd, libc::AF_INET, DGRAM, 0);
            set_all(all, fd, &[(SOL_SOCKET, libc::SO_TIMESTAMPING, words(&[0x18])), (SOL_SOCKET, name, words(&[1]))]);
        }
        fds.push(24);
        all.socket("root", 24, libc::AF_INET, DGRAM, 0);
        set_all(all, 24, &[(SOL_SOCKET, 65, words(&[0x18]))]);
        // Of a filter that cannot be taken off again: accept all.
        fds.push(25);
        all.pair("root", STREAM, [25, 26]);
        filter(all, 25);
        set_all(all, 25, &[(SOL_SOCKET, libc::SO_LOCK_FILTER, words(&[1]))]);
        // An address without a port.
        fds.push(27);
        all.socket("root", 27, libc::AF_INET, STREAM, 0);
        set_all(all, 27, &[(IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, words(&[1]))]);
        let mut address = inet(0);
        address[7] = 2;
        all.named("root", libc::SYS_bind, 27, &address);
        let before = sweep(all, &fds);
        all.round_trips();
        compare(&before, &sweep(all, &fds), "options");
    });
}

/// A classic filter of one instruction, which takes 262,144 bytes of everything. The program's address is in the argument, so the actor builds it
/// in memory of its own.
fn filter(all: &mut Sockets, fd: i32) {
    let map = [
        0.into(),
        4096.into(),
        (libc::PROT_READ | libc::PROT_WRITE).into(),
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into(),
        Arg::Number(-1),
        0.into(),
    ];
    let at = all.stage.must("root", libc::SYS_mmap, &map).result;
    let program = [&[6, 0, 0, 0][..], &262_144u32.to_ne_bytes()].concat();
    let head = [1u64.to_ne_bytes(), (at as u64 + 16).to_ne_bytes(), program.try_into().unwrap()].concat();
    all.pair("root", STREAM, [40, 41]);
    all.send("root", 40, &head);
    all.stage.must("root", libc::SYS_read, &[41.into(), Arg::Number(at), 24.into()]);
    let args = [fd.into(), SOL_SOCKET.into(), libc::SO_ATTACH_FILTER.into(), Arg::Number(at), 16.into()];
    all.stage.must("root", libc::SYS_setsockopt, &args);
    all.stage.close("root", 40);
    all.stage.close("root", 41);
}

#[test]
fn a_peek_offset_stays() {
    run(|all| {
        all.pair("root", STREAM, [10, 11]);
        all.set("root", 11, SOL_SOCKET, libc::SO_PEEK_OFF, &words(&[2]));
        all.send("root", 10, b"abcdef");
        all.round_trips();
        let args = [11.into(), room(3), Arg::Number(3), libc::MSG_PEEK.into(), 0.into(), 0.into()];
        assert_eq!(all.stage.must("root", libc::SYS_recvfrom, &args).rooms[0], b"cde", "from the peek offset on");
    });
}

#[test]
fn options_that_cannot_be_kept_are_refused() {
    run(|all| {
        let padding = vec![0, 0, 1, 4, 0, 0, 0, 0];
        for (family, kind, level, name, value, what) in [
            (libc::AF_INET6, DGRAM, IPPROTO_IPV6, libc::IPV6_DSTOPTS, padding, "destination options"),
            (libc::AF_INET, STREAM, IPPROTO_TCP, libc::TCP_REPAIR, words(&[1]), "repair mode"),
            (libc::AF_INET, STREAM, IPPROTO_TCP, 33, vec![7; 16], "a fast open key"),
            (libc::AF_INET, DGRAM, SOL_SOCKET, libc::SO_TIMESTAMPING, words(&[0x90]), "numbered timestamps"),
        ] {
            all.socket("root", 10, family, kind, 0);
            all.set("root", 10, level, name, &value);
            all.refused(&format!("a socket with {what}"), &[]);
            all.stage.close("root", 10);
        }
        all.round_trips();
    });
}
