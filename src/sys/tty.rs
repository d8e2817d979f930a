//! One function per terminal ioctl, with the request numbers and the kernel's structs.
//!
//! Source: ioctl_tty(2); include/uapi/asm-generic/{ioctls,termbits}.h, drivers/tty/{tty_io,tty_ioctl,tty_jobctrl,pty}.c. Every
//! function returns the kernel's errno: ENOTTY on what is no terminal, EIO on a terminal that was hung up.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::Errno;

type Result<T> = std::result::Result<T, Errno>;

/// Slots of control characters in the kernel's structs (x86: 19; the C library has 32).
pub const NCCS: usize = 19;

pub const TCXONC: u64 = 0x540a;
pub const TCFLSH: u64 = 0x540b;
pub const TIOCEXCL: u64 = 0x540c;
pub const TIOCNXCL: u64 = 0x540d;
pub const TIOCSCTTY: u64 = 0x540e;
pub const TIOCGPGRP: u64 = 0x540f;
pub const TIOCSPGRP: u64 = 0x5410;
pub const TIOCOUTQ: u64 = 0x5411;
pub const TIOCSTI: u64 = 0x5412;
pub const TIOCGWINSZ: u64 = 0x5413;
pub const TIOCSWINSZ: u64 = 0x5414;
pub const FIONREAD: u64 = 0x541b;
pub const TIOCPKT: u64 = 0x5420;
pub const TIOCNOTTY: u64 = 0x5422;
pub const TIOCSETD: u64 = 0x5423;
pub const TIOCGETD: u64 = 0x5424;
pub const TIOCGSID: u64 = 0x5429;
pub const TCGETS2: u64 = 0x802c_542a;
pub const TCSETS2: u64 = 0x402c_542b;
pub const TIOCGPTN: u64 = 0x8004_5430;
pub const TIOCSPTLCK: u64 = 0x4004_5431;
pub const TIOCGDEV: u64 = 0x8004_5432;
pub const TIOCGPKT: u64 = 0x8004_5438;
pub const TIOCGPTLCK: u64 = 0x8004_5439;
pub const TIOCGEXCL: u64 = 0x8004_5440;
pub const TIOCGPTPEER: u64 = 0x5441;
pub const TIOCMGET: u64 = 0x5415;
pub const TIOCMSET: u64 = 0x5418;
pub const TIOCGLCKTRMIOS: u64 = 0x5456;
pub const TIOCSLCKTRMIOS: u64 = 0x5457;

// ioctl_console(2): include/uapi/linux/{kd,vt}.h.
pub const KDSETMODE: u64 = 0x4b3a;
pub const KDGETMODE: u64 = 0x4b3b;
pub const KDGKBMODE: u64 = 0x4b44;
pub const KDSKBMODE: u64 = 0x4b45;
pub const KDGKBMETA: u64 = 0x4b62;
pub const KDSKBMETA: u64 = 0x4b63;
pub const KDGKBLED: u64 = 0x4b64;
pub const KDSKBLED: u64 = 0x4b65;
pub const VT_GETMODE: u64 = 0x5601;

/// [`xonc`]: stop the output of this side.
pub const TCOOFF: i32 = 0;
/// [`xonc`]: restart output that [`TCOOFF`] stopped.
pub const TCOON: i32 = 1;
/// [`xonc`]: send a STOP character.
pub const TCIOFF: i32 = 2;
/// [`xonc`]: send a START character.
pub const TCION: i32 = 3;
/// [`flush`]: discard unread input.
pub const TCIFLUSH: i32 = 0;
/// [`flush`]: discard output that was not taken yet.
pub const TCOFLUSH: i32 = 1;
/// [`flush`]: both.
pub const TCIOFLUSH: i32 = 2;

/// The kernel's `struct termios2`: raw flag words, so that unknown bits survive; speeds in bit/s.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Termios2 {
    pub c_iflag: u32,
    pub c_oflag: u32,
    pub c_cflag: u32,
    pub c_lflag: u32,
    pub c_line: u8,
    pub c_cc: [u8; NCCS],
    pub c_ispeed: u32,
    pub c_ospeed: u32,
}

/// The kernel's `struct termios`, without speeds: as a mask, a set bit is a setting that is locked.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LockedTermios {
    pub c_iflag: u32,
    pub c_oflag: u32,
    pub c_cflag: u32,
    pub c_lflag: u32,
    pub c_line: u8,
    pub c_cc: [u8; NCCS],
}

/// `struct winsize`: characters, then pixels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WinSize {
    pub ws_row: u16,
    pub ws_col: u16,
    pub ws_xpixel: u16,
    pub ws_ypixel: u16,
}

const _: () = {
    assert!(size_of::<Termios2>() == 44);
    assert!(size_of::<LockedTermios>() == 36);
    assert!(size_of::<WinSize>() == 8);
};

/// A request whose argument is a number, not an address.
fn with_number(fd: BorrowedFd<'_>, request: u64, argument: i32) -> Result<i32> {
    // SAFETY: the requests that come here take a number, so the kernel reads and writes none of our memory.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, i64::from(argument)) })
}

/// A request that fills a `T`.
fn fetch<T: Copy>(fd: BorrowedFd<'_>, request: u64, mut value: T) -> Result<T> {
    // SAFETY: `value` is ours, and the private callers pass the type whose size the kernel writes for the request.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

/// A request that reads a `T`.
fn store<T>(fd: BorrowedFd<'_>, request: u64, value: &T) -> Result<()> {
    // SAFETY: the kernel only reads, and the private callers pass the type whose size it reads for the request.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, value as *const T) }).map(drop)
}

/// The settings with the true speeds. On a master these are the slave's.
pub fn get_termios(fd: BorrowedFd<'_>) -> Result<Termios2> {
    fetch(fd, TCGETS2, Termios2::default())
}

/// Sets the settings now, without draining or flushing. SIGTTOU stops a background caller that does not block it.
pub fn set_termios(fd: BorrowedFd<'_>, termios: &Termios2) -> Result<()> {
    store(fd, TCSETS2, termios)
}

/// Which settings are locked.
pub fn get_locked(fd: BorrowedFd<'_>) -> Result<LockedTermios> {
    fetch(fd, TIOCGLCKTRMIOS, LockedTermios::default())
}

/// Locks settings; needs CAP_SYS_ADMIN (Linux 6.9: or CAP_CHECKPOINT_RESTORE), else EPERM.
pub fn set_locked(fd: BorrowedFd<'_>, locked: &LockedTermios) -> Result<()> {
    store(fd, TIOCSLCKTRMIOS, locked)
}

pub fn get_winsize(fd: BorrowedFd<'_>) -> Result<WinSize> {
    fetch(fd, TIOCGWINSZ, WinSize::default())
}

/// Sets the window size; a change sends SIGWINCH to the foreground process group.
pub fn set_winsize(fd: BorrowedFd<'_>, size: &WinSize) -> Result<()> {
    store(fd, TIOCSWINSZ, size)
}

/// The session whose controlling terminal this is. ENOTTY where it is nobody's, or on a slave that is not the caller's.
pub fn get_session(fd: BorrowedFd<'_>) -> Result<i32> {
    fetch(fd, TIOCGSID, 0)
}

/// The foreground process group; 0 where there is none. ENOTTY on a slave that is not the caller's controlling terminal.
pub fn get_foreground(fd: BorrowedFd<'_>) -> Result<i32> {
    fetch(fd, TIOCGPGRP, 0)
}

/// Sets the foreground process group, one of the caller's session (EPERM otherwise).
pub fn set_foreground(fd: BorrowedFd<'_>, pgid: i32) -> Result<()> {
    store(fd, TIOCSPGRP, &pgid)
}

/// The index N of a master's /dev/pts/N. ENOTTY on a slave.
pub fn get_index(fd: BorrowedFd<'_>) -> Result<u32> {
    fetch(fd, TIOCGPTN, 0)
}

/// Whether the slave of this master is locked against opening.
pub fn get_lock(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(fetch(fd, TIOCGPTLCK, 0i32)? != 0)
}

/// Locks or unlocks the slave of this master.
pub fn set_lock(fd: BorrowedFd<'_>, locked: bool) -> Result<()> {
    store(fd, TIOCSPTLCK, &i32::from(locked))
}

/// Whether this side is in exclusive mode.
pub fn get_exclusive(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(fetch(fd, TIOCGEXCL, 0i32)? != 0)
}

/// Refuses further opens of this side, except by CAP_SYS_ADMIN.
pub fn set_exclusive(fd: BorrowedFd<'_>) -> Result<()> {
    with_number(fd, TIOCEXCL, 0).map(drop)
}

/// Takes [`set_exclusive`] back.
pub fn clear_exclusive(fd: BorrowedFd<'_>) -> Result<()> {
    with_number(fd, TIOCNXCL, 0).map(drop)
}

/// Whether a master is in packet mode. ENOTTY on a slave.
pub fn get_packet(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(fetch(fd, TIOCGPKT, 0i32)? != 0)
}

/// Switches a master's packet mode; going from off to on forgets the pending status byte.
pub fn set_packet(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    store(fd, TIOCPKT, &i32::from(on))
}

/// The number of the line discipline; 0 is N_TTY.
pub fn get_discipline(fd: BorrowedFd<'_>) -> Result<i32> {
    fetch(fd, TIOCGETD, 0)
}

/// Sets the line discipline, which discards the input queue.
pub fn set_discipline(fd: BorrowedFd<'_>, number: i32) -> Result<()> {
    store(fd, TIOCSETD, &number)
}

/// A new descriptor (close-on-exec) for the slave of this master, through no path. Linux 4.13. EIO while it is locked, EBUSY where it is
/// exclusive and CAP_SYS_ADMIN is missing.
pub fn open_peer(master: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    open_peer_as(master, flags | libc::O_CLOEXEC)
}

/// The same with exactly these flags: the kernel keeps O_CLOEXEC among those of the description, where F_GETFL shows it.
pub fn open_peer_as(master: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let fd = with_number(master, TIOCGPTPEER, flags)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The device number of the terminal, in the kernel's 32-bit encoding; what /dev/tty or /dev/console stands for.
pub fn get_device(fd: BorrowedFd<'_>) -> Result<u32> {
    fetch(fd, TIOCGDEV, 0)
}

/// Bytes that a read would give: raw, all that the line buffer has; canonical, those of complete lines, EOF marks not counted.
pub fn unread(fd: BorrowedFd<'_>) -> Result<i32> {
    fetch(fd, FIONREAD, 0)
}

/// Bytes in the driver's output buffer; always 0 on a pty.
pub fn unsent(fd: BorrowedFd<'_>) -> Result<i32> {
    fetch(fd, TIOCOUTQ, 0)
}

/// Stops or starts the flow: one of [`TCOOFF`], [`TCOON`], [`TCIOFF`], [`TCION`].
pub fn xonc(fd: BorrowedFd<'_>, action: i32) -> Result<()> {
    with_number(fd, TCXONC, action).map(drop)
}

/// Discards queues: one of [`TCIFLUSH`], [`TCOFLUSH`], [`TCIOFLUSH`].
pub fn flush(fd: BorrowedFd<'_>, queue: i32) -> Result<()> {
    with_number(fd, TCFLSH, queue).map(drop)
}

/// Makes this the controlling terminal of the caller, a session leader without one.
pub fn take_controlling(fd: BorrowedFd<'_>) -> Result<()> {
    with_number(fd, TIOCSCTTY, 0).map(drop)
}

/// Gives up the controlling terminal; from a session leader it also sends SIGHUP and SIGCONT to the foreground process group.
pub fn give_up_controlling(fd: BorrowedFd<'_>) -> Result<()> {
    with_number(fd, TIOCNOTTY, 0).map(drop)
}

/// Puts one byte into the input as if it had been typed. EPERM on another's terminal without CAP_SYS_ADMIN; EIO where
/// dev.tty.legacy_tiocsti is 0 (Linux 6.2) and CAP_SYS_ADMIN is missing.
pub fn simulate_input(fd: BorrowedFd<'_>, byte: u8) -> Result<()> {
    store(fd, TIOCSTI, &byte)
}

/// The TIOCM_ bits of a serial line.
pub fn get_modem(fd: BorrowedFd<'_>) -> Result<u32> {
    fetch(fd, TIOCMGET, 0u32)
}

/// Sets those of the TIOCM_ bits that are outputs.
pub fn set_modem(fd: BorrowedFd<'_>, bits: u32) -> Result<()> {
    store(fd, TIOCMSET, &bits)
}

/// One of the KDS requests, whose argument is a number. EPERM: needs the console as controlling terminal, or CAP_SYS_TTY_CONFIG.
pub fn set_console(fd: BorrowedFd<'_>, request: u64, value: i32) -> Result<()> {
    with_number(fd, request, value).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let master = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY).unwrap();
        let master: OwnedFd = master.into();
        set_lock(master.as_fd(), false).unwrap();
        let slave = open_peer(master.as_fd(), libc::O_RDWR | libc::O_NOCTTY).unwrap();
        (master, slave)
    }

    #[test]
    fn settings_come_back() {
        let (master, slave) = pair();
        let mut termios = get_termios(slave.as_fd()).unwrap();
        termios.c_cflag = termios.c_cflag & !libc::CBAUD | libc::BOTHER;
        (termios.c_ispeed, termios.c_ospeed) = (12345, 12345);
        set_termios(slave.as_fd(), &termios).unwrap();
        assert_eq!(get_termios(slave.as_fd()).unwrap().c_ospeed, 12345);
        let size = WinSize { ws_row: 7, ws_col: 9, ws_xpixel: 1, ws_ypixel: 2 };
        set_winsize(slave.as_fd(), &size).unwrap();
        assert_eq!(get_winsize(master.as_fd()).unwrap(), size);
        assert_eq!(get_locked(slave.as_fd()).unwrap(), LockedTermios::default());
        assert_eq!(get_discipline(slave.as_fd()).unwrap(), 0);
        let index = get_index(master.as_fd()).unwrap();
        assert_eq!(get_device(slave.as_fd()).unwrap() & 0xff, index & 0xff);
        assert_eq!(get_index(slave.as_fd()), Err(Errno::ENOTTY));
    }

    #[test]
    fn flags_come_back() {
        let (master, slave) = pair();
        for on in [true, false] {
            set_packet(master.as_fd(), on).unwrap();
            assert_eq!(get_packet(master.as_fd()).unwrap(), on);
            set_lock(master.as_fd(), on).unwrap();
            assert_eq!(get_lock(master.as_fd()).unwrap(), on);
        }
        set_exclusive(slave.as_fd()).unwrap();
        assert!(get_exclusive(slave.as_fd()).unwrap());
        clear_exclusive(slave.as_fd()).unwrap();
        assert!(!get_exclusive(slave.as_fd()).unwrap());
        assert_eq!(unread(slave.as_fd()).unwrap(), 0);
        assert_eq!(unsent(slave.as_fd()).unwrap(), 0);
        assert_eq!(get_session(master.as_fd()), Err(Errno::ENOTTY));
    }
}
