//! Pairs and indexes.

use ptyagent::sys::tty;

use crate::cases::Case;
use crate::support::{Arg, RDWR, Stage, room};

const GROUP: &str = "pairs";
const MASTER: i32 = 10;
const SLAVE: i32 = 20;
const EPOLL: i32 = 3;

pub fn cases() -> Vec<Case> {
    vec![
        Case::kept(GROUP, "one pair, its index kept", |s| {
            s.pair("root", MASTER, SLAVE);
        }),
        Case::kept(GROUP, "several masters with slaves in other processes", several_masters),
        Case::kept(GROUP, "slave descriptions with different flags", different_flags),
        Case::kept(GROUP, "slave descriptions shared by dup and fork", shared),
        Case::kept(GROUP, "flags of a master, close-on-exec, a shared master", master_flags),
        Case::kept(GROUP, "O_ASYNC of a slave with owner and signal", |s| asynchronous(s, SLAVE)),
        Case::kept(GROUP, "O_ASYNC of a master with owner and signal", |s| asynchronous(s, MASTER)),
        Case::kept(GROUP, "O_ASYNC owned by another process and by a group", owned_by_others),
        Case::kept(GROUP, "an owner without O_ASYNC", |s| {
            s.pair("root", MASTER, SLAVE);
            own(s, "root", SLAVE, s.pid("root"));
        }),
        Case::kept(GROUP, "slaves whose master was closed (hung up)", hung_up),
        Case::kept(GROUP, "a hung up slave beside a living pair", |s| {
            hung_up(s);
            s.pair("root", MASTER + 1, SLAVE + 5);
        }),
        Case::kept(GROUP, "a master without slave, never opened", |s| {
            s.master("root", MASTER);
        }),
        Case::kept(GROUP, "a master whose last slave was closed", |s| {
            s.pair("root", MASTER, SLAVE);
            s.close("root", SLAVE);
        }),
        Case::kept(GROUP, "a master whose last slave was closed, with output left", |s| {
            s.pair("root", MASTER, SLAVE);
            s.write("root", SLAVE, b"last words\n");
            s.close("root", SLAVE);
        }),
        Case::kept(GROUP, "a locked master whose slave cannot be opened", |s| {
            s.open("root", MASTER, "/dev/ptmx", RDWR);
        }),
        Case::kept(GROUP, "a pair that was locked after its slave was opened", |s| {
            s.pair("root", MASTER, SLAVE);
            s.ioctl_in("root", MASTER, tty::TIOCSPTLCK, &1i32.to_ne_bytes());
        }),
        Case::kept(GROUP, "a slave from TIOCGPTPEER", |s| {
            s.master("root", MASTER);
            s.peer("root", MASTER, SLAVE, RDWR | libc::O_NONBLOCK);
        }),
        Case::kept(GROUP, "an O_PATH descriptor of a slave", |s| {
            let index = s.pair("root", MASTER, SLAVE);
            s.open("root", SLAVE + 1, &format!("/dev/pts/{index}"), libc::O_PATH);
        }),
        Case::kept(GROUP, "an index over 1500", index_over_1000),
        Case::refused(GROUP, "a pair in another devpts instance", "another devpts instance", other_instance),
        Case::kept(GROUP, "a terminal in an epoll set", |s| {
            s.pair("root", MASTER, SLAVE);
            assert_eq!(s.must("root", libc::SYS_epoll_create1, &[0.into()]).result, i64::from(EPOLL));
            let event = [libc::EPOLLIN.to_ne_bytes(), [7; 4], [9; 4]].concat();
            s.must("root", libc::SYS_epoll_ctl, &[EPOLL.into(), 1.into(), SLAVE.into(), event.as_slice().into()]);
        })
        .verified(polled),
        Case::kept(GROUP, "a slave in flight in a unix socket", |s| in_flight(s, SLAVE, SLAVE + 1)).verified(received),
        Case::kept(GROUP, "a master in flight in a unix socket", |s| in_flight(s, MASTER, MASTER + 1))
            .verified(received),
        Case::refused(GROUP, "a terminal that only a message holds", "which no process of the tree has open", |s| {
            in_flight(s, SLAVE, SLAVE + 1);
            s.close("root", SLAVE + 1);
        })
        .verified(received),
    ]
}

fn several_masters(s: &mut Stage) {
    for n in 0..4 {
        s.pair("root", MASTER + n, SLAVE + n);
        let name = format!("child{n}");
        s.fork("root", &name);
        s.close("root", SLAVE + n);
        s.close(&name, MASTER + n);
    }
    s.write("child2", SLAVE + 2, b"hello\n");
    s.type_in("root", MASTER + 1, b"line\rpart");
}

fn different_flags(s: &mut Stage) {
    let index = s.pair("root", MASTER, SLAVE);
    let path = format!("/dev/pts/{index}");
    let flags = [
        libc::O_RDONLY,
        libc::O_WRONLY,
        libc::O_RDWR | libc::O_NONBLOCK,
        libc::O_RDWR | libc::O_APPEND,
        libc::O_RDWR | libc::O_CLOEXEC,
        libc::O_WRONLY | libc::O_NONBLOCK | libc::O_APPEND | libc::O_CLOEXEC,
        libc::O_RDWR | libc::O_SYNC,
        libc::O_RDWR | libc::O_NOFOLLOW | libc::O_LARGEFILE,
    ];
    for (fd, flags) in (SLAVE + 1..).zip(flags) {
        s.open("root", fd, &path, flags | libc::O_NOCTTY);
    }
    // 3: neither read nor written, for ioctl only.
    s.open("root", SLAVE + 15, &path, 3 | libc::O_NOCTTY);
    s.type_in("root", MASTER, b"one\rtwo\rpart");
}

fn shared(s: &mut Stage) {
    s.pair("root", MASTER, SLAVE);
    s.dup("root", SLAVE, SLAVE + 1);
    s.fork("root", "child");
    s.dup("child", SLAVE, SLAVE + 2);
    s.close("root", SLAVE + 1);
    // Set in the child, seen in the root: it is one description.
    s.must("child", libc::SYS_fcntl, &[SLAVE.into(), libc::F_SETFL.into(), (RDWR | libc::O_NONBLOCK).into()]);
    s.must("child", libc::SYS_fcntl, &[SLAVE.into(), libc::F_SETFD.into(), 1.into()]);
}

fn master_flags(s: &mut Stage) {
    s.pair("root", MASTER, SLAVE);
    s.must("root", libc::SYS_fcntl, &[MASTER.into(), libc::F_SETFL.into(), (RDWR | libc::O_NONBLOCK).into()]);
    s.must("root", libc::SYS_fcntl, &[MASTER.into(), libc::F_SETFD.into(), 1.into()]);
    s.dup("root", MASTER, MASTER + 1);
    s.fork("root", "child");
    s.pair("child", MASTER + 2, SLAVE + 2);
    s.must("child", libc::SYS_fcntl, &[(MASTER + 2).into(), libc::F_SETFL.into(), (RDWR | libc::O_APPEND).into()]);
}

/// F_SETOWN of a process or, negative, of a group; F_SETSIG.
fn own(s: &mut Stage, name: &str, fd: i32, pid: i32) {
    s.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_SETOWN.into(), pid.into()]);
    s.must(name, libc::SYS_fcntl, &[fd.into(), 10.into(), (libc::SIGRTMIN() + 3).into()]);
}

fn set_async(s: &mut Stage, name: &str, fd: i32) {
    let flags = s.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_GETFL.into()]).result as i32;
    s.must(name, libc::SYS_fcntl, &[fd.into(), libc::F_SETFL.into(), (flags | libc::O_ASYNC).into()]);
}

fn asynchronous(s: &mut Stage, fd: i32) {
    s.pair("root", MASTER, SLAVE);
    own(s, "root", fd, s.pid("root"));
    set_async(s, "root", fd);
}

fn owned_by_others(s: &mut Stage) {
    s.pair("root", MASTER, SLAVE);
    s.fork("root", "child");
    let child = s.pid("child");
    s.must("child", libc::SYS_setpgid, &[0.into(), 0.into()]);
    own(s, "root", MASTER, child);
    set_async(s, "root", MASTER);
    own(s, "root", SLAVE, -child);
    set_async(s, "root", SLAVE);
}

fn hung_up(s: &mut Stage) {
    let index = s.pair("root", MASTER, SLAVE);
    s.open("root", SLAVE + 1, &format!("/dev/pts/{index}"), libc::O_RDONLY | libc::O_NOCTTY | libc::O_NONBLOCK);
    s.fork("root", "child");
    s.close("child", MASTER);
    s.close("child", SLAVE);
    s.close("root", MASTER);
}

fn index_over_1000(s: &mut Stage) {
    let files = [5000u64, 5000].map(u64::to_ne_bytes).concat();
    s.must("root", libc::SYS_prlimit64, &[0.into(), 7.into(), files.as_slice().into(), 0.into()]);
    let mut held = Vec::new();
    let master = loop {
        let fd = s.must("root", libc::SYS_openat, &[libc::AT_FDCWD.into(), "/dev/ptmx".into(), RDWR.into(), 0.into()]);
        let fd = fd.result as i32;
        let index =
            s.must("root", libc::SYS_ioctl, &[fd.into(), tty::TIOCGPTN.into(), crate::support::room(4)]).number();
        if index > 1500 {
            break fd;
        }
        held.push(fd);
    };
    s.dup("root", master, MASTER);
    s.close("root", master);
    for fd in held.into_iter().filter(|fd| *fd != MASTER) {
        s.close("root", fd);
    }
    s.ioctl_in("root", MASTER, tty::TIOCSPTLCK, &0i32.to_ne_bytes());
    s.peer("root", MASTER, SLAVE, RDWR);
}

fn other_instance(s: &mut Stage) {
    s.fork("root", "child");
    let ours =
        s.must("child", libc::SYS_openat, &[libc::AT_FDCWD.into(), "/proc/self/ns/mnt".into(), 0.into(), 0.into()]);
    s.must("child", libc::SYS_unshare, &[libc::CLONE_NEWNS.into()]);
    let slave = "/".into();
    s.must(
        "child",
        libc::SYS_mount,
        &["none".into(), slave, 0.into(), (libc::MS_REC | libc::MS_PRIVATE).into(), 0.into()],
    );
    let point = s.dir.join("pts");
    std::fs::create_dir(&point).unwrap();
    let point = point.to_str().unwrap().to_owned();
    let how: [Arg; 5] =
        ["devpts".into(), point.as_str().into(), "devpts".into(), 0.into(), "newinstance,ptmxmode=0666".into()];
    s.must("child", libc::SYS_mount, &how);
    s.open("child", MASTER, &format!("{point}/ptmx"), RDWR);
    s.ioctl_in("child", MASTER, tty::TIOCSPTLCK, &0i32.to_ne_bytes());
    s.open("child", SLAVE, &format!("{point}/0"), RDWR);
    // Back where the others are: the descriptors lead elsewhere still.
    s.must("child", libc::SYS_setns, &[Arg::Number(ours.result), libc::CLONE_NEWNS.into()]);
    s.must("child", libc::SYS_close, &[Arg::Number(ours.result)]);
    let dir = s.dir.path().to_str().unwrap().to_owned();
    s.must("child", libc::SYS_chdir, &[dir.as_str().into()]);
}

/// What the set tells before there is input, and with it.
fn polled(s: &mut Stage) -> Vec<String> {
    let ask = |s: &mut Stage, limit: i32| {
        let answer = s.sys("root", libc::SYS_epoll_wait, &[EPOLL.into(), room(12), 1.into(), limit.into()]);
        format!("{}:{:?}", answer.result, answer.rooms[0])
    };
    let quiet = ask(s, 0);
    s.write("root", MASTER, b"line\n");
    let told = ask(s, 5000);
    assert!(quiet.starts_with("0:") && told.starts_with("1:"), "{quiet} {told}");
    [vec![quiet, told], s.exhaust()].concat()
}

const SOCKETS: [i32; 2] = [40, 41];

/// Sends a descriptor of a pair through a Unix socket and closes it; a second one of the same description stays open.
fn in_flight(s: &mut Stage, fd: i32, stays: i32) {
    s.pair("root", MASTER, SLAVE);
    s.dup("root", fd, stays);
    let made = s.must("root", libc::SYS_socketpair, &[1.into(), 1.into(), 0.into(), room(8)]);
    for (made, fd) in made.rooms[0].chunks_exact(4).zip(SOCKETS) {
        s.place("root", i32::from_ne_bytes(made.try_into().unwrap()), fd, 0);
    }
    assert_eq!(s.tell("root", &format!("rights {} {fd}", SOCKETS[0])), "1");
    s.close("root", fd);
    s.type_in("root", if fd == MASTER { stays } else { MASTER }, b"line\rpart");
}

/// Takes the message; the terminal in it is a terminal like any other then.
fn received(s: &mut Stage) -> Vec<String> {
    let mut facts = vec![s.tell("root", &format!("receive {}", SOCKETS[1]))];
    facts.extend(s.exhaust());
    facts
}
