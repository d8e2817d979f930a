//! A terminal that a test drives: a real pty, a program on it as session leader, and the screen that it shows.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::unistd;
use ptyagent::ids::Pid;
use ptyagent::sys::tty::{self, WinSize};

use super::host::patience;
use super::{PATIENCE, kill_session, require_from};

/// Rows and columns of characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub rows: u16,
    pub cols: u16,
}

/// Whether the test's side takes what the terminal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    On,
    Paused,
}

/// The test's end of the terminal. Dropping it kills the session and hangs the terminal up.
pub struct Pty {
    master: Arc<PtyMaster>,
    name: String,
    /// Open until a program runs: a master without any slave has no input to read.
    slave: Option<OwnedFd>,
    child: Option<Child>,
    shown: Arc<Shown>,
    reader: Option<JoinHandle<()>>,
    /// Closed to end the reader.
    wake: Option<OwnedFd>,
}

struct Shown {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    parser: vt100::Parser,
    /// Every byte since the start.
    bytes: Vec<u8>,
    reading: Reading,
    /// The reader ended: nobody has the slave open, or the Pty goes away.
    ended: bool,
}

impl Pty {
    /// A terminal without a program.
    pub fn new(size: Size) -> Pty {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname_r(&master).unwrap();
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let slave = open(name.as_str(), flags, Mode::empty()).unwrap();
        let parser = vt100::Parser::new(size.rows, size.cols, 0);
        let state = State { parser, bytes: Vec::new(), reading: Reading::On, ended: false };
        let shown = Arc::new(Shown { state: Mutex::new(state), changed: Condvar::new() });
        let master = Arc::new(master);
        let (woken, wake) = unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let reader = thread::spawn({
            let (master, shown) = (master.clone(), shown.clone());
            move || read_all(&master, &woken, &shown)
        });
        let pty = Pty { master, name, slave: Some(slave), child: None, shown, reader: Some(reader), wake: Some(wake) };
        pty.resize(size);
        pty
    }

    /// A terminal of 24 x 80 with this program on it.
    pub fn spawn(argv: &[&str]) -> Pty {
        let mut pty = Pty::new(Size { rows: 24, cols: 80 });
        pty.run(argv, &[]);
        pty
    }

    /// An interactive bash without startup files, whose prompt is "$ "; the prompt is there.
    pub fn bash() -> Pty {
        let pty = Pty::spawn(&["bash", "--norc", "--noprofile", "-i"]);
        pty.wait_for_text("$ ");
        pty
    }

    /// Runs a program as session leader with this terminal as its controlling one; its PID is that of the session.
    pub fn run(&mut self, argv: &[&str], env: &[(&str, &str)]) {
        require_from("setsid", "util-linux");
        assert!(self.child.is_none(), "a program runs already");
        let slave = self.slave.take().unwrap();
        // What the test runner left open is not the session's: a dump would refuse a pipe of the runner's.
        let close = "for fd in /proc/self/fd/*; do n=${fd##*/}; (( n > 2 )) && eval \"exec $n>&-\"; done; exec \"$@\"";
        let mut command = Command::new("bash");
        command.args(["-c", close, "bash", "setsid", "--ctty", "env", "--default-signal"]);
        // By env(1), since a bash that runs a command drops PS1.
        let ours = [("TERM", "xterm"), ("PS1", "$ "), ("LC_ALL", "C.UTF-8"), ("HISTFILE", ""), ("HOME", "/")];
        command.args(ours.iter().chain(env).map(|(name, value)| format!("{name}={value}"))).args(argv);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        self.child = Some(command.spawn().unwrap());
    }

    /// The program's PID, which is its session's id too.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// The path of the slave: /dev/pts/N.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// A new description of the slave, without making it a controlling terminal.
    pub fn open_slave(&self) -> OwnedFd {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        open(self.name.as_str(), flags, Mode::empty()).unwrap()
    }

    /// Writes all of it to the terminal, as the keyboard does; waits while the terminal takes no more.
    pub fn type_keys(&self, keys: impl AsRef<[u8]>) {
        let mut rest = keys.as_ref();
        while !rest.is_empty() {
            let count = unistd::write(&*self.master, rest).unwrap();
            rest = &rest[count..];
        }
    }

    pub fn resize(&self, size: Size) {
        self.state().parser.screen_mut().set_size(size.rows, size.cols);
        let size = WinSize { ws_row: size.rows, ws_col: size.cols, ..WinSize::default() };
        tty::set_winsize(self.master(), &size).unwrap();
    }

    /// Stops or continues taking what the terminal shows.
    pub fn set_reading(&self, reading: Reading) {
        self.state().reading = reading;
        self.shown.changed.notify_all();
    }

    /// The screen as text, lines without their trailing blanks.
    pub fn screen_text(&self) -> String {
        self.state().parser.screen().contents()
    }

    /// Every byte that the terminal showed.
    pub fn output(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// Waits until the screen satisfies the condition; panics with the screen at the deadline.
    pub fn wait_for_screen(&self, what: &str, limit: Duration, condition: impl Fn(&vt100::Screen) -> bool) {
        self.wait(what, limit, |state| condition(state.parser.screen()).then_some(()));
    }

    /// Waits until the screen shows this text.
    pub fn wait_for_text(&self, text: &str) {
        self.wait_for_screen(text, PATIENCE, |screen| screen.contents().contains(text));
    }

    /// Waits until the bytes shown so far satisfy the condition.
    pub fn wait_for_output<T>(&self, what: &str, limit: Duration, condition: impl Fn(&[u8]) -> Option<T>) -> T {
        self.wait(what, limit, |state| condition(&state.bytes))
    }

    /// Waits until the program ends, and yields its status.
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let pid = self.pid();
        let pidfd = ptyagent::sys::process::pidfd_open(Pid(pid)).unwrap();
        let limit = patience(limit);
        let timeout = PollTimeout::try_from(limit).unwrap();
        let ready = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
        assert!(ready == 1, "process {pid} still runs after {limit:?}; its screen:\n{}", self.screen_text());
        let status = self.child.as_mut().unwrap().wait().unwrap();
        assert!(status.code().is_some() || status.signal().is_some());
        status
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shown.state.lock().unwrap()
    }

    fn wait<T>(&self, what: &str, limit: Duration, condition: impl Fn(&State) -> Option<T>) -> T {
        let limit = patience(limit);
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        loop {
            if let Some(answer) = condition(&state) {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                let screen = state.parser.screen().contents();
                drop(state);
                panic!("the terminal never shows {what:?} (within {limit:?}); its screen:\n{screen}");
            }
            state = self.shown.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Before it is waited for its PID cannot be anyone else's.
            if matches!(child.try_wait(), Ok(None)) {
                kill_session(i32::try_from(child.id()).unwrap());
                let _ = child.wait();
            }
        }
        self.wake.take();
        self.set_reading(Reading::On);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The reader: keeps bytes and screen until the terminal has no slave or `woken` hangs up.
fn read_all(master: &PtyMaster, woken: &OwnedFd, shown: &Shown) {
    let mut chunk = [0; 4096];
    loop {
        let state = shown.state.lock().unwrap();
        drop(shown.changed.wait_while(state, |state| state.reading == Reading::Paused).unwrap());
        let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN), PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        let woken = fds[1].revents().is_some_and(|flags| !flags.is_empty());
        let count = if woken { 0 } else { unistd::read(master.as_fd(), &mut chunk).unwrap_or(0) };
        let mut state = shown.state.lock().unwrap();
        if count == 0 {
            state.ended = true;
        } else {
            state.parser.process(&chunk[..count]);
            state.bytes.extend_from_slice(&chunk[..count]);
        }
        shown.changed.notify_all();
        if count == 0 {
            return;
        }
    }
}
