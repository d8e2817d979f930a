//! Round trips of one kind of state each, checked by the process that has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::time::Duration;

use support::{
    EndSession, Holder, PATIENCE, TempDir, Victim, asleep, dump, restore, serial, subreaper, until, with_timeout,
};

const LIMIT: Duration = Duration::from_secs(60);

fn check(name: &'static str, rounds: usize) {
    support::check("objects", name, rounds);
}

#[test]
fn private_memory() {
    check("private_memory", 2);
}

#[test]
fn shared_memory() {
    check("shared_memory", 2);
}

#[test]
fn file_memory() {
    check("file_memory", 2);
}

#[test]
fn signals() {
    check("signals", 2);
}

#[test]
fn attributes() {
    check("attributes", 2);
}

#[test]
fn another_user_with_some_capabilities() {
    check("other_user", 2);
}

#[test]
fn another_user_without_privilege() {
    check("other_user_without_privilege", 2);
}

#[test]
fn descriptors() {
    check("descriptors", 2);
}

#[test]
fn family() {
    check("family", 2);
}

/// Takes `tests/victims/blocked.c` in one of its modes through a round trip.
fn blocked(mode: &'static str, wake: bool) {
    with_timeout(LIMIT, move || {
        let _serial = serial();
        let _subreaper = subreaper();
        let mut victim = Victim::start(mode);
        let _end = EndSession(victim.pid());
        if wake {
            victim.wake();
        } else {
            victim.wait_for_rounds(2);
        }
        let pid = victim.pid();
        let images = victim.dir().join("images");
        let output = support::ptyagent(&["dump", "--inject", &pid.to_string(), "-D", images.to_str().unwrap()]);
        assert!(output.status.success(), "{mode}: {}", support::report(&output));
        victim.reap();
        let rounds = victim.counters().rounds;
        restore(&images);
        if wake {
            victim.wake();
            victim.wake();
        } else {
            victim.wait_for_rounds(rounds + 3);
        }
        victim.counters().assert_unharmed();
    });
}

#[test]
fn blocked_calls_go_on() {
    for mode in ["pipe", "poll", "ppoll", "select", "futex", "wait4", "sigsuspend", "sigtimedwait"] {
        blocked(mode, true);
    }
}

// Not getppid: the root of a restored tree has another parent.
#[test]
fn timed_calls_and_busy_loops_go_on() {
    for mode in ["spin", "nanosleep", "clock_nanosleep", "clock_absolute", "poll_timed", "futex_timed"] {
        blocked(mode, false);
    }
}

/// A session of dash and cat on a terminal that is held inside the tree.
#[test]
fn dash_and_cat() {
    support::require("dash");
    with_timeout(LIMIT, || {
        let _serial = serial();
        let dir = TempDir::new();
        let holder = Holder::spawn(&["dash", "-i"]);
        holder.wait_for_text("$ ");
        holder.type_keys("mark=kept; cat\r");
        holder.wait_for_text("mark=kept; cat");
        let cat = until(
            "cat",
            PATIENCE,
            || {
                let path = format!("/proc/{0}/task/{0}/children", holder.leader());
                fs::read_to_string(path).ok()?.trim().parse::<i32>().ok()
            },
            String::new,
        );
        until("cat", PATIENCE, || (support::stat(cat)?.comm == "cat").then_some(()), String::new);
        asleep(cat);
        holder.type_keys("first line\r");
        holder.wait_for_text("first line\nfirst line");
        for round in 0..2 {
            dump(holder.pid(), &dir.join(&format!("images{round}")));
            restore(&dir.join(&format!("images{round}")));
            let seen = holder.output().len();
            holder.type_keys(format!("line {round}\r"));
            holder.wait_for_new_output(seen, &format!("line {round}\r\nline {round}\r\n"));
        }
        holder.type_keys("\x04");
        holder.type_keys("echo $mark; exit 9\r");
        holder.wait_for_text("kept");
        assert_eq!(holder.wait_for_exit(PATIENCE).code(), Some(9));
    });
}
