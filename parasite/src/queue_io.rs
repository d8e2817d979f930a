//! The system calls that the queue operations need; negated errnos as errors.

use super::super::sys::syscall;
use super::Settings;

pub type Io<T> = Result<T, i64>;

pub const EAGAIN: i64 = -11;
pub const EBUSY: i64 = -16;
pub const EFAULT: i64 = -14;
pub const EIO: i64 = -5;
pub const EINVAL: i64 = -22;
pub const EBADF: i64 = -9;
pub const ENOBUFS: i64 = -105;
pub const EPERM: i64 = -1;

const READ: u64 = 0;
const WRITE: u64 = 1;
const OPEN: u64 = 2;
const CLOSE: u64 = 3;
const POLL: u64 = 7;
const IOCTL: u64 = 16;
const SCHED_YIELD: u64 = 24;
const FCNTL: u64 = 72;
const CLOCK_GETTIME: u64 = 228;
const PIDFD_OPEN: u64 = 434;
const PIDFD_GETFD: u64 = 438;

const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TCXONC: u64 = 0x540a;
const TCFLSH: u64 = 0x540b;
const TIOCEXCL: u64 = 0x540c;
const TIOCNXCL: u64 = 0x540d;
const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCSLCKTRMIOS: u64 = 0x5457;
const TIOCSTI: u64 = 0x5412;
const TIOCMGET: u64 = 0x5415;
const TIOCMSET: u64 = 0x5418;
const FIONREAD: u64 = 0x541b;
const TIOCPKT: u64 = 0x5420;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGPTPEER: u64 = 0x5441;

const OPEN_FLAGS: u64 = 0o2 | 0o400 | 0o4000 | 0o2_000_000;
const NONBLOCK: u64 = 0o4000;
const WRITE_ONLY: u64 = 1;
/// F_GETFL and F_SETFL.
const GETFL: u64 = 3;
const SETFL: u64 = 4;

pub const POLLIN: u16 = 1;
pub const POLLPRI: u16 = 2;
pub const POLLOUT: u16 = 4;

fn call(nr: u64, args: [u64; 6]) -> Io<u64> {
    loop {
        match syscall(nr, args) {
            -4 => {}
            result if result < 0 => return Err(result),
            result => return Ok(result as u64),
        }
    }
}

fn number(fd: i32) -> u64 {
    i64::from(fd) as u64
}

fn ioctl(fd: i32, request: u64, argument: u64) -> Io<u64> {
    call(IOCTL, [number(fd), request, argument, 0, 0, 0])
}

fn ioctl_get(fd: i32, request: u64) -> Io<u32> {
    let mut value = 0u32;
    ioctl(fd, request, &raw mut value as u64)?;
    // The kernel wrote behind the compiler's back, but the address has escaped into the system call.
    Ok(value)
}

fn ioctl_set(fd: i32, request: u64, value: u32) -> Io<()> {
    ioctl(fd, request, &raw const value as u64).map(drop)
}

/// Reads what is there; never blocks where the caller has polled.
pub fn read(fd: i32, into: &mut [u8]) -> Io<usize> {
    call(READ, [number(fd), into.as_mut_ptr() as u64, into.len() as u64, 0, 0, 0]).map(|n| n as usize)
}

pub fn write(fd: i32, bytes: &[u8]) -> Io<usize> {
    call(WRITE, [number(fd), bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0]).map(|n| n as usize)
}

/// Writes to a descriptor that may be blocking, as if it were not: O_NONBLOCK is set for the length of the call.
pub fn write_now(fd: i32, bytes: &[u8]) -> Io<usize> {
    if ready(fd, POLLOUT) {
        return write(fd, bytes);
    }
    let flags = call(FCNTL, [number(fd), GETFL, 0, 0, 0, 0])?;
    if flags & NONBLOCK != 0 {
        return write(fd, bytes);
    }
    call(FCNTL, [number(fd), SETFL, flags | NONBLOCK, 0, 0, 0])?;
    let result = write(fd, bytes);
    call(FCNTL, [number(fd), SETFL, flags, 0, 0, 0])?;
    result
}

/// Which of `events` are there within `timeout` ms. Asking a terminal for POLLIN that is not there makes the kernel process all
/// pending input first.
pub fn poll(fd: i32, events: u16, timeout: i32) -> u16 {
    #[repr(C)]
    struct PollFd {
        fd: i32,
        events: u16,
        revents: u16,
    }
    let mut one = PollFd { fd, events, revents: 0 };
    match call(POLL, [&raw mut one as u64, 1, number(timeout), 0, 0, 0]) {
        Ok(n) if n > 0 => one.revents & events,
        _ => 0,
    }
}

pub fn ready(fd: i32, event: u16) -> bool {
    poll(fd, event, 0) != 0
}

/// Waits without a descriptor, in ms.
pub fn pause(timeout: i32) {
    let _ = call(POLL, [0, 0, number(timeout), 0, 0, 0]);
}

/// What one look counts for at most, in microseconds: while this thread did not run, the kernel's worker may not have run either.
const LOOK: u64 = 5000;

/// Whether `condition` comes true within `timeout` microseconds; the processor is yielded between looks.
pub fn await_that(timeout: u64, mut condition: impl FnMut() -> bool) -> bool {
    let (mut last, mut waited) = (now(), 0);
    loop {
        if condition() {
            return true;
        }
        let time = now();
        waited += time.wrapping_sub(last).min(LOOK);
        last = time;
        if waited > timeout {
            return false;
        }
        let _ = call(SCHED_YIELD, [0; 6]);
    }
}

/// Monotonic microseconds.
fn now() -> u64 {
    let mut time = [0u64; 2];
    let _ = call(CLOCK_GETTIME, [1, &raw mut time as u64, 0, 0, 0, 0]);
    time[0].wrapping_mul(1_000_000).wrapping_add(time[1] / 1000)
}

pub fn settings(fd: i32) -> Io<Settings> {
    let mut settings = Settings { iflag: 0, oflag: 0, cflag: 0, lflag: 0, line: 0, cc: [0; 19], ispeed: 0, ospeed: 0 };
    ioctl(fd, TCGETS2, &raw mut settings as u64)?;
    Ok(settings)
}

/// Changes nothing where they are in force: under EXTPROC the mere call leaves a bit in the packet status.
pub fn set_settings(fd: i32, new: &Settings) -> Io<()> {
    if settings(fd)? == *new {
        return Ok(());
    }
    ioctl(fd, TCSETS2, new as *const Settings as u64).map(drop)
}

pub fn locks(fd: i32) -> Io<[u32; 9]> {
    let mut locks = [0u32; 9];
    ioctl(fd, TIOCGLCKTRMIOS, &raw mut locks as u64)?;
    Ok(locks)
}

/// Needs CAP_SYS_ADMIN.
pub fn set_locks(fd: i32, locks: &[u32; 9]) -> Io<()> {
    ioctl(fd, TIOCSLCKTRMIOS, locks as *const [u32; 9] as u64).map(drop)
}

/// Bytes that a read would give; canonical: those of complete lines without EOF marks.
pub fn unread(fd: i32) -> u32 {
    ioctl_get(fd, FIONREAD).unwrap_or(0)
}

pub fn xonc(fd: i32, action: u64) -> Io<()> {
    ioctl(fd, TCXONC, action).map(drop)
}

pub fn flush(fd: i32, queue: u64) -> Io<()> {
    ioctl(fd, TCFLSH, queue).map(drop)
}

pub fn packet(master: i32) -> Io<u32> {
    ioctl_get(master, TIOCGPKT)
}

pub fn set_packet(master: i32, on: u32) -> Io<()> {
    ioctl_set(master, TIOCPKT, on)
}

/// One typed byte, processed before the call returns, dropped where the line buffer is full.
pub fn simulate(slave: i32, byte: u8) -> Io<()> {
    ioctl(slave, TIOCSTI, &raw const byte as u64).map(drop)
}

/// Whether the kernel would take a byte by [`simulate`]: it checks the right to do so before it looks at the address.
pub fn may_simulate(slave: i32) -> bool {
    ioctl(slave, TIOCSTI, 0) == Err(EFAULT)
}

/// A non-blocking description of the slave of its own, which leaves the victim's flags alone. `None`: there is none to be had, or the victim's does, for
/// an open raises the outputs of a serial line.
pub fn open_own(slave: i32, master: i32) -> Option<i32> {
    let outputs = if master < 0 { ioctl_get(slave, TIOCMGET).ok() } else { None };
    if outputs.is_some() && call(FCNTL, [number(slave), GETFL, 0, 0, 0, 0]).is_ok_and(|flags| flags & 3 != WRITE_ONLY) {
        return None;
    }
    let own = open_slave(slave, master);
    if let Some(bits) = outputs {
        ioctl_set(slave, TIOCMSET, bits).ok()?;
    }
    own
}

fn open_slave(slave: i32, master: i32) -> Option<i32> {
    match try_open(slave, master) {
        Err(EBUSY) => {
            // Exclusive, and we lack CAP_SYS_ADMIN.
            ioctl(slave, TIOCNXCL, 0).ok()?;
            let own = try_open(slave, master);
            ioctl(slave, TIOCEXCL, 0).ok()?;
            own.ok()
        }
        Err(EIO) if master >= 0 && ioctl_get(master, TIOCGPTLCK) == Ok(1) => {
            ioctl_set(master, TIOCSPTLCK, 0).ok()?;
            let own = try_open(slave, master);
            ioctl_set(master, TIOCSPTLCK, 1).ok()?;
            own.ok()
        }
        own => own.ok(),
    }
}

fn try_open(slave: i32, master: i32) -> Io<i32> {
    if master >= 0 {
        return ioctl(master, TIOCGPTPEER, OPEN_FLAGS).map(|fd| fd as i32);
    }
    if slave < 0 {
        return call(OPEN, [c"/dev/tty".as_ptr() as u64, OPEN_FLAGS, 0, 0, 0, 0]).map(|fd| fd as i32);
    }
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    let digits = core::iter::successors(Some(slave), |n| Some(n / 10).filter(|n| *n > 0)).count();
    let mut rest = slave;
    for slot in path.iter_mut().skip(14).take(digits).rev() {
        *slot = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    call(OPEN, [path.as_ptr() as u64, OPEN_FLAGS, 0, 0, 0, 0]).map(|fd| fd as i32)
}

/// A copy of another process's descriptor, close-on-exec. It takes the right to attach to that process.
pub fn copy_of(pid: i32, fd: i32) -> Io<i32> {
    let pidfd = call(PIDFD_OPEN, [number(pid), 0, 0, 0, 0, 0])?;
    let copy = call(PIDFD_GETFD, [pidfd, number(fd), 0, 0, 0, 0]);
    close(pidfd as i32);
    copy.map(|fd| fd as i32)
}

pub fn close(fd: i32) {
    let _ = call(CLOSE, [number(fd), 0, 0, 0, 0, 0]);
}
