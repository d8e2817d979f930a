//! Calls about whole processes: handles (pidfd), comparing what two of them share, their memory, creation, waiting.

pub mod attributes;
pub mod errand;
pub mod files;
pub mod probe;
pub mod stub;

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long, c_ulong};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::error::Errno;
use crate::ids::{Pid, RemoteAddr, RemoteFd, Tid};

/// The value of a `libc::syscall`, or its errno.
fn answer(value: c_long) -> Result<c_long, Errno> {
    Errno::result(value)
}

/// Takes over a descriptor number that the kernel has just returned.
fn new_fd(value: c_long) -> Result<OwnedFd, Errno> {
    let number = c_int::try_from(answer(value)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created this descriptor for us and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A close-on-exec handle on the process `pid`, which pins it against reuse of the number.
///
/// ESRCH: no such process; EINVAL: `pid` is a thread, not a leader. pidfd_open(2), kernel/pid.c, Linux 5.3.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers are passed.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) })
}

/// As [`pidfd_open`], of any thread: it tells of the thread's end, and its signals go to the thread.
///
/// EINVAL: the kernel has no such handles. pidfd_open(2), PIDFD_THREAD, Linux 6.9.
pub fn pidfd_open_thread(tid: Tid) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers are passed.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, tid.0, libc::O_EXCL) })
}

/// Our own descriptor, close-on-exec, for the open file description behind `fd` of the process.
///
/// EPERM: no ptrace access; EBADF: no such descriptor; ESRCH: the process is gone. pidfd_getfd(2), kernel/pid.c, Linux 5.6.
pub fn pidfd_getfd(process: BorrowedFd<'_>, fd: RemoteFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers are passed.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd.0, 0) })
}

/// Sends `signal` (0: only asks whether that is possible) to the process behind the handle.
///
/// ESRCH: it has been reaped; EPERM. pidfd_send_signal(2), kernel/signal.c, Linux 5.1.
pub fn pidfd_send_signal(process: BorrowedFd<'_>, signal: c_int) -> Result<(), Errno> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means the one that kill(2) builds.
    let value = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) };
    answer(value).map(drop)
}

/// Whether the process behind the handle has ended, waiting at most `timeout_ms` milliseconds (negative: for ever).
///
/// A pidfd polls readable once the whole thread group is dead, reaped or not. pidfd_open(2), Linux 5.3.
pub fn pidfd_poll(process: BorrowedFd<'_>, timeout_ms: c_int) -> Result<bool, Errno> {
    let timeout = PollTimeout::try_from(timeout_ms).unwrap_or(PollTimeout::NONE);
    let mut slots = [PollFd::new(process, PollFlags::POLLIN)];
    loop {
        match nix::poll::poll(&mut slots, timeout) {
            Err(Errno::EINTR) => continue,
            result => return result.map(|ready| ready > 0),
        }
    }
}

/// What [`kcmp`] compares; `File` compares the open file descriptions of two descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KcmpType {
    File = 0,
    Vm = 1,
    Files = 2,
    Fs = 3,
    Sighand = 4,
    Io = 5,
    Sysvsem = 6,
    EpollTfd = 7,
}

/// How two kernel objects relate. `Less` and `Greater` are a total order that holds while the system is up.
///
/// Two threads of one comparison that have no such object at all (`Io` before any ionice) count as `Equal`.
/// EPERM: no ptrace access to both; EBADF: no such descriptor; ENOSYS: a kernel without CONFIG_KCMP. kcmp(2),
/// kernel/kcmp.c, Linux 3.5.
pub fn kcmp(a: Tid, b: Tid, kind: KcmpType, index_a: u64, index_b: u64) -> Result<std::cmp::Ordering, Errno> {
    use std::cmp::Ordering;
    // SAFETY: the two indexes are numbers for every kind but EpollTfd, where the second is a pointer that the kernel only reads.
    let value = answer(unsafe {
        libc::syscall(libc::SYS_kcmp, a.0, b.0, kind as c_int, index_a as c_ulong, index_b as c_ulong)
    })?;
    match value {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Some bytes of another process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteRange {
    pub addr: RemoteAddr,
    /// In bytes.
    pub len: usize,
}

fn remote_iovec(ranges: &[RemoteRange]) -> Vec<libc::iovec> {
    ranges.iter().map(|range| libc::iovec { iov_base: range.addr.0 as *mut libc::c_void, iov_len: range.len }).collect()
}

/// Copies the ranges (at most 1024) one after another into `buffer`; yields the number of bytes, which is short at the first
/// page that cannot be read.
///
/// EFAULT: not even the first byte; EPERM: no ptrace access; ESRCH. process_vm_readv(2), mm/process_vm_access.c, Linux 3.2.
pub fn process_vm_readv(pid: Pid, ranges: &[RemoteRange], buffer: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = remote_iovec(ranges);
    // SAFETY: the local vector is `buffer`, which we borrow mutably; remote addresses are checked by the kernel.
    let value = unsafe { libc::process_vm_readv(pid.0, &local, 1, remote.as_ptr(), remote.len() as c_ulong, 0) };
    Errno::result(value).map(|bytes| bytes as usize)
}

/// Copies `bytes` into the ranges (at most 1024) one after another; yields the number of bytes, which is short at the first
/// page that cannot be written.
///
/// Page protections are honoured, unlike with /proc/PID/mem. Errors as for [`process_vm_readv`].
pub fn process_vm_writev(pid: Pid, ranges: &[RemoteRange], bytes: &[u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = remote_iovec(ranges);
    // SAFETY: the kernel only reads the local vector, which is `bytes`; remote addresses are checked by the kernel.
    let value = unsafe { libc::process_vm_writev(pid.0, &local, 1, remote.as_ptr(), remote.len() as c_ulong, 0) };
    Errno::result(value).map(|bytes| bytes as usize)
}

/// Makes this process the parent that orphans below it get.
///
/// Ignores SIGCHLD, so that the kernel reaps our children by itself. wait(2), NOTES.
pub fn ignore_children() -> Result<(), Errno> {
    // SAFETY: no handler is installed.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(Errno::last()),
        _ => Ok(()),
    }
}

/// prctl(2) PR_SET_CHILD_SUBREAPER, kernel/sys.c, Linux 3.4. Not inherited by children.
pub fn become_subreaper() -> Result<(), Errno> {
    // SAFETY: no pointers are passed.
    let value = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1usize, 0usize, 0usize, 0usize) };
    answer(c_long::from(value)).map(drop)
}

/// An empty close-on-exec memory file. `flags` are the MFD_ bits beside MFD_CLOEXEC; `MFD_EXEC` is EINVAL before Linux 6.3.
///
/// EACCES: `vm.memfd_noexec` is 2 and an executable one was asked for. memfd_create(2), mm/memfd.c, Linux 3.17.
pub fn memfd_create(name: &CStr, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: `name` is a terminated string that the kernel reads.
    new_fd(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC | flags) })
}

/// The raw wait status of a child, whatever its exit signal (`__WALL`), or `None` where `options` has WNOHANG and nothing happened.
///
/// `pid` as in wait4(2): a pid, -1 for any, 0 or -pgid for a group. ECHILD: no such child or tracee. kernel/exit.c.
pub fn wait4(pid: Pid, options: c_int) -> Result<Option<(Tid, c_int)>, Errno> {
    let mut status: c_int = 0;
    loop {
        // SAFETY: the kernel writes one int to `status`; no rusage is asked for.
        let value = unsafe { libc::wait4(pid.0, &mut status, options | libc::__WALL, std::ptr::null_mut()) };
        match Errno::result(value) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(0) => return Ok(None),
            Ok(tid) => return Ok(Some((Tid(tid), status))),
        }
    }
}

/// What waitid(2) says about one child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildEvent {
    pub tid: Tid,
    /// CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_STOPPED, CLD_TRAPPED or CLD_CONTINUED.
    pub code: c_int,
    /// The exit status, the signal, or for a trace stop the signal with the event in the bits above 8.
    pub status: c_int,
}

/// The event of one child or tracee; `options` choose which (WEXITED, WSTOPPED, WNOWAIT, WNOHANG and so on), `__WALL` is added.
///
/// `None`: WNOHANG and nothing happened. ECHILD: no such child or tracee. waitid(2), kernel/exit.c; `__WALL` here since 4.7.
pub fn waitid(pid: Pid, options: c_int) -> Result<Option<ChildEvent>, Errno> {
    // SAFETY: siginfo_t is plain data, for which all zeros is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: the kernel writes one siginfo to `info`.
        let value = unsafe { libc::waitid(libc::P_PID, pid.0 as libc::id_t, &mut info, options | libc::__WALL) };
        match Errno::result(value) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(_) => break,
        }
    }
    // SAFETY: a siginfo that waitid filled in, or all zeros, has its SIGCHLD fields readable.
    let (tid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((tid != 0).then_some(ChildEvent { tid: Tid(tid), code: info.si_code, status }))
}

/// How a waited-for process ended: `si_code` and `si_status` of waitid(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitedExit {
    pub code: i32,
    pub status: i32,
}

/// Waits for the end of a child and reaps it (waitid(2) with P_PIDFD, Linux 5.4), whatever its exit signal. ECHILD where it is not our child.
pub fn wait_exit(pidfd: BorrowedFd<'_>) -> Result<WaitedExit, Errno> {
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    loop {
        // SAFETY: an all-zero siginfo is a valid one.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is ours, and the kernel fills its SIGCHLD fields.
        match Errno::result(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::__WALL) }) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            // SAFETY: after a successful waitid `info` holds a SIGCHLD, so the status field is set.
            Ok(_) => return Ok(WaitedExit { code: info.si_code, status: unsafe { info.si_status() } }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;
    use std::os::fd::{AsFd, AsRawFd};

    use super::*;

    fn me() -> Pid {
        Pid(std::process::id() as i32)
    }

    #[test]
    fn a_descriptor_fetched_through_a_pidfd_is_the_same_description() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let handle = pidfd_open(me()).unwrap();
        let copy = pidfd_getfd(handle.as_fd(), RemoteFd(file.as_raw_fd())).unwrap();
        let compare = |a: &OwnedFd, b: c_int| {
            kcmp(me().into(), me().into(), KcmpType::File, a.as_raw_fd() as u64, b as u64).unwrap()
        };
        assert_eq!(compare(&copy, file.as_raw_fd()), Ordering::Equal);
        assert_ne!(compare(&copy, handle.as_raw_fd()), Ordering::Equal);
        assert!(!pidfd_poll(handle.as_fd(), 0).unwrap());
        pidfd_send_signal(handle.as_fd(), 0).unwrap();
    }

    #[test]
    fn memory_is_copied_both_ways_through_a_range_list() {
        let source = *b"left--right";
        let mut target = [0u8; 9];
        let at =
            |offset: usize, len: usize| RemoteRange { addr: RemoteAddr(source.as_ptr() as u64 + offset as u64), len };
        assert_eq!(process_vm_readv(me(), &[at(0, 4), at(6, 5)], &mut target).unwrap(), 9);
        assert_eq!(&target, b"leftright");
        let whole = RemoteRange { addr: RemoteAddr(target.as_mut_ptr() as u64), len: 4 };
        assert_eq!(process_vm_writev(me(), &[whole], b"LEFT").unwrap(), 4);
        assert_eq!(
            process_vm_readv(me(), &[RemoteRange { addr: RemoteAddr(8), len: 1 }], &mut target),
            Err(Errno::EFAULT)
        );
    }

    #[test]
    fn no_such_process_is_esrch_and_no_such_child_is_echild() {
        assert_eq!(pidfd_open(Pid(i32::MAX)).unwrap_err(), Errno::ESRCH);
        assert_eq!(wait4(Pid(i32::MAX), libc::WNOHANG), Err(Errno::ECHILD));
        assert_eq!(waitid(Pid(i32::MAX), libc::WNOHANG | libc::WEXITED), Err(Errno::ECHILD));
    }
}
