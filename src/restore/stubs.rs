//! Empty tasks with recorded numbers: made, entered by the parasite, and gone again if anything fails.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Errno, Error, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::image::Images;
use crate::inject::batch::{Arg, Ask, Batch};
use crate::inject::restart::Pending;
use crate::inject::{Entry, Infected, Placement, nothing_left, open_mem, rseq};
use crate::mem::{self, layout};
use crate::plan::{Birth, sharing};
use crate::procfs::{self, Mapping};
use crate::sys::process::stub::{OnParentDeath, StubPid, clone_with_pid};
use crate::sys::process::{pidfd_open, pidfd_poll, pidfd_send_signal};
use crate::sys::ptrace;
use crate::task::rseq::{Area, UNREGISTER};
use crate::trace::{Running, Stopped};
use crate::wire;

/// Stubs die with the restore, and their children are traced from birth.
pub const OPTIONS: i32 = ptrace::OPTIONS | ptrace::OPTION_TRACECLONE | ptrace::OPTION_EXITKILL;
const CLONE_PARENT: u64 = libc::CLONE_PARENT as u64;
const CLONE_ARGS_SIZE: usize = 88;
/// Calls of one batch, at most: they have to fit the region.
pub const CALLS: usize = 2000;

/// An empty task with the parasite in it.
#[derive(Debug)]
pub struct Stub {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub tracee: Infected,
    /// The thread with the parasite: the leader, until that ends before the others.
    pub host: Tid,
    /// Its other threads, ready to go on.
    pub threads: Vec<Stopped>,
}

impl Stub {
    /// Runs calls that must all succeed.
    pub fn run(&mut self, batch: Batch, operation: &'static str) -> Result<()> {
        self.tracee.ask(batch)?.all_done(operation, Subject::Pid(self.pid))
    }

    /// Runs a list of additions to batches in as many batches as they need.
    pub fn run_all<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        operation: &'static str,
        mut add: impl FnMut(&mut Batch, T),
    ) -> Result<()> {
        let mut batch = Batch::new();
        for item in items {
            add(&mut batch, item);
            if batch.len() >= CALLS {
                self.run(std::mem::take(&mut batch), operation)?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.run(batch, operation) }
    }
}

/// How long the end of a task that was killed is waited for.
const ENDING_MS: i32 = 1000;

/// All tasks that the restore has made and not yet let go. Dropping it kills them.
#[derive(Debug, Default)]
pub struct Stubs {
    stubs: BTreeMap<u32, Stub>,
    /// Everything ever made, to be killed if the restore fails.
    made: Vec<(Pid, OwnedFd)>,
    root: Option<Pid>,
}

impl Stubs {
    pub fn get(&mut self, pid: u32) -> Result<&mut Stub> {
        self.stubs.get_mut(&pid).ok_or(Error::Gone(Pid(pid as i32)))
    }

    pub fn take(&mut self, pid: u32) -> Result<Stub> {
        self.stubs.remove(&pid).ok_or(Error::Gone(Pid(pid as i32)))
    }

    pub fn put(&mut self, stub: Stub) {
        self.stubs.insert(stub.pid.0 as u32, stub);
    }

    /// Makes a task and brings the parasite into it.
    pub fn create(&mut self, images: &Images, pid: u32, birth: Birth, exit_signal: i32) -> Result<()> {
        let number = Pid(pid as i32);
        let stopped = match birth {
            Birth::Root => self.create_root(number, exit_signal)?,
            Birth::Child { maker } => {
                let flags = sharing::flags(images, pid, maker);
                self.clone_in(maker, number, flags, exit_signal as u64)?
            }
            Birth::Sibling { maker } => {
                let flags = CLONE_PARENT | sharing::flags(images, pid, maker);
                self.clone_in(maker, number, flags, 0)?
            }
        };
        let pidfd = pidfd_open(number).map_err(|errno| Error::of_pid("pinning", number, errno))?;
        self.made.push((number, pidfd.try_clone().map_err(|error| Error::io("copying", Subject::None, &error))?));
        let tracee = infect(number, &pidfd, stopped, images.mm.get(&pid))?;
        self.stubs.insert(pid, Stub { pid: number, pidfd, tracee, host: number.into(), threads: Vec::new() });
        if birth == Birth::Root {
            self.forget_rseq(pid)?;
        }
        Ok(())
    }

    fn create_root(&mut self, pid: Pid, exit_signal: i32) -> Result<Stopped> {
        let made = clone_with_pid(StubPid::Exactly(pid), exit_signal, OnParentDeath::Die)
            .map_err(|errno| cannot_create(pid, errno))?;
        self.root = Some(pid);
        let stopped = Running::seize(Tid::from(pid), OPTIONS)?.stop()?;
        // The stub is blocked in ppoll or about to be; either way its registers are of no interest any more.
        drop(made);
        Ok(stopped)
    }

    /// Lets a task make another one, which is stopped before it runs an instruction.
    fn clone_in(&mut self, maker: u32, pid: Pid, flags: u64, exit_signal: u64) -> Result<Stopped> {
        let maker = self.get(maker)?;
        let mut batch = Batch::new();
        let args = clone_args(&mut batch, pid, flags, exit_signal);
        let call = batch.call(libc::SYS_clone3, args);
        let (answers, child) = maker.tracee.ask_for_child(batch)?;
        answers.result(call).map_err(|errno| cannot_create(pid, errno))?;
        child.ok_or(Error::Gone(pid))
    }

    /// The stub was forked from this program, whose restartable sequence area is about to be unmapped; the kernel would write to it.
    fn forget_rseq(&mut self, pid: u32) -> Result<()> {
        let stub = self.get(pid)?;
        let area = Area::of(stub.pid, Tid::from(stub.pid))?;
        let Some(config) = area.place() else { return Ok(()) };
        let mut batch = Batch::new();
        let (size, signature) = (u64::from(config.size), u64::from(config.signature));
        let left =
            batch.call(libc::SYS_rseq, [config.pointer.into(), size.into(), UNREGISTER.into(), signature.into()]);
        match (stub.tracee.ask(batch)?.result(left), area) {
            (Ok(_), _) | (Err(Errno::EINVAL), Area::Guessed(_)) => Ok(()),
            (Err(errno), _) => Err(Error::of_pid("leaving the restartable sequence area", stub.pid, errno)),
        }
    }

    /// Everything was let go: nothing is killed any more.
    pub fn succeed(mut self) {
        self.made.clear();
        self.root = None;
    }
}

impl Drop for Stubs {
    fn drop(&mut self) {
        for (_, pidfd) in self.made.iter().rev() {
            let _ = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        for (_, stub) in std::mem::take(&mut self.stubs) {
            stub.tracee.forget_killed();
            let host = Some(stub.host).filter(|host| *host != Tid::from(stub.pid));
            let threads: Vec<Tid> = stub.threads.iter().map(Stopped::tid).chain(host).collect();
            stub.threads.into_iter().for_each(Stopped::forget_killed);
            for tid in threads {
                let _ = ptrace::wait(tid, ptrace::WaitMode::Block);
            }
        }
        if let Some(root) = self.root {
            let _ = ptrace::wait(Tid::from(root), ptrace::WaitMode::Block);
        }
        // Their numbers are taken until they have ended, which a kill alone does not wait for.
        for (_, pidfd) in &self.made {
            let _ = pidfd_poll(pidfd.as_fd(), ENDING_MS);
        }
    }
}

/// The arguments of a clone3(2) that makes a task with a chosen number.
pub fn clone_args(batch: &mut Batch, pid: Pid, flags: u64, exit_signal: u64) -> [Arg; 2] {
    let number = batch.input(&pid.0.to_ne_bytes());
    let mut args = [0u8; CLONE_ARGS_SIZE];
    args[..8].copy_from_slice(&flags.to_ne_bytes());
    args[32..40].copy_from_slice(&exit_signal.to_ne_bytes());
    args[72..80].copy_from_slice(&1u64.to_ne_bytes());
    let args = batch.input(&args);
    batch.store_address(args, 64, number);
    [args.into(), CLONE_ARGS_SIZE.into()]
}

/// Why a number could not be had.
pub fn cannot_create(pid: Pid, errno: nix::errno::Errno) -> Error {
    use nix::errno::Errno;
    match errno {
        Errno::EEXIST => Error::failed(format!(
            "process id {pid} is in use; end what has it, or restore into a fresh pid namespace with --pidns"
        )),
        Errno::EPERM => Error::failed(format!(
            "process id {pid} cannot be chosen without CAP_CHECKPOINT_RESTORE; restore as root, or with --pidns"
        )),
        Errno::EINVAL => {
            Error::failed(format!("process id {pid} is over kernel.pid_max; raise it, then restore again"))
        }
        errno => Error::sys("creating a task", crate::error::Subject::Pid(pid), errno),
    }
}

/// Brings the parasite into a stopped thread of a task: where neither the task's memory of now nor its recorded memory lies.
pub fn infect(pid: Pid, pidfd: &OwnedFd, stopped: Stopped, mm: Option<&crate::image::pb::MmEntry>) -> Result<Infected> {
    let mappings = procfs::maps::read(Pid(stopped.tid().0))?;
    let recorded = mm.into_iter().flat_map(|mm| &mm.vmas).map(|vma| vma.start..vma.end);
    let inherited: Vec<&Mapping> =
        mappings.iter().filter(|mapping| mapping.name.to_string_lossy().starts_with("/memfd:ptyagent")).collect();
    let others = mappings.iter().filter(|mapping| !inherited.contains(mapping));
    let taken = others.map(|mapping| mapping.start.0..mapping.end.0).chain(recorded);
    let base = layout::hole(taken, wire::REGION_SIZE).ok_or_else(|| {
        Error::failed(format!("there is no room for the parasite beside the memory of process {pid}"))
    })?;
    let overlaps = |mapping: &&Mapping| mapping.start.0 < base + wire::REGION_SIZE && base < mapping.end.0;
    let placement = if inherited.iter().any(overlaps) { Placement::Replace } else { Placement::Free };
    if let Some(config) = Area::of(pid, stopped.tid())?.place() {
        rseq::abort_section(&stopped, &open_mem(stopped.tid())?, pid, &config)?;
    }
    Infected::infect(
        stopped,
        &Entry {
            pid,
            pidfd,
            places: mem::places(&mappings),
            base,
            placement,
            pending: Pending::Nothing,
            left: &nothing_left,
            others: Default::default(),
        },
    )
}
