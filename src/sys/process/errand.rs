//! Calls that somebody else has to make: a process with a chosen number and chosen ids, in a root directory of its own, or one that
//! lives on when its maker is killed. It shares its maker's descriptor table, so that what it makes is ours.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use libc::c_int;

use super::stub::{Files, StubPid, exit, spawn_sharing};
use super::{pidfd_poll, pidfd_send_signal, wait4};
use crate::error::Errno;
use crate::sys::shm;
use crate::sys::socket::{self, Companions, Range, Walk};

/// The ids that the errand is run with, effective and real.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids<'a> {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'a [u32],
}

#[derive(Debug, Clone, Copy)]
pub enum Errand<'a> {
    /// A connected pair of this type.
    Pair(c_int),
    Listen(BorrowedFd<'a>, i32),
    Connect(BorrowedFd<'a>, &'a [u8]),
    /// Binds a socket to a path below another root directory, from a working directory in there.
    Bind {
        socket: BorrowedFd<'a>,
        address: &'a [u8],
        root: &'a CStr,
        directory: &'a CStr,
    },
    Send(BorrowedFd<'a>, &'a [u8], Companions<'a>),
    /// [`socket::peek_all`].
    Peek(BorrowedFd<'a>, Range),
    /// [`socket::last_border`] of so many bytes from an offset.
    Border(BorrowedFd<'a>, i32, usize),
    /// [`shm::create`]: key, size, mode.
    Segment(i32, u64, u32),
}

const PAGE: usize = 4096;

/// Memory that a child shares with us: whole pages, and one behind them that cannot be written.
struct Shared {
    start: NonNull<u64>,
    words: usize,
}

impl Shared {
    fn new(words: usize) -> Result<Shared, Errno> {
        let words = (words * 8).next_multiple_of(PAGE) / 8;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), words * 8 + PAGE, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let shared = NonNull::new(start.cast()).map(|start| Shared { start, words }).ok_or(Errno::ENOMEM)?;
        // SAFETY: the last page of our own mapping, which nothing uses.
        let guard = unsafe { libc::mprotect(start.cast::<u8>().add(words * 8).cast(), PAGE, libc::PROT_NONE) };
        Errno::result(guard).map(|_| shared)
    }

    /// Only one side looks at a time: the child before its end, we behind it.
    fn words(&mut self) -> &mut [u64] {
        // SAFETY: the mapping is `words` long, zeroed by the kernel, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping, into which nothing points any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * 8 + PAGE) };
    }
}

/// What an errand brought: two numbers and, for a look at a queue, the area.
type Result2 = Result<(u64, u64), Errno>;

/// Runs an errand as process `pid` with these ids. EEXIST: the number is in use.
pub fn run(pid: StubPid, ids: Option<Ids<'_>>, errand: Errand<'_>) -> Result2 {
    run_with(pid, ids, errand, 2, |_| ())
}

/// A connected pair of sockets, made by process `pid` with these ids.
pub fn pair(pid: StubPid, ids: Option<Ids<'_>>, kind: c_int) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (one, other) = run(pid, ids, Errand::Pair(kind))?;
    // SAFETY: the child has made them in the table that it shares with us, and nobody else knows their numbers.
    Ok(unsafe { (OwnedFd::from_raw_fd(one as c_int), OwnedFd::from_raw_fd(other as c_int)) })
}

/// Looks at a queue in a process of its own, which puts the socket's options back even if we are killed. `read` gets what the walk found in
/// an area of so many bytes, and the area.
pub fn peek<T>(
    socket: BorrowedFd<'_>,
    range: Range,
    bytes: usize,
    read: impl FnOnce(Walk, &[u64]) -> T,
) -> Result<T, Errno> {
    let mut result = None;
    run_with(StubPid::Any, None, Errand::Peek(socket, range), 2 + bytes.div_ceil(8), |words| {
        if let [count, flags, area @ ..] = words {
            let (complete, first_is_empty) = (flags & 1 != 0, flags & 2 != 0);
            result = Some(read(Walk { count: *count as usize, complete, first_is_empty }, area));
        }
    })?;
    result.ok_or(Errno::EIO)
}

/// Where the last buffer of `len` bytes from an offset of a stream begins, from that offset on; the socket's options are put back even if we
/// are killed.
pub fn last_border(socket: BorrowedFd<'_>, offset: usize, len: usize) -> Result<usize, Errno> {
    let offset = i32::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    let words = 2 + len.div_ceil(8);
    let (border, _) = run_with(StubPid::Any, None, Errand::Border(socket, offset, len), words, |_| ())?;
    Ok(border as usize)
}

fn run_with(
    pid: StubPid,
    ids: Option<Ids<'_>>,
    errand: Errand<'_>,
    words: usize,
    read: impl FnOnce(&[u64]),
) -> Result2 {
    let mut shared = Shared::new(words)?;
    let area = shared.words();
    let child = spawn_sharing(Files::Shared, pid, 0, || child_runs(ids, errand, area))?;
    // The calls do not block; a child that is stuck all the same must not stop us.
    if !pidfd_poll(child.handle.as_fd(), 10_000)? {
        pidfd_send_signal(child.handle.as_fd(), libc::SIGKILL)?;
    }
    let status = wait4(child.pid, 0)?.map_or(-1, |(_, status)| status);
    if !libc::WIFEXITED(status) {
        return Err(Errno::ETIMEDOUT);
    }
    match libc::WEXITSTATUS(status) {
        0 => {
            let words = shared.words();
            read(words);
            Ok((words[0], words[1]))
        }
        errno => Err(Errno::from_raw(errno)),
    }
}

fn child_runs(ids: Option<Ids<'_>>, errand: Errand<'_>, area: &mut [u64]) -> Infallible {
    let done = become_user(ids).and_then(|()| child_does(errand, area));
    exit(done.err().map_or(0, |errno| errno as c_int))
}

/// Groups first, the user last: each needs the privilege that the user may not have. Nothing is changed where it is right already.
fn become_user(ids: Option<Ids<'_>>) -> Result<(), Errno> {
    let Some(Ids { uid, gid, groups }) = ids else { return Ok(()) };
    if groups_differ(groups) {
        // SAFETY: the kernel reads the groups. The raw call: the C library's would signal threads that the child has not.
        Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    }
    // SAFETY: take numbers only.
    unsafe {
        if (libc::getgid(), libc::getegid()) != (gid, gid) {
            Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        }
        if (libc::getuid(), libc::geteuid()) != (uid, uid) {
            Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
    }
    Ok(())
}

fn groups_differ(wanted: &[u32]) -> bool {
    let mut now = [0u32; 1024];
    // SAFETY: the kernel writes at most 1024 groups.
    let count = unsafe { libc::getgroups(now.len() as c_int, now.as_mut_ptr()) };
    usize::try_from(count).ok().and_then(|count| now.get(..count)) != Some(wanted)
}

fn child_does(errand: Errand<'_>, area: &mut [u64]) -> Result<(), Errno> {
    match errand {
        Errand::Pair(kind) => {
            let mut pair = [0 as c_int; 2];
            // SAFETY: the kernel writes two numbers.
            let made = unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) };
            Errno::result(made)?;
            area[..2].copy_from_slice(&pair.map(|fd| fd as u64));
            Ok(())
        }
        Errand::Listen(socket, backlog) => socket::listen(socket, backlog),
        Errand::Connect(socket, address) => socket::connect(socket, address),
        Errand::Bind { socket, address, root, directory } => {
            // SAFETY: terminated strings, which the kernel only reads.
            unsafe {
                Errno::result(libc::chroot(root.as_ptr()))?;
                Errno::result(libc::chdir(directory.as_ptr()))?;
            }
            socket::bind(socket, address)
        }
        Errand::Send(socket, bytes, with) => {
            area[0] = socket::send(socket, bytes, with)? as u64;
            Ok(())
        }
        Errand::Border(socket, offset, len) => {
            let (head, room) = area.split_at_mut(2);
            // SAFETY: the same memory as bytes.
            let room = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u8>(), room.len() * 8) };
            head[0] = socket::last_border(socket, offset, len, room)? as u64;
            Ok(())
        }
        Errand::Segment(key, size, mode) => {
            area[0] = shm::create(key, size, mode)? as u64;
            Ok(())
        }
        Errand::Peek(socket, range) => {
            let (head, area) = area.split_at_mut(2);
            let walk = socket::peek_all(socket, range, area)?;
            head.copy_from_slice(&[walk.count as u64, u64::from(walk.complete) | u64::from(walk.first_is_empty) << 1]);
            Ok(())
        }
    }
}
