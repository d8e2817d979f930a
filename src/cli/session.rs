//! dump and restore: requests, reports, and the wait for a restored session.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

use ptyagent::dump::{self, After};
use ptyagent::error::{Context, Error, Result, Subject};
use ptyagent::files::socket::{Connections, Policy};
use ptyagent::ids::Pid;
use ptyagent::image::Overwrite;
use ptyagent::plan::Plan;
use ptyagent::relay::{self, FirstSize, Outer};
use ptyagent::restore::{self, Restored};
use ptyagent::sys::process::pidfd_open;
use ptyagent::sys::process::wait4;
use ptyagent::task::cpu::Mismatch;
use ptyagent::tty::restore::IndexPolicy;

use super::args::{DumpArgs, PtsIndex, RestoreArgs};
use super::output::{answer, complain, count, json, quoted, report, size, time};
use super::progress::{Spinner, Steps};

pub fn dump(args: &DumpArgs) -> Result<ExitCode> {
    let after = match (args.leave_running, args.leave_stopped) {
        (true, _) => After::LeaveRunning,
        (_, true) => After::LeaveStopped,
        _ => After::Kill,
    };
    let overwrite = if args.force { Overwrite::Replace } else { Overwrite::Refuse };
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(format!("ptyagent-{}", args.inject)));
    let spinner = Spinner::start(format!("saving process {}", args.inject));
    let done =
        dump::dump(&dump::Request { root: Pid(args.inject), dir, after, overwrite, connections: connections(args) })?;
    drop(spinner);
    report(&if args.json { json(&done) } else { dumped(&done, after) });
    Ok(ExitCode::SUCCESS)
}

fn connections(args: &DumpArgs) -> Connections {
    let policy = |close: bool| if close { Policy::Close } else { Policy::Refuse };
    Connections { unix: policy(args.ext_unix), tcp: policy(args.tcp_close) }
}

fn dumped(done: &dump::Report, after: After) -> String {
    let end = match after {
        After::Kill => "ended",
        After::LeaveRunning => "still running",
        After::LeaveStopped => "left stopped",
    };
    let dir = done.dir.to_string_lossy();
    let mut text = format!(
        "saved {} and {} of process {} in {dir} ({}); the session is {end}\n",
        count(done.tasks, "process", "processes"),
        count(done.terminals, "terminal", "terminals"),
        done.root,
        size(done.bytes),
    );
    text += &format!("frozen for {}, {} in all\n", time(done.frozen_us), time(done.total_us));
    for loss in &done.losses {
        text += &format!("lost: {loss}\n");
    }
    text + &format!("to bring it back: ptyagent restore -D {}\n", quoted(&dir))
}

pub fn restore(args: &RestoreArgs) -> Result<ExitCode> {
    let index = match args.pts_index {
        PtsIndex::Exact => IndexPolicy::Exact,
        PtsIndex::Any => IndexPolicy::Any,
        PtsIndex::Private => {
            return Err(Error::failed("--pts-index private is not supported yet; use --pts-index any"));
        }
    };
    if args.pidns {
        return Err(Error::failed("--pidns is not supported yet; end what has the session's process ids, or reboot"));
    }
    let mismatch = if args.allow_cpu_mismatch { Mismatch::Allow } else { Mismatch::Refuse };
    let request = restore::Request { dir: args.dir.clone(), index, mismatch };
    let mut progress = Steps::start();
    let (images, plan) = restore::load(&request)?;
    if args.dry_run {
        return Ok(answer(&if args.json { json(&plan) } else { steps(&plan) }));
    }
    let outer = outer(args, &plan)?;
    let pidfile = args.pidfile.as_deref().map(|path| Pidfile::write(path, &plan)).transpose()?;
    let restored = restore::restore_with(&request, &images, &plan, &mut |done, step| {
        progress.show(done, plan.steps.len(), step);
    })?;
    drop(progress);
    drop(images);
    if let Some(pidfile) = pidfile {
        pidfile.publish();
    }
    tell(args, &restored);
    match (restored.master, outer) {
        _ if args.detach => Ok(ExitCode::SUCCESS),
        (Some(master), Some(outer)) => continue_here(master, outer, restored.report.root),
        _ => wait(restored.report.root),
    }
}

fn steps(plan: &Plan) -> String {
    plan.steps.iter().map(|step| format!("{step}\n")).collect()
}

/// This terminal, where the session is to continue here. From now on the signals of the relay wait for it.
fn outer(args: &RestoreArgs, plan: &Plan) -> Result<Option<Outer>> {
    if plan.outside.is_none() {
        return Ok(None);
    }
    if args.detach {
        return Err(Error::failed(
            "the session's terminal was outside of it, so it has to continue in this one and --detach is not supported yet; restore it without --detach",
        ));
    }
    let outer = Outer::standard()?;
    relay::block_signals()?;
    Ok(Some(outer))
}

/// Says what was done, where that does not get into the session's screen.
fn tell(args: &RestoreArgs, restored: &Restored) {
    let done = &restored.report;
    if args.json && restored.master.is_some() {
        // Standard error may be gone; the session matters more.
        let _ = std::io::stderr().write_all(json(done).as_bytes());
        return;
    }
    if args.json {
        return report(&json(done));
    }
    for note in &done.notes {
        complain(format_args!("{note}"));
    }
    for (recorded, now) in &done.moved {
        complain(format_args!("/dev/pts/{recorded} was in use; that terminal is /dev/pts/{now} now"));
    }
    if restored.master.is_none() {
        let tasks = count(done.tasks, "process", "processes");
        let terminals = count(done.terminals, "terminal", "terminals");
        report(&format!(
            "restored {tasks} and {terminals} from process {} down in {}\n",
            done.root,
            time(done.total_us)
        ));
    }
}

/// Relays between this terminal and the session's until that ends.
fn continue_here(master: OwnedFd, outer: Outer, root: Pid) -> Result<ExitCode> {
    let root = pidfd_open(root).map_err(|errno| Error::of_pid("pinning", root, errno))?;
    Ok(relay::run(master, outer, root, FirstSize::FromOuter)?.exit_status().into())
}

/// Waits for the session's root, a child of ours, and passes on how it ended.
fn wait(root: Pid) -> Result<ExitCode> {
    let ended = wait4(root, 0).map_err(|errno| Error::of_pid("waiting for the end", root, errno))?;
    let status = ExitStatus::from_raw(ended.map_or(0, |(_, status)| status));
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// A file with the root's id, complete before the session exists and in its place as soon as that runs.
struct Pidfile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Pidfile {
    fn write(path: &Path, plan: &Plan) -> Result<Pidfile> {
        let subject = || Subject::Path(path.into());
        let place = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if path.is_dir() {
            return Err(Error::failed(format!("{} is a directory; name a file for --pidfile", path.display())));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".ptyagent-").permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let mut file = builder.tempfile_in(place).during("making the pid file", subject())?;
        writeln!(file, "{}", plan.root).during("writing the pid file", subject())?;
        Ok(Pidfile { file, path: path.to_path_buf() })
    }

    fn publish(self) {
        if let Err(error) = self.file.persist(&self.path) {
            complain(format_args!("the session runs, but {} was not written: {}", self.path.display(), error.error));
        }
    }
}
