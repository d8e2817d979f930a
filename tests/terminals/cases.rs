//! What a case is, and how one is run.

use std::path::Path;

use crate::beside::Tried;
use crate::support::{Stage, differences, dump, inspection, ptyagent, report, restore};

/// What becomes of a state.
#[derive(Clone, Copy)]
pub enum Outcome {
    Kept,
    /// The dump ends with status 3, this text on stderr, and a session that runs on as if nothing had happened.
    Refused(&'static str),
    /// Something of its own is done; what comes out, in words.
    Special(fn(&mut Checked) -> String),
    /// Another test looks at it.
    Elsewhere(&'static str),
}

/// One line of the table.
#[derive(Clone)]
pub struct Case {
    pub group: &'static str,
    pub name: &'static str,
    pub outcome: Outcome,
    pub setup: fn(&mut Stage),
    /// What the restored session does that the control does alike.
    pub verify: fn(&mut Stage) -> Vec<String>,
    /// A word of the facts that may differ after a restore, and why.
    pub but: Option<(&'static str, &'static str)>,
    /// What is done with CRIU where that is something of its own.
    pub beside: Option<fn(&Path) -> Tried>,
}

impl Case {
    pub fn kept(group: &'static str, name: &'static str, setup: fn(&mut Stage)) -> Case {
        Case { group, name, outcome: Outcome::Kept, setup, verify: Stage::exhaust, but: None, beside: None }
    }

    pub fn refused(group: &'static str, name: &'static str, why: &'static str, setup: fn(&mut Stage)) -> Case {
        Case { group, name, outcome: Outcome::Refused(why), setup, verify: Stage::exhaust, but: None, beside: None }
    }

    pub fn special(group: &'static str, name: &'static str, run: fn(&mut Checked) -> String) -> Case {
        Case { outcome: Outcome::Special(run), ..Case::kept(group, name, |_| ()) }
    }

    pub fn elsewhere(group: &'static str, name: &'static str, place: &'static str) -> Case {
        Case { outcome: Outcome::Elsewhere(place), ..Case::kept(group, name, |_| ()) }
    }

    pub fn verified(self, verify: fn(&mut Stage) -> Vec<String>) -> Case {
        Case { verify, ..self }
    }

    pub fn but(self, word: &'static str, why: &'static str) -> Case {
        Case { but: Some((word, why)), ..self }
    }

    pub fn beside(self, run: fn(&Path) -> Tried) -> Case {
        Case { beside: Some(run), ..self }
    }

    pub fn seen(&self, stage: &mut Stage) -> Vec<String> {
        let facts = stage.observe();
        let Some((word, _)) = self.but else { return facts };
        let without =
            |fact: &String| fact.split(' ').filter(|text| !text.starts_with(word)).collect::<Vec<_>>().join(" ");
        facts.iter().map(without).collect()
    }
}

/// How much was compared, and what differed.
#[derive(Default)]
pub struct Checked {
    pub facts: usize,
    pub inspected: usize,
    pub reads: usize,
    pub differences: Vec<String>,
    /// What a case says of itself.
    pub told: String,
}

impl Checked {
    pub fn compare(&mut self, what: &str, before: &[String], after: &[String]) {
        self.differences.extend(differences(what, before, after));
    }

    pub fn expect<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: &T, want: &T) {
        if got != want {
            self.differences.push(format!("  {what}: {got:?} instead of {want:?}"));
        }
    }
}

/// Runs a case; panics where a command fails that should not.
pub fn run(case: &Case) -> Checked {
    let mut checked = Checked::default();
    if matches!(case.outcome, Outcome::Elsewhere(_)) {
        return checked;
    }
    if let Outcome::Special(run) = case.outcome {
        checked.told = run(&mut checked);
        return checked;
    }
    let mut control = Stage::new();
    (case.setup)(&mut control);
    let want = (case.verify)(&mut control);
    drop(control);
    checked.reads = want.len();
    match case.outcome {
        Outcome::Kept => {
            killed(case, &want, &mut checked);
            left_running(case, &want, &mut checked);
        }
        Outcome::Refused(why) => refused(case, &want, why, &mut checked),
        Outcome::Special(_) | Outcome::Elsewhere(_) => {}
    }
    checked
}

fn killed(case: &Case, want: &[String], checked: &mut Checked) {
    let mut stage = Stage::new();
    (case.setup)(&mut stage);
    let (root, dir) = (stage.pid("root"), stage.dir.join("images"));
    let (before, inspected) = (case.seen(&mut stage), inspection(root));
    dump(root, &dir);
    restore(&dir);
    let after = case.seen(&mut stage);
    checked.compare("seen after the restore", &before, &after);
    checked.compare("inspected after the restore", &inspected, &inspection(root));
    (checked.facts, checked.inspected) = (before.len(), inspected.len());
    checked.compare("done after the restore", want, &(case.verify)(&mut stage));
}

fn left_running(case: &Case, want: &[String], checked: &mut Checked) {
    let mut stage = Stage::new();
    (case.setup)(&mut stage);
    let root = stage.pid("root");
    let before = stage.observe();
    dump_left_running(root, &stage.dir.join("images"), 0);
    checked.compare("seen after a dump that left it running", &before, &stage.observe());
    checked.compare("done after a dump that left it running", want, &(case.verify)(&mut stage));
}

fn refused(case: &Case, want: &[String], why: &str, checked: &mut Checked) {
    let mut stage = Stage::new();
    (case.setup)(&mut stage);
    let root = stage.pid("root");
    let before = stage.observe();
    let said = dump_left_running(root, &stage.dir.join("images"), 3);
    if !said.contains(why) {
        checked.differences.push(format!("  refused with: {said}"));
    }
    checked.compare("seen after the refusal", &before, &stage.observe());
    checked.compare("done after the refusal", want, &(case.verify)(&mut stage));
}

fn dump_left_running(root: i32, dir: &Path, status: i32) -> String {
    let output = ptyagent(&["dump", "--inject", &root.to_string(), "-D", dir.to_str().unwrap(), "--leave-running"]);
    assert_eq!(output.status.code(), Some(status), "dump --leave-running: {}", report(&output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}
