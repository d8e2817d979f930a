//! What tests need from the machine: directories, packages, locks, deadlines, the built binary.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollTimeout, poll};

/// A directory of this test, mode 0700, removed at the end; its path has no symbolic link in it.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        TempDir::inside(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
    }

    /// One in memory where that can be: for many images, of which none is read after a crash.
    pub fn in_memory() -> TempDir {
        TempDir::inside(Path::new("/dev/shm")).unwrap_or_else(|_| TempDir::new())
    }

    fn inside(path: &Path) -> std::io::Result<TempDir> {
        tempfile::Builder::new().prefix("ptyagent-").tempdir_in(path).map(|made| TempDir(made.keep()))
    }

    /// One that another test has left.
    pub fn of(path: &Path) -> TempDir {
        TempDir(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A lock that all test processes of this build share.
pub struct Serial(Flock<File>);

/// Waits until no other test of this machine holds it: for tests whose process ids and terminal indexes must stay free while their tree is
/// dead.
pub fn serial() -> Serial {
    Serial(lock_in(&std::env::temp_dir(), "ptyagent-tests.lock"))
}

pub(super) fn lock(name: &str) -> Flock<File> {
    lock_in(Path::new(env!("CARGO_TARGET_TMPDIR")), name)
}

fn lock_in(dir: &Path, name: &str) -> Flock<File> {
    let file = File::options().create(true).append(true).open(dir.join(name)).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap()
}

/// A limit as it is on this machine, which may have much else to do: limits say what is long on one that has not.
pub(super) fn patience(limit: Duration) -> Duration {
    limit * 3 * slowness()
}

/// `PTYAGENT_PATIENCE` says how many times longer things may take, in emulation for example.
fn slowness() -> u32 {
    std::env::var("PTYAGENT_PATIENCE").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1).max(1)
}

/// How often something is repeated, where that is only to find what happens seldom: less often where everything takes longer.
pub fn times(usual: u64) -> u64 {
    (usual / u64::from(slowness())).max(usual.min(5))
}

/// Runs the test's body; panics if it takes longer.
pub fn with_timeout<T: Send + 'static>(limit: Duration, body: impl FnOnce() -> T + Send + 'static) -> T {
    let limit = patience(limit);
    let (done, finished) = mpsc::channel();
    let runner = thread::Builder::new()
        .name(thread::current().name().unwrap_or("test").to_owned())
        .spawn(move || {
            let value = body();
            // The receiver is gone after a timeout, which has been reported then.
            let _ = done.send(value);
        })
        .unwrap();
    match finished.recv_timeout(limit) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("the test takes longer than {limit:?}"),
        Err(RecvTimeoutError::Disconnected) => match runner.join() {
            Ok(()) => panic!("the test's thread ended without a value"),
            Err(payload) => std::panic::resume_unwind(payload),
        },
    }
}

/// Asks again and again until there is an answer; panics with `what` and `state` at the deadline. For conditions without an event.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>, state: impl Fn() -> String) -> T {
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {what} within {limit:?}; at the end:\n{}", state());
        poll(&mut [], PollTimeout::from(5_u8)).unwrap();
    }
}

/// Runs the built binary to its end.
pub fn ptyagent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptyagent")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Notes that a check was left out, with the reason. CI counts these and fails on one that it does not know.
pub fn skip(reason: &str) {
    use std::io::Write;
    println!("SKIP: {reason}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/skipped-checks");
    if let Ok(mut file) = std::fs::File::options().create(true).append(true).open(path) {
        let _ = writeln!(file, "{reason}");
    }
}

/// Makes sure that the program `name` exists, from the Debian package of the same name.
pub fn require(name: &str) {
    require_from(name, name);
}

/// Makes sure that `program` exists. Root installs `package` where it does not; others are told its name.
pub fn require_from(program: &str, package: &str) {
    provide(program, package).unwrap_or_else(|missing| panic!("{missing}"));
}

/// As [`require_from`]; an error says what is missing.
pub fn provide(program: &str, package: &str) -> Result<(), String> {
    let exists = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(|dir| dir.join(program).exists())
    };
    if exists() {
        return Ok(());
    }
    let _lock = lock("apt.lock");
    let missing = |why: &str| Err(format!("{program} is missing: install the Debian package {package}{why}"));
    if exists() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        return missing("");
    }
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["-y", "-q", "-o", "DPkg::Lock::Timeout=300"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        apt.stdin(Stdio::null()).output().map_err(|error| format!("apt-get: {error}"))
    };
    let install = ["install", "--no-install-recommends", package];
    if apt(&install).is_ok_and(|output| output.status.success()) && exists() {
        return Ok(());
    }
    let said =
        apt(&["update"]).and_then(|_| apt(&install)).map(|last| String::from_utf8_lossy(&last.stderr).into_owned());
    if exists() { Ok(()) } else { missing(&format!("; apt-get cannot: {}", said.unwrap_or_else(|error| error))) }
}

pub(super) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}
