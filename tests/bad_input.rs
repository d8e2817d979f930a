//! What cannot be done is said in one sentence, with the right status, and harms nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use support::{Holder, PATIENCE, Pty, TempDir, compile, dump, ptyagent, report, require_from, serial, shown, until};

const LIMIT: Duration = Duration::from_secs(120);

/// A process of the test's; killed at the end.
struct Sleeper(Child);

impl Sleeper {
    fn start(command: &mut Command) -> Sleeper {
        Sleeper(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn sleep() -> Sleeper {
        let sleeper = Sleeper::start(Command::new("setsid").args(["sleep", "1000"]));
        until("sleep", PATIENCE, || (support::stat(sleeper.pid())?.comm == "sleep").then_some(()), String::new);
        until("sleep", PATIENCE, || (support::stat(sleeper.pid())?.state == 'S').then_some(()), String::new);
        sleeper
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One sentence on stderr, this status, nothing else.
fn assert_said(output: &Output, status: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{}", report(output));
    let sentences: Vec<&str> = said.lines().filter(|line| line.starts_with("ptyagent: ")).collect();
    assert_eq!(sentences.len(), 1, "{said:?}");
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    assert!(output.stdout.is_empty(), "{}", report(output));
    for word in words {
        assert!(sentences[0].contains(word), "no {word:?} in {said:?}");
    }
}

fn try_dump(pid: i32, dir: &Path) -> Output {
    let output = ptyagent(&["dump", "--inject", &pid.to_string(), "-D", dir.to_str().unwrap()]);
    assert!(!dir.exists(), "a failed dump left {}", dir.display());
    output
}

fn with_timeout(body: impl FnOnce() + Send + 'static) {
    support::with_timeout(LIMIT, body);
}

#[test]
fn no_such_process() {
    with_timeout(|| {
        let dir = TempDir::new();
        let mut child = Sleeper::start(&mut Command::new("true"));
        let pid = child.pid();
        child.0.wait().unwrap();
        assert_said(&try_dump(pid, &dir.join("images")), 1, &[&pid.to_string()]);
        // No process has this number: wrong usage.
        assert_eq!(try_dump(0, &dir.join("images")).status.code(), Some(2));
        assert_said(&try_dump(i32::MAX, &dir.join("images")), 1, &[&i32::MAX.to_string()]);
    });
}

#[test]
fn init_a_kernel_thread_and_ourselves() {
    with_timeout(|| {
        let dir = TempDir::new();
        let init = support::stat(1).unwrap().comm;
        let output = try_dump(1, &dir.join("images"));
        assert!(matches!(output.status.code(), Some(1 | 3)), "{}", report(&output));
        assert_said(&output, output.status.code().unwrap(), &["1"]);
        assert_eq!(support::stat(1).unwrap().comm, init);
        if support::stat(2).is_some_and(|stat| stat.comm == "kthreadd") {
            let output = try_dump(2, &dir.join("images"));
            assert!(matches!(output.status.code(), Some(1 | 3)), "{}", report(&output));
            assert_said(&output, output.status.code().unwrap(), &["kernel"]);
        } else {
            println!("skipped: this pid namespace shows no kernel thread");
        }
        // The tree of this test has the ptyagent in it that is to dump it.
        let us = i32::try_from(std::process::id()).unwrap();
        let output = try_dump(us, &dir.join("images"));
        assert!(matches!(output.status.code(), Some(1 | 3)), "{}", report(&output));
        assert_said(&output, output.status.code().unwrap(), &[]);
    });
}

#[test]
fn a_zombie() {
    with_timeout(|| {
        let dir = TempDir::new();
        let child = Sleeper::start(&mut Command::new("true"));
        until("zombie", PATIENCE, || (support::stat(child.pid())?.state == 'Z').then_some(()), String::new);
        let output = try_dump(child.pid(), &dir.join("images"));
        assert!(matches!(output.status.code(), Some(1 | 3)), "{}", report(&output));
        assert_said(&output, output.status.code().unwrap(), &[&child.pid().to_string()]);
    });
}

#[test]
fn a_process_under_a_debugger() {
    with_timeout(|| {
        let dir = TempDir::new();
        let victim = Sleeper::sleep();
        let ready = dir.join("ready");
        let tracer = Sleeper::start(Command::new(compile("tracer")).arg(victim.pid().to_string()).arg(&ready));
        until("tracer", PATIENCE, || ready.exists().then_some(()), String::new);
        let before = shown(victim.pid());
        let output = try_dump(victim.pid(), &dir.join("images"));
        assert_said(&output, 3, &[&victim.pid().to_string(), &tracer.pid().to_string()]);
        support::assert_same_lines(&before, &shown(victim.pid()), "the victim");
    });
}

#[test]
fn another_users_process_without_privilege() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    require_from("setpriv", "util-linux");
    with_timeout(|| {
        // A place that everybody may look into.
        let place = tempfile::Builder::new().prefix("ptyagent-").tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let program = place.path().join("ptyagent");
        fs::copy(env!("CARGO_BIN_EXE_ptyagent"), &program).unwrap();
        let victim = Sleeper::sleep();
        let before = shown(victim.pid());
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        command.args(["dump", "--inject", &victim.pid().to_string(), "-D"]).arg(place.path().join("images"));
        let output = command.stdin(Stdio::null()).current_dir("/").output().unwrap();
        assert_said(&output, 1, &[&victim.pid().to_string()]);
        assert!(!place.path().join("images").exists());
        support::assert_same_lines(&before, &shown(victim.pid()), "the victim");
    });
}

#[test]
fn a_socket_is_refused_by_its_number_and_the_session_runs_on() {
    with_timeout(|| {
        let _serial = serial();
        let dir = TempDir::new();
        let pty = Pty::bash();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        pty.type_keys(format!("exec 7<>/dev/tcp/127.0.0.1/{port}; echo open $?\r"));
        pty.wait_for_text("open 0");
        let before = shown(pty.pid());
        let output = try_dump(pty.pid(), &dir.join("images"));
        assert_said(&output, 3, &["bash", "descriptor 7"]);
        support::assert_same_lines(&before, &shown(pty.pid()), "the shell");
        pty.type_keys("echo $((6*7))\r");
        pty.wait_for_text("\n42\n");
    });
}

/// The images of a session that is dead, and its files and numbers.
fn images(dir: &TempDir) -> (PathBuf, Holder) {
    let holder = Holder::bash();
    let images = dir.join("images");
    dump(holder.pid(), &images);
    (images, holder)
}

fn assert_not_restored(images: &Path, pid: i32, what: &str) {
    let output = ptyagent(&["restore", "--detach", "-D", images.to_str().unwrap()]);
    println!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    assert_said(&output, 1, &[]);
    assert!(support::stat(pid).is_none(), "{what}: process {pid} was created");
}

#[test]
fn images_that_are_missing_empty_or_incomplete() {
    with_timeout(|| {
        let _serial = serial();
        let dir = TempDir::new();
        let (images, holder) = images(&dir);
        let pid = holder.pid();
        assert_not_restored(&dir.join("nothing"), pid, "missing");
        fs::DirBuilder::new().mode(0o700).create(dir.join("empty")).unwrap();
        assert_not_restored(&dir.join("empty"), pid, "empty");
        for entry in fs::read_dir(&images).unwrap() {
            let path = entry.unwrap().path();
            let aside = dir.join("aside");
            fs::rename(&path, &aside).unwrap();
            assert_not_restored(&images, pid, &format!("without {}", path.display()));
            fs::rename(&aside, &path).unwrap();
        }
    });
}

#[test]
fn images_that_are_cut_off_or_damaged() {
    with_timeout(|| {
        let _serial = serial();
        let dir = TempDir::new();
        let (images, holder) = images(&dir);
        let pid = holder.pid();
        for entry in fs::read_dir(&images).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let mut whole = Vec::new();
            fs::File::open(&path).unwrap().read_to_end(&mut whole).unwrap();
            let len = whole.len();
            for cut in [0, 4, len / 2, len.saturating_sub(1)] {
                if cut < len {
                    fs::write(&path, &whole[..cut]).unwrap();
                    assert_not_restored(&images, pid, &format!("{name} of {len} bytes cut to {cut}"));
                }
            }
            for at in [0, 5, len / 3, len / 2, len.saturating_sub(1)] {
                if at < len {
                    let mut damaged = whole.clone();
                    damaged[at] ^= 0x10;
                    fs::write(&path, &damaged).unwrap();
                    assert_not_restored(&images, pid, &format!("{name} with another byte at {at}"));
                }
            }
            fs::write(&path, &whole).unwrap();
        }
        support::restore(&images);
        holder.type_keys("echo $((6*7))\r");
        holder.wait_for_text("\n42\n");
    });
}
