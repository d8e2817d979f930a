//! Real programs with work in progress: used, dumped, restored, and used further in a way that needs what was there before.
//!
//! Each runs in a terminal of its own under a holder of the master, twice. The first one is dumped, killed and restored three times. The second
//! runs on after its dump, and is restored beside itself, with the same numbers in a pid namespace of its own; then both go on. After each
//! restore the screen and what ps(1) says of every process are as before. `PROGRAMS=text` runs those with that text in their name;
//! `PROGRAMS_TABLE=file` leaves the table there in Markdown (`cargo test --test programs -- --nocapture` shows it).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod editors;
mod halves;
mod pipelines;
mod servers;
mod shells;

use std::path::{Path, PathBuf};
use std::time::Duration;

use support::{
    Holder, PATIENCE, TempDir, assert_same_lines, dump, dump_running, ps_line, ps_line_inside, restore, serial, stat,
    tree, until, with_timeout,
};

/// Of one use of a program.
const LIMIT: Duration = Duration::from_secs(90);
const ROUNDS: u32 = 3;

/// One program and its use.
#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    /// What is in progress at each dump.
    work: &'static str,
    /// What has to be installed: the program's file and its Debian package.
    needs: &'static [(&'static str, &'static str)],
    argv: &'static [&'static str],
    /// The work in progress; the directory is for its files.
    begin: fn(&Holder, &Path),
    /// Brings what runs by itself to a halt, for a copy of its files that is the same as at the dump.
    rest: fn(&Holder, &Path),
    /// One more step, which needs what the steps before it left.
    go_on: fn(&Holder, &Path, u32),
    /// Ends it, and checks the result of all.
    end: fn(&Holder, &Path),
    /// Whether it stands still between the steps, so that its screen can be compared.
    rests: bool,
}

fn all() -> Vec<Program> {
    [shells::programs(), editors::programs(), pipelines::programs(), servers::programs()].concat()
}

/// Starts a program and its work.
fn start(program: &Program) -> Holder {
    for (file, package) in program.needs {
        support::require_from(file, package);
    }
    let holder = Holder::spawn(program.argv);
    let dir = work(&holder);
    std::fs::create_dir(&dir).unwrap();
    (program.begin)(&holder, &dir);
    holder
}

fn work(holder: &Holder) -> PathBuf {
    holder.dir().join("work")
}

/// Dumped, killed and restored, again and again.
fn rounds(program: Program) {
    let holder = start(&program);
    for round in 1..=ROUNDS {
        let before = dump_round(&program, &holder, round);
        restore_round(&program, &holder, round, before);
    }
    (program.end)(&holder, &work(&holder));
}

fn images(holder: &Holder, round: u32) -> PathBuf {
    holder.dir().join(format!("images{round}"))
}

fn dump_round(program: &Program, holder: &Holder, round: u32) -> Option<Seen> {
    let before = Seen::of(program, holder);
    dump(holder.pid(), &images(holder, round));
    before
}

fn restore_round(program: &Program, holder: &Holder, round: u32, before: Option<Seen>) {
    restore(&images(holder, round));
    if let Some(before) = before {
        let now = below_init(&ps_line(&tree(holder.pid())));
        assert_same_lines(&below_init(&before.places), &now, "ps");
        assert_eq!(before.screen, holder.screen_text());
    }
    (program.go_on)(holder, &work(holder), round);
}

/// Dumped while it runs on, and restored while it has all its numbers.
fn beside(program: Program) {
    let (original, images) = (start(&program), TempDir::new());
    (program.rest)(&original, &work(&original));
    let before = Seen::of(&program, &original);
    let pids = tree(original.pid());
    dump_running(original.pid(), &images.join("images"));
    let copy = original.restored_beside(&images.join("images"));
    assert_ne!(copy.pid(), original.pid());
    if let Some(before) = before {
        let inside = ps_line_inside(copy.pid(), &pids);
        assert_same_lines(&below_init(&before.places), &inside, "ps, original and copy");
        assert_eq!(before.screen, copy.screen_text());
        assert_same_lines(&before.places, &ps_line(&pids), "ps of the original");
        assert_eq!(before.screen, original.screen_text());
    }
    for round in 1..=ROUNDS {
        for holder in [&copy, &original] {
            (program.go_on)(holder, &work(holder), round);
        }
    }
    for holder in [&original, &copy] {
        (program.end)(holder, &work(holder));
    }
}

/// A program at rest.
struct Seen {
    places: String,
    screen: String,
}

impl Seen {
    /// Waits until nothing moves any more; none of a program that never rests.
    fn of(program: &Program, holder: &Holder) -> Option<Seen> {
        let look = || {
            let pids = tree(holder.pid());
            let asleep = pids.iter().all(|pid| stat(*pid).is_some_and(|stat| matches!(stat.state, 'S' | 'T')));
            asleep.then(|| (holder.output().len(), pids))
        };
        let mut last = None;
        let still = || {
            let now = look();
            let same = now.is_some() && now == last;
            last = now;
            same.then_some(())
        };
        program.rests.then(|| {
            until("rest", PATIENCE, still, || ps_line(&tree(holder.pid())));
            Seen { places: ps_line(&tree(holder.pid())), screen: holder.screen_text() }
        })
    }
}

/// With the root's parent as a pid namespace has it: elsewhere it is whoever runs the test.
fn below_init(places: &str) -> String {
    let pids: Vec<&str> = places.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let below = |line: &str| {
        let mut words: Vec<&str> = line.split(' ').collect();
        words[1] = if pids.contains(&words[1]) { words[1] } else { "1" };
        words.join(" ") + "\n"
    };
    places.lines().map(below).collect()
}

#[test]
fn every_program() {
    let wanted = std::env::var("PROGRAMS").unwrap_or_default();
    let (mut failures, mut rows) = (Vec::new(), Vec::new());
    let mut result = |program: &Program, run: fn(Program), good: String| {
        let (program, _serial) = (*program, serial());
        let Err(panic) = std::panic::catch_unwind(|| with_timeout(LIMIT, move || run(program))) else { return good };
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        failures.push(format!("{}: {}", program.name, text.unwrap_or_default()));
        "FAILS".into()
    };
    for program in all().into_iter().filter(|program| program.name.contains(&wanted)) {
        let killed = result(&program, rounds, format!("{ROUNDS} rounds"));
        let beside = result(&program, beside, "both go on".into());
        println!("{} | {killed} | {beside}", program.name);
        rows.push(format!("| {} | {} | {killed} | {beside} |", program.name, program.work));
    }
    let head = "| Program | In progress | Dumped, killed, restored | Restored with `--pidns` beside the original |";
    let table = format!("{head}\n| --- | --- | --- | --- |\n{}\n", rows.join("\n"));
    println!("{table}");
    if let Ok(path) = std::env::var("PROGRAMS_TABLE") {
        std::fs::write(path, table).unwrap();
    }
    assert!(failures.is_empty(), "{} of {} programs fail:\n{}", failures.len(), rows.len(), failures.join("\n\n"));
}
