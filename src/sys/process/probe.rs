//! Calls that only try whether the kernel lets us do something, most of them in a child that ends at once.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{c_int, c_long, c_void};

use super::stub::{StubPid, exit, spawn};
use super::{answer, pidfd_poll, pidfd_send_signal, wait4};
use crate::error::Errno;

/// The kernel's `struct prctl_mm_map` (include/uapi/linux/prctl.h, Linux 3.18).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MmMap {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// An address in the caller; 0 leaves the vector as it is.
    pub auxv: u64,
    pub auxv_size: u32,
    /// A descriptor of the program file; `u32::MAX` leaves it as it is.
    pub exe_fd: u32,
}

const _: () = assert!(size_of::<MmMap>() == 104);

/// What a child tries.
#[derive(Debug, Clone, Copy)]
pub enum Attempt<'a> {
    /// Its own memory layout, set to what it is.
    MmMap(&'a MmMap),
    /// A byte put into the input of the pty of this unlocked master, as the controlling terminal of a new session.
    Tiocsti(BorrowedFd<'a>),
    /// A devpts instance of its own in a new mount namespace.
    Devpts,
    /// The same in a new user namespace with these one-line maps for uid and gid.
    DevptsUnprivileged { uid_map: &'a [u8], gid_map: &'a [u8] },
}

/// Makes the attempt in a child of our own; its errno, or ETIMEDOUT when it has no answer within five seconds. The child is gone
/// on return.
pub fn try_in_child(attempt: Attempt<'_>) -> Result<(), Errno> {
    let child = spawn(StubPid::Any, 0, || child_tries(attempt))?;
    let answered = pidfd_poll(child.handle.as_fd(), 5000)?;
    if !answered {
        pidfd_send_signal(child.handle.as_fd(), libc::SIGKILL)?;
    }
    match wait4(child.pid, 0)? {
        Some((_, status)) if libc::WIFEXITED(status) => match libc::WEXITSTATUS(status) {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        },
        _ => Err(Errno::ETIMEDOUT),
    }
}

fn child_tries(attempt: Attempt<'_>) -> Infallible {
    let result = match attempt {
        Attempt::MmMap(map) => set_mm_map(map),
        Attempt::Tiocsti(master) => push_input(master),
        Attempt::Devpts => unshare(libc::CLONE_NEWNS).and_then(|()| mount_devpts()),
        Attempt::DevptsUnprivileged { uid_map, gid_map } => unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUSER)
            .and_then(|()| write_file(c"/proc/self/setgroups", b"deny"))
            .and_then(|()| write_file(c"/proc/self/uid_map", uid_map))
            .and_then(|()| write_file(c"/proc/self/gid_map", gid_map))
            .and_then(|()| mount_devpts()),
    };
    exit(result.err().map_or(0, |errno| errno as c_int))
}

fn set_mm_map(map: &MmMap) -> Result<(), Errno> {
    let size = size_of::<MmMap>();
    // SAFETY: the kernel reads `size` bytes from `map`; auxv is 0 or an address that it checks.
    let value = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, map as *const MmMap, size, 0usize) };
    answer(c_long::from(value)).map(drop)
}

fn push_input(master: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::setsid() })?;
    let slave = open_peer(master, libc::O_RDWR | libc::O_NOCTTY)?;
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) })?;
    // SAFETY: the kernel reads one byte.
    Errno::result(unsafe { libc::ioctl(slave, libc::TIOCSTI, c"x".as_ptr()) }).map(drop)
}

/// A new descriptor number for the slave of a master. ioctl_tty(2) TIOCGPTPEER, drivers/tty/pty.c, Linux 4.13.
fn open_peer(master: BorrowedFd<'_>, flags: c_int) -> Result<c_int, Errno> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })
}

fn unshare(flags: c_int) -> Result<(), Errno> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::unshare(flags) }).map(drop)
}

fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: `path` is a terminated string.
    let fd = Errno::result(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: the kernel reads `bytes`.
    Errno::result(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }).map(drop)
}

fn mount_devpts() -> Result<(), Errno> {
    let none = std::ptr::null::<libc::c_char>();
    let options = c"newinstance,ptmxmode=0666,mode=0620".as_ptr().cast::<c_void>();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: terminated strings and null pointers, which the kernel only reads.
    Errno::result(unsafe { libc::mount(none, c"/".as_ptr(), none, private, none.cast()) })?;
    let (kind, target) = (c"devpts".as_ptr(), c"/dev/pts".as_ptr());
    // SAFETY: terminated strings, which the kernel only reads.
    Errno::result(unsafe { libc::mount(kind, target, kind, libc::MS_NOSUID | libc::MS_NOEXEC, options) })?;
    // SAFETY: a terminated string.
    Errno::result(unsafe { libc::open(c"/dev/pts/ptmx".as_ptr(), libc::O_RDWR | libc::O_NOCTTY) }).map(drop)
}

/// Whether the kernel opens the slave of a master without a path.
pub fn peer_opens(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let slave = open_peer(master, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)?;
    // SAFETY: the descriptor has just been made and nobody else has its number.
    Errno::result(unsafe { libc::close(slave) }).map(drop)
}

/// Whether a memory file can be mapped with PROT_EXEC, as the parasite's is: `vm.memfd_noexec` forbids only that it is executed.
pub fn executable_memfd() -> Result<(), Errno> {
    const PAGE: usize = 4096;
    let file = super::memfd_create(c"probe", 0)?;
    nix::unistd::ftruncate(&file, PAGE as i64)?;
    let prot = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: the kernel chooses the address of this new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, prot, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: the mapping that we have just made; nothing points into it.
    Errno::result(unsafe { libc::munmap(at, PAGE) }).map(drop)
}

/// Whether madvise(2) knows guard pages: it looks at the advice before the length. mm/madvise.c, Linux 6.13.
pub fn has_guard_pages() -> bool {
    const MADV_GUARD_INSTALL: c_int = 102;
    // SAFETY: a length of 0 changes nothing.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, MADV_GUARD_INSTALL) == 0 }
}

/// Whether there is mseal(2). Linux 6.10.
pub fn has_seals() -> bool {
    const SYS_MSEAL: c_long = 462;
    // SAFETY: a length of 0 seals nothing.
    unsafe { libc::syscall(SYS_MSEAL, 0, 0, 0) == 0 }
}

/// Whether mmap(2) knows MAP_DROPPABLE. Linux 6.11.
pub fn has_droppable_memory() -> bool {
    const MAP_DROPPABLE: c_int = 0x08;
    let flags = MAP_DROPPABLE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses the address of this new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0) };
    // SAFETY: the mapping that we have just made; nothing points into it.
    at != libc::MAP_FAILED && unsafe { libc::munmap(at, 4096) == 0 }
}

/// Whether anonymous memory can have a name. kernel/sys.c, Linux 5.17, with CONFIG_ANON_VMA_NAME.
pub fn has_names() -> bool {
    const PR_SET_VMA: c_int = 0x5356_4d41;
    // SAFETY: a length of 0 names nothing, and no name is a null pointer.
    unsafe { libc::prctl(PR_SET_VMA, 0usize, 0usize, 0usize, 0usize) == 0 }
}

/// Whether the kernel knows PR_GET_MDWE. Linux 6.3.
pub fn has_mdwe() -> bool {
    knows_prctl(66)
}

/// Whether the kernel knows PR_GET_MEMORY_MERGE. Linux 6.4, with CONFIG_KSM.
pub fn has_memory_merge() -> bool {
    knows_prctl(68)
}

fn knows_prctl(question: c_int) -> bool {
    // SAFETY: a question without pointers.
    unsafe { libc::prctl(question, 0usize, 0usize, 0usize, 0usize) >= 0 }
}

/// Whether the area of rseq(2) may be longer than 32 bytes: the kernel says so in the auxiliary vector. Linux 6.3.
pub fn has_long_rseq() -> bool {
    const AT_RSEQ_FEATURE_SIZE: u64 = 27;
    // SAFETY: no pointers are passed.
    unsafe { libc::getauxval(AT_RSEQ_FEATURE_SIZE) != 0 }
}
