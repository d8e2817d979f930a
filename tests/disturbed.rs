//! Processes in awkward states: stopped, under fire of signals, forking, in vfork, with zombies, under another debugger.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd;
use ptyagent::dump::{self, After, Request};
use ptyagent::error::{Error, Result};
use ptyagent::ids::{Pid, Tid};
use ptyagent::image::Overwrite;
use ptyagent::trace::Running;
use support::{Holder, PATIENCE, Pty, TempDir, Victim, report, snapshot, stat, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(180);
const INSPECTIONS: usize = 50;
const DUMPS: usize = 10;

fn inspect(pid: i32) -> Result<()> {
    ptyagent::inspect::inspect(Pid(pid)).map(drop)
}

/// Inspects and dumps; `allow` says which errors are in order.
fn disturb(pid: i32, mut allow: impl FnMut(&Error) -> bool) -> (usize, usize) {
    let (mut inspected, mut dumped) = (0, 0);
    for turn in 0..INSPECTIONS {
        match inspect(pid) {
            Ok(()) => inspected += 1,
            Err(error) => assert!(allow(&error), "inspection {turn}: {error}"),
        }
    }
    let place = TempDir::new();
    for turn in 0..DUMPS {
        let dir = place.join(&format!("images-{turn}"));
        let request =
            Request { root: Pid(pid), dir: dir.clone(), after: After::LeaveRunning, overwrite: Overwrite::Refuse };
        match dump::dump(&request) {
            Ok(_) => dumped += 1,
            Err(error) => {
                assert!(allow(&error), "dump {turn}: {error}");
                assert!(!dir.exists());
            }
        }
    }
    (inspected, dumped)
}

fn never(_: &Error) -> bool {
    false
}

fn send(pid: i32, signal: Signal) {
    kill(unistd::Pid::from_raw(pid), signal).unwrap();
}

fn wait_for_state(pid: i32, state: char) {
    let reached = || stat(pid).is_some_and(|stat| stat.state == state).then_some(());
    until("state", PATIENCE, reached, || format!("{:?}", stat(pid)));
}

/// A stopped process is stopped again after each release, and goes on when it is continued.
#[test]
fn a_stopped_process_stays_stopped() {
    with_timeout(LIMIT, || {
        for signal in [Signal::SIGSTOP, Signal::SIGTSTP] {
            let victim = Victim::start("spin");
            send(victim.pid(), signal);
            if signal == Signal::SIGTSTP {
                // Nobody stops an orphaned process group by the keyboard's signal.
                send(victim.pid(), Signal::SIGSTOP);
            }
            wait_for_state(victim.pid(), 'T');
            let rounds = victim.counters().rounds;
            assert_eq!(disturb(victim.pid(), never), (INSPECTIONS, DUMPS));
            wait_for_state(victim.pid(), 'T');
            assert_eq!(victim.counters().rounds, rounds);
            send(victim.pid(), Signal::SIGCONT);
            victim.wait_for_rounds(rounds + 2);
            victim.counters().assert_unharmed();
        }
    });
}

/// A job that the shell has stopped by ^Z is still the shell's stopped job.
#[test]
fn a_stopped_job_stays_the_shells() {
    with_timeout(LIMIT, || {
        let holder = Holder::bash();
        holder.type_keys("sleep 1000\r");
        let child = || {
            let path = format!("/proc/{0}/task/{0}/children", holder.leader());
            std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
        };
        let job = until("job", PATIENCE, child, || holder.screen_text());
        let sleeps = || stat(job).is_some_and(|stat| stat.comm == "sleep" && stat.state == 'S').then_some(());
        until("sleeping job", PATIENCE, sleeps, || holder.screen_text());
        holder.type_keys([26]);
        holder.wait_for_text("Stopped");
        assert_eq!(disturb(holder.pid(), never), (INSPECTIONS, DUMPS));
        wait_for_state(job, 'T');
        holder.type_keys("jobs; bg; jobs\r");
        holder.wait_for_text("Running");
        wait_for_state(job, 'S');
    });
}

/// SIGSTOP and SIGCONT come at any moment, and the last one counts.
#[test]
fn stop_and_continue_come_through() {
    with_timeout(LIMIT, || {
        let victim = Victim::start("spin");
        let pid = victim.pid();
        for turn in 0..INSPECTIONS {
            let signals = thread::spawn(move || {
                for _ in 0..=turn % 7 {
                    send(pid, Signal::SIGCONT);
                    thread::yield_now();
                    send(pid, Signal::SIGSTOP);
                }
            });
            inspect(pid).unwrap();
            signals.join().unwrap();
            wait_for_state(pid, 'T');
            send(pid, Signal::SIGCONT);
            victim.wait_for_rounds(victim.counters().rounds + 1);
        }
        victim.counters().assert_unharmed();
    });
}

/// Every queued signal arrives once, in order, and with its value.
#[test]
fn queued_signals_arrive_in_order() {
    with_timeout(LIMIT, || {
        let victim = Victim::run("signals", "queued");
        victim.wait_for_rounds(10);
        assert_eq!(disturb(victim.pid(), never), (INSPECTIONS, DUMPS));
        victim.wait_for_rounds(victim.counters().rounds + 10);
        victim.counters().assert_unharmed();
    });
}

#[test]
fn a_timer_goes_on() {
    with_timeout(LIMIT, || {
        let victim = Victim::run("signals", "itimer");
        victim.wait_for_rounds(10);
        assert_eq!(disturb(victim.pid(), never), (INSPECTIONS, DUMPS));
        victim.wait_for_rounds(victim.counters().rounds + 10);
        victim.counters().assert_unharmed();
    });
}

/// What a busy tree may answer: it changes while it is looked at.
fn busy(error: &Error) -> bool {
    let text = error.to_string();
    matches!(error, Error::Refused(_) | Error::Gone(_)) || text.contains("try again")
}

/// A parent is told of each child's end, and each can be reaped, though many end while they are looked at.
#[test]
fn children_come_and_go() {
    with_timeout(LIMIT, || {
        let victim = Victim::run("signals", "children");
        victim.wait_for_rounds(10);
        let done = disturb(victim.pid(), busy);
        println!("children: inspected and dumped {done:?}");
        assert!(done.0 > INSPECTIONS / 4, "{done:?}");
        victim.wait_for_rounds(victim.counters().rounds + 10);
        victim.counters().assert_unharmed();
    });
}

#[test]
fn a_shell_that_forks_all_the_time() {
    with_timeout(LIMIT, || {
        let pty = Pty::bash();
        pty.type_keys("n=0; while [ $n -lt 1000000 ]; do /bin/true || echo bad=$?; ((n++)); done; echo left\r");
        let children = || {
            let text = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", pty.pid())).ok()?;
            (!text.is_empty()).then_some(())
        };
        until("child", PATIENCE, children, || pty.screen_text());
        let done = disturb(pty.pid(), busy);
        println!("forks: inspected and dumped {done:?}");
        assert!(done.0 > INSPECTIONS / 4, "{done:?}");
        pty.type_keys([3]);
        pty.type_keys("echo n=$((n>0))=\r");
        pty.wait_for_text("\nn=1=\n");
        assert!(!pty.screen_text().contains("bad=1"), "{}", pty.screen_text());
        assert!(!String::from_utf8_lossy(&pty.output()).contains("\nbad="), "{}", pty.screen_text());
    });
}

#[test]
fn a_parent_in_vfork_is_refused() {
    with_timeout(LIMIT, || {
        let victim = Victim::run("signals", "vfork");
        wait_for_state(victim.pid(), 'D');
        for _ in 0..5 {
            let error = inspect(victim.pid()).unwrap_err();
            assert!(error.to_string().contains("vfork"), "{error}");
        }
        std::fs::write(victim.dir().join("in"), [0]).unwrap();
        victim.wait_for_rounds(1);
        assert_eq!(disturb(victim.pid(), never), (INSPECTIONS, DUMPS));
        victim.counters().assert_unharmed();
    });
}

/// A zombie is recorded, and its parent can still wait for it.
#[test]
fn a_zombie_stays_its_parents() {
    with_timeout(LIMIT, || {
        let holder =
            Holder::spawn(&["bash", "-c", "sh -c 'exit 9' & p=$!; read line; wait $p; echo status=$?; read line"]);
        let path = format!("/proc/{0}/task/{0}/children", holder.leader());
        let zombie = || {
            let text = std::fs::read_to_string(&path).ok()?;
            text.split_whitespace()
                .filter_map(|word| stat(word.parse().ok()?))
                .any(|stat| stat.state == 'Z')
                .then_some(())
        };
        until("zombie", PATIENCE, zombie, || holder.screen_text());
        assert_eq!(disturb(holder.pid(), never), (INSPECTIONS, DUMPS));
        holder.type_keys("\r");
        holder.wait_for_text("status=9");
    });
}

#[test]
fn a_process_under_a_debugger_is_refused_by_its_name() {
    with_timeout(LIMIT, || {
        let victim = Victim::start("nanosleep");
        let traced = Running::seize(Tid(victim.pid()), 0).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_ptyagent")).args(["inspect", &victim.pid().to_string()]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", report(&output));
        let text = String::from_utf8(output.stderr).unwrap();
        let ours = std::process::id().to_string();
        let name = stat(std::process::id() as i32).unwrap().comm;
        assert!(text.contains(&ours) || text.contains(&name), "{text}");
        assert!(text.lines().count() == 1, "{text}");
        traced.stop().unwrap().release().unwrap();
        inspect(victim.pid()).unwrap();
        assert_eq!(snapshot(victim.pid()).stat.comm, "blocked");
        victim.counters().assert_unharmed();
    });
}
