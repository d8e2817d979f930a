//! The controller is killed before each of its calls that touch a session, one after the other, and no process is worse off.
//!
//! The test traces the controller, counts those calls, and kills it at the entry of the Nth, for every N. A call that has not been made is the
//! border between the state before it and the state that the call before it left.
//!
//! One window cannot be closed (a mere stop and continuation does the same, without any of us): a call that the kernel answers to a stop
//! with EINTR, or cuts short, stays so where the controller dies between the interruption and the first setting of registers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use support::{
    LINE, PATIENCE, Pty, Quiet, RDWR, Reading, Size, Stage, TempDir, Victim, asleep, differences, dump_running,
    front_without_descriptor, master_behind, tree, until, with_timeout,
};

const LIMIT: Duration = Duration::from_secs(900);
const PTRACE_INTERRUPT: u64 = 0x4207;
const PTRACE_SETREGS: u64 = 13;

/// The calls by which a controller touches a session.
fn touches(nr: i64) -> bool {
    const CALLS: [i64; 9] = [
        libc::SYS_ptrace,
        libc::SYS_pwrite64,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_futex,
        libc::SYS_process_vm_readv,
        libc::SYS_ftruncate,
        libc::SYS_ioctl,
        libc::SYS_rename,
    ];
    CALLS.contains(&nr)
}

/// What became of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It came to its end with so many of the calls made.
    Exited(usize),
    Killed(Window),
}

/// Where it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Window {
    Before,
    /// A stop is all that the session has seen.
    Open,
    Past,
}

/// A shell that waits for a line before it becomes the controller, so that it can be traced from its first instruction on.
fn controller(root: i32, dir: &Path) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "read -r line; exec \"$0\" dump --leave-running --inject \"$1\" -D \"$2\""]);
    command.arg(env!("CARGO_BIN_EXE_ptyagent")).arg(root.to_string()).arg(dir);
    let errors = File::create(dir.with_extension("errors")).unwrap();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors);
    command.spawn().unwrap()
}

/// Runs a dump that is killed at the entry of its call number `at`, counted from 0; again where a machine with too much to do had the victim
/// refused for not stopping in time.
fn dump_killed_at(at: usize, root: i32, dir: &Path) -> End {
    let mut refusals = 0;
    loop {
        match attempt(at, root, dir) {
            // A refused attempt has stopped the victim, and no more.
            Ok(End::Killed(_)) if refusals > 0 => return End::Killed(Window::Open),
            Ok(end) => return end,
            Err(errors) => {
                refusals += 1;
                assert!(refusals < 5 && errors.contains("uninterruptibly"), "border {at}: {errors}");
            }
        }
    }
}

#[expect(clippy::zombie_processes, reason = "the tracer's waits reap it")]
fn attempt(at: usize, root: i32, dir: &Path) -> Result<End, String> {
    let mut child = controller(root, dir);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).unwrap();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, None).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let (mut began, mut entry, mut count, mut window) = (false, true, 0, Window::Before);
    let mut deliver = None;
    loop {
        ptrace::syscall(pid, deliver.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            // The exit of execve(2) comes next.
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => (began, entry) = (true, false),
            WaitStatus::PtraceSyscall(_) if began && entry => {
                entry = false;
                let regs = ptrace::getregs(pid).unwrap();
                if !touches(regs.orig_rax as i64) {
                    continue;
                }
                if count == at {
                    child.kill().unwrap();
                    assert!(matches!(waitpid(pid, None).unwrap(), WaitStatus::Signaled(_, Signal::SIGKILL, _)));
                    return Ok(End::Killed(window));
                }
                count += 1;
                window = match (window, regs.orig_rax as i64, regs.rdi) {
                    (Window::Before, libc::SYS_ptrace, PTRACE_INTERRUPT) => Window::Open,
                    (Window::Open, libc::SYS_ptrace, PTRACE_SETREGS) => Window::Past,
                    (window, ..) => window,
                };
            }
            WaitStatus::PtraceSyscall(_) => entry = true,
            WaitStatus::Stopped(_, signal) => deliver = Some(signal),
            WaitStatus::Exited(_, 0) => return Ok(End::Exited(count)),
            WaitStatus::Exited(_, 3) => return Err(fs::read_to_string(dir.with_extension("errors")).unwrap()),
            WaitStatus::PtraceEvent(..) => {}
            other => panic!("the controller: {other:?} after {count} calls"),
        }
    }
}

/// Kills a controller at every border. `check` is told the border and where it lies.
fn sweep(name: &str, root: i32, before: &Quiet, mut check: impl FnMut(usize, Window)) {
    let place = TempDir::new();
    let mut at = 0;
    let calls = loop {
        let dir = place.join(&format!("images-{at}"));
        match dump_killed_at(at, root, &dir) {
            End::Exited(calls) => break calls,
            End::Killed(window) => {
                before.assert_untouched();
                check(at, window);
            }
        }
        at += 1;
    };
    println!("{name}: killed before each of {calls} calls");
    assert!(calls > 50, "only {calls} calls were seen");
    before.assert_untouched();
    dump_running(root, &place.join("last"));
    before.assert_untouched();
}

/// A victim that goes from call to call.
fn going(program: &'static str, mode: &'static str) {
    with_timeout(LIMIT, move || {
        let victim = Victim::run(program, mode);
        let before = Quiet::of(&[victim.pid()]);
        sweep(mode, victim.pid(), &before, |at, _| {
            let counters = victim.counters();
            assert!(counters.eintr + counters.early + counters.wrong == 0, "border {at}: {counters:?}");
            victim.wait_for_rounds(counters.rounds + 1);
        });
        victim.counters().assert_unharmed();
    });
}

#[test]
fn computing() {
    going("blocked", "spin");
}

#[test]
fn a_sleep() {
    going("blocked", "nanosleep");
}

#[test]
fn a_poll() {
    going("blocked", "poll_timed");
}

#[test]
fn several_threads() {
    going("threads", "busy");
}

/// A wait that a stop ends with EINTR.
#[test]
fn an_epoll_wait() {
    with_timeout(LIMIT, || {
        let victim = Victim::start("epoll");
        let before = Quiet::of(&[victim.pid()]);
        let mut broken = 0;
        sweep("epoll", victim.pid(), &before, |at, window| {
            // It has looked at what its call returned.
            asleep(victim.pid());
            let counters = victim.counters();
            broken += u64::from(window == Window::Open);
            assert!(counters.eintr <= broken && counters.wrong == 0, "border {at}, {window:?}: {counters:?}");
            victim.wake();
        });
        println!("{broken} borders in the window");
    });
}

/// A write that a stop cuts short; each victim is good for one border that does so.
#[test]
fn a_write_to_a_full_terminal() {
    with_timeout(LIMIT, || {
        let start = || {
            let mut pty = Pty::new(Size { rows: 24, cols: 80 });
            pty.set_reading(Reading::Paused);
            let victim = Victim::start_on(&mut pty, "tty_write");
            (pty, victim)
        };
        let (mut pty, mut victim) = start();
        let place = TempDir::new();
        let mut at = 0;
        let calls = loop {
            let before = Quiet::of(&[victim.pid()]);
            let dir = place.join(&format!("images-{at}"));
            let end = dump_killed_at(at, victim.pid(), &dir);
            before.assert_untouched();
            asleep(victim.pid());
            match (end, victim.counters()) {
                (End::Exited(calls), counters) => {
                    assert_eq!((counters.rounds, counters.wrong), (0, 0), "after the last border");
                    break calls;
                }
                (End::Killed(Window::Open), counters) if counters.wrong > 0 => (pty, victim) = start(),
                (_, counters) => {
                    assert_eq!((counters.rounds, counters.wrong), (0, 0), "border {at}, {end:?}: {counters:?}");
                }
            }
            at += 1;
        };
        println!("tty_write: killed before each of {calls} calls");
        pty.set_reading(Reading::On);
        victim.wait_for_rounds(1);
        victim.counters().assert_unharmed();
        let whole = || (pty.output().len() == 48000).then_some(());
        until("whole output", PATIENCE, whole, || pty.output().len().to_string());
    });
}

/// A terminal that a dump cannot read where it is open is as it was.
fn read_from_elsewhere(name: &str, stage: &mut Stage) {
    let (root, seen) = (stage.pid("root"), stage.observe());
    let before = Quiet::of(&tree(root));
    sweep(name, root, &before, |at, _| {
        let unlike = differences("seen", &seen, &stage.observe());
        assert!(unlike.is_empty(), "border {at}:\n{}", unlike.join("\n"));
    });
}

#[test]
fn a_master_that_another_process_borrows() {
    with_timeout(LIMIT, || {
        let mut stage = master_behind();
        read_from_elsewhere("borrowed", &mut stage);
        assert_eq!(stage.drain("behind", 10), ["18:typed\\r\\npartshown\\r\\n"]);
        assert_eq!(stage.drain("front", 20), [LINE]);
    });
}

#[test]
fn a_terminal_that_is_opened_for_the_dump() {
    with_timeout(LIMIT, || {
        let (mut stage, _master) = front_without_descriptor();
        read_from_elsewhere("opened", &mut stage);
        stage.open("job", 20, "/dev/tty", RDWR);
        assert_eq!(stage.drain("job", 20), [LINE]);
    });
}
