//! Who gets a signal when a description becomes ready (O_ASYNC): its owner and the signal.
//!
//! Asked for on the controller's own copy of the description (pidfd_getfd), since they belong to the description.

use std::os::fd::BorrowedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Context, Result, Subject};
use crate::image::pb;

/// F_GETOWN_EX, F_GETSIG and F_GETOWNER_UIDS of a description. An owner that has ended leaves its kind and the signal.
pub fn record_own(copy: BorrowedFd<'_>) -> pb::PtyagentOfd {
    let (owner_type, owner_pid) = crate::sys::process::files::owner(copy).unwrap_or((0, 0));
    let signal = crate::sys::process::files::owner_signal(copy).unwrap_or(0);
    if owner_type == 0 && owner_pid == 0 && signal == 0 {
        return pb::PtyagentOfd::default();
    }
    let ids = crate::sys::process::files::owner_ids(copy).ok();
    pb::PtyagentOfd {
        owner_type: Some(owner_type as u32),
        owner_pid: Some(owner_pid),
        owner_signal: Some(signal as u32),
        owner_uid: ids.map(|ids| ids.0),
        owner_euid: ids.map(|ids| ids.1),
        ..Default::default()
    }
}

/// The same in CRIU's form; an O_PATH description has none.
pub fn record(copy: BorrowedFd<'_>, flags: u32) -> pb::FownEntry {
    if flags & libc::O_PATH as u32 != 0 {
        return pb::FownEntry::default();
    }
    let own = record_own(copy);
    let uid = nix::unistd::getuid().as_raw();
    pb::FownEntry {
        uid: if own.owner_pid.is_some() { own.owner_uid.unwrap_or(uid) } else { 0 },
        euid: if own.owner_pid.is_some() { own.owner_euid.unwrap_or(uid) } else { 0 },
        signum: own.owner_signal.unwrap_or(0),
        pid_type: own.owner_type.unwrap_or(0),
        pid: own.owner_pid.unwrap_or(0) as u32,
    }
}

/// The owner and signal of O_ASYNC, after the processes are there.
pub fn restore(fd: BorrowedFd<'_>, own: &pb::PtyagentOfd) -> Result<()> {
    use crate::sys::process::files::{as_user, set_owner, set_owner_signal};
    let give = || {
        let (Some(kind), Some(pid)) = (own.owner_type, own.owner_pid) else { return Ok(()) };
        // The kernel lets a signal through by the ids of who set the owner.
        let ids = own.owner_uid.zip(own.owner_euid);
        as_user(ids, || set_owner(fd, kind as i32, pid)).during("setting the owner of a file", Subject::None)
    };
    give()?;
    if let Some(signal) = own.owner_signal.filter(|signal| *signal != 0) {
        set_owner_signal(fd, signal as i32).during("setting the signal of a file", Subject::None)?;
    }
    let flags = own.flags.unwrap_or(0) as i32;
    if flags & libc::O_PATH == 0 && flags & libc::O_ASYNC != 0 {
        let now = fcntl(fd, FcntlArg::F_GETFL).during("asking for the flags of a file", Subject::None)?;
        let flags = OFlag::from_bits_retain(now | libc::O_ASYNC);
        fcntl(fd, FcntlArg::F_SETFL(flags)).during("setting the flags of a file", Subject::None)?;
        // A terminal without an owner was given to us.
        give()?;
    }
    Ok(())
}
