//! Sessions that are dumped on one kernel, whose machine is switched off then, and restored on another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::archive::Entry;
use crate::boots::{Bench, Plan};
use crate::job::Task;
use crate::kernels::Kernel;
use crate::report::{Cell, Outcome};
use crate::side_by_side;

/// The binaries that have the sessions; each is begun on one kernel and goes on on another.
pub const BINARIES: [&str; 2] = ["programs", "lacks"];
/// Parts of their names in tests/programs, and one that an older kernel refuses where it lacks what the session has.
pub const SESSIONS: [&str; 6] = ["bash", "vim", "python3 with threads", "tmux", "less", NEWER];
/// Of them in the fast slice.
pub const FAST: [&str; 2] = ["bash", "vim"];
const NEWER: &str = "newer memory";
/// Each session has numbers of its own, so that all of them can be restored in one boot.
const FIRST_PID: usize = 2000;
const PIDS: usize = 800;
const SECONDS: u64 = 240;
/// The names and folders of what a guest has left, see tests/programs/main.rs.
const LEFT: &str = "/out/left";

/// What was dumped on a kernel.
struct Dumped<'a> {
    from: &'a Kernel,
    outcomes: Vec<Outcome>,
    /// The sessions' folders, and the list of them.
    entries: Vec<Entry>,
}

/// Takes the sessions from each of `from` to each of `to`.
pub fn cross(
    bench: &Bench,
    jobs: usize,
    from: &[Kernel],
    to: &[Kernel],
    sessions: &[&str],
    binaries: &BTreeMap<String, PathBuf>,
) -> Vec<Cell> {
    let patience = bench.engine.patience();
    let binary = |session: &str| binaries[BINARIES[usize::from(session == NEWER)]].to_str().unwrap();
    let task = |kind: &str, session: &str, name: &str, value: PathBuf| Task {
        name: format!("{kind}-{}", session.replace(' ', "-")),
        argv: [binary(session), "half", "--ignored", "--nocapture"].map(str::to_owned).to_vec(),
        env: vec![
            ("PROGRAMS".to_owned(), session.to_owned()),
            (name.to_owned(), value.to_str().unwrap().to_owned()),
            ("PTYAGENT_PATIENCE".to_owned(), patience.to_string()),
        ],
        seconds: SECONDS,
        above_pid: None,
    };
    let numbered: Vec<(usize, &Kernel)> = from.iter().enumerate().collect();
    let dumped = side_by_side(jobs, &numbered, |(index, kernel)| {
        let begin = |(n, session): (usize, &&str)| Task {
            above_pid: Some((FIRST_PID + PIDS * (index * sessions.len() + n)) as u32),
            ..task("dump", session, "PROGRAMS_LEAVE", LEFT.into())
        };
        let keep = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptyagent-");
        let tasks = sessions.iter().enumerate().map(begin).collect();
        let plan = Plan { name: format!("{}-dumps", kernel.name), keep: Some(keep.clone()), tasks, ..Plan::default() };
        let (outcomes, left) = bench.run(kernel, plan);
        let wanted = |entry: &Entry| {
            entry.path == Path::new(LEFT) || entry.path.to_str().unwrap().starts_with(keep.to_str().unwrap())
        };
        let mut entries: Vec<Entry> = left.into_iter().filter(wanted).collect();
        for entry in entries.iter_mut().filter(|entry| entry.path == Path::new(LEFT)) {
            entry.path = list_of(kernel);
        }
        Dumped { from: kernel, outcomes, entries }
    });
    let cells = side_by_side(jobs, to, |kernel| {
        let rest = |dumped: &Dumped, session: &str| {
            task(&format!("restore-{}", dumped.from.name), session, "PROGRAMS_TAKE", list_of(dumped.from))
        };
        let tasks = dumped.iter().flat_map(|dumped| sessions.iter().map(|session| rest(dumped, session))).collect();
        let entries = dumped.iter().flat_map(|dumped| dumped.entries.clone()).collect();
        let plan = Plan { name: format!("{}-restores", kernel.name), entries, tasks, ..Plan::default() };
        let (outcomes, _) = bench.run(kernel, plan);
        let of_each = outcomes.chunks(sessions.len()).zip(&dumped);
        of_each.map(|(restores, dumped)| cell(dumped, kernel, restores, sessions)).collect::<Vec<_>>()
    });
    cells.concat()
}

fn list_of(kernel: &Kernel) -> PathBuf {
    format!("/left-{}", kernel.name).into()
}

/// One cell for all sessions: it names those that failed, and has the log of the first.
fn cell(dumped: &Dumped, to: &Kernel, restores: &[Outcome], sessions: &[&str]) -> Cell {
    let mut failed: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for (outcomes, session) in dumped.outcomes.iter().zip(restores).zip(sessions) {
        let first = [outcomes.0, outcomes.1].into_iter().find_map(|outcome| match outcome {
            Outcome::Failed { reason, log } => Some((reason.as_str(), log.as_str())),
            Outcome::Passed { .. } => None,
        });
        failed.extend(first.map(|first| (*session, first)));
    }
    let outcome = match failed.values().next() {
        None => Outcome::Passed { seconds: seconds(restores) },
        Some((_, log)) => {
            let named: Vec<String> =
                failed.iter().map(|(session, (reason, _))| format!("{session}: {reason}")).collect();
            Outcome::Failed { reason: named.join(", "), log: (*log).to_owned() }
        }
    };
    Cell { kernel: dumped.from.name.clone(), column: to.name.clone(), outcome }
}

fn seconds(outcomes: &[Outcome]) -> f64 {
    let of = |outcome: &Outcome| if let Outcome::Passed { seconds } = outcome { *seconds } else { 0.0 };
    outcomes.iter().map(of).sum()
}
