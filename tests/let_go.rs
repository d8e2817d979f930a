//! A call that a stop breaks goes on however the process is let go.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::time::Duration;

use ptyagent::ids::{Pid, Tid};
use ptyagent::inject::batch::Batch;
use ptyagent::inject::restart::Pending;
use ptyagent::inject::{Entry, Infected, Placement, nothing_left};
use ptyagent::procfs::maps;
use ptyagent::sys::ptrace;
use ptyagent::task::deadline::Waits;
use ptyagent::task::freeze::{FrozenProcess, freeze};
use ptyagent::trace::Running;
use support::{PATIENCE, Victim, asleep, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);
const TURNS: usize = 100;

/// In epoll_wait, without a timeout.
fn victim() -> Victim {
    let victim = Victim::start("epoll");
    asleep(victim.pid());
    victim
}

fn assert_it_goes_on(victim: &Victim) {
    victim.wake();
    victim.counters().assert_unharmed();
}

#[test]
fn by_the_last_resort() {
    with_timeout(LIMIT, || {
        let victim = victim();
        for _ in 0..TURNS {
            drop(Running::seize(Tid(victim.pid()), ptrace::OPTIONS).unwrap());
        }
        for _ in 0..TURNS {
            drop(Running::seize(Tid(victim.pid()), ptrace::OPTIONS).unwrap().stop().unwrap());
        }
        assert_it_goes_on(&victim);
    });
}

fn infect(pid: Pid) -> Infected {
    let frozen = freeze(pid, &Waits::default()).unwrap();
    let FrozenProcess { pidfd, host: leader, .. } = frozen.processes.into_iter().next().unwrap();
    let entry = Entry {
        pid,
        pidfd: &pidfd,
        places: ptyagent::mem::places(&maps::read(pid).unwrap()),
        base: 0x10_0000_0000,
        placement: Placement::Free,
        pending: Pending::Nothing,
        left: &nothing_left,
        others: Default::default(),
    };
    Infected::infect(leader, &entry).unwrap()
}

fn has_parasite(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().contains("/memfd:ptyagent")
}

/// The controller is held up for so long that the parasite counts it as dead; what the process has done since is not taken back.
fn held_up(undo: bool, goes_on: bool) {
    with_timeout(LIMIT, move || {
        let victim = victim();
        let pid = Pid(victim.pid());
        let mut infected = infect(pid);
        let mut batch = Batch::new();
        batch.call(libc::SYS_getpid, []);
        if undo {
            infected.set_undo(&batch, ptyagent::wire::HOLD_OFFSET).unwrap();
        }
        infected.post(&batch).unwrap();
        until("parasite that has left", PATIENCE, || (!has_parasite(pid)).then_some(()), String::new);
        asleep(victim.pid());
        if goes_on {
            assert_it_goes_on(&victim);
            asleep(victim.pid());
        }
        let error = infected.answer(batch).unwrap_err().to_string();
        assert!(error.contains("held up"), "{error}");
        drop(infected);
        assert_it_goes_on(&victim);
        assert_it_goes_on(&victim);
    });
}

#[test]
fn by_a_parasite_that_has_left() {
    held_up(false, false);
}

#[test]
fn by_a_parasite_that_has_left_to_a_process_that_went_on() {
    held_up(false, true);
}

#[test]
fn by_a_parasite_that_has_put_back_what_it_held() {
    held_up(true, true);
}

/// As above, for a parasite of which nobody has yet noticed that it left.
#[test]
fn by_a_parasite_that_nobody_asked_again() {
    with_timeout(LIMIT, || {
        let victim = victim();
        let pid = Pid(victim.pid());
        let mut infected = infect(pid);
        infected.post(&Batch::new()).unwrap();
        until("parasite that has left", PATIENCE, || (!has_parasite(pid)).then_some(()), String::new);
        asleep(victim.pid());
        drop(infected);
        assert_it_goes_on(&victim);
    });
}
