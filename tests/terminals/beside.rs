//! What CRIU makes of a case, for the table: set CRIU to the path of one that works on this kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cases::Case;
use crate::support::{Stage, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(20);

/// The case dumped, killed, restored and compared as ours is, in a few words.
pub fn outcome(case: &Case, criu: &Path) -> String {
    let (case, criu) = (case.clone(), criu.to_owned());
    let result = std::panic::catch_unwind(|| with_timeout(4 * LIMIT, move || tried(&case, &criu)));
    result.unwrap_or_else(|_| "the restored tree does not answer".into())
}

fn tried(case: &Case, criu: &Path) -> String {
    let mut control = Stage::new();
    (case.setup)(&mut control);
    let want = (case.verify)(&mut control);
    drop(control);
    let mut stage = Stage::new();
    (case.setup)(&mut stage);
    let (root, dir) = (stage.pid("root").to_string(), stage.dir.join("criu"));
    fs::create_dir(&dir).unwrap();
    let before = case.seen(&mut stage);
    let log = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let images = dir.to_str().unwrap();
    match run(criu, &["dump", "-t", &root, "-D", images, "-o", &log("dump.log")]) {
        None => return "the dump hangs".into(),
        Some(status) if !status.success() => return format!("refused: {}", complaint(&log("dump.log"))),
        Some(_) => {}
    }
    match run(criu, &["restore", "-d", "-D", images, "-o", &log("restore.log")]) {
        None => return "the restore hangs".into(),
        Some(status) if !status.success() => return format!("the restore fails: {}", complaint(&log("restore.log"))),
        Some(_) => {}
    }
    let seen = differing(&before, &case.seen(&mut stage));
    let done = differing(&want, &(case.verify)(&mut stage));
    match (seen.is_empty(), done.is_empty()) {
        (true, true) => "kept".into(),
        (false, true) => format!("differs: {seen}"),
        (true, false) => format!("differs in what comes next: {done}"),
        (false, false) => format!("differs: {seen}; and in what comes next"),
    }
}

/// None where it had to be killed.
fn run(criu: &Path, args: &[&str]) -> Option<ExitStatus> {
    let mut child = Command::new(criu).args(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("end of criu", LIMIT, || child.try_wait().unwrap(), String::new)
    }));
    ended.map_err(|_| (kill_below(child.id()), child.kill().and_then(|()| child.wait().map(drop)))).ok()
}

/// What it has made, lest that hold terminals of the cases to come.
fn kill_below(pid: u32) {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        kill_below(child);
        let _ = kill(Pid::from_raw(child as i32), Signal::SIGKILL);
    }
}

/// The first error of a log, without its time and place.
fn complaint(log: &str) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut said = text.lines().filter_map(|line| Some(line.split_once("Error (")?.1.split_once("): ")?.1));
    // The limit is a capability of this machine's, and no reason.
    let said = said.find(|line| !line.contains("RLIMIT_NOFILE"));
    said.map_or_else(|| "no reason given".into(), |said| said.chars().take(80).collect())
}

/// The names of what differs: what stands before the value in a fact, and of reads when they were made.
fn differing(before: &[String], after: &[String]) -> String {
    let mut names = BTreeSet::new();
    for line in 0..before.len().max(after.len()) {
        let [before, after] = [before, after].map(|lines| lines.get(line).map_or("", String::as_str));
        let mut name = "";
        for (word, other) in before.split(' ').zip(after.split(' ')) {
            match word.split_once('=') {
                Some((key, _)) if word != other => drop(names.insert(key)),
                None if word != other => drop(names.insert(name)),
                _ if word.starts_with(|first: char| first.is_ascii_lowercase()) => name = word.trim_end_matches(':'),
                _ => {}
            }
        }
    }
    names.into_iter().collect::<Vec<_>>().join(", ")
}
