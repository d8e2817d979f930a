//! A restore in a process of its own, the *worker*: because the session gets a pid namespace, or because somebody has to stay behind and hold the
//! session's terminal.
//!
//! With a fresh pid namespace the caller makes two children in it: first its init, which only reaps and lives as long as anybody in the
//! namespace; then the worker, which mounts a /proc of the namespace and runs the ordinary restore there, under a number that the session does
//! not need. The worker is the parent of the session's root, and the caller's child: its exit status is the root's.
//!
//! The worker dies with the caller until the session runs, and from then on depends on nobody.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use super::space::{Pids, unshare_pids};
use super::{Report, Request, Restored, restore_with};
use crate::error::{Context, Error, Result, Subject};
use crate::holder::{self, Listener};
use crate::ids::Pid;
use crate::image::Images;
use crate::plan::{Plan, Step};
use crate::relay::Ending;
use crate::sys::pass;
use crate::sys::process::stub::{OnParentDeath, Stub, StubPid, cut_loose, fork_with_pid, on_parent_death};
use crate::sys::process::{pidfd_open, pidfd_poll, wait_exit, wait4};

/// What the worker does once the session runs.
#[derive(Debug)]
pub enum Afterwards {
    /// It waits for the root and ends with its exit status; a master whose other side was outside is given to the caller.
    Wait,
    /// It ends: the session belongs to whoever adopts orphans.
    Leave,
    /// It holds the terminal whose other side was outside, for those who attach.
    Hold(Listener),
}

/// A session that was restored by a worker.
#[derive(Debug)]
pub struct Started {
    pub report: Report,
    /// Present where the master was outside the tree and the worker does not hold it.
    pub master: Option<OwnedFd>,
    /// The worker, a child of ours, and its pidfd.
    pub pid: Pid,
    pub worker: OwnedFd,
}

/// Whom the worker talks to.
struct Caller<'a> {
    channel: &'a OwnedFd,
    init: Option<BorrowedFd<'a>>,
}

/// What the worker says once.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Done(Report),
    Failed(String),
    Lacking(String),
}

const LONGEST_WORD: usize = 1 << 16;

/// Restores in a worker; yields when the session runs. The caller must have one thread only, and with [`Pids::Fresh`] can fork no other children
/// but into the new namespace afterwards.
///
/// On an error everything that was created is gone.
pub fn start(
    request: &Request,
    images: &Images,
    plan: &Plan,
    afterwards: Afterwards,
    progress: &mut dyn FnMut(usize, &Step),
) -> Result<Started> {
    let (ours, theirs) = channel()?;
    let init = match request.space.pids {
        Pids::Callers => None,
        Pids::Fresh => Some(Init::start()?),
    };
    let number = if init.is_some() { StubPid::Exactly(free_number(images)) } else { StubPid::Any };
    let made = fork_with_pid(number, || {
        // Its end tells the worker that we are gone.
        let caller = Caller { channel: &theirs, init: init.as_ref().map(|init| init.channel.as_fd()) };
        nix::unistd::close(ours.as_raw_fd()).map_or(1, |()| work(request, images, plan, afterwards, progress, &caller))
    });
    drop(theirs);
    let worker = made.during("making the process that restores", Subject::None)?;
    let reaper = init.map(|init| init.attend(worker.handle.as_fd())).transpose();
    let word = reaper.and_then(|reaper| Ok((reaper, hear(ours.as_fd())?)));
    match word {
        Ok((_, (Word::Done(report), master))) => Ok(Started { report, master, pid: worker.pid, worker: worker.handle }),
        Ok((reaper, (Word::Failed(reason), _))) => {
            end(worker.handle.as_fd(), reaper)?;
            Err(Error::Failed(reason))
        }
        Ok((reaper, (Word::Lacking(reason), _))) => {
            end(worker.handle.as_fd(), reaper)?;
            Err(Error::Lacking(reason))
        }
        Err(error) => {
            let _ = crate::sys::process::pidfd_send_signal(worker.handle.as_fd(), libc::SIGKILL);
            let _ = wait_exit(worker.handle.as_fd());
            Err(error)
        }
    }
}

/// Waits for what is left of a failed restore.
fn end(worker: BorrowedFd<'_>, reaper: Option<Reaper>) -> Result<()> {
    wait_exit(worker).during("waiting for the end of a failed restore", Subject::None)?;
    reaper.map_or(Ok(()), |reaper| reaper.wait())
}

fn channel() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .during("making a socket pair", Subject::None)
}

/// What the worker has to say, and the master if it has one for us.
fn hear(channel: BorrowedFd<'_>) -> Result<(Word, Option<OwnedFd>)> {
    let mut bytes = vec![0; LONGEST_WORD];
    let (count, fds) = pass::receive(channel, &mut bytes).during("hearing from the restore", Subject::None)?;
    if count == 0 {
        return Err(Error::failed(
            "the process that restores the session was killed; nothing is left of it, try again",
        ));
    }
    let word = serde_json::from_slice(&bytes[..count]);
    let word = word.map_err(|error| Error::unexpected("what the restore says", error.to_string()))?;
    Ok((word, fds.into_iter().next()))
}

/// A number for the worker that the session does not need: the lowest behind that of init.
fn free_number(images: &Images) -> Pid {
    let taken: BTreeSet<u32> = images
        .pstree
        .iter()
        .flat_map(|entry| [entry.pid, entry.pgid, entry.sid].into_iter().chain(entry.threads.clone()))
        .collect();
    Pid((2..).find(|number| !taken.contains(number)).unwrap_or(2) as i32)
}

/// The first process of a pid namespace.
struct Init {
    process: Stub,
    channel: OwnedFd,
}

/// An init that knows for whom it is there.
struct Reaper(Stub);

impl Init {
    fn start() -> Result<Init> {
        let (ours, theirs) = channel()?;
        unshare_pids()?;
        let process = fork_with_pid(StubPid::Any, || reap(&theirs).map_or(1, |()| 0))
            .during("making the init of a pid namespace", Subject::None)?;
        Ok(Init { process, channel: ours })
    }

    /// Lets it live until the worker and all orphans have ended; where the worker ends before it is done, everything ends.
    fn attend(self, worker: BorrowedFd<'_>) -> Result<Reaper> {
        pass::send(self.channel.as_fd(), WORKER, &[worker]).during("telling init of the worker", Subject::None)?;
        Ok(Reaper(self.process))
    }
}

impl Reaper {
    fn wait(self) -> Result<()> {
        wait_exit(self.0.handle.as_fd()).during("waiting for the end of init", Subject::None).map(drop)
    }
}

/// What init is told: whom to watch, by the caller; that the session runs, by the worker.
const WORKER: &[u8] = b"w";
const DONE: &[u8] = b"d";

/// How often init looks for guests at the end of the session: no event tells that they have gone.
const GUESTS: Duration = Duration::from_millis(50);

/// The whole life of an init. While SIGCHLD is ignored the kernel reaps by itself, and a wait returns ECHILD when nobody is left. wait(2).
fn reap(channel: &OwnedFd) -> std::result::Result<(), nix::errno::Errno> {
    cut_loose(&[channel.as_fd()])?;
    crate::sys::process::ignore_children()?;
    nix::sys::prctl::set_name(c"ptyagent-init")?;
    let (mut done, mut worker) = (false, None);
    while worker.is_none() {
        match pass::receive(channel.as_fd(), &mut [0])? {
            // Nobody: the caller has failed.
            (0, _) => return Ok(()),
            (_, fds) if fds.is_empty() => done = true,
            (_, fds) => worker = fds.into_iter().next(),
        }
    }
    if let Some(worker) = worker {
        pidfd_poll(worker.as_fd(), -1)?;
    }
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    done |= poll(&mut fds, PollTimeout::ZERO)? > 0 && pass::receive(channel.as_fd(), &mut [0])?.0 > 0;
    if !done {
        // With us ends whatever was made so far.
        return Ok(());
    }
    cut_loose(&[])?;
    loop {
        while wait4(Pid(-1), 0).is_ok() {}
        // Who came in from outside, to dump the session perhaps, is no child of ours and ends with us.
        if nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), None).is_err() {
            return Ok(());
        }
        std::thread::sleep(GUESTS);
    }
}

/// The whole life of a worker; yields its exit status.
fn work(
    request: &Request,
    images: &Images,
    plan: &Plan,
    mut afterwards: Afterwards,
    progress: &mut dyn FnMut(usize, &Step),
    caller: &Caller<'_>,
) -> u8 {
    let (report, master) = match restore_here(request, images, plan, progress, caller) {
        Ok(restored) => restored,
        Err(error) => {
            let status = error.exit_status();
            let word = match error {
                Error::Lacking(reason) => Word::Lacking(reason),
                error => Word::Failed(error.to_string()),
            };
            let _ = say(caller.channel, &word, None);
            return status;
        }
    };
    let root = report.root;
    // The session runs: from here on nothing that fails may end it.
    if let Afterwards::Hold(listener) = &mut afterwards
        && let Err(error) = listener.publish(report.host_root.unwrap_or(root))
    {
        tracing::warn!("nobody can attach to the session: {error}");
    }
    let given = master.as_ref().filter(|_| matches!(afterwards, Afterwards::Wait)).map(AsFd::as_fd);
    let _ = say(caller.channel, &Word::Done(report), given);
    match (afterwards, master) {
        (Afterwards::Hold(listener), Some(master)) => holder::hold(listener, master, root).unwrap_or(1),
        (Afterwards::Wait, master) => {
            drop(master);
            wait_for_root(root).unwrap_or(1)
        }
        _ => 0,
    }
}

fn restore_here(
    request: &Request,
    images: &Images,
    plan: &Plan,
    progress: &mut dyn FnMut(usize, &Step),
    caller: &Caller<'_>,
) -> Result<(Report, Option<OwnedFd>)> {
    let fate = |fate| on_parent_death(fate).during("tying the restore to its caller", Subject::None);
    fate(OnParentDeath::Die)?;
    if is_alone(caller.channel)? {
        return Err(Error::failed("the command that restores was killed; nothing is left of it, try again"));
    }
    let numbers = OuterNumbers::open()?;
    let Restored { mut report, master } = restore_with(request, images, plan, progress)?;
    if request.space.pids == Pids::Fresh {
        report.host_root = numbers.of(report.root);
    }
    if let Some(init) = caller.init {
        pass::send(init, DONE, &[]).during("telling init that the session runs", Subject::None)?;
    }
    // Where this fails the worker dies with its caller, whose session is that of a restore without a worker then.
    let _ = fate(OnParentDeath::Stay);
    Ok((report, master))
}

/// Whether the caller died before we asked for its death.
fn is_alone(channel: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).during("looking for the caller", Subject::None)?;
    Ok(fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

/// Process numbers as the caller's pid namespace has them: what its /proc says about our pidfds.
struct OuterNumbers(OwnedFd);

impl OuterNumbers {
    fn open() -> Result<OuterNumbers> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let path = "/proc/self/fdinfo";
        open(path, flags, Mode::empty()).during("opening", Subject::Path(path.into())).map(OuterNumbers)
    }

    fn of(&self, pid: Pid) -> Option<Pid> {
        let pidfd = pidfd_open(pid).ok()?;
        let name = pidfd.as_raw_fd().to_string();
        let mut text = String::new();
        File::from(openat(&self.0, name.as_str(), OFlag::O_CLOEXEC, Mode::empty()).ok()?)
            .read_to_string(&mut text)
            .ok()?;
        let number = text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
        (number > 0).then_some(Pid(number))
    }
}

fn say(channel: &OwnedFd, word: &Word, master: Option<BorrowedFd<'_>>) -> Result<()> {
    let text = serde_json::to_vec(word).map_err(|error| Error::unexpected("a report", error.to_string()))?;
    pass::send(channel.as_fd(), &text, master.as_slice()).during("reporting", Subject::None)
}

fn wait_for_root(root: Pid) -> Result<u8> {
    cut_loose(&[]).during("cutting loose", Subject::None)?;
    let ended = wait4(root, 0).map_err(|errno| Error::of_pid("waiting for the end", root, errno))?;
    Ok(Ending::of_wait(ended.map_or(0, |(_, status)| status)).exit_status())
}
