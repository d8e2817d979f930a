//! The user's side of the relay: where keys come from and where the screen goes, and the raw mode in between.
//!
//! The descriptors that a shell gives us are open file descriptions that the shell itself goes on using, so O_NONBLOCK must not be left on
//! them. A terminal or a FIFO is opened once more through /proc/self/fd, which makes a description of our own. A regular file keeps its
//! description, for its position and O_APPEND; it never makes us wait. What is left (a socket; a terminal that this user may not
//! open) gets O_NONBLOCK for the time of the relay.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{self, FcntlArg, OFlag};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::stat::{self, Mode, SFlag};

use crate::error::{Context, Errno, Result, Subject};
use crate::sys::tty::{self, Termios2, WinSize};

/// The outer terminal, or whatever else stands in for its two directions.
pub struct Outer {
    pub(super) input: Line,
    pub(super) output: Line,
}

impl Outer {
    /// Takes the descriptors from which keys are read and to which the screen is written; they may be the same.
    pub fn new(input: OwnedFd, output: OwnedFd) -> Result<Outer> {
        Ok(Outer { input: Line::new(input, OFlag::O_RDONLY)?, output: Line::new(output, OFlag::O_WRONLY)? })
    }

    /// Standard input and standard output of this process.
    pub fn standard() -> Result<Outer> {
        let input =
            std::io::stdin().as_fd().try_clone_to_owned().during("duplicating standard input", Subject::None)?;
        let output =
            std::io::stdout().as_fd().try_clone_to_owned().during("duplicating standard output", Subject::None)?;
        Outer::new(input, output)
    }

    /// The window size of the terminal that shows the screen, else of the one that gives the keys; none where neither is a terminal.
    pub fn size(&self) -> Option<WinSize> {
        [&self.output, &self.input].into_iter().find_map(|line| tty::get_winsize(line.fd()).ok())
    }
}

/// One direction of the outer side, which never makes its user wait.
pub(super) struct Line {
    fd: OwnedFd,
    /// A description that we share with others and made non-blocking: its flags before.
    shared_flags: Option<OFlag>,
}

impl Line {
    fn new(fd: OwnedFd, access: OFlag) -> Result<Line> {
        let mode = stat::fstat(&fd).during("examining standard input or output", Subject::None)?.st_mode;
        match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => return Ok(Line { fd, shared_flags: None }),
            SFlag::S_IFCHR | SFlag::S_IFIFO => {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let flags = access | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
                if let Ok(own) = fcntl::open(path.as_str(), flags, Mode::empty()) {
                    return Ok(Line { fd: own, shared_flags: None });
                }
            }
            _ => {}
        }
        let shared_flags = make_nonblocking(fd.as_fd())?;
        Ok(Line { fd, shared_flags: Some(shared_flags) })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(flags) = self.shared_flags
            && let Err(errno) = fcntl::fcntl(&self.fd, FcntlArg::F_SETFL(flags))
        {
            tracing::warn!("standard input or output stays non-blocking: {}", errno.desc());
        }
    }
}

/// Sets O_NONBLOCK on an open file description and yields its flags before.
pub fn make_nonblocking(fd: BorrowedFd<'_>) -> Result<OFlag> {
    let flags = fcntl::fcntl(fd, FcntlArg::F_GETFL).during("reading descriptor flags", Subject::None)?;
    let flags = OFlag::from_bits_retain(flags);
    fcntl::fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).during("setting O_NONBLOCK", Subject::None)?;
    Ok(flags)
}

/// A terminal in raw mode, and its settings before. [`RawMode::leave`] puts them back; so does Drop, as the last resort.
pub(super) struct RawMode {
    fd: OwnedFd,
    saved: Termios2,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Raw,
    Left,
}

impl RawMode {
    /// Makes the terminal raw at once, keeping what was typed ahead. None where `fd` is not a terminal.
    pub fn enter(fd: BorrowedFd<'_>) -> Result<Option<RawMode>> {
        let saved = match tty::get_termios(fd) {
            Ok(saved) => saved,
            Err(Errno::ENOTTY | Errno::EINVAL) => return Ok(None),
            Err(errno) => return Err(errno).during("reading the settings of the terminal", Subject::None),
        };
        let fd = fd.try_clone_to_owned().during("duplicating the terminal", Subject::None)?;
        let mode = RawMode { fd, saved, state: State::Raw };
        mode.enter_again()?;
        Ok(Some(mode))
    }

    /// Sets raw mode again: after a stop and a continue, the shell has put its own settings there.
    pub fn enter_again(&self) -> Result<()> {
        tty::set_termios(self.fd.as_fd(), &raw(&self.saved)).during("setting raw mode", Subject::None)
    }

    /// Puts the settings back. A terminal that hung up (EIO) has none to put back.
    pub fn leave(mut self) -> Result<()> {
        self.state = State::Left;
        self.put_back().during("putting back the settings of the terminal", Subject::None)
    }

    /// With SIGTTOU blocked the kernel lets a background process group change the settings instead of stopping it: a relay that was moved to the
    /// background and is told to end must still end.
    fn put_back(&self) -> std::result::Result<(), Errno> {
        let mut ttou = SigSet::empty();
        ttou.add(Signal::SIGTTOU);
        let mask = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let set = tty::set_termios(self.fd.as_fd(), &self.saved);
        mask.thread_set_mask()?;
        match set {
            Err(Errno::EIO) => Ok(()),
            other => other,
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if self.state == State::Raw
            && let Err(errno) = self.put_back()
        {
            tracing::warn!("the terminal stays in raw mode: {}; type: stty sane", errno.desc());
        }
    }
}

/// Bytes pass as they are, one at a time, and no key is a signal; speeds and line settings but the character size stay.
fn raw(termios: &Termios2) -> Termios2 {
    let mut raw = *termios;
    let input = libc::IGNBRK | libc::BRKINT | libc::PARMRK | libc::ISTRIP | libc::INLCR | libc::IGNCR | libc::ICRNL;
    raw.c_iflag &= !(input | libc::IXON | libc::IUCLC);
    raw.c_oflag &= !libc::OPOST;
    raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    raw.c_cflag = (raw.c_cflag & !(libc::CSIZE | libc::PARENB)) | libc::CS8;
    raw.c_cc[libc::VMIN] = 1;
    raw.c_cc[libc::VTIME] = 0;
    raw
}
