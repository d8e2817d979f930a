//! Round trips of kinds of descriptors that are neither plain files nor terminals, each checked by the process that has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use support::{Arg, Stage, check, ptyagent, refused, report, serial, with_timeout};

const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn eventfds() {
    let fd = ptyagent::sys::event::eventfd(0, 0).unwrap();
    let info = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    if std::fs::read_to_string(info).unwrap().contains("eventfd-semaphore") {
        check("kinds", "eventfds", 2);
    } else {
        refused("kinds", "eventfds", "an eventfd of which this kernel does not tell whether it is a semaphore");
    }
}

#[test]
fn timerfds() {
    check("kinds", "timerfds", 2);
}

#[test]
fn signalfds() {
    check("kinds", "signalfds", 2);
}

#[test]
fn epolls() {
    check("kinds", "epolls", 2);
}

#[test]
fn pidfds() {
    check("kinds", "pidfds", 2);
}

#[test]
fn epoll_modes() {
    check("kinds", "epoll_modes", 2);
}

#[test]
fn alarms() {
    check("kinds", "alarms", 2);
}

#[test]
fn an_epoll_entry_that_has_fired_and_is_not_ready() {
    refused("kinds", "fired_epoll", "has fired (EPOLLONESHOT) and is not ready now");
}

/// A call that makes a descriptor, and how it is refused.
type Made = (i64, Vec<Arg>, &'static str);

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn objects(root: i32) -> Vec<Made> {
    let zeros = |words: &[u32], size: usize| {
        let mut bytes = self::words(words);
        bytes.resize(size, 0);
        bytes
    };
    let us = std::process::id() as i32;
    let open = |path: &str, says| (libc::SYS_open, vec![path.into(), libc::O_RDONLY.into()], says);
    let mut all = vec![
        (libc::SYS_userfaultfd, vec![0.into()], "a userfaultfd"),
        (libc::SYS_io_uring_setup, vec![4.into(), Arg::Both(vec![0; 120])], "an io_uring instance"),
        // BPF_MAP_CREATE: an array of one value of 8 bytes.
        (libc::SYS_bpf, vec![0.into(), Arg::In(zeros(&[2, 4, 8, 1], 72)), 72.into()], "a BPF object"),
        // PERF_TYPE_SOFTWARE.
        (
            libc::SYS_perf_event_open,
            vec![Arg::In(zeros(&[1, 112], 112)), 0.into(), Arg::Number(-1), Arg::Number(-1), 0.into()],
            "a perf event",
        ),
        (libc::SYS_fanotify_init, vec![0.into(), libc::O_RDONLY.into()], "a fanotify group"),
        (
            libc::SYS_mq_open,
            vec![
                format!("ptyagent-{root}").as_str().into(),
                (libc::O_CREAT | libc::O_RDWR).into(),
                0o600.into(),
                0.into(),
            ],
            "a POSIX message queue",
        ),
        (libc::SYS_memfd_create, vec!["huge".into(), (libc::MFD_HUGETLB as i32).into()], "explicit huge pages"),
        (libc::SYS_memfd_secret, vec![0.into()], "a secret memory file"),
        (libc::SYS_fsopen, vec!["tmpfs".into(), 0.into()], "an object of an unknown kind (anon_inode:[fscontext])"),
        (
            libc::SYS_landlock_create_ruleset,
            vec![Arg::In(words(&[1, 0])), 8.into(), 0.into()],
            "an object of an unknown kind (anon_inode:[landlock-ruleset])",
        ),
        (libc::SYS_pidfd_open, vec![us.into(), 0.into()], "which is not part of the tree"),
        (libc::SYS_pidfd_open, vec![root.into(), libc::O_EXCL.into()], "a pidfd of thread"),
    ];
    all.extend([
        open("/proc/self/ns/net", "a namespace handle"),
        open("/proc/self/maps", "a file of a process in /proc"),
        open("/dev/kvm", "a character device (10:232)"),
        open("/dev/fuse", "a character device (10:229)"),
        open("/dev/net/tun", "a character device (10:200)"),
        open("/dev/kmsg", "a character device (1:11)"),
        open("/dev/loop0", "a block device (7:0)"),
    ]);
    let (raw, udp) = (libc::SOCK_RAW, libc::SOCK_DGRAM);
    let sockets = [
        (libc::AF_PACKET, raw, 0),
        (libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        (libc::AF_KEY, raw, 2),
        (libc::AF_INET, raw, libc::IPPROTO_ICMP),
        (libc::AF_INET, udp, libc::IPPROTO_UDPLITE),
        (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
    ];
    let says = "sockets of this family are not carried";
    all.extend(
        sockets.map(|(family, kind, protocol)| {
            (libc::SYS_socket, vec![family.into(), kind.into(), protocol.into()], says)
        }),
    );
    all
}

/// Each is made, refused by its name, and closed again. What this machine does not have is left out.
#[test]
fn kinds_that_are_not_carried() {
    let _serial = serial();
    with_timeout(LIMIT, || {
        let mut stage = Stage::new();
        let root = stage.pid("root");
        let dir = stage.dir.join("refused");
        let mut done = 0;
        for (nr, args, says) in objects(root) {
            let fd = stage.sys("root", nr, &args).result as i32;
            if fd < 0 {
                continue;
            }
            done += 1;
            let output = ptyagent(&["dump", "--inject", &root.to_string(), "-D", dir.to_str().unwrap()]);
            let said = report(&output);
            assert_eq!(output.status.code(), Some(3), "{says}: {said}");
            assert!(said.contains(says) && said.contains(&format!("descriptor {fd}: ")), "{says}: {said}");
            assert!(!dir.exists());
            stage.close("root", fd);
        }
        stage.sys("root", libc::SYS_mq_unlink, &[format!("ptyagent-{root}").as_str().into()]);
        assert!(done > 8, "only {done} kinds could be made");
        println!("{done} kinds");
    });
}
