//! A victim in each kind of system call does not notice inspections and dumps that leave it running.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use ptyagent::dump::{self, After, Request};
use ptyagent::error::Error;
use ptyagent::ids::Pid;
use ptyagent::image::Overwrite;
use support::{PATIENCE, Pty, Reading, Size, TaskSnapshot, TempDir, Victim, quiet_snapshot, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(120);
const INSPECTIONS: usize = 200;
const DUMPS: usize = 5;
/// What a timed call may take longer, on a busy machine, with all the stops in it.
const LATENESS: Duration = Duration::from_secs(30);

/// Whether a dump of the mode has to succeed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dump {
    Succeeds,
    /// The call goes through syscall(3): when the kernel has restarted it once, no instruction says which call it was.
    Either,
}

/// Waits until the victim has gone into its call again after the last release, or has come out of it with a result.
fn assert_same(before: &TaskSnapshot, victim: &Victim) {
    let difference = || before.difference(&quiet_snapshot(victim.pid()));
    until("state as before", PATIENCE, || difference().is_empty().then_some(()), difference);
}

fn disturb(victim: &Victim, dumps: Dump) {
    let pid = Pid(victim.pid());
    let before = quiet_snapshot(victim.pid());
    for turn in 0..INSPECTIONS {
        ptyagent::inspect::inspect(pid).unwrap();
        let counters = victim.counters();
        assert!(counters.eintr + counters.early + counters.wrong == 0, "inspection {turn}: {counters:?}");
    }
    assert_same(&before, victim);
    let place = TempDir::new();
    for turn in 0..DUMPS {
        let dir = place.join(&format!("images-{turn}"));
        let request = Request {
            root: pid,
            dir,
            after: After::LeaveRunning,
            overwrite: Overwrite::Refuse,
            allowed: Default::default(),
        };
        match (dump::dump(&request), dumps) {
            (Ok(_), Dump::Succeeds | Dump::Either) | (Err(Error::Refused(_) | Error::InVfork(_)), Dump::Either) => {}
            (other, _) => panic!("dump {turn}: {other:?}"),
        }
        let counters = victim.counters();
        assert!(counters.eintr + counters.early + counters.wrong == 0, "dump {turn}: {counters:?}");
    }
    assert_same(&before, victim);
}

fn woken(mode: &'static str, dumps: Dump) {
    with_timeout(LIMIT, move || {
        let victim = Victim::start(mode);
        disturb(&victim, dumps);
        assert_eq!(victim.counters().rounds, 0, "the call returned though nobody woke it");
        for _ in 0..3 {
            victim.wake();
        }
        victim.counters().assert_unharmed();
    });
}

fn going(mode: &'static str, dumps: Dump) {
    with_timeout(LIMIT, move || {
        let victim = Victim::start(mode);
        disturb(&victim, dumps);
        victim.wait_for_rounds(victim.counters().rounds + 2);
        let counters = victim.counters();
        counters.assert_unharmed();
        assert!(Duration::from_nanos(counters.late_ns) < LATENESS, "{counters:?}");
    });
}

macro_rules! modes {
    ($how:ident: $($name:ident $dumps:ident),* $(,)?) => {
        $(#[test] fn $name() { $how(stringify!($name), Dump::$dumps) })*
    };
}

modes!(woken: pipe Succeeds, poll Succeeds, ppoll Succeeds, select Succeeds, epoll Succeeds, futex Succeeds, wait4 Succeeds,
    sigsuspend Succeeds, sigtimedwait Succeeds);
modes!(going: spin Succeeds, getppid Succeeds, nanosleep Succeeds, clock_nanosleep Succeeds, clock_absolute Succeeds,
    poll_timed Succeeds, futex_timed Either, epoll_timed Succeeds);

fn terminal() -> Pty {
    Pty::new(Size { rows: 24, cols: 80 })
}

#[test]
fn tty_line() {
    with_timeout(LIMIT, || {
        let mut pty = terminal();
        let victim = Victim::start_on(&mut pty, "tty_line");
        pty.type_keys("li");
        disturb(&victim, Dump::Succeeds);
        pty.type_keys("ne\r");
        victim.wait_for_rounds(1);
        victim.counters().assert_unharmed();
    });
}

/// A raw read that waits for more bytes than have been typed.
#[test]
fn tty_min() {
    with_timeout(LIMIT, || {
        let mut pty = terminal();
        let victim = Victim::start_on(&mut pty, "tty_min");
        pty.type_keys("ab");
        disturb(&victim, Dump::Succeeds);
        pty.type_keys("c");
        disturb(&victim, Dump::Succeeds);
        pty.type_keys("d");
        victim.wait_for_rounds(1);
        pty.type_keys("abcd");
        victim.wait_for_rounds(2);
        victim.counters().assert_unharmed();
    });
}

/// A write that waits until the terminal takes more.
#[test]
fn tty_write() {
    with_timeout(LIMIT, || {
        let mut pty = terminal();
        pty.set_reading(Reading::Paused);
        let victim = Victim::start_on(&mut pty, "tty_write");
        disturb(&victim, Dump::Succeeds);
        assert_eq!(victim.counters().rounds, 0);
        pty.set_reading(Reading::On);
        victim.wait_for_rounds(1);
        victim.counters().assert_unharmed();
        until(
            "whole output",
            PATIENCE,
            || (pty.output().len() == 48000).then_some(()),
            || pty.output().len().to_string(),
        );
    });
}
