//! Sessions, controlling terminals, groups.

use ptyagent::sys::tty;

use crate::cases::Case;
use crate::support::{RDWR, Stage, until};

const GROUP: &str = "sessions";
const M: i32 = 10;
const S: i32 = 20;

pub fn cases() -> Vec<Case> {
    let kept = |name, setup| Case::kept(GROUP, name, setup);
    vec![
        kept("a leader with its controlling terminal", |s| session(s, "root", "leader", M, S)),
        kept("members with the terminal, members without", members),
        kept("a controlling terminal without any descriptor", |s| {
            session(s, "root", "leader", M, S);
            s.close("leader", S);
        }),
        kept("... and members that have none either", |s| {
            session(s, "root", "leader", M, S);
            s.close("leader", S);
            s.fork("leader", "member");
        }),
        kept("/dev/tty in the leader only", |s| {
            session(s, "root", "leader", M, S);
            s.open("leader", 30, "/dev/tty", RDWR);
            s.close("leader", S);
        }),
        kept("/dev/tty in a member only, with no other descriptor", |s| {
            session(s, "root", "leader", M, S);
            s.fork("leader", "member");
            s.close("leader", S);
            s.close("member", S);
            s.open("member", 30, "/dev/tty", RDWR);
        }),
        kept("/dev/tty several times, with other flags, shared", dev_ttys),
        kept("a foreground group other than the leader's", |s| {
            session(s, "root", "leader", M, S);
            job(s, "leader", "job");
            foreground(s, "leader", S, s.pid("job"));
        }),
        kept("background and stopped jobs", |s| {
            session(s, "root", "leader", M, S);
            for name in ["running", "stopped"] {
                job(s, "leader", name);
            }
            stop(s, "stopped", libc::SIGSTOP);
        }),
        kept("a job stopped by SIGTTIN and one by SIGTTOU", |s| {
            session(s, "root", "leader", M, S);
            for (name, signal) in [("reads", libc::SIGTTIN), ("writes", libc::SIGTTOU)] {
                job(s, "leader", name);
                s.tell(name, &format!("default {signal}"));
                stop(s, name, signal);
            }
        }),
        kept("a master that a stopped job on its slave and a member in front have", |s| {
            master_in_jobs(s, &["front", "behind"]);
        })
        .verified(continued),
        kept("a master that only a stopped job on its own slave has", |s| master_in_jobs(s, &["behind"]))
            .verified(continued),
        kept("... and nobody in the foreground", |s| {
            master_in_jobs(s, &["behind"]);
            ended(s, "leader", "front");
        })
        .verified(|s| {
            take_back(s, "leader");
            continued(s)
        }),
        Case::refused(
            GROUP,
            "... and nobody but background jobs: refused",
            "that no process in its foreground can read",
            |s| {
                s.pair("root", M, S);
                s.ioctl("root", S, tty::TIOCSCTTY, 0);
                job(s, "root", "front");
                s.type_in("root", M, b"typed\rpart");
                s.events("root", S, libc::POLLIN);
                foreground(s, "root", S, s.pid("front"));
                ended(s, "root", "front");
            },
        )
        .verified(|s| {
            take_back(s, "root");
            s.exhaust()
        }),
        kept("several sessions on several terminals", |s| {
            for n in 0..4 {
                session(s, "root", &format!("leader{n}"), M + n, S + n);
                s.type_in("root", M + n, format!("to {n}\r").as_bytes());
            }
        }),
        kept("a session inside a terminal inside a session", |s| {
            session(s, "root", "outer", M, S);
            job(s, "outer", "holder");
            foreground(s, "outer", S, s.pid("holder"));
            session(s, "holder", "inner", M + 5, S + 5);
            session(s, "inner", "innermost", M + 6, S + 6);
            s.type_in("holder", M + 5, b"typed inside\r");
        }),
        kept("a leader without controlling terminal", |s| {
            s.pair("root", M, S);
            s.fork("root", "leader");
            s.must("leader", libc::SYS_setsid, &[]);
            s.fork("leader", "member");
        }),
        kept("a leader that gave its terminal up", |s| {
            session(s, "root", "leader", M, S);
            s.ioctl("leader", S, tty::TIOCNOTTY, 0);
        }),
        kept("a member that gave its terminal up", |s| {
            session(s, "root", "leader", M, S);
            s.fork("leader", "member");
            s.ioctl("member", S, tty::TIOCNOTTY, 0);
        }),
        kept("an orphaned group", orphaned),
        kept("a group whose leader is dead", |s| {
            session(s, "root", "leader", M, S);
            job(s, "leader", "first");
            s.fork("leader", "second");
            let group = s.pid("first");
            s.must("leader", libc::SYS_setpgid, &[s.pid("second").into(), group.into()]);
            s.post("first", "exit 0");
            s.must("leader", libc::SYS_wait4, &[group.into(), 0.into(), 0.into(), 0.into()]);
            s.forget("first");
        }),
        kept("a session whose leader is dead", dead_leader),
        kept("the hung up terminal of a session", |s| {
            session(s, "root", "leader", M, S);
            s.close("root", M);
        }),
        kept("the dump's root is the session leader", |s| {
            s.pair("root", M, S);
            s.ioctl("root", S, tty::TIOCSCTTY, 0);
            s.fork("root", "member");
            s.open("member", 30, "/dev/tty", RDWR);
        }),
    ]
}

/// All that comes out once the stopped job goes on.
fn continued(s: &mut Stage) -> Vec<String> {
    let behind = s.pid("behind");
    s.must("root", libc::SYS_kill, &[behind.into(), libc::SIGCONT.into()]);
    s.stopped.remove("behind");
    s.exhaust()
}

/// A leader in the background makes itself the foreground again.
fn take_back(s: &mut Stage, leader: &str) {
    let stops = 1u64 << (libc::SIGTTOU - 1);
    let blocked = [libc::SIG_BLOCK.into(), stops.to_ne_bytes().as_slice().into(), 0.into(), 8.into()];
    s.must(leader, libc::SYS_rt_sigprocmask, &blocked);
    foreground(s, leader, S, s.pid(leader));
}

/// A child ends, and its parent takes note.
fn ended(s: &mut Stage, parent: &str, name: &str) {
    let pid = s.pid(name);
    s.post(name, "exit 0");
    s.must(parent, libc::SYS_wait4, &[pid.into(), 0.into(), 0.into(), 0.into()]);
    s.forget(name);
}

/// A session with a stopped job and another one in the foreground, of which these have the master.
fn master_in_jobs(s: &mut Stage, holders: &[&str]) {
    s.pair("root", M, S);
    s.fork("root", "leader");
    s.must("leader", libc::SYS_setsid, &[]);
    s.ioctl("leader", S, tty::TIOCSCTTY, 0);
    for name in ["behind", "front"] {
        job(s, "leader", name);
    }
    foreground(s, "leader", S, s.pid("front"));
    s.type_in("root", M, b"typed\rpart");
    // Echoes come before what is written once the input is there.
    until(
        "typed line",
        crate::support::PATIENCE,
        || (s.events("front", S, libc::POLLIN) != 0).then_some(()),
        String::new,
    );
    s.write("front", S, b"shown\n");
    for name in ["root", "leader", "behind", "front"] {
        if !holders.contains(&name) {
            s.close(name, M);
        }
    }
    s.close("root", S);
    s.tell("behind", &format!("default {}", libc::SIGTSTP));
    stop(s, "behind", libc::SIGTSTP);
}

/// A new session on a new terminal whose master its parent holds.
fn session(s: &mut Stage, parent: &str, leader: &str, master: i32, slave: i32) {
    s.pair(parent, master, slave);
    s.fork(parent, leader);
    s.close(leader, master);
    s.close(parent, slave);
    s.must(leader, libc::SYS_setsid, &[]);
    s.ioctl(leader, slave, tty::TIOCSCTTY, 0);
}

/// A child with a group of its own.
fn job(s: &mut Stage, leader: &str, name: &str) {
    let pid = s.fork(leader, name);
    s.must(leader, libc::SYS_setpgid, &[pid.into(), pid.into()]);
}

fn foreground(s: &mut Stage, leader: &str, slave: i32, group: i32) {
    s.ioctl_in(leader, slave, tty::TIOCSPGRP, &group.to_ne_bytes());
}

fn stop(s: &mut Stage, name: &str, signal: i32) {
    let pid = s.pid(name);
    s.must("root", libc::SYS_kill, &[pid.into(), signal.into()]);
    let stopped = || crate::support::stat(pid).is_some_and(|stat| stat.state == 'T').then_some(());
    s.stopped.insert(name.into());
    until("stopped job", crate::support::PATIENCE, stopped, String::new);
}

fn members(s: &mut Stage) {
    s.pair("root", M, S);
    s.fork("root", "leader");
    s.must("leader", libc::SYS_setsid, &[]);
    s.fork("leader", "before");
    s.ioctl("leader", S, tty::TIOCSCTTY, 0);
    s.fork("leader", "after");
    s.fork("after", "grandchild");
    s.must("grandchild", libc::SYS_setpgid, &[0.into(), 0.into()]);
}

fn dev_ttys(s: &mut Stage) {
    session(s, "root", "leader", M, S);
    s.open("leader", 30, "/dev/tty", RDWR);
    s.open("leader", 31, "/dev/tty", libc::O_RDONLY | libc::O_NONBLOCK);
    s.fork("leader", "member");
    s.open("member", 32, "/dev/tty", libc::O_WRONLY | libc::O_CLOEXEC);
    s.dup("member", 30, 33);
    s.close("leader", 30);
}

fn orphaned(s: &mut Stage) {
    session(s, "root", "leader", M, S);
    job(s, "leader", "middle");
    s.fork("middle", "orphan");
    // Its parent leads another session, so that no member's parent is in this one.
    let orphan = s.pid("orphan");
    s.must("orphan", libc::SYS_setpgid, &[0.into(), 0.into()]);
    s.must("root", libc::SYS_prctl, &[36.into(), 1.into()]);
    let middle = s.pid("middle");
    s.post("middle", "exit 0");
    s.must("leader", libc::SYS_wait4, &[middle.into(), 0.into(), 0.into(), 0.into()]);
    s.forget("middle");
    assert_eq!(crate::support::stat(orphan).unwrap().ppid, s.pid("root"));
}

fn dead_leader(s: &mut Stage) {
    s.must("root", libc::SYS_prctl, &[36.into(), 1.into()]);
    session(s, "root", "leader", M, S);
    s.fork("leader", "member");
    s.tell("member", "default 18");
    let leader = s.pid("leader");
    s.post("leader", "exit 0");
    s.must("root", libc::SYS_wait4, &[leader.into(), 0.into(), 0.into(), 0.into()]);
    s.forget("leader");
}
