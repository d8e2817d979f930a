//! A dump that fails in the middle leaves the session as it was, and no images.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use support::{Holder, PATIENCE, TaskSnapshot, TempDir, ptyagent, report, skip, snapshot, until, with_timeout};

const LIMIT: Duration = Duration::from_secs(120);

/// A bash with a half-typed command, and the state in which it has to stay.
struct Session {
    holder: Holder,
    before: Vec<TaskSnapshot>,
    /// The vDSO of each, where entry code is placed.
    vdsos: Vec<Vec<u8>>,
    turn: u32,
}

fn quiet(pid: i32) -> TaskSnapshot {
    let mut task = snapshot(pid);
    task.stat.state = 'S';
    for (_, info) in task.fds.values_mut() {
        *info = info.lines().filter(|line| !line.starts_with("pos:")).collect();
    }
    task
}

fn vdso(pid: i32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
    let mut bytes = vec![0; (end - start) as usize];
    File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(&mut bytes, start).unwrap();
    bytes
}

impl Session {
    fn start() -> Session {
        let holder = Holder::bash();
        holder.type_keys("echo par");
        holder.wait_for_text("$ echo par");
        let before = [holder.pid(), holder.leader()].map(quiet).into();
        let vdsos = [holder.pid(), holder.leader()].map(vdso).into();
        Session { holder, before, vdsos, turn: 0 }
    }

    fn dump(&self, dir: &Path) -> Output {
        ptyagent(&["dump", "--inject", &self.holder.pid().to_string(), "-D", dir.to_str().unwrap()])
    }

    /// One sentence, the right status, and a session that is what it was.
    fn assert_failed(&mut self, output: &Output) -> String {
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", report(output));
        assert_eq!(text.lines().count(), 1, "{text}");
        let now = || [self.holder.pid(), self.holder.leader()].map(quiet);
        let difference =
            || self.before.iter().zip(now()).map(|(before, now)| before.difference(&now)).collect::<String>();
        until("state as before", PATIENCE, || difference().is_empty().then_some(()), difference);
        assert!([self.holder.pid(), self.holder.leader()].map(vdso).as_slice() == self.vdsos, "entry code is left");
        self.turn += 1;
        let seen = self.holder.output().len();
        self.holder.type_keys(format!("tial{}\recho par", self.turn));
        self.holder.wait_for_new_output(seen, &format!("\rpartial{}\r\n", self.turn));
        self.holder.wait_for_new_output(seen, "$ echo par");
        text
    }
}

/// A small filesystem of this test, unmounted at the end.
struct Mount(PathBuf);

impl Mount {
    fn new(place: &Path, options: &str) -> Option<Mount> {
        let mount = ["-t", "tmpfs", "-o", options, "ptyagent-test"];
        let made = Command::new("mount").args(mount).arg(place).output();
        made.is_ok_and(|output| output.status.success()).then(|| Mount(place.to_path_buf()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_filesystem() {
    with_timeout(LIMIT, || {
        let place = TempDir::new();
        let mut session = Session::start();
        // From where not even the first file fits to where most do.
        for size in [4, 16, 64, 256, 512] {
            let Some(mount) = Mount::new(place.path(), &format!("size={size}k")) else {
                return skip("a full filesystem: mounting one needs CAP_SYS_ADMIN");
            };
            let output = session.dump(&place.join("images"));
            let text = session.assert_failed(&output);
            assert!(text.contains("full"), "{text}");
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "something was left behind");
            drop(mount);
        }
    });
}

#[test]
fn a_read_only_filesystem() {
    with_timeout(LIMIT, || {
        let place = TempDir::new();
        let Some(_mount) = Mount::new(place.path(), "ro") else {
            return skip("a read-only filesystem: mounting one needs CAP_SYS_ADMIN");
        };
        let mut session = Session::start();
        let output = session.dump(&place.join("images"));
        session.assert_failed(&output);
    });
}

#[test]
fn a_missing_place_and_one_that_is_taken() {
    with_timeout(LIMIT, || {
        let place = TempDir::new();
        let mut session = Session::start();
        let output = session.dump(&place.join("missing/images"));
        session.assert_failed(&output);
        fs::write(place.join("file"), "mine").unwrap();
        let output = session.dump(&place.join("file"));
        session.assert_failed(&output);
        assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "mine");
    });
}

/// Somebody removes the unfinished images while they are written.
#[test]
fn the_images_vanish_in_the_middle() {
    with_timeout(LIMIT, || {
        let mut session = Session::start();
        for _ in 0..20 {
            let place = TempDir::new();
            let (stop, removed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
            let remover = thread::spawn({
                let (path, stop, removed) = (place.path().to_path_buf(), stop.clone(), removed.clone());
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        for entry in fs::read_dir(&path).unwrap().flatten() {
                            removed.fetch_add(u32::from(fs::remove_dir_all(entry.path()).is_ok()), Ordering::Relaxed);
                        }
                        thread::yield_now();
                    }
                }
            });
            let output = session.dump(&place.join("images"));
            stop.store(true, Ordering::Relaxed);
            remover.join().unwrap();
            assert!(removed.load(Ordering::Relaxed) > 0);
            session.assert_failed(&output);
            assert!(!place.join("images").exists());
        }
    });
}
