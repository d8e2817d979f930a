//! What is dumped and restored.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::{Holder, PATIENCE, Subreaper, TempDir, compile, kill_session, subreaper, until};
use crate::tmux::Tmux;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An interactive bash with a background job, and the holder of its pty.
    Session,
    /// A tmux server with 20 panes, each with an interactive bash.
    Tmux,
    /// One process with 1 GiB of touched memory.
    Big,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Session => "bash session",
            Kind::Tmux => "tmux, 20 panes",
            Kind::Big => "1 GiB process",
        }
    }
}

pub enum Subject {
    Session(Holder),
    Tmux(Tmux),
    Big(Big),
}

pub struct Big {
    pid: i32,
    _dir: TempDir,
    _subreaper: Subreaper,
}

const MIB: &str = "1024";

impl Subject {
    pub fn start(kind: Kind) -> Subject {
        match kind {
            Kind::Session => {
                let holder = Holder::bash();
                holder.type_keys("sleep 1000 &\r");
                holder.wait_for_text("[1] ");
                // The prompt comes once more, with the shell waiting behind it.
                holder.type_keys("echo re''ady\r");
                holder.wait_for_text("ready\n$");
                Subject::Session(holder)
            }
            Kind::Tmux => Subject::Tmux(Tmux::start()),
            Kind::Big => Subject::Big(Big::start()),
        }
    }

    /// The root of the tree.
    pub fn pid(&self) -> i32 {
        match self {
            Subject::Session(holder) => holder.pid(),
            Subject::Tmux(tmux) => tmux.pid(),
            Subject::Big(big) => big.pid,
        }
    }

    /// Waits until the number of the killed root is free.
    pub fn await_end(&self) {
        let path = format!("/proc/{}", self.pid());
        until("free number", PATIENCE, || (!fs::exists(&path).unwrap()).then_some(()), String::new);
    }

    /// The restored subject is there and, where it is a shell, answers.
    pub fn check(&self) {
        match self {
            Subject::Session(holder) => {
                let seen = holder.output().len();
                holder.type_keys("echo al''ive\r");
                holder.wait_for_new_output(seen, "alive\r\n");
            }
            Subject::Tmux(tmux) => tmux.check(),
            Subject::Big(big) => assert!(fs::exists(format!("/proc/{}", big.pid)).unwrap()),
        }
    }
}

impl Big {
    fn start() -> Big {
        let dir = TempDir::new();
        let subreaper = subreaper();
        let mut command = Command::new(compile("big"));
        command.arg(dir.path()).arg(MIB).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
        let pid = until("big process", PATIENCE, || fs::read_to_string(dir.join("pids")).ok(), String::new);
        let pid = pid.parse().unwrap();
        // It closes its descriptors last.
        let open = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        until("process without descriptors", PATIENCE, || (open() == 0).then_some(()), String::new);
        Big { pid, _dir: dir, _subreaper: subreaper }
    }
}

impl Drop for Big {
    fn drop(&mut self) {
        kill_session(self.pid);
        let path = format!("/proc/{}", self.pid);
        until("end of the big process", PATIENCE, || (!fs::exists(&path).unwrap()).then_some(()), String::new);
    }
}
