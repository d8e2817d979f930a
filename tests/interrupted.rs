//! Calls on a terminal that a signal handler has interrupted in the middle, which runs across dump and restore and then returns: what is left of
//! the call is made, by this kernel's vDSO or another's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{
    PATIENCE, Prepared, dump, dump_running, of_another_kernel, restore, serial, stat, subreaper, until, with_timeout,
};

const LIMIT: Duration = Duration::from_secs(60);

/// On which kernel the session is restored.
#[derive(Clone, Copy, PartialEq)]
enum Kernel {
    Same,
    Other,
}

/// The child is in its call and sleeps there.
fn blocked(child: i32, nr: i64) {
    let path = format!("/proc/{child}/syscall");
    let call = format!("{nr} ");
    let is_in = || fs::read_to_string(&path).is_ok_and(|text| text.starts_with(&call)).then_some(());
    until("blocked child", PATIENCE, is_in, || format!("{:?} {:?}", fs::read_to_string(&path), stat(child)));
}

fn handled(dir: &Path, child: i32) {
    kill(Pid::from_raw(child), Signal::SIGUSR1).unwrap();
    until("handler", PATIENCE, || dir.join("handling").exists().then_some(()), || format!("{:?}", stat(child)));
}

/// A dump that leaves the child in the rest of its call, which the handler interrupts then.
fn check(name: &'static str, nr: i64, kernel: Kernel) {
    let _serial = serial();
    with_timeout(LIMIT, move || {
        let _subreaper = subreaper();
        let victim = Prepared::start("interrupted", name);
        let dir = &victim.dir;
        let child: i32 = fs::read_to_string(dir.join("child")).unwrap().parse().unwrap();
        blocked(child, nr);
        dump_running(victim.pid, &dir.join("first"));
        blocked(child, nr);
        handled(dir.path(), child);
        let images = dir.join("images");
        dump(victim.pid, &images);
        if kernel == Kernel::Other {
            of_another_kernel(&images, &dir.join("there"));
            restore(&dir.join("there"));
        } else {
            restore(&images);
        }
        // Another dump finds the child in its handler again.
        dump_running(victim.pid, &dir.join("again"));
        File::options().read(true).write(true).open(dir.join("back")).unwrap().write_all(b"b").unwrap();
        victim.verify();
    });
}

#[test]
fn a_write_goes_on_behind_its_handler() {
    check("write_restarts", libc::SYS_write, Kernel::Same);
    check("write_restarts", libc::SYS_write, Kernel::Other);
}

#[test]
fn a_write_ends_behind_its_handler() {
    check("write_ends", libc::SYS_write, Kernel::Same);
    check("write_ends", libc::SYS_write, Kernel::Other);
}

#[test]
fn a_read_goes_on_behind_its_handler() {
    check("read_restarts", libc::SYS_read, Kernel::Same);
    check("read_restarts", libc::SYS_read, Kernel::Other);
}

#[test]
fn a_read_ends_behind_its_handler() {
    check("read_ends", libc::SYS_read, Kernel::Same);
    check("read_ends", libc::SYS_read, Kernel::Other);
}
