//! Sessions that are restored with --detach, and terminals that attach to them and leave them again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{PATIENCE, Pty, Size, Subreaper, TempDir, report, serial, subreaper, tree, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(90);
const EXE: &str = env!("CARGO_BIN_EXE_ptyagent");

/// A place with images of sessions and the sockets of their holders.
struct Place {
    dir: TempDir,
    _subreaper: Subreaper,
}

impl Place {
    fn new() -> Place {
        Place { dir: TempDir::new(), _subreaper: subreaper() }
    }

    fn sockets(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(EXE);
        command.args(args).env("PTYAGENT_RUNTIME_DIR", self.sockets()).stdin(Stdio::null()).output().unwrap()
    }

    /// Dumps what runs on a terminal, ends that, and restores it for those who attach; yields the session's id.
    fn detached(&self, name: &str, mut terminal: Pty, options: &[&str]) -> i32 {
        let images = self.dir.join(name);
        dump_on(&mut terminal, &images);
        let args = [&["restore", "--detach", "--json", "-D", images.to_str().unwrap()], options].concat();
        let output = self.run(&args);
        assert!(output.status.success(), "{}", report(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let id = report.get("host_root").unwrap_or(&report["root"]);
        id.as_i64().unwrap() as i32
    }

    /// A terminal with `ptyagent attach` on it.
    fn attach(&self, size: Size, args: &[&str]) -> Pty {
        let mut terminal = Pty::new(size);
        let sockets = self.sockets();
        terminal.run(&[&[EXE, "attach"], args].concat(), &[("PTYAGENT_RUNTIME_DIR", sockets.to_str().unwrap())]);
        terminal
    }
}

fn dump_on(terminal: &mut Pty, images: &Path) {
    let pid = terminal.pid().to_string();
    let output = support::ptyagent(&["dump", "--inject", &pid, "-D", images.to_str().unwrap()]);
    assert!(output.status.success(), "{}", report(&output));
    terminal.wait_for_exit(PATIENCE);
}

/// A bash with a variable and a half-typed line.
fn bash(variable: &str) -> Pty {
    let terminal = Pty::bash();
    terminal.type_keys(format!("x={variable}\r"));
    terminal.wait_for_output("prompts", PATIENCE, |bytes| {
        (bytes.windows(2).filter(|two| *two == b"$ ").count() >= 2).then_some(())
    });
    terminal.type_keys("echo \"x is $");
    terminal.wait_for_text("echo \"x is $");
    terminal
}

const SMALL: Size = Size { rows: 24, cols: 80 };
const LARGE: Size = Size { rows: 40, cols: 120 };

#[test]
fn a_session_is_attached_left_and_attached_again() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let place = Place::new();
        let id = place.detached("one", bash("21"), &[]);
        let mut first = place.attach(SMALL, &[]);
        // Its line is drawn again, and goes on.
        first.wait_for_text("echo \"x is $");
        first.type_keys("x on $(tty)\"; stty size\r");
        first.wait_for_text("x is 21 on /dev/pts/");
        first.wait_for_text("24 80");
        // A second one at the same time is told who is there.
        let output = place.run(&["attach", &id.to_string()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let us = format!("process {} is attached to session {id}", first.pid());
        assert!(output.status.code() == Some(1) && said.contains(&us), "{}", report(&output));
        // Ctrl-\ goes through where no d follows it.
        first.type_keys("echo rea''dy; cat\r");
        first.wait_for_text("ready");
        let runs =
            |comm: &str| tree(id).into_iter().any(|pid| support::stat(pid).is_some_and(|stat| stat.comm == comm));
        until("cat", PATIENCE, || runs("cat").then_some(()), String::new);
        first.type_keys("\x1c\x1c");
        first.wait_for_text("Quit");
        first.type_keys("(sleep 0.3; echo said while alone) & \r");
        first.type_keys("\x1cd");
        first.wait_for_text(&format!("detached from session {id}"));
        assert_eq!(first.wait_for_exit(PATIENCE).code(), Some(0));
        let mut second = place.attach(LARGE, &[&id.to_string()]);
        second.wait_for_text("said while alone");
        second.type_keys("stty size; exit 9\r");
        second.wait_for_text("40 120");
        assert_eq!(second.wait_for_exit(PATIENCE).code(), Some(9));
        let gone = || (fs::read_dir(place.sockets()).unwrap().count() == 0).then_some(());
        until("end of the holder", PATIENCE, gone, String::new);
    });
}

#[test]
fn several_sessions_are_listed() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let place = Place::new();
        let none = place.run(&["attach"]);
        assert!(String::from_utf8_lossy(&none.stderr).contains("no session to attach to"), "{}", report(&none));
        let ids = [place.detached("one", bash("1"), &[]), place.detached("two", bash("2"), &["--pidns"])];
        let listed = place.run(&["attach"]);
        let said = String::from_utf8_lossy(&listed.stderr).into_owned();
        assert_eq!(listed.status.code(), Some(1), "{said}");
        assert!(ids.iter().all(|id| said.contains(&format!("{id} (bash)"))), "{said}");
        for (id, answer) in ids.iter().zip(["x is 1 here", "x is 2 here"]) {
            let mut terminal = place.attach(SMALL, &[&id.to_string()]);
            terminal.wait_for_text("echo \"x is $");
            terminal.type_keys("x here\"; exit\r");
            terminal.wait_for_text(answer);
            assert_eq!(terminal.wait_for_exit(PATIENCE).code(), Some(0));
        }
    });
}

/// A terminal that vanishes leaves the session; a program that writes much with nobody there does not wait; a killed holder is told.
#[test]
fn a_session_outlives_its_terminals_but_not_its_holder() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let place = Place::new();
        let id = place.detached("one", bash("3"), &[]);
        let first = place.attach(SMALL, &[]);
        first.wait_for_text("echo \"x is $");
        let done = place.dir.join("done");
        first.type_keys(format!("x\"; sleep 0.2; seq 100000; touch {}\r", done.display()));
        first.wait_for_text("x is 3");
        kill(Pid::from_raw(first.pid()), Signal::SIGKILL).unwrap();
        until("output that nobody reads", PATIENCE, || done.exists().then_some(()), String::new);
        let mut second = place.attach(SMALL, &[]);
        second.wait_for_text("100000");
        let holder = support::stat(id).unwrap().ppid;
        kill(Pid::from_raw(holder), Signal::SIGKILL).unwrap();
        second.wait_for_text("was killed");
        assert_eq!(second.wait_for_exit(PATIENCE).code(), Some(1));
        until(
            "end of the session",
            PATIENCE,
            || support::stat(id).is_none().then_some(()),
            || format!("{:?}", support::stat(id)),
        );
        let none = place.run(&["attach"]);
        assert!(String::from_utf8_lossy(&none.stderr).contains("no session to attach to"), "{}", report(&none));
        drop(first);
    });
}

#[test]
fn a_session_does_not_attach_to_itself() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let place = Place::new();
        let id = place.detached("one", bash("4"), &[]);
        let mut terminal = place.attach(SMALL, &[]);
        terminal.wait_for_text("echo \"x is $");
        terminal.type_keys(format!("x\"; PTYAGENT_RUNTIME_DIR={} {EXE} attach {id}\r", place.sockets().display()));
        terminal.wait_for_text("this is session");
        terminal.type_keys("exit\r");
        assert_eq!(terminal.wait_for_exit(PATIENCE).code(), Some(1));
    });
}
