//! Round trips of one kind of state, checked by the process that has it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ptyagent::image::{Images, pb};

use super::{
    PATIENCE, TempDir, assert_same_lines, compile, dump, kill_session, restore, serial, shown, subreaper, tree, until,
    with_timeout,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Lets a victim of `tests/victims/check.h` prepare a kind of state, takes it through `rounds` round trips, and lets it check.
pub fn check(program: &'static str, name: &'static str, rounds: usize) {
    check_and(program, name, rounds, |_, _| ());
}

/// As [`check`]; the directories of images, in order, are shown to `look`.
pub fn check_images(program: &'static str, name: &'static str, rounds: usize, look: fn(&[PathBuf])) {
    check_with(program, name, rounds, |_, _| (), look);
}

/// As [`check`]; `look` is shown the images and the root of each restored tree.
pub fn check_and(program: &'static str, name: &'static str, rounds: usize, look: fn(&Path, i32)) {
    check_with(program, name, rounds, look, |_| ());
}

fn check_with(
    program: &'static str,
    name: &'static str,
    rounds: usize,
    look: fn(&Path, i32),
    look_at_all: fn(&[PathBuf]),
) {
    // The wait for others is not the test's time.
    let _serial = serial();
    with_timeout(LIMIT, move || {
        let _subreaper = subreaper();
        let victim = Prepared::start(program, name);
        let pid = victim.pid;
        let before = shown(pid);
        let mut all = Vec::new();
        for round in 0..rounds {
            let images = victim.dir.join(&format!("images{round}"));
            dump(pid, &images);
            assert_eq!(victim.result(), "");
            restore(&images);
            at_rest(pid);
            look(&images, pid);
            assert_same_lines(&comparable(&before), &comparable(&shown(pid)), name);
            all.push(images);
        }
        look_at_all(&all);
        victim.verify();
    });
}

/// Lets a victim prepare a kind of state that is refused with these words; it goes on as if nothing had happened.
pub fn refused(program: &'static str, name: &'static str, words: &'static str) {
    let _serial = serial();
    with_timeout(LIMIT, move || {
        let _subreaper = subreaper();
        let victim = Prepared::start(program, name);
        let images = victim.dir.join("images");
        let output = super::ptyagent(&["dump", "--inject", &victim.pid.to_string(), "-D", images.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(3), "{}", super::report(&output));
        assert!(super::report(&output).contains(words), "{}", super::report(&output));
        assert!(!images.exists());
        victim.verify();
    });
}

/// A victim of `tests/victims/check.h` that has prepared its state. Dropping it kills it.
pub struct Prepared {
    pub dir: TempDir,
    pub pid: i32,
    _end: EndSession,
}

impl Prepared {
    pub fn start(program: &str, name: &str) -> Prepared {
        let dir = TempDir::new();
        let mut command = Command::new(compile(program));
        command.arg(dir.path()).arg(name).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let pid: i32 = until("ready victim", PATIENCE, || read("ready").parse().ok(), || read("result"));
        let end = EndSession(pid);
        at_rest(pid);
        Prepared { dir, pid, _end: end }
    }

    /// One whose test has left it dumped.
    pub fn left_in(dir: &Path) -> Prepared {
        let dir = TempDir::of(dir);
        let pid = fs::read_to_string(dir.join("ready")).unwrap().parse().unwrap();
        Prepared { dir, pid, _end: EndSession(pid) }
    }

    /// What it has found wrong so far.
    pub fn result(&self) -> String {
        fs::read_to_string(self.dir.join("result")).unwrap_or_default()
    }

    /// Lets it check its state; panics where anything is wrong.
    pub fn verify(&self) {
        File::options().read(true).write(true).open(self.dir.join("go")).unwrap().write_all(b"g").unwrap();
        until("verdict", PATIENCE, || self.result().ends_with("done\n").then_some(()), || self.result());
        assert_eq!(self.result(), "done\n");
    }
}

/// Leaves out what a restore does not bring back as it was: the inode numbers of memory and files without a name, which the kernel gives anew, and the
/// border between private anonymous mappings side by side, which the kernel merges where they come to be untouched.
fn comparable(shown: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in shown.lines() {
        let line = match line.split_once(" /") {
            Some((start, name)) if line.contains(" (deleted)") && line.contains('-') && !line.contains("flags") => {
                let start = start.trim_end().rsplit_once(' ').map_or("", |(start, _)| start);
                format!("{start} {}", without_numbers(name))
            }
            _ => without_numbers(line),
        };
        let anonymous = |line: &str| {
            let (range, rest) = line.strip_suffix("p 00000000 00:00 0 ")?.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            Some((start.to_owned(), end.to_owned(), rest.to_owned()))
        };
        let merged = lines.last().and_then(|last| anonymous(last)).zip(anonymous(&line)).and_then(|(last, this)| {
            (last.1 == this.0 && last.2 == this.2)
                .then(|| format!("{}-{} {}p 00000000 00:00 0 ", last.0, this.1, this.2))
        });
        if merged.is_some() {
            lines.pop();
        }
        lines.push(merged.unwrap_or(line));
    }
    lines.join("\n")
}

/// The name of a file that never had one is the number of its inode.
fn without_numbers(line: &str) -> String {
    match line.split_once("/#") {
        Some((start, rest)) => format!("{start}/#{}", rest.trim_start_matches(|char: char| char.is_ascii_digit())),
        None => line.to_owned(),
    }
}

/// Waits until a process waits; where its main thread has ended, another of its threads.
pub fn asleep(pid: i32) {
    let state = || super::stat(super::seen(pid)).map(|stat| stat.state);
    until("sleeping process", PATIENCE, || (state() == Some('S')).then_some(()), || format!("{:?}", state()));
}

/// Waits until every thread of a tree waits, is stopped or has ended: one that is on its way into a call is shown with other signals than in it.
pub fn at_rest(root: i32) {
    let busy = || -> Vec<String> {
        let threads =
            tree(root).into_iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task"))).flatten().flatten();
        let states = threads.filter_map(|thread| super::stat(thread.file_name().to_str()?.parse().ok()?));
        states.filter(|stat| matches!(stat.state, 'R' | 'D')).map(|stat| format!("{stat:?}")).collect()
    };
    until("tree at rest", PATIENCE, || busy().is_empty().then_some(()), || busy().join("\n"));
}

/// Kills what is left of a session at the end.
pub struct EndSession(pub i32);

impl Drop for EndSession {
    fn drop(&mut self) {
        kill_session(self.0);
    }
}

/// What the images of several dumps say is the same, but for the state that a restore begins with: registers and times. Round trips are made
/// between the dumps, so that what a restore loses is missing in the next.
pub fn same_images(dirs: &[PathBuf]) {
    let first = lasting(&dirs[0]);
    for dir in &dirs[1..] {
        assert_same_lines(&first, &lasting(dir), &format!("{}", dir.display()));
    }
}

fn lasting(dir: &Path) -> String {
    let images = Images::read(dir).unwrap();
    let mut own = images.own.unwrap();
    own.tasks.iter_mut().for_each(|task| task.start_time = None);
    // Pipes are new ones.
    own.ofds.iter_mut().for_each(|ofd| (ofd.path, ofd.ino, ofd.mtime_ns) = (None, None, None));
    own.threads.iter_mut().for_each(|thread| thread.xstate = None);
    let cores: Vec<_> = images
        .cores
        .into_iter()
        .map(|(tid, core)| {
            let task = core.tc.map(|task| pb::TaskCoreEntry { timers: None, flags: 0, ..task });
            let clear_tid_addr = core.thread_info.map(|info| info.clear_tid_addr);
            (tid, task, core.ids, clear_tid_addr, core.thread_core)
        })
        .collect();
    format!("{:#?}", (images.pstree, images.ids, images.fs, own.tasks, own.threads, own.ofds, cores, images.fdinfo))
}
