//! Self-checking C programs: prepare, say ready, wait, verify.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use super::host::{TempDir, lock, read, until};
use super::{PATIENCE, Pty, asleep, kill_session, require_from};

/// Compiles `tests/victims/NAME.c` where that is newer than its program, and yields the program.
pub fn compile(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/victims").join(name).with_extension("c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let time = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).unwrap_or(UNIX_EPOCH);
    let _lock = lock("cc.lock");
    let headers = ["check.h", "counters.h"].map(|header| time(&source.with_file_name(header)));
    if time(&program) < headers.into_iter().fold(time(&source), SystemTime::max) {
        require_from("cc", "gcc");
        if !Path::new("/usr/include/stdio.h").exists() {
            require_from("../include/stdio.h", "libc6-dev");
        }
        let part = program.with_extension("part");
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-pthread", "-o"]).arg(&part).arg(&source);
        let output = cc.output().unwrap();
        let report = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && report.is_empty(), "{name}.c does not compile cleanly:\n{report}");
        fs::rename(part, &program).unwrap();
    }
    program
}

/// What `tests/victims/counters.h` counts; see there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub ready: u64,
    /// Calls that returned what they should.
    pub rounds: u64,
    /// Calls that returned EINTR.
    pub eintr: u64,
    /// Timed calls that returned before their time.
    pub early: u64,
    /// Calls that returned less than was asked, or a wrong value; registers that changed.
    pub wrong: u64,
    /// The errno or register that was wrong last.
    pub detail: u64,
    /// The longest that a timed call took beyond its time, in nanoseconds.
    pub late_ns: u64,
}

impl Counters {
    /// Panics where the victim noticed anything; lateness is for the caller to judge.
    pub fn assert_unharmed(&self) {
        assert!(self.eintr == 0 && self.early == 0 && self.wrong == 0, "the victim noticed: {self:?}");
    }
}

/// A running `blocked` in one of its modes. Dropping it kills it.
pub struct Victim {
    dir: TempDir,
    /// None where a [`Pty`] runs it.
    child: Option<Child>,
    pid: i32,
}

impl Victim {
    /// Starts it as session leader without a terminal; it is ready.
    pub fn start(mode: &str) -> Victim {
        Victim::run("blocked", mode)
    }

    /// As [`start`](Victim::start), for another program with the same counters.
    pub fn run(program: &str, mode: &str) -> Victim {
        let dir = prepare();
        let mut command = Command::new("setsid");
        command.arg(compile(program)).arg(dir.path()).arg(mode);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        Victim { dir, child: Some(child), pid }.ready()
    }

    /// Starts it on a terminal, for the modes that use one; it is ready.
    pub fn start_on(pty: &mut Pty, mode: &str) -> Victim {
        let dir = prepare();
        let program = compile("blocked");
        pty.run(&[program.to_str().unwrap(), dir.path().to_str().unwrap(), mode], &[]);
        Victim { dir, child: None, pid: pty.pid() }.ready()
    }

    fn ready(self) -> Victim {
        until(
            "ready victim",
            PATIENCE,
            || (self.counters().ready == 1).then_some(()),
            || format!("{:?}", self.counters()),
        );
        self
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it counted so far. Reading them does not disturb it: they are memory that it shares with a file.
    pub fn counters(&self) -> Counters {
        let bytes = read(&self.dir.join("counters"));
        let at = |index: usize| {
            bytes.get(index * 8..index * 8 + 8).and_then(|slot| slot.try_into().ok()).map_or(0, u64::from_ne_bytes)
        };
        Counters {
            ready: at(0),
            rounds: at(1),
            eintr: at(2),
            early: at(3),
            wrong: at(4),
            detail: at(5),
            late_ns: at(6),
        }
    }

    /// Lets one blocked call return, once the victim is in it: what is meant for a call may be lost on the way to it. The byte carries the number
    /// of the round, which the victim checks.
    pub fn wake(&self) {
        asleep(self.pid);
        let round = self.counters().rounds;
        let mut fifo = File::options().read(true).write(true).open(self.dir.join("in")).unwrap();
        fifo.write_all(&[u8::try_from(round & 0xff).unwrap()]).unwrap();
        self.wait_for_rounds(round + 1);
    }

    /// Waits until this many calls returned.
    pub fn wait_for_rounds(&self, rounds: u64) {
        let reached = || (self.counters().rounds >= rounds).then_some(());
        until("further round", PATIENCE, reached, || format!("{:?}", self.counters()));
    }

    /// Reaps a victim that a dump killed, so that its PID is free.
    pub fn reap(&mut self) -> ExitStatus {
        self.child.take().unwrap().wait().unwrap()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if matches!(child.try_wait(), Ok(None)) {
            kill_session(self.pid);
            let _ = child.wait();
        }
    }
}

fn prepare() -> TempDir {
    let dir = TempDir::new();
    fs::write(dir.join("counters"), [0; 4096]).unwrap();
    nix::unistd::mkfifo(&dir.join("in"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    dir
}
