//! The size of the inner terminal, and the first picture on the outer one.
//!
//! A session that was restored into a new terminal has an empty screen until its program draws again. Programs draw on SIGWINCH: less(1),
//! vim(1) and top(1) on any, readline (bash, Python) only when the size that it then reads differs from the last one. So a session whose
//! size stays gets SIGWINCH first; where nothing is drawn, it gets one more row for a moment.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{self, Signal};
use nix::unistd;

use super::{Outer, poll_again};
use crate::error::{Context, Errno, Result, Subject};
use crate::sys::tty::{self, WinSize};

/// How long a program may take to begin to draw. Programs that draw nothing (cat) cost this much twice.
const REACTION: Duration = Duration::from_millis(100);

/// Whether setting a window size changed it, and so made the kernel send SIGWINCH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    Changed,
    Same,
}

/// Gives the inner terminal the size of the outer one. Where the outer side is no terminal, nothing changes.
pub fn fit(master: BorrowedFd<'_>, outer: &Outer) -> Result<Resize> {
    let Some(size) = outer.size() else { return Ok(Resize::Same) };
    if size_of(master)? == size {
        return Ok(Resize::Same);
    }
    set_size(master, &size)?;
    Ok(Resize::Changed)
}

/// Makes the foreground program draw its screen, which the outer terminal does not show yet. The session must be running.
///
/// A changed size did that already. Else this takes up to twice [`REACTION`]; the size is what it was when it returns.
pub fn redraw(master: BorrowedFd<'_>, resize: Resize) -> Result<()> {
    if resize == Resize::Changed {
        return Ok(());
    }
    // With output of before still there, a reaction cannot be told from it.
    let unread = readable(master, Duration::ZERO)?;
    signal_foreground(master)?;
    if readable(master, REACTION)? && !unread {
        return Ok(());
    }
    let size = size_of(master)?;
    // Without a size, programs go by the terminal's description, and there is nothing to change.
    let Some(other) = size.ws_row.checked_add(1).filter(|_| size.ws_row > 0) else { return Ok(()) };
    set_size(master, &WinSize { ws_row: other, ..size })?;
    let reacted = readable(master, REACTION);
    set_size(master, &size)?;
    reacted.map(drop)
}

/// Sends SIGWINCH as a change of size would. A terminal without foreground group, or one whose members this user may not
/// signal, is left as it is.
fn signal_foreground(master: BorrowedFd<'_>) -> Result<()> {
    let group = match unistd::tcgetpgrp(master) {
        Ok(group) if group.as_raw() > 1 => group,
        Ok(_) | Err(Errno::ENOTTY | Errno::EIO) => return Ok(()),
        Err(errno) => return Err(errno).during("reading the foreground process group", Subject::None),
    };
    match signal::killpg(group, Signal::SIGWINCH) {
        Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno).during("sending SIGWINCH", Subject::None),
    }
}

/// Whether the session has written something, within this time.
fn readable(master: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(master, PollFlags::POLLIN)];
    poll_again(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO))?;
    Ok(fds[0].revents().is_some_and(|flags| !flags.is_empty()))
}

fn size_of(master: BorrowedFd<'_>) -> Result<WinSize> {
    tty::get_winsize(master).during("reading the window size", Subject::None)
}

fn set_size(master: BorrowedFd<'_>, size: &WinSize) -> Result<()> {
    tty::set_winsize(master, size).during("setting the window size", Subject::None)
}
