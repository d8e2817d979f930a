//! Calls on a terminal that have moved a part of what they were asked to, in several threads; or with a signal handler that runs across dump and
//! restore and then returns to what is left of the call, in this kernel's vDSO or another's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ptyagent::inject::rest::SIZE;
use ptyagent::inject::{stubs_behind, vdso_content_end};
use ptyagent::procfs::maps;
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

/// As many threads as find room for what is left of their calls: what this program's own vDSO has.
#[test]
fn threads_go_on_in_their_reads() {
    let mapping = maps::read(ptyagent::ids::Pid(std::process::id() as i32)).unwrap();
    let vdso = mapping.into_iter().find(|mapping| mapping.is("[vdso]")).unwrap();
    let mut bytes = vec![0; vdso.len() as usize];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, vdso.start.0).unwrap();
    let (_, rests) = stubs_behind(vdso_content_end(&bytes).unwrap());
    let room = rests.step_by(SIZE).filter(|at| at + SIZE <= bytes.len()).count();
    let check = if room >= 5 { "five" } else { "two" };
    let _serial = serial();
    with_timeout(LIMIT, move || {
        let _subreaper = subreaper();
        let victim = Prepared::start("interrupted", check);
        for round in 0..3 {
            dump_running(victim.pid, &victim.dir.join(&format!("running{round}")));
            let images = victim.dir.join(&format!("images{round}"));
            dump(victim.pid, &images);
            restore(&images);
        }
        victim.verify();
    });
}
