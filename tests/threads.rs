//! Processes of several threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use ptyagent::ids::Tid;
use ptyagent::image::{Images, pb};
use ptyagent::sys::process::pidfd_open_thread;
use support::{
    EndSession, PATIENCE, TempDir, Victim, dump_running, ptyagent, quiet_snapshot, report, restore, serial, subreaper,
    times, until, with_timeout,
};

const LIMIT: Duration = Duration::from_secs(60);

fn check(name: &'static str) {
    support::check_images("threads", name, 3, same_threads);
}

/// What the images of two dumps say of each thread is the same, but for the state that the second restore begins with.
fn same_threads(dirs: &[PathBuf]) {
    let read = |dir: &PathBuf| {
        let images = Images::read(dir).unwrap();
        let threads: Vec<Vec<u32>> = images.pstree.iter().map(|entry| entry.threads.clone()).collect();
        let own: Vec<pb::PtyagentThread> = images.own.iter().flat_map(|own| &own.threads).cloned().collect();
        let cores: Vec<_> = images.cores.values().map(|core| core.thread_core.clone()).collect();
        let places: Vec<_> =
            images.cores.values().map(|core| core.thread_info.as_ref().map(|info| info.clear_tid_addr)).collect();
        let own: Vec<_> = own.into_iter().map(|thread| pb::PtyagentThread { xstate: None, ..thread }).collect();
        (threads, own, cores, places)
    };
    let first = read(&dirs[0]);
    for dir in &dirs[1..] {
        assert_eq!(first, read(dir));
    }
}

#[test]
fn each_thread_keeps_its_own_state() {
    check("state");
}

#[test]
fn threads_go_on_in_their_calls() {
    check("waits");
}

#[test]
fn a_stopped_process_of_several_threads_stays_stopped() {
    check("stopped");
}

#[test]
fn a_hundred_threads() {
    check("many");
}

#[test]
fn busy_threads_go_on() {
    go_on("busy");
}

#[test]
fn busy_threads_without_their_main_one_go_on() {
    go_on("headless");
}

/// Whether this kernel shows a process through any of its threads.
fn is_seen(mode: &str) -> bool {
    let me = nix::unistd::gettid().as_raw();
    let seen = mode != "headless" || pidfd_open_thread(Tid(me)).is_ok();
    if !seen {
        support::skip("this kernel shows a process through its main thread alone");
    }
    seen
}

fn go_on(mode: &'static str) {
    if !is_seen(mode) {
        return;
    }
    with_timeout(LIMIT, move || {
        let _serial = serial();
        let _subreaper = subreaper();
        let mut victim = Victim::run("threads", mode);
        let pid = victim.pid();
        let _end = EndSession(pid);
        victim.wait_for_rounds(3);
        for round in 0..5 {
            let images = victim.dir().join(format!("images{round}"));
            let output = ptyagent(&["dump", "--inject", &pid.to_string(), "-D", images.to_str().unwrap()]);
            assert!(output.status.success(), "{}", report(&output));
            if round == 0 {
                victim.reap();
            }
            let rounds = victim.counters().rounds;
            restore(&images);
            victim.wait_for_rounds(rounds + 5);
            victim.counters().assert_unharmed();
        }
    });
}

#[test]
fn busy_threads_are_not_harmed() {
    are_not_harmed("busy");
}

#[test]
fn busy_threads_without_their_main_one_are_not_harmed() {
    are_not_harmed("headless");
}

/// No inspection, and no dump that leaves them running, is noticed by any thread.
fn are_not_harmed(mode: &'static str) {
    if !is_seen(mode) {
        return;
    }
    with_timeout(LIMIT, move || {
        let victim = Victim::run("threads", mode);
        victim.wait_for_rounds(3);
        let before = quiet_snapshot(victim.pid());
        let place = TempDir::new();
        for turn in 0..times(60) {
            if turn % 10 == 0 {
                dump_running(victim.pid(), &place.join(&format!("images{turn}")));
            } else {
                let output = ptyagent(&["inspect", &victim.pid().to_string()]);
                assert!(output.status.success(), "{}", report(&output));
            }
            victim.counters().assert_unharmed();
        }
        victim.wait_for_rounds(victim.counters().rounds + 3);
        victim.counters().assert_unharmed();
        let difference = || before.difference(&quiet_snapshot(victim.pid()));
        until("state as before", PATIENCE, || difference().is_empty().then_some(()), difference);
    });
}
