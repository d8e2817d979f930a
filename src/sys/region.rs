//! The controller's mapping of a parasite's region, and the futex in it. Source: mmap(2), futex(2).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::errno::Errno;

/// A shared mapping of a memfd from offset 0.
#[derive(Debug)]
pub struct SharedMapping {
    start: NonNull<u8>,
    len: usize,
}

impl SharedMapping {
    /// Maps `len` bytes of `memfd` for reading and writing.
    pub fn new(memfd: BorrowedFd<'_>, len: usize) -> Result<SharedMapping, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; no existing memory is touched.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, memfd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(start.cast()).map(|start| SharedMapping { start, len }).ok_or(Errno::ENOMEM)
    }

    /// Copies bytes out; the part outside the mapping reads as nothing.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let Some(at) = self.checked(offset, len) else { return Vec::new() };
        let mut bytes = vec![0u8; len];
        // SAFETY: `checked` keeps the range inside the mapping; the tracee is stopped or the range is its answer, complete since DONE.
        unsafe { std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Copies bytes in. Fails with EFAULT where they do not fit.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = self.checked(offset, bytes.len()).ok_or(Errno::EFAULT)?;
        // SAFETY: `checked` keeps the range inside the mapping; the tracee is stopped while the controller writes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast_mut(), bytes.len()) };
        Ok(())
    }

    /// The atomic word at an offset, which must be 4-byte aligned and inside.
    pub fn atomic(&self, offset: u64) -> Result<&AtomicU32, Errno> {
        let at = self.checked(offset, 4).filter(|at| at.addr() % 4 == 0).ok_or(Errno::EFAULT)?;
        // SAFETY: aligned and inside the mapping, which lives as long as `self`; the parasite uses it as an atomic too.
        Ok(unsafe { AtomicU32::from_ptr(at.cast_mut().cast()) })
    }

    fn checked(&self, offset: u64, len: usize) -> Option<*const u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        // SAFETY: the sum is at most `len` bytes into the mapping.
        (end <= self.len).then(|| unsafe { self.start.as_ptr().add(offset).cast_const() })
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Whether memory counts against the commit limit as a whole (MAP_NORESERVE: page by page).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    Yes,
    No,
}

/// What a segment is attached for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    ReadWrite,
    /// SHM_RDONLY: it cannot be made writable.
    ReadOnly,
}

/// Shared memory of our own, at an address of the caller's choice, which children inherit.
#[derive(Debug)]
pub struct SharedMemory(SharedMapping);

impl SharedMemory {
    /// Maps `len` bytes, all zero, at `address`. EEXIST: something is there. mmap(2) MAP_FIXED_NOREPLACE, Linux 4.17.
    pub fn at(address: u64, len: u64, reserve: Reserve) -> Result<SharedMemory, Errno> {
        let (at, len) = (address as usize, usize::try_from(len).map_err(|_| Errno::ENOMEM)?);
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let flags = if reserve == Reserve::No { flags | libc::MAP_NORESERVE } else { flags };
        let wanted = std::ptr::without_provenance_mut(at);
        // SAFETY: a new mapping; MAP_FIXED_NOREPLACE touches no existing memory.
        let start = unsafe { libc::mmap(wanted, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(start.cast()).map(|start| SharedMemory(SharedMapping { start, len })).ok_or(Errno::ENOMEM)
    }

    /// Attaches the System V segment `id`, of `len` bytes in whole pages, at `address`. EINVAL: something is there. shmat(2).
    pub fn attach(id: i32, address: u64, len: u64, access: Access) -> Result<SharedMemory, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let flags = if access == Access::ReadOnly { libc::SHM_RDONLY } else { 0 };
        // SAFETY: a new mapping; without SHM_REMAP no existing memory is touched.
        let start = unsafe { libc::shmat(id, std::ptr::without_provenance(address as usize), flags) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(start.cast()).map(|start| SharedMemory(SharedMapping { start, len })).ok_or(Errno::ENOMEM)
    }

    /// In bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.0.len as u64
    }

    /// Reads `len` bytes of a file from `from` on into the memory at `offset`. EFAULT where they do not fit, EIO where the file ends early.
    pub fn read_from(&self, file: BorrowedFd<'_>, from: u64, offset: u64, len: u64) -> Result<(), Errno> {
        let total = usize::try_from(len).map_err(|_| Errno::EFAULT)?;
        let mut done = 0;
        while done < total {
            let at = self.0.checked(offset + done as u64, total - done).ok_or(Errno::EFAULT)?;
            let position = i64::try_from(from + done as u64).map_err(|_| Errno::EFAULT)?;
            // SAFETY: `checked` keeps the range inside our own mapping, into which the kernel writes; nobody else has it yet.
            let count = unsafe { libc::pread(file.as_raw_fd(), at.cast_mut().cast(), total - done, position) };
            match Errno::result(count) {
                Ok(0) => return Err(Errno::EIO),
                Ok(count) => done += count as usize,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// The queues of one terminal from the bytes of a region; none where the length is not that of the structure.
pub fn from_bytes(bytes: &[u8]) -> Option<Box<crate::parasite_side::queue::Hold>> {
    let mut hold = crate::tty::queue::empty_hold();
    if bytes.len() != size_of_val(&*hold) {
        return None;
    }
    // SAFETY: the structure is integers and arrays of them only, so that any bytes are valid for it, and the lengths are equal.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut *hold).cast(), bytes.len()) };
    Some(hold)
}

/// FUTEX_WAIT while the word holds `value`, for at most `timeout`. ETIMEDOUT, EAGAIN and EINTR are ordinary ends.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) -> Result<(), Errno> {
    let timeout = libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: the kernel reads the word and the timeout, both live.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout) };
    Errno::result(result).map(drop)
}
