//! The story of a restore: load, plan, open, create empty tasks, build them from inside, let go.
//!
//! The plan is made before anything is created, and executed step by step. If a step fails, everything that was created is killed and the
//! images are untouched.

mod build;
mod execute;
mod foreign;
mod inherited;
mod memory;
mod needs;
mod pin;
pub mod space;
mod stop;
mod stubs;
mod threads;
pub mod worker;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::regular::ChangedFiles;
use crate::ids::Pid;
use crate::image::Images;
use crate::plan::{Plan, Step, plan};
use crate::procfs::{Stat, Status};
use crate::task::cpu::{Mismatch, Processor};
use crate::tty::restore::IndexPolicy;

use execute::Execution;
use pin::Pinned;
use space::Space;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub dir: PathBuf,
    pub index: IndexPolicy,
    pub mismatch: Mismatch,
    pub changed: ChangedFiles,
    pub space: Space,
}

/// What a restore did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    pub root: Pid,
    /// The root's number where the restore was called, if the session has a pid namespace of its own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_root: Option<Pid>,
    pub tasks: usize,
    pub terminals: usize,
    /// Microseconds from the creation of the first task until the last one runs.
    pub frozen_us: u64,
    /// Microseconds of the whole restore, without the reading of the images.
    pub total_us: u64,
    pub pages: u64,
    pub bytes: u64,
    /// The most physical memory that this process has had, in KiB; absent where the kernel does not tell.
    pub controller_peak_kib: Option<u64>,
    /// Pseudoterminals that have another index now: recorded and present.
    pub moved: Vec<(u32, u32)>,
    /// What could not be made as it was, one sentence each.
    pub notes: Vec<String>,
}

/// A restored session that runs.
#[derive(Debug)]
pub struct Restored {
    pub report: Report,
    /// Present where the master was outside the tree: the caller relays it.
    pub master: Option<OwnedFd>,
}

/// Reads and checks a directory of images, and makes the plan.
pub fn load(request: &Request) -> Result<(Images, Plan)> {
    let mut images = Images::read(&request.dir)?;
    if images.own.is_none() {
        foreign::complete(&mut images, &request.dir)?;
    }
    let plan = plan(&images, &request.dir)?;
    Ok((images, plan))
}

/// Brings the session back.
pub fn restore(request: &Request, images: &Images, plan: &Plan) -> Result<Restored> {
    restore_with(request, images, plan, &mut |_, _| ())
}

/// As [`restore`]; this process enters the mount namespace of the session if that gets one. `progress` is told each step before it is done, and how many came before it.
pub fn restore_with(
    request: &Request,
    images: &Images,
    plan: &Plan,
    progress: &mut dyn FnMut(usize, &Step),
) -> Result<Restored> {
    let start = Instant::now();
    request.space.enter()?;
    refuse_taken(images)?;
    let processor = Processor::here();
    processor.check(images, request.mismatch)?;
    needs::check(images)?;
    raise_descriptor_limit();
    let mut execution = Execution::begin(request, images, plan, processor)?;
    let inherited = &execution.inherited.affinity;
    let _pinned = Pinned::to_this_processor(inherited.ours.len(), inherited.set.clone());
    let mut created = None;
    for (done, step) in plan.steps.iter().enumerate() {
        tracing::debug!(%step, "step");
        progress(done, step);
        if matches!(step, Step::Create { .. }) {
            created.get_or_insert_with(Instant::now);
        }
        execution.run(step).map_err(|error| name_step(step, error))?;
    }
    Ok(execution.succeed(start, created.unwrap_or(start)))
}

/// Adds the step to errors that do not say enough by themselves.
fn name_step(step: &Step, error: Error) -> Error {
    match error {
        Error::Sys { operation, subject, errno } => {
            Error::failed(format!("cannot {step}: {operation}{subject} failed: {}", errno.desc()))
        }
        Error::Gone(pid) => Error::failed(format!("cannot {step}: process {pid} is gone")),
        other => other,
    }
}

/// How long a zombie with a recorded number is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

fn is_zombie(pid: Pid) -> bool {
    Stat::read(pid).is_ok_and(|stat| stat.state.is_dead())
}

/// Fails where a process, group or session has a recorded number, and says who.
fn refuse_taken(images: &Images) -> Result<()> {
    let wanted: BTreeSet<i32> = images.pstree.iter().map(|entry| entry.pid as i32).collect();
    let threads = images.pstree.iter().flat_map(|entry| &entry.threads).map(|tid| *tid as i32);
    let start = Instant::now();
    // The killed root of a dump is a zombie until its parent has waited for it, which a moment usually settles.
    while start.elapsed() < PATIENCE && wanted.iter().any(|pid| is_zombie(Pid(*pid))) {
        std::thread::sleep(Duration::from_millis(5));
    }
    for number in threads.chain(wanted.iter().copied()) {
        // Processes are looked at below; /proc/N leads to a thread too.
        let Ok(status) = Status::read(Pid(number)) else { continue };
        if status.tgid != Pid(number) || !wanted.contains(&number) {
            return Err(Error::failed(format!(
                "the number {number} is in use by a thread of process {}; end it, or restore into a fresh pid namespace with --pidns",
                status.tgid
            )));
        }
    }
    for pid in crate::procfs::tree::all()? {
        let Ok(stat) = Stat::read(pid) else { continue };
        let numbers = [(pid.0, "it"), (stat.pgrp.0, "its process group"), (stat.session.0, "its session")];
        if let Some((number, what)) = numbers.into_iter().find(|(number, _)| wanted.contains(number)) {
            return Err(Error::failed(format!(
                "process id {number} is in use: process {pid} ({}) has it as {what}; end it, or restore into a fresh pid namespace with --pidns",
                stat.comm_text()
            )));
        }
    }
    Ok(())
}

/// The soft limit of open files goes up to the hard one: stubs hold every file of the session for a moment.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
