//! Real programs with work in progress: used, dumped and killed, restored, and used further in a way that needs what was there before.
//!
//! Each runs in a terminal of its own under a holder of the master, three rounds of dump and restore each. After each restore the screen and
//! what ps(1) says of every process are as before. `PROGRAMS=text` runs those with that text in their name; the table is printed in
//! the end (`cargo test --test programs -- --nocapture`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod editors;
mod pipelines;
mod servers;
mod shells;

use std::path::Path;
use std::time::Duration;

use support::{Holder, assert_same_lines, dump, ps_line, restore, serial, tree, with_timeout};

/// Of one program.
const LIMIT: Duration = Duration::from_secs(90);
const ROUNDS: u32 = 3;

/// One program and its use.
#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    /// What has to be installed: the program's file and its Debian package.
    needs: &'static [(&'static str, &'static str)],
    argv: &'static [&'static str],
    /// The work in progress; the directory is for its files.
    begin: fn(&Holder, &Path),
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

fn run(program: Program) {
    for (file, package) in program.needs {
        support::require_from(file, package);
    }
    let _serial = serial();
    let holder = Holder::spawn(program.argv);
    let dir = holder.dir().join("work");
    std::fs::create_dir(&dir).unwrap();
    (program.begin)(&holder, &dir);
    for round in 1..=ROUNDS {
        let images = holder.dir().join(format!("images{round}"));
        let (before, screen) = (places(holder.pid()), holder.screen_text());
        dump(holder.pid(), &images);
        restore(&images);
        if program.rests {
            assert_same_lines(&before, &places(holder.pid()), "ps");
            assert_eq!(screen, holder.screen_text());
        }
        (program.go_on)(&holder, &dir, round);
    }
    (program.end)(&holder, &dir);
}

/// What ps(1) says of each process of the tree; whether one runs at this instant or sleeps is chance.
fn places(root: i32) -> String {
    let place = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (state, rest) = words[6].split_at(1);
        let state = if matches!(state, "R" | "D") { "S" } else { state };
        format!("{} {state}{rest} {}\n", words[..6].join(" "), words[7..].join(" "))
    };
    ps_line(&tree(root)).lines().map(place).collect()
}

#[test]
fn every_program() {
    let wanted = std::env::var("PROGRAMS").unwrap_or_default();
    let mut failures = Vec::new();
    let mut rows = Vec::new();
    for program in all().into_iter().filter(|program| program.name.contains(&wanted)) {
        let result = std::panic::catch_unwind(|| with_timeout(LIMIT, move || run(program)));
        let text = if result.is_ok() { format!("{ROUNDS} rounds") } else { "FAILS".into() };
        rows.push(format!("| {} | {text} |", program.name));
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            failures.push(format!("{}: {}", program.name, text.unwrap_or_default()));
        }
    }
    println!("| Program | Dumped, killed, restored |\n| --- | --- |\n{}", rows.join("\n"));
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), rows.len(), failures.join("\n\n"));
}
