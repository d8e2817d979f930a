//! A shell that is inspected a thousand times says the same each time, and does not notice.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use ptyagent::ids::Pid;
use ptyagent::show;
use serde_json::Value;
use support::{PATIENCE, Pty, TaskSnapshot, ptyagent, report, snapshot, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(240);
const INSPECTIONS: u32 = 1000;

/// The report of one inspection, by the library and as the command prints it.
fn inspect(pid: i32) -> String {
    let images = ptyagent::inspect::inspect(Pid(pid)).unwrap();
    format!("{}\n{}", show::tree(&images), serde_json::to_string_pretty(&show::json(&images)).unwrap())
}

/// The lines that only one of two texts has.
fn difference(before: &str, after: &str) -> String {
    let only = |one: &str, other: &str, sign: char| -> String {
        one.lines()
            .filter(|line| !other.lines().any(|same| same == *line))
            .map(|line| format!("{sign}{line}\n"))
            .collect()
    };
    only(before, after, '-') + &only(after, before, '+')
}

fn quiet_snapshot(pid: i32) -> TaskSnapshot {
    let mut task = snapshot(pid);
    task.stat.state = 'S';
    task
}

/// Inspects a thousand times with the library and ten times with the command; every report is the same.
fn inspect_again_and_again(name: &str, pid: i32) {
    let before = quiet_snapshot(pid);
    let first = inspect(pid);
    let command = || {
        let output = ptyagent(&["inspect", "--json", &pid.to_string()]);
        assert!(output.status.success(), "{}", report(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let first_printed = command();
    let start = Instant::now();
    for turn in 1..INSPECTIONS {
        let now = inspect(pid);
        assert!(now == first, "inspection {turn}:\n{}", difference(&first, &now));
    }
    let took = start.elapsed() / INSPECTIONS;
    println!("{name}: {took:?} for an inspection");
    for _ in 0..10 {
        assert_eq!(command(), first_printed);
    }
    let difference = || before.difference(&quiet_snapshot(pid));
    until("state as before", PATIENCE, || difference().is_empty().then_some(()), difference);
}

#[test]
fn a_shell_that_reads() {
    with_timeout(LIMIT, || {
        let pty = Pty::bash();
        pty.type_keys("variable=$((6*7)); echo half");
        pty.wait_for_text("echo half");
        inspect_again_and_again("reading", pty.pid());
        pty.type_keys("-typed-$variable\r");
        pty.wait_for_text("\nhalf-typed-42\n");
    });
}

#[test]
fn a_shell_in_a_busy_loop() {
    with_timeout(LIMIT, || {
        let pty = Pty::bash();
        pty.type_keys("trap 'echo at=$i=' INT; i=0; echo be''gun; while :; do ((i++)); done; echo left\r");
        let count = |at: usize| {
            // The trap's lines are the victim's clock: each answers one ^C.
            pty.type_keys([3]);
            let line = || {
                let text = String::from_utf8_lossy(&pty.output()).into_owned();
                let mut counts =
                    text.split("at=").skip(1).filter_map(|part| part.split_once('=')?.0.parse::<u64>().ok());
                counts.nth(at)
            };
            until("answer to ^C", PATIENCE, line, || pty.screen_text())
        };
        pty.wait_for_text("\nbegun");
        until("loop", PATIENCE, || (snapshot(pty.pid()).stat.state == 'R').then_some(()), || pty.screen_text());
        let first = count(0);
        inspect_again_and_again("busy", pty.pid());
        let second = count(1);
        assert!(second > first, "the loop stands still at {second}");
        let third = count(2);
        assert!(third > second, "the loop stands still at {third}");
    });
}
