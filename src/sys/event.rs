//! Descriptors that tell of events: eventfd, timerfd, signalfd, epoll, inotify. What nix does not wrap.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::process::KcmpType;
use crate::ids::Tid;

/// Takes over a descriptor number that the kernel has just returned.
fn new_fd(value: i64) -> Result<OwnedFd, Errno> {
    let number = i32::try_from(Errno::result(value)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// eventfd2(2). `initial` has 32 bits: a larger counter is written.
pub fn eventfd(initial: u32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    new_fd(unsafe { libc::syscall(libc::SYS_eventfd2, initial, flags) })
}

/// signalfd4(2) for a new descriptor; bit n-1 of the mask is signal n.
pub fn signalfd(mask: u64, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads the 8 bytes of the mask.
    new_fd(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8usize, flags) })
}

/// epoll_create1(2).
pub fn epoll() -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    new_fd(unsafe { libc::syscall(libc::SYS_epoll_create1, libc::EPOLL_CLOEXEC) })
}

/// inotify_init1(2).
pub fn inotify() -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    new_fd(unsafe { libc::syscall(libc::SYS_inotify_init1, libc::IN_CLOEXEC) })
}

/// inotify_add_watch(2): the number of the watch, which may be one that was there.
pub fn inotify_add(fd: BorrowedFd<'_>, path: &Path, mask: u32) -> Result<i32, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads a string that ends with NUL.
    Errno::result(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })
}

/// inotify_rm_watch(2); the instance gets IN_IGNORED.
pub fn inotify_remove(fd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::inotify_rm_watch(fd.as_raw_fd(), number) }).map(drop)
}

/// timerfd_create(2).
pub fn timerfd(clock: i32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    new_fd(unsafe { libc::syscall(libc::SYS_timerfd_create, clock, flags) })
}

/// Seconds and nanoseconds.
pub type Time = (i64, i64);

/// timerfd_settime(2): the time to the first expiry (or with TFD_TIMER_ABSTIME that of it), and the interval.
pub fn timerfd_set(fd: BorrowedFd<'_>, flags: i32, value: Time, interval: Time) -> Result<(), Errno> {
    let time = |(tv_sec, tv_nsec): Time| libc::timespec { tv_sec, tv_nsec };
    let new = libc::itimerspec { it_interval: time(interval), it_value: time(value) };
    // SAFETY: the kernel reads one itimerspec and writes nothing.
    Errno::result(unsafe {
        libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const new, std::ptr::null_mut::<libc::itimerspec>())
    })
    .map(drop)
}

/// timerfd_gettime(2), for its effect: it counts what has expired and starts an interval timer again that has (fs/timerfd.c).
pub fn timerfd_advance(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut now = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: the kernel writes one itimerspec.
    Errno::result(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut now) }).map(drop)
}

/// TFD_IOC_SET_TICKS: expiries that have not been read yet. ENOTTY without CONFIG_CHECKPOINT_RESTORE.
pub fn timerfd_set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> Result<(), Errno> {
    const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
    // SAFETY: the kernel reads 8 bytes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) }).map(drop)
}

/// Nanoseconds of a clock.
pub fn clock_ns(clock: i32) -> Result<i64, Errno> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    Errno::result(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    Ok(time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec))
}

/// Which entry of an epoll instance: of those under one number, the one in this place of fdinfo's order.
#[derive(Debug, Clone, Copy)]
pub struct EpollEntry {
    pub instance: i32,
    pub number: i32,
    pub place: u32,
}

/// Whether descriptor `fd` of `a` is what an entry of an epoll instance of `b` watches. kcmp(2) with KCMP_EPOLL_TFD, Linux 4.13.
pub fn is_watched(a: Tid, fd: i32, b: Tid, entry: EpollEntry) -> Result<bool, Errno> {
    let slot = [entry.instance as u32, entry.number as u32, entry.place];
    super::process::kcmp(a, b, KcmpType::EpollTfd, fd as u64, (&raw const slot) as u64).map(|order| order.is_eq())
}
