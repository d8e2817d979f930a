//! Sessions whose images have the vDSO of another kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use ptyagent::image::Images;
use ptyagent::mem::status;
use support::{
    Holder, PATIENCE, TempDir, compile, dump, dump_running, kill_session, of_another_kernel, restore, serial,
    subreaper, until, with_timeout,
};

const LIMIT: Duration = Duration::from_secs(120);

struct EndSession(i32);

impl Drop for EndSession {
    fn drop(&mut self) {
        kill_session(self.0);
    }
}

/// Starts `tests/victims/vdso.c`; yields its number.
fn start(dir: &TempDir, mode: &str) -> i32 {
    nix::unistd::mkfifo(&dir.join("go"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = Command::new("setsid");
    command.args(["--fork", compile("vdso").to_str().unwrap(), dir.path().to_str().unwrap(), mode]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
    let ready = || fs::read_to_string(dir.join("ready")).ok()?.parse().ok();
    until("ready victim", PATIENCE, ready, String::new)
}

fn finish(dir: &TempDir, pid: i32) {
    File::options().read(true).write(true).open(dir.join("go")).unwrap().write_all(b"g").unwrap();
    let result = || fs::read_to_string(dir.join("result")).unwrap_or_default();
    let state = || format!("{:?} {:?}", result(), support::stat(pid));
    until("verdict", PATIENCE, || result().ends_with("done\n").then_some(()), state);
    assert_eq!(result(), "done\n");
}

/// Where the auxiliary vector says that the vDSO is, and where the kernel's lies.
fn places(pid: i32) -> (u64, u64) {
    const AT_SYSINFO_EHDR: u64 = 33;
    let auxv = fs::read(format!("/proc/{pid}/auxv")).unwrap();
    let words: Vec<u64> = auxv.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
    let known = words.chunks_exact(2).find(|pair| pair[0] == AT_SYSINFO_EHDR).unwrap()[1];
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let kernels = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    (known, u64::from_str_radix(kernels.split('-').next().unwrap(), 16).unwrap())
}

/// Takes a victim over `kernels` other kernels, and back to this one's own vDSO in between where `kernels` is over one.
fn check(mode: &'static str, kernels: usize) {
    with_timeout(LIMIT, move || {
        let _serial = serial();
        let _subreaper = subreaper();
        let dir = TempDir::new();
        let pid = start(&dir, mode);
        let _end = EndSession(pid);
        let (known, kernels_own) = places(pid);
        assert_eq!(known, kernels_own);
        for round in 0..kernels {
            let [here, there] = ["here", "there"].map(|name| dir.join(&format!("{name}{round}")));
            dump(pid, &here);
            of_another_kernel(&here, &there);
            restore(&there);
            let (again, elsewhere) = places(pid);
            assert_eq!(again, known);
            assert_ne!(elsewhere, known);
            // The same images on their own kernel need nothing of that.
            let same = dir.join(&format!("same{round}"));
            dump(pid, &same);
            restore(&same);
            assert_eq!(places(pid), (known, elsewhere));
        }
        finish(&dir, pid);
    });
}

#[test]
fn every_function_works_on_the_next_kernel_and_on_the_one_after_that() {
    check("calls", 3);
}

#[test]
fn a_loop_around_the_clock_goes_on() {
    check("loop", 4);
}

#[test]
fn a_signal_handler_returns_into_the_old_vdso() {
    check("handler", 2);
}

#[test]
fn a_dump_finds_no_thread_inside_the_vdso() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let _subreaper = subreaper();
        let dir = TempDir::new();
        let pid = start(&dir, "loop");
        let _end = EndSession(pid);
        for round in 0..10 {
            let images = dir.join(&format!("images{round}"));
            dump_running(pid, &images);
            let images = Images::read(&images).unwrap();
            let ip = images.cores[&(pid as u32)].thread_info.as_ref().unwrap().gpregs.ip;
            let vmas = &images.mm[&(pid as u32)].vmas;
            let vdso = vmas.iter().find(|vma| vma.status & status::VDSO != 0).unwrap();
            assert!(!(vdso.start..vdso.end).contains(&ip), "round {round}: stopped at {:#x}", ip - vdso.start);
        }
        finish(&dir, pid);
    });
}

#[test]
fn a_real_session_goes_on_with_another_vdso() {
    with_timeout(LIMIT, || {
        support::require("python3");
        let _serial = serial();
        let dir = TempDir::new();
        let holder = Holder::spawn(&["python3", "-q"]);
        holder.wait_for_text(">>> ");
        holder.type_keys("import time, threading; t = time.monotonic(); 6*7\r");
        holder.wait_for_text("\n42");
        for round in 1..=2 {
            let [here, there] = ["here", "there"].map(|name| dir.join(&format!("{name}{round}")));
            dump(holder.pid(), &here);
            of_another_kernel(&here, &there);
            restore(&there);
            let seen = holder.output().len();
            holder.type_keys(format!("{round}, time.monotonic() > t, abs(time.time() - time.clock_gettime(5)) < 1\r"));
            holder.wait_for_new_output(seen, &format!("({round}, True, True)"));
        }
        holder.type_keys("exit(7)\r");
        assert_eq!(holder.wait_for_exit(PATIENCE).code(), Some(7));
    });
}
