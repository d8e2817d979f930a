//! The relay between two real terminals: the test is the user at the outer one, shell commands sit on the inner one.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{self, Pid as NixPid};
use ptyagent::ids::Pid;
use ptyagent::relay::{self, FirstSize, Outer};
use ptyagent::sys::tty::{self, Termios2, WinSize};
use support::{PATIENCE, Pty, Reading, Size, TempDir, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);
const SMALL: Size = Size { rows: 24, cols: 80 };

/// Not a test: what the tests run on the outer terminal. Puts `sh -c $RELAY_COMMAND` on an inner one and relays.
#[test]
#[ignore = "a program that the other tests run"]
fn relay_program() {
    let command = std::env::var("RELAY_COMMAND").unwrap();
    SigSet::all().thread_unblock().unwrap();
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let slave = open(ptsname_r(&master).unwrap().as_str(), flags, Mode::empty()).unwrap();
    let size = WinSize { ws_row: SMALL.rows, ws_col: SMALL.cols, ..WinSize::default() };
    tty::set_winsize(master.as_fd(), &size).unwrap();
    let mut shell = Command::new("setsid");
    shell.args(["--ctty", "sh", "-c", &command]);
    shell.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    let root = Pid(i32::try_from(shell.spawn().unwrap().id()).unwrap());
    drop(shell);
    if let Ok(path) = std::env::var("RELAY_READY") {
        until("ready session", PATIENCE, || fs::exists(&path).unwrap().then_some(()), String::new);
    }
    if let (Ok(keys), Ok(text)) = (std::env::var("RELAY_KEYS"), std::env::var("RELAY_UNTIL")) {
        use_up(&master, &keys, &text);
    }
    let root = ptyagent::sys::process::pidfd_open(root).unwrap();
    let ending = relay::run(OwnedFd::from(master), Outer::standard().unwrap(), root, FirstSize::FromOuter).unwrap();
    std::process::exit(ending.exit_status().into());
}

/// Types keys once the session shows anything, and takes all that it shows until `text`: a former terminal saw that.
fn use_up(master: &PtyMaster, keys: &str, text: &str) {
    let mut shown = Vec::new();
    let mut typed = false;
    while position(&shown, text.as_bytes()).is_none() || wait_readable(master) {
        let mut chunk = [0; 256];
        let count = unistd::read(master, &mut chunk).unwrap();
        shown.extend_from_slice(&chunk[..count]);
        if !typed {
            unistd::write(master, keys.as_bytes()).unwrap();
            typed = true;
        }
    }
}

/// Whether something more comes within a moment: a program that draws its screen in pieces has drawn it then.
fn wait_readable(master: &PtyMaster) -> bool {
    poll(&mut [PollFd::new(master.as_fd(), PollFlags::POLLIN)], PollTimeout::from(200_u8)).unwrap() > 0
}

/// The relay as a program. The signals that it answers are blocked in all of its threads, as callers have to see to.
fn program() -> Vec<String> {
    let exe = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let block = "--block-signal=WINCH,CONT,TERM,HUP,INT,QUIT".to_owned();
    ["env".into(), block, exe, "relay_program".into(), "--exact".into(), "--ignored".into(), "--nocapture".into()]
        .into()
}

/// A user's terminal on which the relay runs, and its settings before.
struct User {
    pty: Pty,
    slave: OwnedFd,
    before: Termios2,
    dir: TempDir,
}

impl User {
    fn new(command: &str) -> User {
        let mut user = User::idle();
        user.start(command, &[]);
        user
    }

    fn idle() -> User {
        let pty = Pty::new(SMALL);
        let slave = pty.open_slave();
        let before = tty::get_termios(slave.as_fd()).unwrap();
        User { pty, slave, before, dir: TempDir::new() }
    }

    fn start(&mut self, command: &str, env: &[(&str, &str)]) {
        let program = program();
        let argv = program.iter().map(String::as_str).collect::<Vec<_>>();
        self.pty.run(&argv, &[&[("RELAY_COMMAND", command)], env].concat());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn settings(&self) -> Termios2 {
        tty::get_termios(self.slave.as_fd()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(NixPid::from_raw(self.pty.pid()), signal).unwrap();
    }

    /// Waits for the end; the terminal must be as it was. Yields the exit status.
    fn end(&mut self) -> Option<i32> {
        let code = self.pty.wait_for_exit(PATIENCE).code();
        assert_eq!(self.settings(), self.before);
        code
    }
}

fn position(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark)
}

#[test]
fn the_exit_status_passes_on() {
    with_timeout(LIMIT, || {
        assert_eq!(User::new("exit 7").end(), Some(7));
        assert_eq!(User::new("kill -KILL $$").end(), Some(128 + 9));
        assert_eq!(User::new("kill -35 $$").end(), Some(128 + 35));
    });
}

#[test]
fn keys_and_signals_are_the_inner_terminals() {
    with_timeout(LIMIT, || {
        let mut user = User::new("trap 'echo INTERRUPTED' INT; cat; echo AFTER; cat; exit 3");
        user.pty.type_keys("hello\r");
        user.pty.wait_for_text("hello\nhello");
        assert_ne!(user.settings(), user.before);
        user.pty.type_keys("\x03");
        user.pty.wait_for_text("AFTER");
        user.pty.type_keys("\x04");
        assert_eq!(user.end(), Some(3));
        user.pty.wait_for_text("INTERRUPTED");
    });
}

#[test]
fn a_megabyte_goes_both_ways_at_once() {
    with_timeout(LIMIT, || {
        let mut user = User::new("stty raw -echo; printf 'GO!'; head -c 1000000; printf 'END'");
        user.pty.wait_for_text("GO!");
        let data = (0..1_000_000_u32).map(|i| u8::try_from(i / 3 % 251).unwrap()).collect::<Vec<_>>();
        user.pty.set_reading(Reading::Paused);
        let (pty, bytes) = (&user.pty, data.as_slice());
        thread::scope(|scope| {
            let typist = scope.spawn(|| pty.type_keys(bytes));
            // All buffers on the way hold far less than the data, so the typist cannot end before somebody reads.
            assert!(!typist.is_finished());
            pty.set_reading(Reading::On);
        });
        let shown = user.pty.wait_for_output("END", PATIENCE, |bytes| {
            let start = position(bytes, b"GO!")? + 3;
            bytes.ends_with(b"END").then(|| bytes[start..bytes.len() - 3].to_vec())
        });
        assert!(shown == data, "{} bytes came back", shown.len());
        assert_eq!(user.end(), Some(0));
    });
}

#[test]
fn a_stuck_screen_does_not_hold_up_keys() {
    with_timeout(LIMIT, || {
        let mut user = User::idle();
        let got = user.file("got");
        let command = format!(
            "stty raw -echo; printf 'GO!'; yes & head -c 3 >{0}.part; mv {0}.part {0}; kill $!; exit 6",
            got.display()
        );
        user.start(&command, &[]);
        // Not on the screen, from which the flood behind it moves it.
        user.pty.wait_for_output("GO!", PATIENCE, |bytes| position(bytes, b"GO!"));
        user.pty.set_reading(Reading::Paused);
        user.pty.type_keys("abc");
        until("keys", PATIENCE, || fs::exists(&got).unwrap().then_some(()), String::new);
        assert_eq!(fs::read(&got).unwrap(), b"abc");
        user.pty.set_reading(Reading::On);
        assert_eq!(user.end(), Some(6));
    });
}

#[test]
fn what_was_written_before_the_end_is_shown() {
    with_timeout(LIMIT, || {
        // More than the outer terminal holds: at the end of the session the rest is in the relay.
        let mut user = User::idle();
        let written = user.file("written");
        let command = format!("stty raw; printf 'GO!'; seq 1 9000; printf 'END'; >{}; exit 8", written.display());
        user.pty.set_reading(Reading::Paused);
        user.start(&command, &[]);
        until("output", PATIENCE, || fs::exists(&written).unwrap().then_some(()), String::new);
        user.pty.set_reading(Reading::On);
        user.pty.wait_for_output("END", PATIENCE, |bytes| bytes.ends_with(b"END").then_some(()));
        let expected = (1..=9000).map(|number| format!("{number}\n")).collect::<String>();
        let output = user.pty.output();
        let start = position(&output, b"GO!").unwrap() + 3;
        assert!(output[start..output.len() - 3] == *expected.as_bytes());
        assert_eq!(user.end(), Some(8));
    });
}

#[test]
fn a_job_that_writes_on_does_not_keep_the_relay() {
    with_timeout(LIMIT, || {
        let mut user = User::idle();
        let file = user.file("pid");
        let command = format!(
            "sh -c 'trap \"\" HUP; echo $$ >{0}; exec yes' & until [ -s {0} ]; do :; done; exit 2",
            file.display()
        );
        user.start(&command, &[]);
        assert_eq!(user.end(), Some(2));
        let job = fs::read_to_string(file).unwrap().trim().parse().unwrap();
        // It may have had its EIO already.
        let _ = kill(NixPid::from_raw(job), Signal::SIGKILL);
    });
}

#[test]
fn the_window_size_follows() {
    with_timeout(LIMIT, || {
        let mut user = User::idle();
        user.pty.resize(Size { rows: 30, cols: 90 });
        let command = "trap 'stty size' WINCH; stty size; echo READY; while sleep 0.02; do :; done";
        user.start(command, &[]);
        user.pty.wait_for_text("30 90\nREADY");
        user.pty.resize(Size { rows: 40, cols: 100 });
        user.pty.wait_for_text("\n40 100");
        user.signal(Signal::SIGTERM);
        assert_eq!(user.end(), Some(128 + 15));
    });
}

#[test]
fn an_unchanged_size_still_redraws() {
    with_timeout(LIMIT, || {
        let mut user = User::idle();
        let ready = user.file("ready");
        let command = format!("trap 'echo REDRAWN; exit' WINCH; >{}; while sleep 0.02; do :; done", ready.display());
        user.start(&command, &[("RELAY_READY", ready.to_str().unwrap())]);
        user.pty.wait_for_text("REDRAWN");
        assert_eq!(user.end(), Some(0));
    });
}

#[test]
fn programs_draw_their_screens_again() {
    with_timeout(LIMIT, || {
        support::require("less");
        support::require("vim");
        let dir = TempDir::new();
        let text = dir.join("text");
        fs::write(&text, (1..=100).map(|number| format!("line {number}\n")).collect::<String>()).unwrap();
        let file = text.display();
        let cases = [
            ("exec bash --norc --noprofile -i".to_owned(), "echo half typed", "echo half typed"),
            (format!("exec less {file}"), " ", "line 46"),
            (format!("exec vim -u NONE -i NONE -n {file}"), "20Goadded\x1b", "added"),
        ];
        for (command, keys, shown) in cases {
            let mut user = User::idle();
            user.start(&command, &[("RELAY_KEYS", keys), ("RELAY_UNTIL", shown)]);
            user.pty.wait_for_text(shown);
        }
    });
}

#[test]
fn signals_end_the_relay_and_hang_the_session_up() {
    with_timeout(LIMIT, || {
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            let mut user = User::idle();
            let hung = user.file("hung");
            let command = format!("trap '>{}; exit' HUP; echo READY; while sleep 0.02; do :; done", hung.display());
            user.start(&command, &[]);
            user.pty.wait_for_text("READY");
            assert_ne!(user.settings(), user.before);
            user.signal(signal);
            assert_eq!(user.end(), Some(128 + signal as i32));
            until("hangup", PATIENCE, || fs::exists(&hung).unwrap().then_some(()), String::new);
        }
    });
}

#[test]
fn a_lost_outer_terminal_hangs_the_session_up() {
    with_timeout(LIMIT, || {
        let mut user = User::idle();
        let hung = user.file("hung");
        let command = format!("trap '>{}; exit' HUP; echo READY; while sleep 0.02; do :; done", hung.display());
        // In a session of its own the relay gets no SIGHUP, so that nothing but the terminal itself can tell it.
        let script = format!("setsid --wait {}; :", program().join(" "));
        user.pty.run(&["sh", "-c", &script], &[("RELAY_COMMAND", &command)]);
        user.pty.wait_for_text("READY");
        let User { pty, slave, dir: _dir, .. } = user;
        drop((pty, slave));
        until("hangup", PATIENCE, || fs::exists(&hung).unwrap().then_some(()), String::new);
    });
}

#[test]
fn a_continued_relay_is_raw_again() {
    with_timeout(LIMIT, || {
        let mut user = User::new("echo READY; cat; exit 1");
        user.pty.wait_for_text("READY");
        let raw = user.settings();
        tty::set_termios(user.slave.as_fd(), &user.before).unwrap();
        user.signal(Signal::SIGCONT);
        until("raw mode", PATIENCE, || (user.settings() == raw).then_some(()), String::new);
        user.pty.type_keys("\x04");
        assert_eq!(user.end(), Some(1));
    });
}

#[test]
fn a_session_may_close_and_open_its_terminal() {
    with_timeout(LIMIT, || {
        let mut user =
            User::new("exec <&- >&- 2>&-; sleep 0.3; exec </dev/tty >/dev/tty; echo BACK; read line; echo \"<$line>\"");
        user.pty.wait_for_text("BACK");
        user.pty.type_keys("again\r");
        user.pty.wait_for_text("<again>");
        assert_eq!(user.end(), Some(0));
    });
}

/// Runs the relay without any outer terminal; `input` is its whole standard input.
fn without_terminal(command: &str, input: &str, output: Stdio) -> Output {
    let program = program();
    let mut relay = Command::new("setsid");
    relay.arg("--wait").args(&program).env("RELAY_COMMAND", command);
    let mut relay = relay.stdin(Stdio::piped()).stdout(output).stderr(Stdio::null()).spawn().unwrap();
    relay.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    relay.wait_with_output().unwrap()
}

#[test]
fn pipes_stand_in_for_a_terminal() {
    with_timeout(LIMIT, || {
        let command = "stty -echo; read line; echo \"got $line\"; sleep 0.1; echo STILL; exit 9";
        let output = without_terminal(command, "a line\n", Stdio::piped());
        assert_eq!(output.status.code(), Some(9));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.ends_with("got a line\r\nSTILL\r\n"), "{text:?}");
    });
}

#[test]
fn a_regular_file_takes_the_screen_at_its_end() {
    with_timeout(LIMIT, || {
        let dir = TempDir::new();
        fs::write(dir.join("log"), "before\n").unwrap();
        let log = File::options().append(true).open(dir.join("log")).unwrap();
        let output = without_terminal("echo shown; exit 4", "", Stdio::from(log));
        assert_eq!(output.status.code(), Some(4));
        let text = fs::read_to_string(dir.join("log")).unwrap();
        assert!(text.starts_with("before\n") && text.ends_with("shown\r\n"), "{text:?}");
    });
}

#[test]
fn a_reader_that_goes_away_ends_the_relay() {
    with_timeout(LIMIT, || {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let command = "echo READY; while sleep 0.02; do echo more; done";
        let running = thread::spawn(move || without_terminal(command, "", Stdio::from(writer)));
        let mut shown = Vec::new();
        while position(&shown, b"READY").is_none() {
            let mut chunk = [0; 256];
            let count = reader.read(&mut chunk).unwrap();
            shown.extend_from_slice(&chunk[..count]);
        }
        drop(reader);
        assert_eq!(running.join().unwrap().status.code(), Some(129));
    });
}
