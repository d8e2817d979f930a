//! A call with a timeout takes as long as it was to take, not counting the time between the dump and the restore.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::{EndSession, PATIENCE, TempDir, asleep, compile, dump, restore, serial, subreaper, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(120);
/// TIMEOUT of `tests/victims/deadlines.c`.
const TIMEOUT: Duration = Duration::from_secs(4);
/// From the beginning of the calls to the dump, and from there to the restore. A call that starts over takes the first too long, one
/// that keeps its point of time the second too short.
const BEFORE: Duration = Duration::from_secs(2);
const BETWEEN: Duration = Duration::from_secs(2);
/// What a busy machine may add.
const LATENESS: Duration = Duration::from_secs(1);

/// Lets time pass.
fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

/// One line of the victim's report.
struct Call {
    name: String,
    took: Duration,
    /// What it returned, and errno.
    outcome: (i64, i32),
}

fn calls(report: &str) -> Vec<Call> {
    let call = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let took = Duration::from_nanos(words[2].parse().unwrap());
        Call { name: words[..2].join(" "), took, outcome: (words[3].parse().unwrap(), words[4].parse().unwrap()) }
    };
    report.lines().filter(|line| *line != "done").map(call).collect()
}

#[test]
fn the_time_that_was_left_is_left() {
    let serial = serial();
    with_timeout(LIMIT, move || {
        let _serial = serial;
        let _subreaper = subreaper();
        // On a busy machine the calls may have ended by the time of the dump.
        while !is_left() {}
    });
}

/// Whether the calls were dumped while they waited; panics where one did not end when it should.
fn is_left() -> bool {
    let dir = TempDir::new();
    let mut command = Command::new(compile("deadlines"));
    command.arg(dir.path()).arg("all").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    assert!(command.status().unwrap().success());
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let pid: i32 = until("ready victim", PATIENCE, || read("ready").parse().ok(), || read("result"));
    let _end = EndSession(pid);
    asleep(pid);
    pass(BEFORE);
    let images = dir.join("images");
    let begun = Instant::now();
    dump(pid, &images);
    let dumped = Instant::now();
    if dumped - started >= TIMEOUT {
        println!("the dump ended after {:?}", dumped - started);
        return false;
    }
    pass(BETWEEN);
    let restoring = Instant::now();
    restore(&images);
    let away = begun.elapsed();
    File::options().read(true).write(true).open(dir.join("go")).unwrap().write_all(b"g").unwrap();
    until("report", PATIENCE, || read("result").ends_with("done\n").then_some(()), || read("result"));
    let calls = calls(&read("result"));
    let report: Vec<String> =
        calls.iter().map(|call| format!("{} {:?} {:?}", call.name, call.took, call.outcome)).collect();
    println!("away for {away:?}:\n{}", report.join("\n"));
    for call in &calls {
        let timed_out = if call.name.ends_with("futex") || call.name.ends_with("condition") {
            (-1, libc::ETIMEDOUT)
        } else {
            (0, 0)
        };
        assert_eq!(call.outcome, timed_out, "{}", call.name);
        assert!(call.took >= TIMEOUT + (restoring - dumped), "{} was early: {:?}", call.name, call.took);
        assert!(call.took <= TIMEOUT + away + LATENESS, "{} was late: {:?}", call.name, call.took);
    }
    assert_eq!(calls.len(), 28);
    true
}
