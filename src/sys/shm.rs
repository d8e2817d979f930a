//! System V shared memory. Source: shmget(2), shmctl(2); attaching is in [`super::region`].

use libc::c_int;

use crate::error::Errno;

/// The id of a new segment. EEXIST: there is one with this key; EINVAL: it is over kernel.shmmax; ENOSPC: over kernel.shmmni or shmall.
pub fn create(key: i32, size: u64, mode: u32) -> Result<i32, Errno> {
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | mode as c_int;
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::shmget(key, size, flags) })
}

/// IPC_SET: owner, group and permission bits. For the owner, the creator, and with CAP_SYS_ADMIN.
pub fn set(id: i32, uid: u32, gid: u32, mode: u32) -> Result<(), Errno> {
    // SAFETY: a structure of integers, for which zeros are valid.
    let mut data: libc::shmid_ds = unsafe { std::mem::zeroed() };
    data.shm_perm.uid = uid;
    data.shm_perm.gid = gid;
    data.shm_perm.mode = mode as _;
    // SAFETY: the kernel reads the structure, which is live.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut data) }).map(drop)
}

/// IPC_RMID: the segment ends with its last attachment. EINVAL or EIDRM: there is none.
pub fn remove(id: i32) -> Result<(), Errno> {
    // SAFETY: the command takes no structure.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// SHM_LOCK: its pages stay in memory. EPERM or ENOMEM: RLIMIT_MEMLOCK, without CAP_IPC_LOCK.
pub fn lock(id: i32) -> Result<(), Errno> {
    // SAFETY: the command takes no structure.
    Errno::result(unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) }).map(drop)
}
