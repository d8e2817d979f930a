//! Files: what the standard library has no call for.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Starts writing a file's dirty pages and does not wait for them: `sync_file_range` with `SYNC_FILE_RANGE_WRITE`.
pub fn write_out(fd: BorrowedFd) -> Result<(), Errno> {
    // SAFETY: the call takes numbers only.
    Errno::result(unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) }).map(drop)
}

/// Swaps two paths in one step: `renameat2` with `RENAME_EXCHANGE`, Linux 3.15. EINVAL where the filesystem cannot.
pub fn exchange(one: &CStr, other: &CStr) -> Result<(), Errno> {
    let (here, one, other) = (libc::AT_FDCWD, one.as_ptr(), other.as_ptr());
    // SAFETY: both strings are the caller's and end with NUL; the kernel only reads them.
    Errno::result(unsafe { libc::syscall(libc::SYS_renameat2, here, one, here, other, libc::RENAME_EXCHANGE) })
        .map(drop)
}

/// open_by_handle_at(2): what a file handle of this type stands for, on the file system that `mount` is on. EPERM without
/// CAP_DAC_READ_SEARCH; ESTALE where it is gone.
pub fn open_by_handle(mount: BorrowedFd, kind: i32, handle: &[u8], flags: i32) -> Result<OwnedFd, Errno> {
    // struct file_handle: the length in bytes, the type, the bytes.
    let mut words = vec![0u32; 2 + handle.len().div_ceil(4)];
    words[0] = handle.len() as u32;
    words[1] = kind as u32;
    for (word, part) in words[2..].iter_mut().zip(handle.chunks(4)) {
        let mut bytes = [0u8; 4];
        bytes[..part.len()].copy_from_slice(part);
        *word = u32::from_ne_bytes(bytes);
    }
    // SAFETY: the kernel reads the structure, which is as long as it says.
    let got = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), words.as_ptr(), flags) };
    let got = i32::try_from(Errno::result(got)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// F_DUPFD_CLOEXEC: a copy of a descriptor under the lowest free number from this one on.
pub fn duplicate_from(fd: BorrowedFd, lowest: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let got = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

/// F_DUPFD_CLOEXEC: a copy of a descriptor under exactly this number. EBUSY where the number is taken, EINVAL over RLIMIT_NOFILE.
pub fn duplicate_to(fd: BorrowedFd, number: i32) -> Result<OwnedFd, Errno> {
    let copy = duplicate_from(fd, number)?;
    if copy.as_raw_fd() == number { Ok(copy) } else { Err(Errno::EBUSY) }
}
