//! The session of the demo, seen from the demo: keys go in, a screen comes out, and nothing is left of it at the end.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use tempfile::TempDir;
use vt100::{Parser, Screen};

use super::holder::SIZE;
use crate::error::{Context, Errno, Error, Result, Subject};
use crate::ids::Pid;
use crate::procfs::tree;
use crate::sys::process::{become_subreaper, pidfd_open, pidfd_send_signal, wait4};

/// How long one thing may take that normally takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A holder with its shell, the files between it and us, and what we wait for. Dropping it ends all children of this process.
pub struct Session {
    files: TempDir,
    keys: File,
    /// Tells when the terminal has shown more.
    shown: Inotify,
    signals: SignalFd,
    root: Pid,
    pidfd: OwnedFd,
}

impl Session {
    /// Starts `program` as the holder. From now on this process is a child subreaper, and the signals that would end it are blocked and
    /// looked at in [`Session::wait_for`].
    pub fn start(program: &Path) -> Result<Session> {
        let signals = block_signals()?;
        let files = tempfile::Builder::new().prefix("ptyagent-demo-").tempdir();
        let files = files.during("making a temporary directory", Subject::None)?;
        let path = |name: &str| files.path().join(name);
        let subject = || Subject::Path(files.path().into());
        nix::unistd::mkfifo(&path("in"), Mode::S_IRUSR | Mode::S_IWUSR).during("making a FIFO", subject())?;
        let keys = File::options().read(true).write(true).open(path("in")).during("opening a FIFO", subject())?;
        File::create(path("out")).during("making a file", subject())?;
        let errors = File::create(path("errors")).during("making a file", subject())?;
        let shown = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let shown = shown.during("watching a file", subject())?;
        shown.add_watch(&path("out"), AddWatchFlags::IN_MODIFY).during("watching a file", subject())?;
        become_subreaper().during("becoming a subreaper", Subject::None)?;
        let mut holder = Command::new(program);
        holder.arg("demo-holder").arg(files.path()).current_dir("/");
        holder.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let root = Pid(holder.spawn().during("starting", Subject::Path(program.into()))?.id() as i32);
        let pidfd = pidfd_open(root).map_err(|errno| Error::of_pid("pinning", root, errno))?;
        Ok(Session { files, keys, shown, signals, root, pidfd })
    }

    pub fn root(&self) -> Pid {
        self.root
    }

    /// Where the images go.
    pub fn images(&self) -> PathBuf {
        self.files.path().join("images")
    }

    pub fn type_keys(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).during("typing", Subject::None)
    }

    /// Takes what was restored for the session, whose root has the same number.
    pub fn continues(&mut self) -> Result<()> {
        self.pidfd = pidfd_open(self.root).map_err(|errno| Error::of_pid("pinning", self.root, errno))?;
        Ok(())
    }

    /// Waits until the cursor is at a row and a column: all that comes before it has been shown then.
    pub fn wait_for_cursor(&self, row: u16, column: usize) -> Result<Screen> {
        let what = format!("the cursor in row {row} and column {column}");
        self.wait_for(&what, |screen| {
            let (at_row, at_column) = screen.cursor_position();
            at_row == row && usize::from(at_column) == column
        })
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&Screen) -> bool) -> Result<Screen> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen()?;
            if condition(&screen) {
                return Ok(screen);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::failed(format!(
                    "the terminal does not show {what} within {PATIENCE:?}; it shows:\n{}\n{}",
                    screen.contents(),
                    self.errors()
                )));
            }
            self.pause(left, Root::Lives)?;
        }
    }

    /// Waits until the terminal shows more, at most so long. Fails where a signal asks us to end, or the session ended.
    pub fn pause(&self, limit: Duration, root: Root) -> Result<()> {
        let mut fds = vec![
            PollFd::new(self.shown.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        if root == Root::Lives {
            fds.push(PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN));
        }
        let limit = PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).during("waiting for the terminal", Subject::None),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().is_some_and(|flags| !flags.is_empty())).collect();
        if ready[0] {
            // Only that there was an event counts.
            let _ = self.shown.read_events();
        }
        if ready[1] {
            return Err(Error::failed("the demo was told to end; nothing of it is left"));
        }
        if ready.get(2) == Some(&true) {
            return Err(Error::failed(format!("the session of the demo ended too early: {}", self.errors())));
        }
        Ok(())
    }

    fn screen(&self) -> Result<Screen> {
        let path = self.files.path().join("out");
        let bytes = std::fs::read(&path).during("reading", Subject::Path(path))?;
        let mut parser = Parser::new(SIZE.0, SIZE.1, 0);
        parser.process(&bytes);
        Ok(parser.screen().clone())
    }

    /// What the holder and the shell complained about.
    fn errors(&self) -> String {
        std::fs::read_to_string(self.files.path().join("errors")).unwrap_or_default().trim_end().to_owned()
    }
}

/// Whether the end of the session's root is a failure now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    Lives,
    Ended,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = end_children() {
            tracing::warn!(%error, "processes of the demo may be left");
        }
    }
}

fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    set.extend([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT]);
    set.thread_block().during("blocking signals", Subject::None)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .during("opening a signalfd", Subject::None)
}

/// Kills and reaps every child until no one is left: what a killed one leaves behind becomes our child.
fn end_children() -> Result<()> {
    let us = Pid(std::process::id() as i32);
    loop {
        let children = tree::children(us)?;
        if children.is_empty() {
            return Ok(());
        }
        for pid in children {
            // As long as it is not reaped its number cannot be anyone else's.
            let child = pidfd_open(pid).map_err(|errno| Error::of_pid("pinning", pid, errno))?;
            match pidfd_send_signal(child.as_fd(), libc::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(Error::of_pid("ending", pid, errno)),
            }
            wait4(pid, 0).map_err(|errno| Error::of_pid("reaping", pid, errno))?;
        }
    }
}

/// Reaps the children that have ended, so that their numbers are free.
pub fn reap_ended() {
    while let Ok(Some(_)) = wait4(Pid(-1), libc::WNOHANG) {}
}
