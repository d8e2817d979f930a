//! What a case is, and how one is run.

use std::path::Path;
use std::process::Command;

use ptyagent::ids::Pid;
use ptyagent::image::Images;

use crate::support::{Stage, dump, ptyagent, report, restore};

/// What becomes of a state.
#[derive(Clone, Copy)]
pub enum Outcome {
    Kept,
    /// The dump ends with status 3, this text on stderr, and a session that runs on as if nothing had happened.
    Refused(&'static str),
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
}

impl Case {
    pub fn kept(group: &'static str, name: &'static str, setup: fn(&mut Stage)) -> Case {
        Case { group, name, outcome: Outcome::Kept, setup, verify: Stage::exhaust, but: None }
    }

    pub fn refused(group: &'static str, name: &'static str, why: &'static str, setup: fn(&mut Stage)) -> Case {
        Case { group, name, outcome: Outcome::Refused(why), setup, verify: Stage::exhaust, but: None }
    }

    pub fn verified(self, verify: fn(&mut Stage) -> Vec<String>) -> Case {
        Case { verify, ..self }
    }

    pub fn but(self, word: &'static str, why: &'static str) -> Case {
        Case { but: Some((word, why)), ..self }
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
}

impl Checked {
    fn compare(&mut self, what: &str, before: &[String], after: &[String]) {
        if before.len() != after.len() {
            self.differences.push(format!("  {what}: {} lines became {}", before.len(), after.len()));
        }
        for (before, after) in before.iter().zip(after).filter(|(before, after)| before != after) {
            self.differences.push(format!(
                "  {what}:\n    {}\n    {}",
                shortened(before, after),
                shortened(after, before)
            ));
        }
    }
}

/// The words of a line that the other has not, with the first two to say where.
fn shortened(line: &str, other: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    if words.len() < 6 || words.len() != other.split(' ').count() {
        return line.chars().take(600).collect();
    }
    let differ = words.iter().zip(other.split(' ')).enumerate().filter(|(at, (a, b))| *at < 3 || **a != *b);
    differ.map(|(_, (word, _))| *word).collect::<Vec<_>>().join(" ").chars().take(600).collect()
}

/// Runs a case; panics where a command fails that should not.
pub fn run(case: &Case) -> Checked {
    let mut checked = Checked::default();
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
    }
    checked
}

fn killed(case: &Case, want: &[String], checked: &mut Checked) {
    let mut stage = Stage::new();
    (case.setup)(&mut stage);
    let (root, dir) = (stage.pid("root"), stage.dir.join("images"));
    let (before, inspected) = (case.seen(&mut stage), inspect(root));
    dump(root, &dir);
    restore(&dir);
    let after = case.seen(&mut stage);
    checked.compare("seen after the restore", &before, &after);
    checked.compare("inspected after the restore", &inspected, &inspect(root));
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

/// The terminals, sessions and descriptors of a live inspection, one fact to a line. By a process of its own, as a wait of the
/// test's reaper would take what the kernel tells a tracer.
fn inspect(root: i32) -> Vec<String> {
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["--exact", "inspector", "--ignored", "--nocapture"]).env("TERMINALS_INSPECT", root.to_string());
    let output = helper.output().unwrap();
    assert!(output.status.success(), "inspection: {}", report(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("= ")).map(str::to_owned).collect()
}

/// The work of the helper.
pub fn print_inspection(root: i32) {
    for fact in facts(&ptyagent::inspect::inspect(Pid(root)).unwrap()) {
        println!("= {fact}");
    }
}

fn facts(images: &Images) -> Vec<String> {
    let mut facts = Vec::new();
    let own = images.own.as_ref().unwrap();
    facts.extend(own.ttys.iter().map(|tty| format!("{tty:?}")));
    facts.extend(own.cttys.iter().map(|ctty| format!("{ctty:?}")));
    facts.extend(images.tty_info.iter().map(|tty| format!("{tty:?}")));
    // The inode numbers of sockets are the kernel's to choose.
    let is_socket = |path: &[u8]| path.starts_with(b"socket:");
    facts.extend(own.ofds.iter().filter(|ofd| !is_socket(ofd.path())).map(|ofd| format!("{ofd:?}")));
    facts.extend(images.files.iter().filter(|file| file.usk.is_none()).map(|file| format!("{file:?}")));
    facts.extend(images.fdinfo.iter().flat_map(|(id, table)| table.iter().map(move |entry| format!("{id} {entry:?}"))));
    facts.extend(images.pstree.iter().map(|entry| format!("{entry:?}")));
    facts
}
