//! The way in and out on a live process.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use ptyagent::ids::{Pid, Tid};
use ptyagent::inject::batch::{Ask, Batch};
use ptyagent::inject::restart::Pending;
use ptyagent::inject::{Entry, Infected, Placement};
use ptyagent::trace::Running;

fn infect(pid: Pid, pidfd: &OwnedFd) -> Infected {
    let stopped = Running::seize(Tid::from(pid), ptyagent::sys::ptrace::OPTIONS).unwrap().stop().unwrap();
    let entry = Entry {
        pid,
        pidfd,
        places: ptyagent::mem::places(&ptyagent::procfs::maps::read(pid).unwrap()),
        base: 0x10_0000_0000,
        placement: Placement::Free,
        pending: Pending::Nothing,
        left: &ptyagent::inject::nothing_left,
        others: Default::default(),
    };
    Infected::infect(stopped, &entry).unwrap()
}

struct Victim(Child);
impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_batch_runs_inside_and_the_victim_is_cured() {
    let mut victim = Victim(Command::new("sleep").arg("1000").spawn().unwrap());
    let pid = Pid(victim.0.id() as i32);
    let pidfd = ptyagent::sys::process::pidfd_open(pid).unwrap();
    while !std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap().contains("nanosleep") {
        std::thread::yield_now();
    }
    let before = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let open_before = descriptors();
    for _ in 0..1000 {
        let mut infected = infect(pid, &pidfd);
        for _ in 0..3 {
            let mut batch = Batch::new();
            let id = batch.call(libc::SYS_getpid, []);
            let buffer = batch.output(64);
            let cwd = batch.call(libc::SYS_getcwd, [buffer.into(), 64u64.into()]);
            let answers = infected.ask(batch).unwrap();
            assert_eq!(answers.result(id), Ok(i64::from(pid.0)));
            assert!(answers.result(cwd).unwrap() > 1);
        }
        infected.cure().unwrap().release().unwrap();
    }
    assert_eq!(before, std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap());
    assert_eq!(descriptors(), open_before);
    assert!(victim.0.try_wait().unwrap().is_none());
}

#[test]
fn a_process_without_a_vdso_is_entered_behind_its_text() {
    let program = support::compile("novdso");
    let mut victim = Victim(Command::new(program).stdout(Stdio::piped()).spawn().unwrap());
    victim.0.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
    let pid = Pid(victim.0.id() as i32);
    let pidfd = ptyagent::sys::process::pidfd_open(pid).unwrap();
    let maps = || std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let before = maps();
    assert!(!before.contains("[vdso]"));
    for _ in 0..50 {
        let mut infected = infect(pid, &pidfd);
        let mut batch = Batch::new();
        let id = batch.call(libc::SYS_getpid, []);
        assert_eq!(infected.ask(batch).unwrap().result(id), Ok(i64::from(pid.0)));
        infected.cure().unwrap().release().unwrap();
    }
    assert_eq!(before, maps());
    assert!(victim.0.try_wait().unwrap().is_none());
}
