//! A call with a timeout takes as long as it was to take, not counting the time between the dump and the restore.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use support::{PATIENCE, Prepared, dump, restore, serial, skip, subreaper, tree, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(120);
/// TIMEOUT of `tests/victims/deadlines.c`.
const TIMEOUT: Duration = Duration::from_secs(4);
/// From the beginning of the calls to the dump, and from there to the restore. A call that starts over takes the first too long, one
/// that keeps its point of time the second too short.
const BEFORE: Duration = Duration::from_secs(2);
const BETWEEN: Duration = Duration::from_secs(2);
/// How long the scheduler lets the real-time class have a processor, at least.
const HELD: Duration = Duration::from_millis(900);
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

/// Lets the victim end; what it reports.
fn reported(victim: &Prepared) -> Vec<Call> {
    File::options().read(true).write(true).open(victim.dir.join("go")).unwrap().write_all(b"g").unwrap();
    until("report", PATIENCE, || victim.result().ends_with("done\n").then_some(()), || victim.result());
    calls(&victim.result())
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
    let started = Instant::now();
    let victim = Prepared::start("deadlines", "all");
    let (dir, pid) = (&victim.dir, victim.pid);
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
    let calls = reported(&victim);
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

/// A poll(2) whose time was up before the dump came, in a thread that had no processor since, has ended when it comes back.
#[test]
fn time_that_was_up_is_up() {
    let serial = serial();
    with_timeout(LIMIT, move || {
        let _serial = serial;
        let _subreaper = subreaper();
        let me = nix::unistd::gettid().as_raw();
        if !(in_the_real_time_class(me, 3) && in_the_real_time_class(me, 0)) {
            skip("no right to use the real-time class, so that nothing keeps a victim from its processor");
            return;
        }
        // The scheduler may let the victim notice in time.
        assert!((0..5).any(|_| is_up()), "the victims had a processor each time");
    });
}

/// Whether victims that had no processor were dumped; panics where one does not come back as it should.
fn is_up() -> bool {
    let begun = Instant::now();
    let victim = Prepared::start("deadlines", "overdue");
    let processors = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let cpu = (0..CpuSet::count()).find(|cpu| processors.is_set(*cpu).unwrap()).unwrap();
    let victims = tree(victim.pid);
    for pid in &victims {
        let mut command = Command::new("taskset");
        command.args(["-c", "-p", &cpu.to_string(), &pid.to_string()]).stdout(Stdio::null());
        assert!(command.status().unwrap().success());
    }
    // From here on it is in nobody's way, and neither is the dump.
    let me = nix::unistd::gettid().as_raw();
    assert!(in_the_real_time_class(me, 3));
    let up = Instant::now() + TIMEOUT;
    pass(up - HELD / 4 - Instant::now());
    let hog = Hog::start(cpu);
    pass(up - Instant::now());
    let images = victim.dir.join("images");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptyagent"));
    command.args(["dump", "--inject", &victim.pid.to_string(), "-D"]).arg(&images);
    let mut dump = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let is_traced = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    };
    while !victims.iter().all(is_traced) && up.elapsed() < HELD / 2 {
        thread::park_timeout(Duration::from_millis(1));
    }
    let is_held = victim.result().is_empty();
    // The interruption comes right behind the seizure.
    pass(HELD / 8);
    drop(hog);
    let dump_pid = dump.id() as i32;
    in_the_real_time_class(dump_pid, 0);
    in_the_real_time_class(me, 0);
    assert!(dump.wait().unwrap().success());
    restore(&images);
    let restored = Instant::now();
    let calls = reported(&victim);
    for call in &calls {
        println!("{} {:?} {:?} of {:?}", call.name, call.took, call.outcome, begun.elapsed());
        assert_eq!(call.outcome, (0, 0), "{}", call.name);
    }
    assert_eq!(calls.len(), 2);
    assert!(restored.elapsed() < TIMEOUT / 2, "a poll began anew: {:?}", restored.elapsed());
    is_held
}

/// Runs a processor full, above all but what has the next priority, for two seconds at most.
struct Hog(Child);

impl Hog {
    fn start(cpu: usize) -> Hog {
        let mut command = Command::new("taskset");
        command.args(["-c", &cpu.to_string(), "chrt", "-f", "2", "sh", "-c", "ulimit -t 2; echo; while :; do :; done"]);
        let mut hog = Hog(command.stdout(Stdio::piped()).spawn().unwrap());
        hog.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        hog
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Puts a thread where nothing of the usual class is in its way, or with 0 back; whether that is allowed.
fn in_the_real_time_class(tid: i32, priority: u8) -> bool {
    let class = if priority == 0 { "-o" } else { "-f" };
    let mut command = Command::new("chrt");
    command.args([class, "-p", &priority.to_string(), &tid.to_string()]).stderr(Stdio::null());
    command.status().unwrap().success()
}
