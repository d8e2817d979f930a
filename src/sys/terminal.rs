//! What the relay asks of its two terminals and of the session's root: settings, size, exit.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::Errno;
use crate::ids::Pid;

/// The kernel's `struct termios2` (asm-generic/termbits.h): flag words are kept raw, speeds are in bits per second.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Termios2 {
    pub c_iflag: u32,
    pub c_oflag: u32,
    pub c_cflag: u32,
    pub c_lflag: u32,
    pub c_line: u8,
    pub c_cc: [u8; 19],
    pub c_ispeed: u32,
    pub c_ospeed: u32,
}

const _: () = assert!(size_of::<Termios2>() == 44);

/// The kernel's `struct winsize`: rows and columns of characters, and the pixels of the whole window (0 where unknown).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Winsize {
    pub ws_row: u16,
    pub ws_col: u16,
    pub ws_xpixel: u16,
    pub ws_ypixel: u16,
}

const _: () = assert!(size_of::<Winsize>() == 8);

/// How a waited-for process ended: `si_code` and `si_status` of waitid(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitedExit {
    pub code: i32,
    pub status: i32,
}

/// The settings of a terminal (TCGETS2). ENOTTY where `fd` is not one.
pub fn tcgets2(fd: BorrowedFd<'_>) -> Result<Termios2, Errno> {
    let mut termios = Termios2::default();
    // SAFETY: `termios` is ours and has the layout that TCGETS2 fills completely.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TCGETS2, &raw mut termios) })?;
    Ok(termios)
}

/// Sets a terminal at once (TCSETS2): pending input and output stay.
pub fn tcsets2(fd: BorrowedFd<'_>, termios: &Termios2) -> Result<(), Errno> {
    // SAFETY: the kernel only reads `termios`, which has the layout that TCSETS2 expects.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TCSETS2, &raw const *termios) }).map(drop)
}

/// The window size of a terminal (TIOCGWINSZ).
pub fn tiocgwinsz(fd: BorrowedFd<'_>) -> Result<Winsize, Errno> {
    let mut size = Winsize::default();
    // SAFETY: `size` is ours and has the layout that TIOCGWINSZ fills completely.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(size)
}

/// Sets the window size (TIOCSWINSZ); a change sends SIGWINCH to the foreground process group.
pub fn tiocswinsz(fd: BorrowedFd<'_>, size: &Winsize) -> Result<(), Errno> {
    // SAFETY: the kernel only reads `size`, which has the layout that TIOCSWINSZ expects.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const *size) }).map(drop)
}

/// A pidfd, close-on-exec (pidfd_open(2), Linux 5.3).
pub fn pidfd_of(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two numbers and no memory.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) })?;
    // SAFETY: the kernel just made this descriptor, and nobody else knows its number.
    i32::try_from(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).map_err(|_| Errno::EBADF)
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
