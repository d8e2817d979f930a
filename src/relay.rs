//! The terminal relay: shows a restored session, whose new pty master this process holds, on the user's terminal.
//!
//! 1. Signals that the relay answers are blocked and read from a signalfd, so that there is no handler and no global state.
//! 2. The outer terminal becomes raw: every key, ^C and ^Z included, goes to the inner terminal, whose line discipline acts on it.
//! 3. One poll loop moves bytes both ways through two bounded buffers. A side that takes nothing stops the reading of the other side only.
//! 4. SIGWINCH copies the window size. SIGCONT makes the outer terminal raw again. SIGTERM, SIGHUP, SIGINT, SIGQUIT, and the loss of the
//!    outer terminal end the relay: the master closes, and the kernel hangs the session up.
//! 5. When the session's root ends, what it had written is still shown, and the relay ends with its status.
//! 6. On every way out the outer terminal gets its settings back.
//!
//! End of file on an input that is not a terminal stops the copying of keys and nothing else, as under ssh(1): a VEOF sent in its place, as by
//! script(1), would end the restored shell of `ptyagent restore </dev/null`.
//!
//! The signals come to the relay only if no other thread of the process takes them: callers start no thread before [`run`] that
//! leaves them unblocked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::poll::{self, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::attach::Attached;
use crate::error::{Context, Errno, Result, Subject};
use crate::holder::Answer;
use crate::sys::{pass, process};

mod buffer;
mod keys;
mod outer;
mod size;

pub use buffer::{Buffer, Fill, Flush};
use keys::{DetachKeys, Keys};
use outer::RawMode;
pub use outer::{Outer, make_nonblocking};
pub use size::{Resize, fit, redraw};

/// Bytes on their way in one direction.
const BUFFER: usize = 64 << 10;

/// Bytes that are still read from the master after the root ended. A pty holds less than 24 KiB in one direction, so this covers all that
/// the root wrote, while a job that writes forever cannot keep the relay.
const TAIL: usize = 64 << 10;

/// How long until a master without any open slave is tried again: no event tells that a slave was opened.
const REOPEN: Duration = Duration::from_millis(50);

/// How the relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The root of the session exited with this code.
    Exited(u8),
    /// A signal killed the root of the session.
    Killed(i32),
    /// The relay itself was told to end by this signal; the session was hung up.
    Told(i32),
    /// The outer terminal hung up or its reader went away; the session was hung up.
    OuterGone,
    /// The user detached: the session runs on with its holder.
    Detached,
    /// The holder of the session was killed: the session was hung up.
    HolderGone,
}

impl Ending {
    /// From the status that wait(2) gives.
    pub fn of_wait(status: i32) -> Ending {
        let status = ExitStatus::from_raw(status);
        match (status.code(), status.signal()) {
            (Some(code), _) => Ending::Exited(u8::try_from(code).unwrap_or(u8::MAX)),
            (None, signal) => Ending::Killed(signal.unwrap_or(0)),
        }
    }

    /// The exit status that a shell would show: the code, or 128 and the signal.
    pub fn exit_status(self) -> u8 {
        let signal = match self {
            Ending::Exited(code) => return code,
            Ending::Detached => return 0,
            Ending::HolderGone => return 1,
            Ending::Killed(signal) | Ending::Told(signal) => signal,
            Ending::OuterGone => libc::SIGHUP,
        };
        u8::try_from(signal).map_or(u8::MAX, |signal| signal.saturating_add(128))
    }
}

/// What happens to the size of the inner terminal when the relay starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstSize {
    /// It becomes that of the outer terminal, and the session redraws.
    FromOuter,
    /// It stays until the outer terminal changes.
    Keep,
}

/// Relays between `outer` and the pty of `master` until the session's root ends or the relay has to.
///
/// `root` is a pidfd of a child of this process; it runs already, and is reaped. `master` becomes non-blocking and is closed at the end.
/// Errors: a system call on either terminal failed; the outer terminal has its settings back then too.
pub fn run(master: OwnedFd, outer: Outer, root: OwnedFd, first: FirstSize) -> Result<Ending> {
    Relay::begin(master, outer, Root::Child(root), first, &[])?.run()
}

/// Relays between `outer` and the pty of a session that a holder lent us, until the session ends, the user detaches, or the relay has to end;
/// then the holder has it again. What the session wrote last is shown first, and then its program draws its screen.
pub fn run_attached(attached: Attached, outer: Outer) -> Result<Ending> {
    let Attached { master, backlog, connection, .. } = attached;
    Relay::begin(master, outer, Root::Held(connection.into()), FirstSize::FromOuter, &backlog)?.run()
}

/// Blocks the relay's signals in this thread for good: what comes before [`run`] waits for it. For callers that have something to finish first.
pub fn block_signals() -> Result<()> {
    signal_set().thread_block().during("blocking signals", Subject::None)
}

fn signal_set() -> SigSet {
    let mut set = SigSet::empty();
    set.extend([Signal::SIGWINCH, Signal::SIGCONT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT]);
    set
}

/// The signals of the relay: blocked in this thread, read from a descriptor; the mask comes back on drop.
struct Signals {
    fd: SignalFd,
    mask: SigSet,
}

impl Signals {
    fn block() -> Result<Signals> {
        let set = signal_set();
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .during("opening a signalfd", Subject::None)?;
        let mask = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).during("blocking signals", Subject::None)?;
        Ok(Signals { fd, mask })
    }

    /// The next signal that came, if any.
    fn next(&self) -> Result<Option<Signal>> {
        let info = self.fd.read_signal().during("reading a signalfd", Subject::None)?;
        Ok(info.and_then(|info| i32::try_from(info.ssi_signo).ok()).and_then(|number| Signal::try_from(number).ok()))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        if let Err(errno) = self.mask.thread_set_mask() {
            tracing::warn!("the signal mask was not put back: {}", errno.desc());
        }
    }
}

/// Whether keys are still read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
    /// The keys that detach were among them.
    Detached,
}

/// Whether anybody has the slave open; a session without may open /dev/tty again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slave {
    Open,
    Closed,
}

/// Who tells that the root of the session ended.
enum Root {
    /// Its pidfd, where it is a child of ours.
    Child(OwnedFd),
    /// The connection to its holder.
    Held(OwnedFd),
}

impl Root {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Root::Child(fd) | Root::Held(fd) => fd.as_fd(),
        }
    }
}

struct Relay {
    master: OwnedFd,
    outer: Outer,
    root: Root,
    signals: Signals,
    raw: Option<RawMode>,
    /// Where detaching is possible.
    detach: Option<DetachKeys>,
    to_master: Buffer,
    to_outer: Buffer,
}

/// What one poll told.
struct Ready {
    signals: PollFlags,
    root: PollFlags,
    input: PollFlags,
    output: PollFlags,
    master: PollFlags,
}

impl Relay {
    fn begin(master: OwnedFd, outer: Outer, root: Root, first: FirstSize, shown: &[u8]) -> Result<Relay> {
        outer::make_nonblocking(master.as_fd())?;
        let signals = Signals::block()?;
        let raw = RawMode::enter(outer.input.fd())?;
        if first == FirstSize::FromOuter && outer.size().is_some() {
            let resize = fit(master.as_fd(), &outer)?;
            redraw(master.as_fd(), resize)?;
        }
        let detach = matches!(root, Root::Held(_)).then(DetachKeys::default);
        let (to_master, mut to_outer) = (Buffer::new(BUFFER), Buffer::new(BUFFER));
        to_outer.push(shown);
        Ok(Relay { master, outer, root, signals, raw, detach, to_master, to_outer })
    }

    fn run(mut self) -> Result<Ending> {
        let ending = self.pump();
        let left = self.raw.take().map_or(Ok(()), RawMode::leave);
        let ending = ending?;
        left?;
        Ok(ending)
    }

    /// Moves bytes until there is a reason to end.
    fn pump(&mut self) -> Result<Ending> {
        let mut input = Input::Open;
        let mut slave = Slave::Open;
        loop {
            let ready = self.wait(input, slave)?;
            if ready.signals.contains(PollFlags::POLLIN)
                && let Some(ending) = self.answer_signals()?
            {
                return Ok(ending);
            }
            if !ready.output.is_empty() && self.flush_outer()? == Flush::Ended {
                return Ok(Ending::OuterGone);
            }
            if ready.input.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                input = self.read_keys()?;
                if input == Input::Detached {
                    return Ok(Ending::Detached);
                }
                if input == Input::Ended && self.raw.is_some() {
                    return Ok(Ending::OuterGone);
                }
            }
            slave = self.exchange(ready.master, slave)?;
            if !ready.root.is_empty() {
                let ending = self.reap()?;
                return Ok(self.finish()?.unwrap_or(ending));
            }
        }
    }

    /// Waits until something can be done. A master whose slave is closed reports POLLHUP all the time, so it is left out for [`REOPEN`].
    fn wait(&self, input: Input, slave: Slave) -> Result<Ready> {
        let wanted = |flag, condition: bool| if condition { flag } else { PollFlags::empty() };
        let keys = wanted(PollFlags::POLLIN, input == Input::Open && self.to_master.room() > 1);
        let screen = wanted(PollFlags::POLLOUT, !self.to_outer.is_empty());
        let inner = wanted(PollFlags::POLLIN, self.to_outer.has_room())
            | wanted(PollFlags::POLLOUT, !self.to_master.is_empty());
        let mut fds = vec![
            PollFd::new(self.signals.fd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.root.fd(), PollFlags::POLLIN),
        ];
        let mut add = |fd, events: PollFlags| {
            (!events.is_empty()).then(|| {
                fds.push(PollFd::new(fd, events));
                fds.len() - 1
            })
        };
        let keys = add(self.outer.input.fd(), keys);
        let screen = add(self.outer.output.fd(), screen);
        let inner = if slave == Slave::Open { add(self.master.as_fd(), inner) } else { None };
        let timeout = match slave {
            Slave::Open => PollTimeout::NONE,
            Slave::Closed => PollTimeout::try_from(REOPEN).unwrap_or(PollTimeout::ZERO),
        };
        poll_again(&mut fds, timeout)?;
        let told = |index: Option<usize>| {
            index.and_then(|index| fds.get(index)).and_then(PollFd::revents).unwrap_or(PollFlags::empty())
        };
        Ok(Ready {
            signals: told(Some(0)),
            root: told(Some(1)),
            input: told(keys),
            output: told(screen),
            master: told(inner),
        })
    }

    /// Acts on each signal that came; an ending where one of them ends the relay.
    fn answer_signals(&mut self) -> Result<Option<Ending>> {
        while let Some(signal) = self.signals.next()? {
            match signal {
                Signal::SIGWINCH => {
                    fit(self.master.as_fd(), &self.outer)?;
                }
                Signal::SIGCONT => {
                    self.raw.as_ref().map_or(Ok(()), RawMode::enter_again)?;
                    fit(self.master.as_fd(), &self.outer)?;
                }
                other => return Ok(Some(Ending::Told(other as i32))),
            }
        }
        Ok(None)
    }

    fn read_keys(&mut self) -> Result<Input> {
        // One more than was typed may come out of the filter.
        let limit = self.to_master.room().saturating_sub(1).max(1);
        let count = match self.to_master.fill(self.outer.input.fd(), limit).during("reading keys", Subject::None)? {
            Fill::Ended => return Ok(Input::Ended),
            Fill::NotReady => return Ok(Input::Open),
            Fill::Read(count) => count,
        };
        let Some(detach) = &mut self.detach else { return Ok(Input::Open) };
        let (keys, input) = match detach.filter(&self.to_master.take_last(count)) {
            Keys::Detach(keys) => (keys, Input::Detached),
            Keys::Pass(keys) => (keys, Input::Open),
        };
        self.to_master.push(&keys);
        if input == Input::Detached && !self.to_master.is_empty() {
            self.to_master.flush(self.master.as_fd()).during("passing keys on", Subject::None)?;
        }
        Ok(input)
    }

    fn flush_outer(&mut self) -> Result<Flush> {
        self.to_outer.flush(self.outer.output.fd()).during("writing the screen", Subject::None)
    }

    /// Both directions of the master, as far as they go now. Keys for a closed slave wait in the buffer.
    fn exchange(&mut self, ready: PollFlags, slave: Slave) -> Result<Slave> {
        if slave == Slave::Open && ready.is_empty() {
            return Ok(Slave::Open);
        }
        if self.to_outer.has_room() && self.read_master(BUFFER)? == Fill::Ended {
            return Ok(Slave::Closed);
        }
        if !self.to_master.is_empty() {
            self.to_master.flush(self.master.as_fd()).during("passing keys on", Subject::None)?;
        }
        Ok(Slave::Open)
    }

    fn read_master(&mut self, limit: usize) -> Result<Fill> {
        self.to_outer.fill(self.master.as_fd(), limit).during("reading the session's output", Subject::None)
    }

    fn reap(&self) -> Result<Ending> {
        match &self.root {
            Root::Child(pidfd) => {
                let exit = process::wait_exit(pidfd.as_fd()).during("waiting for the session's root", Subject::None)?;
                Ok(match exit.code {
                    libc::CLD_EXITED => Ending::Exited(u8::try_from(exit.status & 0xff).unwrap_or(u8::MAX)),
                    _ => Ending::Killed(exit.status),
                })
            }
            Root::Held(connection) => {
                let mut bytes = [0; Answer::SIZE];
                let told = pass::receive(connection.as_fd(), &mut bytes).map_or(0, |(count, _)| count);
                match bytes.get(..told).and_then(Answer::from_bytes) {
                    Some(Answer::Ended(status)) => Ok(Ending::Exited(status)),
                    _ => Ok(Ending::HolderGone),
                }
            }
        }
    }

    /// Shows what the session had written when its root ended. Another ending where the user does not want to wait for that.
    fn finish(&mut self) -> Result<Option<Ending>> {
        self.to_master.clear();
        let mut tail = TAIL;
        loop {
            tail = self.read_tail(tail)?;
            if self.to_outer.is_empty() {
                return Ok(None);
            }
            let mut fds = [
                PollFd::new(self.signals.fd.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.outer.output.fd(), PollFlags::POLLOUT),
            ];
            poll_again(&mut fds, PollTimeout::NONE)?;
            let output = fds[1].revents().unwrap_or(PollFlags::empty());
            if let Some(ending) = self.answer_signals()? {
                return Ok(Some(ending));
            }
            if !output.is_empty() && self.flush_outer()? == Flush::Ended {
                return Ok(None);
            }
        }
    }

    /// Reads what is there, at most `tail` bytes, and yields how many may still come: none once the master has no more.
    /// The poll comes first: it makes the kernel move bytes that the slave wrote but that are not in the read queue yet.
    fn read_tail(&mut self, mut tail: usize) -> Result<usize> {
        while tail > 0 && self.to_outer.has_room() {
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            poll_again(&mut fds, PollTimeout::ZERO)?;
            if !fds[0].revents().unwrap_or(PollFlags::empty()).contains(PollFlags::POLLIN) {
                return Ok(0);
            }
            match self.read_master(tail)? {
                Fill::Read(count) => tail -= count,
                Fill::NotReady | Fill::Ended => return Ok(0),
            }
        }
        Ok(tail)
    }
}

/// poll(2), where an interruption counts as nothing ready.
fn poll_again(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> Result<()> {
    match poll::poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno).during("waiting for terminals", Subject::None),
    }
}
