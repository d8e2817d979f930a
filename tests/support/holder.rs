//! A session whose pty master is held inside the tree, so that the tree can be dumped and restored as a whole.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::host::{TempDir, read, until};
use super::{PATIENCE, Subreaper, compile, kill_session, stat, subreaper, tree};

/// The tree of `tests/victims/holder.c`: its root is an orphan, so that its PID is free again as soon as it is dead.
pub struct Holder {
    dir: TempDir,
    pid: i32,
    leader: i32,
    /// The init of its pid namespace, where it has one of its own.
    init: Option<i32>,
    _subreaper: Subreaper,
}

impl Holder {
    /// Runs a program as session leader on a pty of 24 x 80.
    pub fn spawn(argv: &[&str]) -> Holder {
        let dir = TempDir::new();
        let subreaper = subreaper();
        let mut command = Command::new(compile("holder"));
        command.arg(dir.path()).args(argv).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs([("TERM", "xterm"), ("PS1", "$ "), ("LC_ALL", "C.UTF-8"), ("HISTFILE", ""), ("HOME", "/")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        let pids = until("holder", PATIENCE, || fs::read_to_string(dir.join("pids")).ok(), String::new);
        let (pid, leader) = pids.split_once(' ').unwrap();
        let (pid, leader) = (pid.parse().unwrap(), leader.parse().unwrap());
        Holder { dir, pid, leader, init: None, _subreaper: subreaper }
    }

    /// A holder's tree that was restored into a pid namespace; the number is that which its root has outside.
    pub(super) fn adopt(dir: TempDir, pid: i32, subreaper: Subreaper) -> Holder {
        // The process that made the tree leaves it to the namespace's init.
        let parent =
            || stat(stat(pid)?.ppid).filter(|parent| parent.comm == "ptyagent-init").and(Some(stat(pid)?.ppid));
        let init = until("init as the parent", PATIENCE, parent, || format!("{:?}", stat(pid)));
        Holder { dir, pid, leader: tree(pid)[1], init: Some(init), _subreaper: subreaper }
    }

    /// A tree whose test has left it dumped: it is not there until it is restored.
    pub fn left_in(dir: &Path) -> Holder {
        let dir = TempDir::of(dir);
        let pids = fs::read_to_string(dir.join("pids")).unwrap();
        let (pid, leader) = pids.split_once(' ').unwrap();
        let (pid, leader) = (pid.parse().unwrap(), leader.parse().unwrap());
        Holder { dir, pid, leader, init: None, _subreaper: subreaper() }
    }

    /// An interactive bash without startup files, whose prompt is "$ "; the prompt is there.
    pub fn bash() -> Holder {
        let holder = Holder::spawn(&["bash", "--norc", "--noprofile", "-i"]);
        holder.wait_for_text("$ ");
        holder
    }

    /// The root of the tree: give this to `ptyagent dump`.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The session leader on the pty.
    pub fn leader(&self) -> i32 {
        self.leader
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn type_keys(&self, keys: impl AsRef<[u8]>) {
        // Read and write: the open never waits for the holder.
        let mut fifo = File::options().read(true).write(true).open(self.dir.join("in")).unwrap();
        fifo.write_all(keys.as_ref()).unwrap();
    }

    /// Every byte that the terminal showed.
    pub fn output(&self) -> Vec<u8> {
        read(&self.dir.join("out"))
    }

    pub fn screen(&self) -> vt100::Parser {
        let mut parser = vt100::Parser::new(24, 80, 0);
        parser.process(&self.output());
        parser
    }

    pub fn screen_text(&self) -> String {
        self.screen().screen().contents()
    }

    /// Waits until the screen satisfies the condition; panics with the screen at the deadline.
    pub fn wait_for_screen(&self, what: &str, limit: Duration, condition: impl Fn(&vt100::Screen) -> bool) {
        until(what, limit, || condition(self.screen().screen()).then_some(()), || self.screen_text());
    }

    pub fn wait_for_text(&self, text: &str) {
        self.wait_for_screen(text, PATIENCE, |screen| screen.contents().contains(text));
    }

    /// Waits until a process of the tree runs this program and waits for something, and yields it: the shell has told of a job before that has its program.
    pub fn wait_for_process(&self, comm: &str) -> i32 {
        let runs = |pid: &i32| stat(*pid).is_some_and(|stat| stat.comm == comm && stat.state == 'S');
        until(comm, PATIENCE, || tree(self.pid).into_iter().find(runs), || self.screen_text())
    }

    /// Waits until what the terminal showed behind its first `seen` bytes has this text in it.
    pub fn wait_for_new_output(&self, seen: usize, text: &str) {
        let new = || self.output().get(seen..).unwrap_or_default().to_vec();
        let found = || new().windows(text.len()).any(|part| part == text.as_bytes()).then_some(());
        until(text, PATIENCE, found, || String::from_utf8_lossy(&new()).into_owned());
    }

    /// Waits until the session leader has ended, and yields its status.
    pub fn wait_for_exit(&self, limit: Duration) -> ExitStatus {
        let status = || fs::read_to_string(self.dir.join("status")).ok();
        ExitStatus::from_raw(until("exit", limit, status, || self.screen_text()).parse().unwrap())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(init) = self.init {
            // With it all of the namespace ends. It may have ended with the session.
            if stat(init).is_some_and(|stat| stat.comm == "ptyagent-init") {
                let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
            }
        } else if !self.dir.join("status").exists() {
            kill_session(self.pid);
            kill_session(self.leader);
        }
    }
}
