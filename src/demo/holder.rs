//! The session of the demo, as processes: a holder that keeps the master of a terminal, and a shell on it.
//!
//! The holder is a session leader without a terminal, so that the tree below it is whole. Keys come through the FIFO `in` of its directory, and what
//! the terminal shows is appended to the file `out`. It dies with the process that started it, and its terminal hangs up with it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::unistd::setsid;

use crate::error::{Context, Errno, Error, Result, Subject};
use crate::sys::tty::{self, WinSize};

/// Rows and columns of the demo's terminal.
pub const SIZE: (u16, u16) = (24, 80);

/// Keeps a terminal with a bash on it until that ends; yields its exit status.
pub fn hold(dir: &Path) -> Result<u8> {
    close_inherited()?;
    set_pdeathsig(Signal::SIGKILL).during("asking to end with the demo", Subject::None)?;
    setsid().during("starting a session", Subject::None)?;
    SigSet::all().thread_unblock().during("unblocking signals", Subject::None)?;
    let both = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = dir.join("in");
    let keys = open(&path, both, Mode::empty()).during("opening", Subject::Path(path))?;
    let path = dir.join("out");
    let shown = File::options().append(true).open(&path).during("opening", Subject::Path(path))?;
    let path = Path::new("/dev/ptmx");
    let master = open(path, both, Mode::empty()).during("opening", Subject::Path(path.into()))?;
    let index = tty::get_index(master.as_fd()).during("asking for the index", Subject::None)?;
    tty::set_lock(master.as_fd(), false).during("unlocking the terminal", Subject::None)?;
    let size = WinSize { ws_row: SIZE.0, ws_col: SIZE.1, ..WinSize::default() };
    tty::set_winsize(master.as_fd(), &size).during("setting the size", Subject::None)?;
    let mut shell = start(Path::new(&format!("/dev/pts/{index}")))?;
    relay(&mut File::from(keys), shown, &mut File::from(master))?;
    let status = shell.wait().during("waiting for the shell", Subject::None)?;
    Ok(status.code().or(status.signal().map(|signal| 128 + signal)).map_or(1, |code| code as u8))
}

/// Closes what the starter of the demo left open for it by accident: the tree must share nothing with others. Nothing of our own is open yet.
fn close_inherited() -> Result<()> {
    let path = Path::new("/proc/self/fd");
    let entries = path.read_dir().during("listing", Subject::Path(path.into()))?.flatten();
    let numbers: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The descriptor of the listing is closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

fn start(terminal: &Path) -> Result<Child> {
    let program = Path::new("/proc/self/exe");
    let mut command = Command::new(program);
    command.arg("demo-shell").arg(terminal).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().during("starting", Subject::Path(program.into()))
}

/// Both directions until no process has the slave open any more.
fn relay(keys: &mut File, mut shown: File, master: &mut File) -> Result<()> {
    let mut data = [0; 4096];
    loop {
        let mut fds = [PollFd::new(keys.as_fd(), PollFlags::POLLIN), PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).during("waiting for the terminal", Subject::None),
        }
        let ready = fds.map(|fd| fd.revents().is_some_and(|flags| !flags.is_empty()));
        if ready[0] {
            let count = keys.read(&mut data).during("reading keys", Subject::None)?;
            master.write_all(&data[..count]).during("typing", Subject::None)?;
        }
        if ready[1] {
            match master.read(&mut data) {
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                count => {
                    let count = count.during("reading the terminal", Subject::None)?;
                    shown.write_all(&data[..count]).during("writing what is shown", Subject::None)?;
                }
            }
        }
    }
}

/// Becomes an interactive bash whose controlling terminal is `terminal`. Returns only if that fails.
pub fn become_shell(terminal: &Path) -> Error {
    match try_shell(terminal) {
        Ok(error) => Error::io("starting", Subject::Path("bash".into()), &error),
        Err(error) => error,
    }
}

fn try_shell(terminal: &Path) -> Result<std::io::Error> {
    setsid().during("starting a session", Subject::None)?;
    // Without O_NOCTTY the first terminal that a session leader opens becomes its controlling terminal.
    let slave = open(terminal, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    let slave: OwnedFd = slave.during("opening", Subject::Path(terminal.into()))?;
    let copy = || slave.try_clone().during("copying a descriptor", Subject::None);
    let mut bash = Command::new("bash");
    bash.args(["--norc", "--noprofile", "-i"]).stdin(copy()?).stdout(copy()?).stderr(copy()?);
    bash.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
    bash.envs([("PS1", "$ "), ("TERM", "xterm"), ("HISTFILE", ""), ("HOME", "/"), ("LC_ALL", "C.UTF-8")]);
    Ok(bash.exec())
}
