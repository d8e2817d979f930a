//! Kernels and containers that lack a call: a slower way, or a clear message and a session that runs on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ptyagent::image::Images;
use ptyagent::sys::process::probe;
use support::{Holder, Prepared, compile, dump, ps_line, report, restore, serial, subreaper, tree, with_timeout};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs the built binary where this is missing, see tests/victims/without.c.
fn without(lack: &str, args: &[&str]) -> Output {
    let mut command = Command::new(compile("without"));
    command.arg(lack).arg(env!("CARGO_BIN_EXE_ptyagent")).args(args).stdin(Stdio::null());
    command.output().unwrap()
}

fn dump_without(lack: &str, holder: &Holder, dir: &Path) -> Output {
    without(lack, &["dump", "--inject", &holder.pid().to_string(), "-D", dir.to_str().unwrap()])
}

/// A shell with a job and a variable.
fn session() -> Holder {
    let holder = Holder::bash();
    holder.type_keys("sleep 1000 &\r");
    holder.wait_for_process("sleep");
    holder.type_keys("n=41; echo set$((n))\r");
    holder.wait_for_text("set41");
    holder
}

fn goes_on(holder: &Holder) {
    holder.type_keys("clear; jobs; echo n is $((n + 1))\r");
    holder.wait_for_text("n is 42");
    assert!(holder.screen_text().contains("Running                 sleep 1000 &"), "{}", holder.screen_text());
}

/// It is carried all the same, and `check` says what is missing.
fn slower(lack: &'static str, item: &'static str) {
    with_timeout(LIMIT, move || {
        let _serial = serial();
        let holder = session();
        let (images, pids) = (holder.dir().join("images"), tree(holder.pid()));
        let before = ps_line(&pids);
        let output = dump_without(lack, &holder, &images);
        assert!(output.status.success(), "{}", report(&output));
        restore(&images);
        assert_eq!(ps_line(&pids), before);
        goes_on(&holder);
        says_no(lack, item);
    });
}

fn says_no(lack: &str, item: &str) {
    let check = report(&without(lack, &["check"]));
    let line = check.lines().find(|line| line.starts_with(item)).unwrap();
    assert_eq!(line[item.len()..].split_whitespace().next(), Some("no"), "{check}");
}

#[test]
fn page_maps_without_a_scan() {
    slower("pagemap_scan", "PAGEMAP_SCAN");
}

#[test]
fn restartable_sequences_that_are_not_told() {
    slower("rseq_query", "rseq state");
}

#[test]
fn no_fetching_of_descriptors() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let holder = session();
        let images = holder.dir().join("images");
        let output = dump_without("pidfd_getfd", &holder, &images);
        assert_eq!(output.status.code(), Some(1), "{}", report(&output));
        assert!(report(&output).contains("pidfd_getfd(2) is missing"), "{}", report(&output));
        assert!(!images.exists());
        goes_on(&holder);
        says_no("pidfd_getfd", "pidfd_getfd");
    });
}

const GUARDS: &str = "memory with guard pages (MADV_GUARD_INSTALL), which this kernel";
const DROPPABLE: &str = "memory that the kernel may drop (MAP_DROPPABLE), which this kernel";

/// What cannot be made here is said before anything is created.
fn says_what_is_lacking(output: &Output, what: &str, pid: i32) {
    assert!(output.status.code() == Some(3) && report(output).contains(what), "{}", report(output));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

fn has_guard_pages(images: &Path) -> bool {
    Images::read(images).unwrap().own.unwrap().tasks.iter().any(|task| !task.guards.is_empty())
}

/// What the images have that this kernel has not.
fn lacking(images: &Path) -> Option<&'static str> {
    let tasks = Images::read(images).unwrap().own.unwrap().tasks;
    let droppable = tasks.iter().flat_map(|task| &task.vmas).any(|vma| vma.droppable == Some(true));
    if has_guard_pages(images) && !probe::has_guard_pages() {
        return Some(GUARDS);
    }
    (droppable && !probe::has_droppable_memory()).then_some(DROPPABLE)
}

#[test]
fn memory_that_an_older_kernel_has_not() {
    let _serial = serial();
    with_timeout(LIMIT, || {
        let _subreaper = subreaper();
        let victim = Prepared::start("memory", "advice");
        let images = victim.dir.join("images");
        dump(victim.pid, &images);
        if has_guard_pages(&images) {
            let args = ["restore", "--detach", "-D", images.to_str().unwrap()];
            says_what_is_lacking(&without("guard_pages", &args), GUARDS, victim.pid);
            says_what_is_lacking(&without("guard_pages", &[&args[..], &["--pidns"]].concat()), GUARDS, victim.pid);
        }
        restore(&images);
        victim.verify();
    });
}

/// Not a test by itself: with `PROGRAMS_LEAVE=file` such memory is dumped and left so, and the file gets its folder, which has to be on the other
/// machine at the same path. There `PROGRAMS_TAKE=file` restores it, or is told what is missing.
#[test]
#[ignore = "half of a run on two machines"]
fn newer_memory_half() {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (leave, take) = (path("PROGRAMS_LEAVE"), path("PROGRAMS_TAKE"));
    let _serial = serial();
    with_timeout(LIMIT, move || {
        let _subreaper = subreaper();
        if let Some(list) = leave {
            let victim = Prepared::start("memory", "advice");
            dump(victim.pid, &victim.dir.join("images"));
            let list = fs::File::options().create(true).append(true).open(list).unwrap();
            let line = format!("newer memory\t{}\n", victim.dir.path().display());
            std::io::Write::write_all(&mut &list, line.as_bytes()).unwrap();
            // Its folder stays.
            std::mem::forget(victim);
            return;
        }
        let list = fs::read_to_string(take.unwrap()).unwrap();
        let left = list.lines().find_map(|line| line.strip_prefix("newer memory\t")).unwrap();
        let victim = Prepared::left_in(Path::new(left));
        let images = victim.dir.join("images");
        if let Some(what) = lacking(&images) {
            let output = support::ptyagent(&["restore", "--detach", "-D", images.to_str().unwrap()]);
            return says_what_is_lacking(&output, what, victim.pid);
        }
        restore(&images);
        victim.verify();
    });
}

/// Changes the machine for good, so that it is for a guest: nobody may attach any more.
#[test]
#[ignore = "nobody may attach afterwards"]
fn no_attaching() {
    with_timeout(LIMIT, || {
        let _serial = serial();
        let holder = session();
        let images = holder.dir().join("images");
        let scope = Path::new("/proc/sys/kernel/yama/ptrace_scope");
        if !scope.exists() {
            return println!("this kernel knows no such restriction");
        }
        fs::write(scope, "3").unwrap();
        let output =
            support::ptyagent(&["dump", "--inject", &holder.pid().to_string(), "-D", images.to_str().unwrap()]);
        assert!(report(&output).contains("ptrace_scope") && output.status.code() == Some(1), "{}", report(&output));
        assert!(!images.exists());
        goes_on(&holder);
    });
}
