//! fcntl(2) requests that nix does not wrap: the owner of a description.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// The kernel's `struct f_owner_ex`.
#[repr(C)]
struct OwnerEx {
    kind: i32,
    pid: i32,
}

const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_GETOWNER_UIDS: i32 = 17;

/// F_GETOWN_EX: the kind (0 thread, 1 process, 2 group) and the number, 0 where there is none.
pub fn owner(fd: BorrowedFd<'_>) -> Result<(i32, i32), Errno> {
    let mut owner = OwnerEx { kind: 0, pid: 0 };
    // SAFETY: the kernel writes the two numbers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) })?;
    Ok((owner.kind, owner.pid))
}

/// F_SETOWN_EX.
pub fn set_owner(fd: BorrowedFd<'_>, kind: i32, pid: i32) -> Result<(), Errno> {
    let owner = OwnerEx { kind, pid };
    // SAFETY: the kernel reads the two numbers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) }).map(drop)
}

/// F_GETSIG: the signal that the owner gets, 0 for SIGIO without information.
pub fn owner_signal(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    // SAFETY: takes no pointer.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })
}

/// F_SETSIG.
pub fn set_owner_signal(fd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

/// F_GETOWNER_UIDS: the real and effective user ids of who set the owner. EINVAL on kernels without checkpoint support.
pub fn owner_ids(fd: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    let mut ids = [0u32; 2];
    // SAFETY: the kernel writes the two numbers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWNER_UIDS, &raw mut ids) })?;
    Ok((ids[0], ids[1]))
}

/// Makes a call with other real and effective user ids of this thread alone, and takes ours back.
pub fn as_user<T>(ids: Option<(u32, u32)>, call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let now = (nix::unistd::getuid().as_raw(), nix::unistd::geteuid().as_raw());
    let Some(ids) = ids.filter(|ids| *ids != now) else { return call() };
    set_ids(ids)?;
    let result = call();
    set_ids(now)?;
    result
}

/// The raw call: the C library's would change all threads. The saved id stays, so that the way back is open.
fn set_ids((real, effective): (u32, u32)) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, real, effective, -1) }).map(drop)
}
