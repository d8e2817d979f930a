//! A session in one pane of tmux is dumped from a second pane and continued in a third.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{PATIENCE, TempDir, require, serial, subreaper, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(120);
/// A shell that does not care for the user's files, whose prompt is "$ ".
const BASH: &str = "exec env PS1='$ ' HISTFILE= bash --norc --noprofile -i";

/// A server of its own, killed at the end by its PID.
struct Tmux {
    dir: TempDir,
    pid: i32,
}

impl Tmux {
    /// With one pane, whose shell has its prompt.
    fn start() -> Tmux {
        require("tmux");
        let mut tmux = Tmux { dir: TempDir::new(), pid: 0 };
        // What the test was given by whoever runs it does not belong to the sessions: the shell closes it for all that follows.
        let close =
            "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done; exec \"$@\"";
        let mut command = Command::new("bash");
        command.args(["-c", close, "bash", "tmux", "-S"]).arg(tmux.dir.join("socket"));
        command.args(["-f", "/dev/null", "new-session", "-d", "-s", "test", "-x", "80", "-y", "24", BASH]);
        let output = command.stdin(Stdio::null()).env_remove("TMUX").output().unwrap();
        assert!(output.status.success(), "{}", support::report(&output));
        tmux.pid = tmux.ask(&["display-message", "-p", "#{pid}"]).parse().unwrap();
        tmux.wait_for("test:0", "$");
        tmux
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.dir.join("socket")).args(args);
        command.stdin(Stdio::null()).env_remove("TMUX").output().unwrap()
    }

    fn ask(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "tmux {args:?}: {}", support::report(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// A further window with a shell that has its prompt.
    fn window(&self, number: u32) -> String {
        let target = format!("test:{number}");
        self.ask(&["new-window", "-d", "-t", &target, BASH]);
        self.wait_for(&target, "$");
        target
    }

    fn type_keys(&self, pane: &str, keys: &str) {
        self.ask(&["send-keys", "-t", pane, "-l", keys]);
    }

    fn enter(&self, pane: &str, line: &str) {
        self.type_keys(pane, line);
        self.ask(&["send-keys", "-t", pane, "Enter"]);
    }

    fn screen(&self, pane: &str) -> String {
        self.ask(&["capture-pane", "-p", "-t", pane])
    }

    fn wait_for(&self, pane: &str, text: &str) {
        until(text, PATIENCE, || self.screen(pane).contains(text).then_some(()), || self.screen(pane));
    }

    /// The terminal modes of a pane, asked from outside.
    fn modes(&self, pane: &str) -> String {
        let tty = self.ask(&["display-message", "-p", "-t", pane, "#{pane_tty}"]);
        let output = Command::new("stty").args(["-a", "-F", &tty]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        if self.pid > 1 {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn a_pane_is_dumped_from_another_and_continued_in_a_third() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let _subreaper = subreaper();
        let tmux = Tmux::start();
        let (program, images) = (env!("CARGO_BIN_EXE_ptyagent"), tmux.dir.join("images"));
        let images = images.display();
        // A shell of its own behind the pane's: what tmux itself started ends the pane, and the pane is to stay.
        tmux.enter("test:0", "PS1='outer ' bash --norc --noprofile -i");
        tmux.wait_for("test:0", "outer");
        tmux.enter("test:0", "exec setsid -c -w env PS1='inner ' bash --norc --noprofile -i");
        tmux.wait_for("test:0", "inner");
        tmux.enter("test:0", "mark=kept; cd /usr; clear; echo pid $$ end");
        tmux.wait_for("test:0", "end");
        let pid = until(
            "number of the shell",
            PATIENCE,
            || {
                let screen = tmux.screen("test:0");
                let line = screen.lines().find(|line| line.starts_with("pid ") && line.ends_with(" end"))?;
                line.split(' ').nth(1)?.parse::<i32>().ok()
            },
            || tmux.screen("test:0"),
        );
        tmux.type_keys("test:0", "echo $mark in $PWD is $((6*");
        tmux.wait_for("test:0", "$((6*");

        let second = tmux.window(1);
        tmux.enter(&second, &format!("{program} dump --inject {pid} -D {images} >/dev/null; echo status $?"));
        tmux.wait_for(&second, "status 0");

        let third = tmux.window(2);
        let readline = tmux.modes(&third);
        tmux.enter(&third, &format!("clear; {program} restore -D {images}; echo status $?"));
        let restored = || (support::stat(pid)?.state == 'S').then_some(());
        until("restored shell", PATIENCE, restored, || tmux.screen(&third));
        tmux.type_keys(&third, "7))");
        tmux.ask(&["send-keys", "-t", &third, "Enter"]);
        tmux.wait_for(&third, "kept in /usr is 42");
        tmux.enter(&third, "stty size; tty");
        let size = tmux.ask(&["display-message", "-p", "-t", &third, "#{pane_height} #{pane_width}"]);
        tmux.wait_for(&third, &format!("{size}\n/dev/pts/"));
        tmux.enter(&third, "exit 7");
        tmux.wait_for(&third, "status 7");
        until("modes of before", PATIENCE, || (tmux.modes(&third) == readline).then_some(()), || tmux.modes(&third));
        assert!(support::stat(pid).is_none());
    });
}
