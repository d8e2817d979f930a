//! restore and attach: requests, reports, and the wait for a restored session.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ptyagent::attach::{self, Session};
use ptyagent::error::{Context, Error, Result, Subject};
use ptyagent::files::regular::ChangedFiles;
use ptyagent::holder::{self, Listener};
use ptyagent::ids::Pid;
use ptyagent::image::Images;
use ptyagent::plan::Plan;
use ptyagent::relay::{self, Ending, FirstSize, Outer};
use ptyagent::restore::space::{Devpts, Pids, Space};
use ptyagent::restore::worker::{self, Afterwards};
use ptyagent::restore::{self, Report, Request};
use ptyagent::sys::process::{pidfd_open, wait4};
use ptyagent::task::cpu::Mismatch;
use ptyagent::tty::restore::IndexPolicy;

use super::args::{AttachArgs, PtsIndex, RestoreArgs};
use super::output::{answer, complain, count, json, report, time};
use super::progress::Steps;

/// A session that runs again.
struct Running {
    report: Report,
    /// Present where its terminal continues in ours.
    master: Option<OwnedFd>,
    /// Our child that ends as the session's root does: the root, or the worker that waits for it.
    child: Pid,
    /// Its pidfd, where we have one.
    pidfd: Option<OwnedFd>,
}

pub fn restore(args: &RestoreArgs) -> Result<ExitCode> {
    let (index, devpts) = match args.pts_index {
        PtsIndex::Exact => (IndexPolicy::Exact, Devpts::Callers),
        PtsIndex::Any => (IndexPolicy::Any, Devpts::Callers),
        PtsIndex::Private => (IndexPolicy::Exact, Devpts::Private),
    };
    let pids = if args.pidns { Pids::Fresh } else { Pids::Callers };
    let mismatch = if args.allow_cpu_mismatch { Mismatch::Allow } else { Mismatch::Refuse };
    let changed = if args.allow_changed_files { ChangedFiles::Allow } else { ChangedFiles::Refuse };
    let request = Request { dir: args.dir.clone(), index, mismatch, changed, space: Space { pids, devpts } };
    let (images, plan) = restore::load(&request)?;
    if args.dry_run {
        return Ok(answer(&if args.json { json(&plan) } else { steps(&plan) }));
    }
    let outer = outer(args, &plan)?;
    let pidfile = args.pidfile.as_deref().map(Pidfile::prepare).transpose()?;
    let running = bring_back(args, &request, &images, &plan)?;
    drop(images);
    let id = running.report.host_root.unwrap_or(running.report.root);
    if let Some(pidfile) = pidfile {
        pidfile.publish(id);
    }
    tell(args, &running, (args.detach && plan.outside.is_some()).then_some(id));
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    match (running.master, outer) {
        (Some(master), Some(outer)) => continue_here(master, outer, running.child, running.pidfd),
        _ => wait(running.child),
    }
}

/// Restores in this process, or in a worker where the session needs a pid namespace or a holder.
fn bring_back(args: &RestoreArgs, request: &Request, images: &Images, plan: &Plan) -> Result<Running> {
    let mut bar = Steps::start();
    let mut progress = |done: usize, step: &_| bar.show(done, plan.steps.len(), step);
    let afterwards = match (args.detach, plan.outside) {
        (true, Some(_)) => Afterwards::Hold(Listener::bind(&holder::directory()?)?),
        (true, None) => Afterwards::Leave,
        (false, _) => Afterwards::Wait,
    };
    if request.space.pids == Pids::Callers && !matches!(afterwards, Afterwards::Hold(_)) {
        let restored = restore::restore_with(request, images, plan, &mut progress)?;
        let child = restored.report.root;
        return Ok(Running { report: restored.report, master: restored.master, child, pidfd: None });
    }
    let started = worker::start(request, images, plan, afterwards, &mut progress)?;
    Ok(Running { report: started.report, master: started.master, child: started.pid, pidfd: Some(started.worker) })
}

fn steps(plan: &Plan) -> String {
    plan.steps.iter().map(|step| format!("{step}\n")).collect()
}

/// This terminal, where the session is to continue here. From now on the signals of the relay wait for it.
fn outer(args: &RestoreArgs, plan: &Plan) -> Result<Option<Outer>> {
    if plan.outside.is_none() || args.detach {
        return Ok(None);
    }
    let outer = Outer::standard()?;
    relay::block_signals()?;
    Ok(Some(outer))
}

/// Says what was done, where that does not get into the session's screen. `attachable` is the id of a session that waits for a terminal.
fn tell(args: &RestoreArgs, running: &Running, attachable: Option<Pid>) {
    let done = &running.report;
    if args.json && running.master.is_some() {
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
    if running.master.is_some() {
        return;
    }
    let tasks = count(done.tasks, "process", "processes");
    let terminals = count(done.terminals, "terminal", "terminals");
    let here = done.host_root.map_or_else(String::new, |pid| format!(" (here {pid})"));
    let mut text =
        format!("restored {tasks} and {terminals} from process {}{here} down in {}\n", done.root, time(done.total_us));
    if let Some(id) = attachable {
        text += &format!("to get its terminal: ptyagent attach {id}\n");
    }
    report(&text);
}

/// Relays between this terminal and the session's until that ends.
fn continue_here(master: OwnedFd, outer: Outer, child: Pid, pidfd: Option<OwnedFd>) -> Result<ExitCode> {
    let pidfd = pidfd.map_or_else(|| pidfd_open(child).map_err(|errno| Error::of_pid("pinning", child, errno)), Ok)?;
    Ok(relay::run(master, outer, pidfd, FirstSize::FromOuter)?.exit_status().into())
}

/// Waits for a child of ours, and passes on how it ended.
fn wait(child: Pid) -> Result<ExitCode> {
    let ended = wait4(child, 0).map_err(|errno| Error::of_pid("waiting for the end", child, errno))?;
    Ok(Ending::of_wait(ended.map_or(0, |(_, status)| status)).exit_status().into())
}

pub fn attach(args: &AttachArgs) -> Result<ExitCode> {
    let dir = holder::directory()?;
    let id = match args.id {
        Some(id) => Pid(id),
        None => only(&attach::sessions(&dir)?)?,
    };
    let outer = Outer::standard()?;
    relay::block_signals()?;
    let ending = relay::run_attached(attach::attach(&dir, id)?, outer)?;
    match ending {
        Ending::Detached => {
            complain(format_args!("detached from session {id}, which runs on; ptyagent attach {id} comes back"))
        }
        Ending::HolderGone => {
            complain(format_args!("the holder of session {id} was killed, which hung the session up"))
        }
        Ending::Told(_) | Ending::OuterGone => {
            complain(format_args!("session {id} runs on; ptyagent attach {id} comes back"))
        }
        Ending::Exited(_) | Ending::Killed(_) => {}
    }
    Ok(ending.exit_status().into())
}

/// The session that is meant where none is named.
fn only(sessions: &[Session]) -> Result<Pid> {
    match sessions {
        [] => Err(Error::failed("there is no session to attach to; ptyagent restore --detach makes one")),
        [session] => Ok(session.id),
        several => {
            let name = |session: &Session| {
                let attached = if session.attached.is_some() { ", attached" } else { "" };
                format!("{} ({}{attached})", session.id, session.comm())
            };
            let names: Vec<String> = several.iter().map(name).collect();
            Err(Error::failed(format!("several sessions can be attached to: {}; name one of them", names.join(", "))))
        }
    }
}

/// A file with the root's id: its place is tried before the session exists, and it is there as soon as that runs.
struct Pidfile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Pidfile {
    fn prepare(path: &Path) -> Result<Pidfile> {
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
        let file = builder.tempfile_in(place).during("making the pid file", subject())?;
        Ok(Pidfile { file, path: path.to_path_buf() })
    }

    fn publish(mut self, id: Pid) {
        let written = writeln!(self.file, "{id}");
        if let Err(error) = written.and_then(|()| self.file.persist(&self.path).map(drop).map_err(|error| error.error))
        {
            complain(format_args!("the session runs, but {} was not written: {error}", self.path.display()));
        }
    }
}
