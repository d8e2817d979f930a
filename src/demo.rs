//! The demo: the main job on a real session, checked.
//!
//! 1. A bash runs on a real terminal, whose holder is the root of the tree. It gets a variable, another directory, a job and a half-typed line.
//! 2. The tree is dumped and ended, and every process of it is gone.
//! 3. The images are shown, and restored.
//! 4. The line is typed to its end, and its output tells whether all is as it was.
//!
//! Every wait is for what the terminal shows. The process that runs this must have no other children: all are ended on every way out.

pub mod holder;
mod session;

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use vt100::Screen;

use crate::capture::Allowed;
use crate::dump::{self, After};
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::image::{Images, Overwrite};
use crate::procfs::{Stat, Status};
use crate::restore;
use crate::restore::space::Space;
use crate::show;
use crate::task::cpu::Mismatch;
use crate::tty::restore::IndexPolicy;

use session::{Root, Session, reap_ended};

const PROMPT: usize = 2;
const HALF: &str = "echo \"$animal lives in $PWD, with job $(jo";
const REST: &str = "bs -p)\"";

/// How long a number that somebody took in the meantime is waited for.
const TAKEN: Duration = Duration::from_secs(5);

/// Runs the demo with `program`, which must answer to the hidden commands of [`holder`], and tells about it.
///
/// Fails where a step fails or a check does not hold; a reader that went away is no failure.
pub fn run(program: &Path, out: &mut dyn Write) -> Result<()> {
    let start = Instant::now();
    let mut out = Out(out);
    require_privilege()?;
    let mut session = Session::start(program)?;

    out.line("A bash on a terminal, with a variable, another directory, a job, and a line that is not finished:");
    let (before, job) = prepare(&mut session)?;
    out.screen(&before);

    let saved = save(&session)?;
    out.line(format_args!(
        "Saved and ended: {} processes, {} KiB of images; frozen for {} ms, {} ms in all. In the images:",
        saved.tasks,
        saved.bytes / 1024,
        millis(saved.frozen_us),
        millis(saved.total_us)
    ));
    let images = Images::read(&session.images())?;
    let tasks = gone(&images)?;
    out.indented(&abridged(&show::tree(&images)));

    let restored = bring_back(&mut session, &images, &mut out)?;
    out.line(format_args!("Brought back in {} ms. The rest of the line is typed, and jobs:", millis(restored)));
    let after = finish(&mut session)?;
    out.screen(&after);

    let failed = check(&before, &after, job, &tasks, &mut out);
    drop(session);
    if !failed.is_empty() {
        return Err(Error::failed(format!("the restored session differs: {}", failed.join(", "))));
    }
    out.line(format_args!("All is as it was; {} ms from start to end.", start.elapsed().as_millis()));
    Ok(())
}

/// Where the demo tells what it does. A reader that went away does not matter: the exit status says it all.
struct Out<'a>(&'a mut dyn Write);

impl Out<'_> {
    fn line(&mut self, text: impl Display) {
        let _ = writeln!(self.0, "{text}");
    }

    fn indented(&mut self, text: &str) {
        for line in text.lines() {
            self.line(format_args!("    {line}"));
        }
        self.line("");
    }

    /// The rows down to the cursor, which is shown as an underline.
    fn screen(&mut self, screen: &Screen) {
        let (row, column) = screen.cursor_position();
        for (number, text) in screen.rows(0, holder::SIZE.1).take(usize::from(row) + 1).enumerate() {
            let text = match number == usize::from(row) {
                true => format!("{text:width$}_", width = usize::from(column)),
                false => text,
            };
            self.line(format_args!("    | {text}"));
        }
        self.line("");
    }
}

fn millis(micros: u64) -> String {
    format!("{:.1}", micros as f64 / 1e3)
}

fn require_privilege() -> Result<()> {
    const SYS_ADMIN: u64 = 1 << 21;
    const CHECKPOINT_RESTORE: u64 = 1 << 40;
    let status = Status::read(Pid(std::process::id() as i32))?;
    if status.capabilities.effective & (SYS_ADMIN | CHECKPOINT_RESTORE) == 0 {
        return Err(Error::failed(
            "the demo gives processes their old numbers again, for which CAP_CHECKPOINT_RESTORE is missing; run it as root: sudo ptyagent demo",
        ));
    }
    Ok(())
}

/// Brings the shell into the state that is to survive; yields the screen and the job.
fn prepare(session: &mut Session) -> Result<(Screen, Pid)> {
    session.wait_for_cursor(0, PROMPT)?;
    session.type_keys("animal=otter\r")?;
    session.wait_for_cursor(1, PROMPT)?;
    session.type_keys("cd /usr\r")?;
    session.wait_for_cursor(2, PROMPT)?;
    session.type_keys("sleep 1000 &\r")?;
    let screen = session.wait_for_cursor(4, PROMPT)?;
    let told = row(&screen, 3);
    let job = told.strip_prefix("[1] ").and_then(|pid| pid.trim().parse().ok()).map(Pid);
    let job = job.ok_or_else(|| Error::unexpected("what the shell says about its job", told))?;
    session.type_keys(HALF)?;
    Ok((session.wait_for_cursor(4, PROMPT + HALF.len())?, job))
}

fn row(screen: &Screen, number: usize) -> String {
    screen.rows(0, holder::SIZE.1).nth(number).unwrap_or_default().trim_end().to_owned()
}

fn save(session: &Session) -> Result<dump::Report> {
    let (root, dir) = (session.root(), session.images());
    let allowed = Allowed::default();
    dump::dump(&dump::Request { root, dir, after: After::Kill, overwrite: Overwrite::Refuse, allowed })
}

/// The processes of the images, which must all be gone: each with its parent, session and group.
fn gone(images: &Images) -> Result<Vec<Numbers>> {
    reap_ended();
    let numbers = |pid: Pid| images.pstree.iter().find(|entry| entry.pid as i32 == pid.0);
    let mut tasks = Vec::new();
    for entry in &images.pstree {
        let pid = Pid(entry.pid as i32);
        if Stat::read(pid).is_ok_and(|stat| numbers(stat.ppid).is_some() || stat.ppid == us()) {
            return Err(Error::failed(format!("process {pid} is still there after the dump")));
        }
        // The root had no parent in the tree: it is ours, before and after.
        let parent = if entry.ppid == 0 { us() } else { Pid(entry.ppid as i32) };
        tasks.push(Numbers { pid, parent, group: entry.pgid as i32, session: entry.sid as i32 });
    }
    Ok(tasks)
}

fn us() -> Pid {
    Pid(std::process::id() as i32)
}

/// What identifies a process.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    pid: Pid,
    parent: Pid,
    group: i32,
    session: i32,
}

impl Numbers {
    /// Those of a living process; none where there is no such process.
    fn of(pid: Pid) -> Option<Numbers> {
        let stat = Stat::read(pid).ok()?;
        Some(Numbers { pid, parent: stat.ppid, group: stat.pgrp.0, session: stat.session.0 })
    }
}

/// The tasks without their programs, and each terminal with the line that names it.
fn abridged(tree: &str) -> String {
    let mut blocks = tree.split("\n\n");
    let tasks = blocks.next().unwrap_or_default().lines().filter(|line| !line.trim_start().starts_with("exe "));
    let terminals = blocks.filter_map(|block| block.lines().next()).filter(|line| line.starts_with("pty"));
    tasks.chain(terminals).map(|line| format!("{line}\n")).collect()
}

/// Restores; waits a while for numbers that others took. Yields the microseconds of the restore that succeeded.
fn bring_back(session: &mut Session, images: &Images, out: &mut Out<'_>) -> Result<u64> {
    let request = restore::Request {
        changed: Default::default(),
        dir: session.images(),
        index: IndexPolicy::Exact,
        mismatch: Mismatch::Refuse,
        space: Space::CALLERS,
    };
    let plan = crate::plan::plan(images, &request.dir)?;
    let start = Instant::now();
    let mut told = false;
    let restored = loop {
        match restore::restore(&request, images, &plan) {
            Ok(restored) => break restored,
            Err(error) if start.elapsed() < TAKEN && error.to_string().contains(" is in use") => {
                if !told {
                    out.line(format_args!("Waiting: {error}"));
                    told = true;
                }
                // No event tells that a number is free.
                session.pause(Duration::from_millis(20), Root::Ended)?;
            }
            Err(error) => return Err(error),
        }
    };
    session.continues()?;
    Ok(restored.report.total_us)
}

/// Types the rest of the line, and asks for the jobs.
fn finish(session: &mut Session) -> Result<Screen> {
    session.type_keys(REST)?;
    session.type_keys("\r")?;
    session.wait_for_cursor(6, PROMPT)?;
    session.type_keys("jobs -l\r")?;
    session.wait_for_cursor(8, PROMPT)
}

/// Says of each thing whether it is as it was; yields those that are not.
fn check(before: &Screen, after: &Screen, job: Pid, tasks: &[Numbers], out: &mut Out<'_>) -> Vec<&'static str> {
    let said = row(after, 5);
    let jobs = row(after, 7);
    let is_job = jobs.starts_with("[1]") && jobs.contains("Running") && jobs.ends_with("sleep 1000 &");
    let upper = |screen: &Screen| (0..4).map(|number| row(screen, number)).collect::<Vec<_>>();
    let checks = [
        ("the variable", said.starts_with("otter ")),
        ("the directory", said.contains(" lives in /usr,")),
        ("the job", is_job && jobs.split_whitespace().any(|word| word == job.to_string())),
        ("the completed line", row(after, 4) == format!("$ {HALF}{REST}") && said.ends_with(&format!(" job {job}"))),
        ("the screen above it", upper(before) == upper(after)),
        (
            "process ids, parents, groups and sessions",
            tasks.iter().all(|task| Numbers::of(task.pid).as_ref() == Some(task)),
        ),
    ];
    for (what, holds) in &checks {
        out.line(format_args!("{:6} {what}", if *holds { "same" } else { "DIFFERS" }));
    }
    checks.iter().filter(|(_, holds)| !holds).map(|(what, _)| *what).collect()
}
