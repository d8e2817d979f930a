//! Sessions that are dumped on one kernel, whose machine is switched off then, and restored on another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::archive::Entry;
use crate::boots::{Bench, Plan, side_by_side};
use crate::job::Task;
use crate::kernels::Kernel;
use crate::report::{Cell, Outcome};

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
struct Dumped {
    from: Kernel,
    outcomes: Vec<Outcome>,
    /// The sessions' folders, and the list of them.
    entries: Vec<Entry>,
}

/// Sessions that have been dumped on each kernel, and how they go on.
pub struct Crossing<'a> {
    bench: &'a Bench<'a>,
    sessions: &'a [&'a str],
    binaries: &'a BTreeMap<String, PathBuf>,
    dumped: Vec<Dumped>,
}

impl<'a> Crossing<'a> {
    /// Dumps the sessions on each kernel.
    pub fn begin(
        bench: &'a Bench<'a>,
        jobs: usize,
        from: &[Kernel],
        sessions: &'a [&'a str],
        binaries: &'a BTreeMap<String, PathBuf>,
    ) -> Crossing<'a> {
        let mut crossing = Crossing { bench, sessions, binaries, dumped: Vec::new() };
        let numbered: Vec<(usize, &Kernel)> = from.iter().enumerate().collect();
        crossing.dumped = side_by_side(jobs, &numbered, |(index, kernel)| crossing.dump(*index, kernel));
        crossing
    }

    fn task(&self, kind: &str, session: &str, name: &str, value: PathBuf) -> Task {
        let binary = self.binaries[BINARIES[usize::from(session == NEWER)]].to_str().unwrap();
        Task {
            name: format!("{kind}-{}", session.replace(' ', "-")),
            argv: [binary, "half", "--ignored", "--nocapture"].map(str::to_owned).to_vec(),
            env: vec![
                ("PROGRAMS".to_owned(), session.to_owned()),
                (name.to_owned(), value.to_str().unwrap().to_owned()),
                ("PTYAGENT_PATIENCE".to_owned(), self.bench.engine.patience().to_string()),
            ],
            seconds: SECONDS,
            above_pid: None,
        }
    }

    fn dump(&self, index: usize, kernel: &Kernel) -> Dumped {
        let begin = |(n, session): (usize, &&str)| Task {
            above_pid: Some((FIRST_PID + PIDS * (index * self.sessions.len() + n)) as u32),
            ..self.task("dump", session, "PROGRAMS_LEAVE", LEFT.into())
        };
        let keep = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptyagent-");
        let tasks = self.sessions.iter().enumerate().map(begin).collect();
        let plan = Plan { name: format!("{}-dumps", kernel.name), keep: Some(keep.clone()), tasks, ..Plan::default() };
        let (outcomes, left) = self.bench.run(kernel, plan);
        let wanted = |entry: &Entry| {
            entry.path == Path::new(LEFT) || entry.path.to_str().unwrap().starts_with(keep.to_str().unwrap())
        };
        let mut entries: Vec<Entry> = left.into_iter().filter(wanted).collect();
        for entry in entries.iter_mut().filter(|entry| entry.path == Path::new(LEFT)) {
            entry.path = list_of(kernel);
        }
        Dumped { from: kernel.clone(), outcomes, entries }
    }

    /// Restores all sessions of all kernels on one kernel.
    pub fn go_on(&self, kernel: &Kernel) -> Vec<Cell> {
        let rest = |dumped: &Dumped, session: &str| {
            self.task(&format!("restore-{}", dumped.from.name), session, "PROGRAMS_TAKE", list_of(&dumped.from))
        };
        let each = self.dumped.iter().flat_map(|dumped| self.sessions.iter().map(move |session| (dumped, session)));
        let tasks = each.map(|(dumped, session)| rest(dumped, session)).collect();
        let entries = self.dumped.iter().flat_map(|dumped| dumped.entries.clone()).collect();
        let plan = Plan { name: format!("{}-restores", kernel.name), entries, tasks, ..Plan::default() };
        let (outcomes, _) = self.bench.run(kernel, plan);
        let of_each = outcomes.chunks(self.sessions.len()).zip(&self.dumped);
        of_each.map(|(restores, dumped)| cell(dumped, kernel, restores, self.sessions)).collect()
    }
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
