//! Processes in awkward states: stopped, under fire of signals, forking, in vfork, with zombies, under another debugger.
#![allow(clippy::unwrap_used)]

mod support;

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd;
use ptyagent::ids::Tid;
use ptyagent::trace::Running;
use support::{Holder, PATIENCE, Pty, TempDir, Victim, ptyagent, report, snapshot, stat, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(180);
const INSPECTIONS: usize = 50;
const DUMPS: usize = 10;

/// Runs the command to its end; yields what it complained about. In a process of its own: the reaper of a [`Holder`] would take the stops.
fn run(arguments: &[&str]) -> Result<(), String> {
    let output = ptyagent(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1 | 3) if text.lines().count() == 1 => Err(text),
        _ => panic!("{arguments:?}: {}", report(&output)),
    }
}

fn inspect(pid: i32) -> Result<(), String> {
    run(&["inspect", &pid.to_string()])
}

/// Inspects and dumps; `allow` says which complaints are in order. Yields how many succeeded.
fn disturb(pid: i32, allow: impl Fn(&str) -> bool) -> (usize, usize) {
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
        match run(&["dump", "--leave-running", "--inject", &pid.to_string(), "-D", dir.to_str().unwrap()]) {
            Ok(()) => dumped += 1,
            Err(error) => {
                assert!(allow(&error), "dump {turn}: {error}");
                assert!(!dir.exists());
            }
        }
    }
    (inspected, dumped)
}

fn never(_: &str) -> bool {
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
fn busy(error: &str) -> bool {
    ["refused: ", "is gone", "try again"].iter().any(|part| error.contains(part))
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

/// Whatever a tree that changes under a look at it makes of the look, a call that a stop breaks goes on.
#[test]
fn a_call_beside_children_that_come_and_go() {
    with_timeout(LIMIT, || {
        let victim = Victim::run("signals", "beside");
        victim.wait_for_rounds(10);
        for _ in 0..4 {
            disturb(victim.pid(), busy);
        }
        victim.wait_for_rounds(victim.counters().rounds + 10);
        victim.counters().assert_unharmed();
    });
}

#[test]
fn a_shell_that_forks_all_the_time() {
    with_timeout(LIMIT, || {
        let place = TempDir::new();
        let flag = place.join("on");
        std::fs::write(&flag, "").unwrap();
        let pty = Pty::bash();
        let wrong = "echo bad=$?";
        pty.type_keys(format!("n=0; while [ -e {} ]; do /bin/true || {wrong}; ((n++)); done\r", flag.display()));
        let children = || {
            let text = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", pty.pid())).ok()?;
            (!text.is_empty()).then_some(())
        };
        until("child", PATIENCE, children, || pty.screen_text());
        let done = disturb(pty.pid(), busy);
        println!("forks: inspected and dumped {done:?}");
        assert!(done.0 > INSPECTIONS / 4, "{done:?}");
        std::fs::remove_file(&flag).unwrap();
        pty.type_keys("echo n=$((n>0))=\r");
        pty.wait_for_text("\nn=1=\n");
        assert!(!String::from_utf8_lossy(&pty.output()).contains("\nbad="), "{}", pty.screen_text());
    });
}

#[test]
fn a_parent_in_vfork_is_refused() {
    refused_in_vfork("vfork");
}

#[test]
fn a_thread_in_vfork_is_refused() {
    refused_in_vfork("thread_in_vfork");
}

/// The child is named, and both go on; once the child has ended nothing is refused.
fn refused_in_vfork(mode: &'static str) {
    with_timeout(LIMIT, move || {
        let victim = Victim::run("signals", mode);
        let pid = victim.pid();
        let path = |name: &str| format!("/proc/{pid}/{name}");
        let threads = || std::fs::read_dir(path("task")).unwrap().map(|entry| entry.unwrap().file_name());
        let thread = threads().map(|name| name.to_str().unwrap().parse().unwrap()).max().unwrap();
        wait_for_state(thread, 'D');
        let child = std::fs::read_to_string(path(&format!("task/{thread}/children"))).unwrap();
        let named = format!("it waits in vfork for its child {} (signals)", child.trim());
        for _ in 0..5 {
            let error = inspect(pid).unwrap_err();
            assert!(error.contains(&named) && error.contains(&format!("kill {}", child.trim())), "{error}");
        }
        std::fs::write(victim.dir().join("in"), [0]).unwrap();
        victim.wait_for_rounds(1);
        assert_eq!(disturb(pid, never), (INSPECTIONS, DUMPS));
        victim.counters().assert_unharmed();
    });
}

/// A zombie is recorded, and its parent can still wait for it.
#[test]
fn a_zombie_stays_its_parents() {
    with_timeout(LIMIT, || {
        let victim = Victim::run("signals", "zombie");
        let path = format!("/proc/{0}/task/{0}/children", victim.pid());
        let child: i32 = std::fs::read_to_string(path).unwrap().trim().parse().unwrap();
        wait_for_state(child, 'Z');
        assert_eq!(disturb(victim.pid(), never), (INSPECTIONS, DUMPS));
        wait_for_state(child, 'Z');
        std::fs::write(victim.dir().join("in"), [0]).unwrap();
        victim.wait_for_rounds(1);
        victim.counters().assert_unharmed();
    });
}

#[test]
fn a_process_under_a_debugger_is_refused_by_its_name() {
    with_timeout(LIMIT, || {
        let victim = Victim::start("nanosleep");
        let traced = Running::seize(Tid(victim.pid()), 0).unwrap();
        let error = inspect(victim.pid()).unwrap_err();
        // A thread of this process is the debugger.
        assert!(error.contains("already traced by process") && error.contains("(a_process_under)"), "{error}");
        traced.stop().unwrap().release().unwrap();
        inspect(victim.pid()).unwrap();
        assert_eq!(snapshot(victim.pid()).stat.comm, "blocked");
        victim.counters().assert_unharmed();
    });
}
