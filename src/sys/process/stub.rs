//! Children of our own: those that run no code but a wait without end (the root of a restore, the object of a probe), and forks.

use std::convert::Infallible;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long};

use super::answer;
use crate::error::Errno;
use crate::ids::Pid;

/// The kernel's `struct clone_args` (include/uapi/linux/sched.h), version 2, with `set_tid`.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 88);

/// Every handler goes back to the default action; ignored signals stay ignored. include/uapi/linux/sched.h.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// Which number a stub gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StubPid {
    Any,
    /// This one, which must be free. Needs CAP_CHECKPOINT_RESTORE (5.9) or CAP_SYS_ADMIN over the pid namespace.
    Exactly(Pid),
}

/// What becomes of a stub whose creator dies before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnParentDeath {
    Stay,
    /// It gets SIGKILL when the creating *thread* ends. This is PR_SET_PDEATHSIG, which stays set: a restore must set the recorded
    /// value (or 0) in the task before it lets go.
    Die,
}

/// A paused child of ours and a pidfd on it.
#[derive(Debug)]
pub struct Stub {
    pub pid: Pid,
    pub handle: OwnedFd,
}

/// Creates a child that waits for ever, with every signal blocked, every handler reset to the default action and a copy of our
/// memory and descriptors.
///
/// It ends only by SIGKILL or by a tracer. Dropping the [`Stub`] neither kills nor reaps it. EEXIST: the number is in use;
/// EPERM: no right to choose it; EINVAL: it is over `kernel.pid_max`. clone3(2), kernel/fork.c, Linux 5.3; set_tid and
/// CLONE_CLEAR_SIGHAND 5.5.
pub fn clone_with_pid(pid: StubPid, exit_signal: c_int, fate: OnParentDeath) -> Result<Stub, Errno> {
    let creator = nix::unistd::getpid().as_raw();
    spawn(pid, exit_signal, || child_waits(fate, creator))
}

/// Runs `body` in a child of our own with our signal mask, which ends with the status that it yields (101 where it panicked).
///
/// For a process with one thread only: the child has a copy of nothing but the calling thread. Handlers are at their default action.
pub fn fork_with_pid(pid: StubPid, body: impl FnOnce() -> u8) -> Result<Stub, Errno> {
    let mask = nix::sys::signal::SigSet::thread_get_mask()?;
    spawn(pid, libc::SIGCHLD, move || {
        let body = std::panic::AssertUnwindSafe(move || match mask.thread_set_mask() {
            Ok(()) => body(),
            Err(_) => 1,
        });
        exit(c_int::from(std::panic::catch_unwind(body).unwrap_or(101)))
    })
}

/// Makes this process independent of whoever made it: a session of its own, the root as working directory, nothing open but `keep`, and /dev/null
/// for standard input, output and error. For a child of [`fork_with_pid`] that never returns to the owners of what is closed here.
pub fn cut_loose(keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/")?;
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut at = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if at < fd {
            // SAFETY: takes numbers only; whoever owned the descriptors does not run again in this process.
            Errno::result(unsafe { libc::close_range(at, fd - 1, 0) })?;
        }
        at = fd.saturating_add(1);
    }
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    for number in 0..3 {
        // SAFETY: takes numbers only; nothing of ours reads or writes the standard descriptors at this moment.
        Errno::result(unsafe { libc::dup2(null.as_raw_fd(), number) })?;
    }
    Ok(())
}

/// Asks for SIGKILL when the creating thread ends; [`OnParentDeath::Stay`] takes that back.
pub fn on_parent_death(fate: OnParentDeath) -> Result<(), Errno> {
    let signal = if fate == OnParentDeath::Die { nix::sys::signal::Signal::SIGKILL.into() } else { None };
    nix::sys::prctl::set_pdeathsig(signal)
}

/// Whether a child has our descriptor table or a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    Copied,
    Shared,
}

/// Creates a child with all signals blocked and runs `child` in it, which must not allocate, lock, panic or return.
pub(super) fn spawn(pid: StubPid, exit_signal: c_int, child: impl FnOnce() -> Infallible) -> Result<Stub, Errno> {
    spawn_sharing(Files::Copied, pid, exit_signal, child)
}

/// As [`spawn`], with a choice.
pub(super) fn spawn_sharing(
    files: Files,
    pid: StubPid,
    exit_signal: c_int,
    child: impl FnOnce() -> Infallible,
) -> Result<Stub, Errno> {
    let mut number: c_int = -1;
    let chosen: c_int = match pid {
        StubPid::Any => 0,
        StubPid::Exactly(pid) => pid.0,
    };
    let args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64
            | CLONE_CLEAR_SIGHAND
            | if files == Files::Shared { libc::CLONE_FILES as u64 } else { 0 },
        pidfd: &raw mut number as u64,
        exit_signal: exit_signal as u64,
        set_tid: if chosen == 0 { 0 } else { &raw const chosen as u64 },
        set_tid_size: u64::from(chosen != 0),
        ..CloneArgs::default()
    };
    let before = set_signal_mask(u64::MAX)?;
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of this stack. The kernel reads `args` and `chosen` and
    // writes the pidfd's number to `number` in the parent.
    let value = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) };
    if value == 0 {
        child();
    }
    let created = answer(value);
    set_signal_mask(before)?;
    let pid = Pid(created? as c_int);
    // SAFETY: with CLONE_PIDFD the kernel has created this descriptor for us.
    Ok(Stub { pid, handle: unsafe { OwnedFd::from_raw_fd(number) } })
}

/// Replaces this thread's whole signal mask, the C library's two private signals included; yields the old one.
fn set_signal_mask(mask: u64) -> Result<u64, Errno> {
    let mut before: u64 = 0;
    // SAFETY: the kernel reads 8 bytes from `mask` and writes 8 to `before`.
    answer(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &mask, &mut before, 8usize) })?;
    Ok(before)
}

fn child_waits(fate: OnParentDeath, creator: c_int) -> Infallible {
    if fate == OnParentDeath::Die {
        call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as c_long, libc::SIGKILL as c_long, 0, 0]);
        // The creator may have died before the line above, which then asks for the death of whoever adopted us.
        let parent = call(libc::SYS_getppid, [0; 4]);
        // 0: a parent outside our pid namespace, which is the creator too.
        if parent != c_long::from(creator) && parent != 0 {
            exit(0);
        }
    }
    loop {
        call(libc::SYS_ppoll, [0; 4]);
    }
}

/// Ends this process at once, running nothing.
pub(super) fn exit(status: c_int) -> Infallible {
    loop {
        call(libc::SYS_exit_group, [c_long::from(status), 0, 0, 0]);
    }
}

/// A system call by number that touches neither errno nor the stack: for children between clone and exit.
#[cfg(target_arch = "x86_64")]
fn call(number: c_long, args: [c_long; 4]) -> c_long {
    let value;
    // SAFETY: the callers in this file pass numbers and null pointers only; the kernel clobbers rcx and r11.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number => value, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") 8, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    value
}

/// A system call by number that touches neither errno nor the stack: for children between clone and exit.
#[cfg(target_arch = "aarch64")]
fn call(number: c_long, args: [c_long; 4]) -> c_long {
    let value;
    // SAFETY: the callers in this file pass numbers and null pointers only.
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") args[0] => value, in("x1") args[1], in("x2") args[2],
            in("x3") args[3], in("x4") 8, options(nostack));
    }
    value
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::{pidfd_poll, pidfd_send_signal, wait4};
    use super::*;

    fn end(stub: &Stub) {
        pidfd_send_signal(stub.handle.as_fd(), libc::SIGKILL).unwrap();
        let (tid, status) = wait4(stub.pid, 0).unwrap().unwrap();
        assert_eq!((tid.0, status), (stub.pid.0, libc::SIGKILL));
    }

    #[test]
    fn a_stub_waits_until_it_is_killed() {
        for fate in [OnParentDeath::Stay, OnParentDeath::Die] {
            let stub = clone_with_pid(StubPid::Any, libc::SIGCHLD, fate).unwrap();
            pidfd_send_signal(stub.handle.as_fd(), libc::SIGTERM).unwrap();
            assert!(!pidfd_poll(stub.handle.as_fd(), 20).unwrap());
            end(&stub);
            assert!(pidfd_poll(stub.handle.as_fd(), -1).unwrap());
        }
    }

    #[test]
    fn a_chosen_pid_is_given_or_refused() {
        let me = Pid(std::process::id() as i32);
        let taken = clone_with_pid(StubPid::Exactly(me), 0, OnParentDeath::Stay);
        assert!(matches!(taken, Err(Errno::EEXIST | Errno::EPERM)), "{taken:?}");
        let free =
            (20_000..30_000).map(Pid).find(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()).unwrap();
        match clone_with_pid(StubPid::Exactly(free), 0, OnParentDeath::Die) {
            Ok(stub) => {
                assert_eq!(stub.pid, free);
                end(&stub);
            }
            Err(errno) => assert!(matches!(errno, Errno::EPERM | Errno::EINVAL | Errno::EEXIST), "{errno}"),
        }
    }
}
