//! Random terminal states, dumped, killed, restored and compared.
//!
//! Each case is drawn from a seed: terminals, descriptions, settings, sessions, queues. Many cases are one tree, each below an actor of its own. The
//! same seeds draw the same tree twice: one is the control, the other is dumped and left running, dumped, killed and restored, before both are
//! read out. `RANDOM_TERMINALS=50` sets the number of cases, `RANDOM_SEED=n` the first seed; a failing case names its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ptyagent::sys::tty;
use serde_json::Value;
use support::{RDWR, Stage, dump, dump_running, patiently, report, restore, room, serial, with_timeout};

/// Of one tree.
const LIMIT: Duration = Duration::from_secs(60);
/// Cases in one tree.
const TREE: u64 = 10;

/// xorshift.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn bits(&mut self, mask: u32) -> u32 {
        (self.below(1 << 32) as u32) & mask
    }

    /// Typed text: mostly letters and ends of lines, some control and high bytes, no flow characters.
    fn text(&mut self, longest: u64) -> Vec<u8> {
        let len = self.below(longest);
        let byte = |random: &mut Random| match random.below(14) {
            0 | 1 => b'\r',
            2 => b'\n',
            3 => 0x04,
            4 => 0x16,
            5 => 0x7f,
            6 => b'\t',
            7 => random.below(256) as u8,
            _ => b'a' + random.below(26) as u8,
        };
        (0..len).map(|_| byte(self)).filter(|byte| ![0x11, 0x13].contains(byte)).collect()
    }
}

fn settings(random: &mut Random, stage: &mut Stage, name: &str, fd: i32) {
    let input = random.bits(0o7777 & !(libc::IXOFF | libc::IGNBRK));
    let output = random.bits(libc::OPOST | libc::ONLCR | libc::OCRNL | libc::ONOCR | libc::ONLRET);
    let echo = libc::ECHO | libc::ECHOE | libc::ECHOK | libc::ECHONL | libc::ECHOCTL | libc::ECHOKE | libc::IEXTEN;
    let local = random.bits(echo) | if random.one_in(3) { 0 } else { libc::ICANON };
    let (speed, other) = (random.below(4_000_000) as u32 + 1, random.one_in(2));
    let slots: Vec<(usize, u8)> = (0..random.below(4))
        .map(|_| {
            (
                [libc::VEOL, libc::VEOL2, libc::VERASE, libc::VKILL, libc::VWERASE][random.below(5) as usize],
                b'0' + random.below(10) as u8,
            )
        })
        .collect();
    stage.set_termios(name, fd, |flags, rest| {
        (flags[0], flags[1]) = (input, output);
        flags[3] = flags[3] & !(echo | libc::ICANON | libc::ISIG) | local;
        for (slot, byte) in &slots {
            rest[1 + slot] = *byte;
        }
        if other {
            flags[2] = flags[2] & !libc::CBAUD | libc::BOTHER;
            rest[24..28].copy_from_slice(&speed.to_ne_bytes());
        }
    });
    if random.one_in(2) {
        let size: Vec<u8> = (0..8).map(|_| random.below(256) as u8).collect();
        stage.ioctl_in(name, fd, tty::TIOCSWINSZ, &size);
    }
}

/// Descriptions beside the first slave.
fn opens(random: &mut Random, stage: &mut Stage, name: &str, index: u32, first: i32) {
    for fd in (first..).take(random.below(4) as usize) {
        let access = random.below(3) as i32;
        let more = random.bits((libc::O_NONBLOCK | libc::O_APPEND | libc::O_CLOEXEC) as u32) as i32;
        if random.one_in(4) {
            stage.dup(name, first - 1, fd);
        } else {
            stage.open(name, fd, &format!("/dev/pts/{index}"), access | more | libc::O_NOCTTY);
        }
    }
}

/// What is done once all that was typed has been processed: the actor, its descriptor, and the call.
struct Stop {
    actor: String,
    fd: i32,
    request: u64,
    arg: i32,
}

fn traffic(random: &mut Random, stage: &mut Stage, holder: &str, master: i32, user: &str, slave: i32) -> Option<Stop> {
    if random.one_in(2) {
        let text = random.text(300);
        stage.write(user, slave, &text);
    }
    if random.one_in(6) {
        stage.ioctl_in(holder, master, tty::TIOCPKT, &1i32.to_ne_bytes());
    }
    if random.one_in(2) {
        let text = random.text(600);
        stage.type_in(holder, master, &text);
    }
    let stop = |actor: &str, fd, request, arg| Some(Stop { actor: actor.to_owned(), fd, request, arg });
    match random.below(12) {
        0 => return stop(user, slave, tty::TCXONC, tty::TCOOFF),
        1 => return stop(holder, master, tty::TCXONC, tty::TCOOFF),
        2 => stage.ioctl(user, slave, tty::TIOCEXCL, 0),
        3 => stage.ioctl_in(holder, master, tty::TIOCSPTLCK, &1i32.to_ne_bytes()),
        _ => {}
    }
    None
}

/// Draws a case and makes it below an actor of its own.
fn make(seed: u64, stage: &mut Stage) -> Vec<Stop> {
    let random = &mut Random::new(seed);
    // Warm up: neighbouring seeds begin alike.
    for _ in 0..5 {
        random.below(2);
    }
    let (root, mut stops) = (format!("{seed}"), Vec::new());
    stage.fork("root", &root);
    for n in 0..1 + random.below(3) as i32 {
        let (master, slave, leader) = (10 + n, 20 + 10 * n, format!("{seed}.leader{n}"));
        let index = stage.pair(&root, master, slave);
        let mut user = root.clone();
        if random.one_in(2) {
            stage.fork(&root, &leader);
            stage.close(&root, slave);
            stage.must(&leader, libc::SYS_setsid, &[]);
            if random.one_in(5) {
                stage.fork(&leader, &format!("{seed}.without{n}"));
            }
            stage.ioctl(&leader, slave, tty::TIOCSCTTY, 0);
            if random.one_in(2) {
                let name = format!("{seed}.job{n}");
                let job = stage.fork(&leader, &name);
                stage.must(&leader, libc::SYS_setpgid, &[job.into(), job.into()]);
                if random.one_in(2) {
                    stage.ioctl_in(&leader, slave, tty::TIOCSPGRP, &job.to_ne_bytes());
                    // Only the foreground may change settings from here on without being asked to stop.
                    user = name;
                } else {
                    user = leader.clone();
                }
            } else {
                user = leader.clone();
            }
            if random.one_in(3) {
                stage.open(&user, slave + 8, "/dev/tty", RDWR);
            }
        }
        opens(random, stage, &user, index, slave + 1);
        settings(random, stage, &user, slave);
        let stop = traffic(random, stage, &root, master, &user, slave);
        if random.one_in(10) && user == root {
            stage.close(&root, master);
        } else {
            stops.extend(stop);
        }
    }
    stops
}

/// Makes a tree of cases.
fn tree(seeds: std::ops::Range<u64>) -> Stage {
    let mut stage = Stage::new();
    let stops: Vec<Stop> = seeds.flat_map(|seed| make(seed, &mut stage)).collect();
    settle(&mut stage);
    for stop in stops {
        stage.ioctl(&stop.actor, stop.fd, stop.request, stop.arg);
    }
    stage
}

/// What was typed is processed before a flow is stopped, in every run: the kernel's worker comes to a terminal that was written to later.
fn settle(stage: &mut Stage) {
    const CANARY: (i32, i32) = (10, 11);
    stage.pair("root", CANARY.0, CANARY.1);
    for _ in 0..3 {
        stage.write("root", CANARY.0, b"\n");
        while stage.events("root", CANARY.1, libc::POLLIN) == 0 {}
        stage.must("root", libc::SYS_read, &[CANARY.1.into(), room(9), 9.into()]);
    }
    stage.close("root", CANARY.0);
    stage.close("root", CANARY.1);
}

/// What a live inspection reports, one value to a line, but for how much memory is mapped, which the program's own heap decides.
fn inspect(root: i32) -> Vec<String> {
    let output = patiently(&["inspect", "--json", &root.to_string()]);
    assert!(output.status.success(), "inspect: {}", report(&output));
    let mut lines = Vec::new();
    flatten("", &serde_json::from_slice(&output.stdout).unwrap(), &mut lines);
    lines
}

fn flatten(path: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| *name != "mapped_bytes") {
                flatten(&format!("{path}.{name}"), value, lines);
            }
        }
        Value::Array(items) => {
            for (at, value) in items.iter().enumerate() {
                flatten(&format!("{path}[{at}]"), value, lines);
            }
        }
        value => lines.push(format!("inspect {path} {value}")),
    }
}

/// What differs, by the actor at the beginning of the line, whose name begins with the seed of its case.
#[derive(Default)]
struct Differences(BTreeMap<String, String>);

impl Differences {
    fn compare(&mut self, what: &str, before: &[String], after: &[String]) {
        if before.len() != after.len() {
            self.add("tree", &format!("  {what}: {} lines became {}\n", before.len(), after.len()));
        }
        for (before, after) in before.iter().zip(after).filter(|(before, after)| before != after) {
            let case = before.split([' ', '.']).next().unwrap_or_default();
            self.add(case, &format!("  {what}:\n    {before}\n    {after}\n"));
        }
    }

    fn add(&mut self, case: &str, text: &str) {
        self.0.entry(case.to_owned()).or_default().push_str(text);
    }
}

fn run(seeds: std::ops::Range<u64>) -> Differences {
    let mut control = tree(seeds.clone());
    let _settled = control.observe();
    let want = control.exhaust();
    drop(control);
    let mut found = Differences::default();
    let mut stage = tree(seeds);
    let root = stage.pid("root");
    let (before, inspected) = (stage.observe(), inspect(root));
    dump_running(root, &stage.dir.join("first"));
    found.compare("seen after a dump that left it running", &before, &stage.observe());
    let dir = stage.dir.join("images");
    dump(root, &dir);
    restore(&dir);
    found.compare("seen after the restore", &before, &stage.observe());
    found.compare("inspected after the restore", &inspected, &inspect(root));
    found.compare("done after the restore", &want, &stage.exhaust());
    found
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn random_states() {
    let _serial = serial();
    let (first, count) = (number("RANDOM_SEED", 1), number("RANDOM_TERMINALS", 500));
    let start = Instant::now();
    let mut failures = Vec::new();
    for from in (first..first + count).step_by(TREE as usize) {
        let seeds = from..(from + TREE).min(first + count);
        let of_tree = format!("RANDOM_SEED={from} RANDOM_TERMINALS={}", seeds.end - from);
        match std::panic::catch_unwind(|| with_timeout(LIMIT, move || run(seeds))) {
            Ok(found) => failures.extend(found.0.iter().map(|(case, text)| format!("seed {case}, {of_tree}\n{text}"))),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                failures.push(format!("{of_tree}\n  {text}\n"));
            }
        }
    }
    println!("{count} cases from seed {first} in {:?}", start.elapsed());
    assert!(failures.is_empty(), "{} of {count} differ:\n{}", failures.len(), failures.concat());
}
