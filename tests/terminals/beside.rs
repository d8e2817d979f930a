//! What CRIU makes of a case, for the table: set CRIU to the path of one that works on this kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cases::Case;
use crate::support::{Pty, Stage, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(20);

/// What CRIU makes of a case, in a few words: dumped, killed, restored and compared as ours is, or as the case has it.
pub fn outcome(case: &Case, criu: &Path) -> String {
    let (case, criu) = (case.clone(), criu.to_owned());
    let result = std::panic::catch_unwind(|| {
        with_timeout(4 * LIMIT, move || match case.beside {
            Some(try_out) => try_out(&criu),
            None => tried(&case, &criu),
        })
    });
    let told = result.unwrap_or_else(|_| Err("the restored tree does not answer".into()));
    told.unwrap_or_else(|failed| failed)
}

/// What it made of a case, or what did not work, in words.
pub type Tried = Result<String, String>;

fn tried(case: &Case, criu: &Path) -> Tried {
    let mut control = Stage::new();
    (case.setup)(&mut control);
    let want = (case.verify)(&mut control);
    drop(control);
    let mut stage = Stage::new();
    (case.setup)(&mut stage);
    let before = case.seen(&mut stage);
    dump(criu, &stage, &[])?;
    restore(criu, &stage)?;
    let seen = differing(&before, &case.seen(&mut stage));
    let done = differing(&want, &(case.verify)(&mut stage));
    Ok(verdict(&seen, &done))
}

/// What is different, in names of facts.
pub fn verdict(seen: &str, done: &str) -> String {
    match (seen.is_empty(), done.is_empty()) {
        (true, true) => "kept".into(),
        (false, true) => format!("differs: {seen}"),
        (true, false) => format!("differs in what comes next: {done}"),
        (false, false) => format!("differs: {seen}; and in what comes next"),
    }
}

/// Dumps the tree with more options.
pub fn dump(criu: &Path, stage: &Stage, more: &[&str]) -> Result<(), String> {
    let root = stage.pid("root").to_string();
    fs::create_dir(stage.dir.join(IMAGES)).unwrap();
    let args = [&["dump", "-t", &root], more].concat();
    run(criu, stage, &args, "the dump hangs", "refused")
}

pub fn restore(criu: &Path, stage: &Stage) -> Result<(), String> {
    run(criu, stage, &["restore", "-d"], "the restore hangs", "the restore fails")
}

/// Restores on a new terminal, which stands in for one from outside.
pub fn restore_here(criu: &Path, stage: &Stage) -> Result<Pty, String> {
    let (dir, log) = (stage.dir.join(IMAGES), stage.dir.join(IMAGES).join("restore.log"));
    let argv = [criu, Path::new("restore"), Path::new("-d"), Path::new("--shell-job"), Path::new("-D"), &dir];
    let argv = [&argv[..], &[Path::new("-o"), &log]].concat();
    let argv: Vec<&str> = argv.iter().map(|word| word.to_str().unwrap()).collect();
    let mut pty = Pty::spawn(&argv);
    match pty.wait_for_exit(LIMIT).success() {
        true => Ok(pty),
        false => Err(format!("the restore fails: {}", complaint(&log))),
    }
}

/// The directory of the images and logs, below a stage's.
const IMAGES: &str = "criu";

fn run(criu: &Path, stage: &Stage, args: &[&str], hangs: &str, fails: &str) -> Result<(), String> {
    let dir = stage.dir.join(IMAGES);
    let log = dir.join(format!("{}.log", args[0]));
    let mut command = Command::new(criu);
    command.args(args).arg("-D").arg(&dir).arg("-o").arg(&log);
    match end(command) {
        None => Err(hangs.into()),
        Some(status) if !status.success() => Err(format!("{fails}: {}", complaint(&log))),
        Some(_) => Ok(()),
    }
}

/// None where it had to be killed.
fn end(mut command: Command) -> Option<ExitStatus> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
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
fn complaint(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut said = text.lines().filter_map(|line| Some(line.split_once("Error (")?.1.split_once("): ")?.1));
    // The limit is a capability of this machine's, and no reason.
    let said = said.find(|line| !line.contains("RLIMIT_NOFILE"));
    said.map_or_else(|| "no reason given".into(), |said| said.chars().take(80).collect())
}

/// The names of what differs: what stands before the value in a fact, and of reads when they were made.
pub fn differing(before: &[String], after: &[String]) -> String {
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
