//! A tmux server of its own, without a client.

use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{PATIENCE, Subreaper, TempDir, report, require, stat, subreaper, tree, until};

const PANES: usize = 20;
/// Runs a program without the descriptors that whoever runs this has left open.
const CLOSE: &str =
    "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done; exec \"$@\"";
const BASH: &str = "exec env PS1='$ ' HISTFILE= bash --norc --noprofile -i";

pub struct Tmux {
    dir: TempDir,
    pid: i32,
    _subreaper: Subreaper,
}

impl Tmux {
    /// Every shell has its prompt.
    pub fn start() -> Tmux {
        require("tmux");
        let mut tmux = Tmux { dir: TempDir::new(), pid: 0, _subreaper: subreaper() };
        let mut command = Command::new("bash");
        command.args(["-c", CLOSE, "bash", "tmux", "-S"]).arg(tmux.dir.join("socket"));
        command.args(["-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "100", BASH]);
        let output = command.stdin(Stdio::null()).env_remove("TMUX").output().unwrap();
        assert!(output.status.success(), "{}", report(&output));
        tmux.pid = tmux.ask(&["display-message", "-p", "#{pid}"]).trim().parse().unwrap();
        for _ in 1..PANES {
            tmux.ask(&["split-window", BASH]);
            tmux.ask(&["select-layout", "tiled"]);
        }
        assert_eq!(tree(tmux.pid).len(), 1 + PANES);
        let ready = || (0..PANES).all(|pane| tmux.screen(pane).trim_end().ends_with('$')).then_some(());
        until("prompts", PATIENCE, ready, || tmux.screen(PANES - 1));
        tmux
    }

    /// The server.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The shell in the last pane answers.
    pub fn check(&self) {
        let pane = format!(":.{}", PANES - 1);
        self.ask(&["send-keys", "-t", &pane, "echo al''ive", "Enter"]);
        let alive = || self.screen(PANES - 1).contains("\nalive").then_some(());
        until("answer", PATIENCE, alive, || self.screen(PANES - 1));
    }

    fn screen(&self, pane: usize) -> String {
        self.ask(&["capture-pane", "-p", "-t", &format!(":.{pane}")])
    }

    fn ask(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "tmux {args:?}: {}", report(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.dir.join("socket")).args(args);
        command.stdin(Stdio::null()).env_remove("TMUX").output().unwrap()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        if self.pid < 2 || stat(self.pid).is_none() {
            return;
        }
        let all = tree(self.pid);
        for pid in &all {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let gone = || all.iter().all(|pid| stat(*pid).is_none()).then_some(());
        until("end of the tmux server", PATIENCE, gone, String::new);
    }
}
