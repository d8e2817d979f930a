//! Calls that read one scheduling or limit attribute of another task from outside, and one that sets our own.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{c_int, c_long, c_uint};

use super::answer;
use crate::error::Errno;
use crate::ids::{Pid, RemoteAddr, Tid};

/// The head of a thread's robust futex list and its length in bytes (0 address: none registered).
///
/// EPERM: no ptrace access. get_robust_list(2), kernel/futex/syscalls.c, Linux 2.6.17.
pub fn get_robust_list(tid: Tid) -> Result<(RemoteAddr, usize), Errno> {
    let mut head: u64 = 0;
    let mut len: usize = 0;
    // SAFETY: the kernel writes one pointer to `head` and one size to `len`.
    answer(unsafe { libc::syscall(libc::SYS_get_robust_list, tid.0, &mut head, &mut len) })?;
    Ok((RemoteAddr(head), len))
}

/// The processors that a thread may run on, as the kernel's bit mask in bytes, lowest processor first.
///
/// sched_getaffinity(2), kernel/sched/syscalls.c.
pub fn sched_getaffinity(tid: Tid) -> Result<Vec<u8>, Errno> {
    let mut mask = vec![0u64; 1024];
    let bytes = mask.len() * size_of::<u64>();
    // SAFETY: the kernel writes at most `bytes` bytes to `mask` and returns how many.
    let written = answer(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid.0, bytes, mask.as_mut_ptr()) })?;
    let mut mask: Vec<u8> = mask.iter().flat_map(|word| word.to_le_bytes()).collect();
    mask.truncate(written as usize);
    Ok(mask)
}

/// Sets the processors that the calling thread may run on, a mask as [`sched_getaffinity`] gives it; bits of processors that it must not use anyway are
/// ignored. EINVAL: none is left.
///
/// sched_setaffinity(2), kernel/sched/syscalls.c.
pub fn sched_setaffinity(mask: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads the mask's bytes.
    answer(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, mask.len(), mask.as_ptr()) }).map(drop)
}

/// The processor that the calling thread is on at this moment. getcpu(2).
pub fn current_processor() -> Option<usize> {
    // SAFETY: no pointers are passed.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// The kernel's `struct sched_attr` (include/uapi/linux/sched/types.h), version 1.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    pub size: u32,
    /// SCHED_OTHER 0, FIFO 1, RR 2, BATCH 3, IDLE 5, DEADLINE 6, EXT 7.
    pub policy: u32,
    pub flags: u64,
    /// -20 to 19; for the non-realtime policies.
    pub nice: i32,
    /// 1 to 99; for FIFO and RR.
    pub priority: u32,
    /// Nanoseconds; for DEADLINE, and since 6.12 the slice of the fair class.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

const _: () = assert!(size_of::<SchedAttr>() == 56);

/// Scheduling policy and parameters of a thread. sched_getattr(2), Linux 3.14; the two clamps 5.3.
pub fn sched_getattr(tid: Tid) -> Result<SchedAttr, Errno> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>() as c_uint;
    // SAFETY: the kernel writes at most `size` bytes to `attr`.
    answer(unsafe { libc::syscall(libc::SYS_sched_getattr, tid.0, &mut attr, size, 0) })?;
    Ok(attr)
}

/// The nice value of a thread, -20 to 19. getpriority(2); the raw call yields 20 - nice.
pub fn getpriority(tid: Tid) -> Result<i32, Errno> {
    // SAFETY: no pointers are passed.
    let value = answer(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS as c_int, tid.0) })?;
    Ok(20 - value as i32)
}

/// The raw I/O priority of a thread: class in the bits from 13 up, level below. ioprio_get(2), block/ioprio.c, Linux 2.6.13.
pub fn ioprio_get(tid: Tid) -> Result<u32, Errno> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    // SAFETY: no pointers are passed.
    let value = answer(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.0) })?;
    Ok(value as u32)
}

/// The cookie of a thread that shares its core with threads of the same cookie only; 0 for none.
///
/// EINVAL: no CONFIG_SCHED_CORE; ENODEV: no threads on a core. prctl(2), PR_SCHED_CORE, Linux 5.14.
pub fn core_sched_cookie(tid: Tid) -> Result<u64, Errno> {
    const PR_SCHED_CORE: c_int = 62;
    const PR_SCHED_CORE_GET: c_int = 0;
    const PIDTYPE_PID: c_int = 0;
    let mut cookie: u64 = 0;
    // SAFETY: the kernel writes one u64 to `cookie`.
    let value = unsafe { libc::prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, tid.0, PIDTYPE_PID, &mut cookie) };
    Errno::result(value)?;
    Ok(cookie)
}

/// One resource limit of a process, in the resource's own unit; `u64::MAX` is infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    pub soft: u64,
    pub hard: u64,
}

/// The limit `resource` (0 to 15) of a process.
///
/// EPERM: all of its uids and gids must be our real ones, else CAP_SYS_RESOURCE. prlimit(2), kernel/sys.c, Linux 2.6.36.
pub fn prlimit(pid: Pid, resource: u32) -> Result<Rlimit, Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let new = std::ptr::null::<libc::rlimit64>();
    // SAFETY: no new limit is given; the kernel writes one rlimit64 to `limit`.
    let value: c_long = unsafe { libc::syscall(libc::SYS_prlimit64, pid.0, resource, new, &mut limit) };
    answer(value)?;
    Ok(Rlimit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// An extended attribute of the file that a path leads to, at most 256 bytes. getxattr(2).
pub fn getxattr(path: &Path, name: &CStr) -> Result<Vec<u8>, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut value = vec![0u8; 256];
    // SAFETY: path and name are terminated strings; the kernel writes at most `value.len()` bytes to `value`.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(Errno::result(len)? as usize);
    Ok(value)
}

/// Whether a file has extended attributes that its user could see, the labels of security modules apart. listxattr(2).
pub fn has_attributes(path: &Path) -> Result<bool, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut names = vec![0u8; 65536];
    // SAFETY: the path is a terminated string; the kernel writes at most `names.len()` bytes to `names`.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let len = Errno::result(len)? as usize;
    let labels: [&[u8]; 4] = [b"", b"security.selinux", b"security.SMACK64", b"security.apparmor"];
    Ok(names[..len].split(|byte| *byte == 0).any(|name| !labels.contains(&name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_this_process_are_readable() {
        let pid = Pid(std::process::id() as i32);
        let tid = Tid::from(pid);
        let (head, len) = get_robust_list(tid).unwrap();
        assert!(head.0 == 0 || len == 24);
        assert!(sched_getaffinity(tid).unwrap().iter().any(|byte| *byte != 0));
        assert_eq!(sched_getattr(tid).unwrap().nice, getpriority(tid).unwrap());
        assert!(ioprio_get(tid).unwrap() >> 13 <= 3);
        let limit = prlimit(pid, libc::RLIMIT_NOFILE).unwrap();
        assert!(limit.soft > 0 && limit.soft <= limit.hard);
        assert_eq!(getpriority(Tid(i32::MAX)), Err(Errno::ESRCH));
    }
}
