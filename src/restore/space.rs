//! Where a session is restored to: the caller's namespaces, or some of its own.
//!
//! A private devpts instance needs a mount namespace, in which it is mounted over /dev/pts: every index is free there. A fresh pid namespace
//! needs a mount namespace too, for a /proc that shows it. Both need CAP_SYS_ADMIN. The mounts of the caller's namespace go on appearing in the
//! new one, and nothing goes back.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::statfs;

use crate::error::{Errno, Error, Result};
use crate::ids::Pid;
use crate::procfs::mountinfo;

/// In which pid namespace the session gets its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pids {
    Callers,
    /// A new one, where they are all free.
    Fresh,
}

/// From which devpts instance the session gets its terminals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devpts {
    Callers,
    /// A new one, where every index is free.
    Private,
}

/// The namespaces of a restored session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub pids: Pids,
    pub devpts: Devpts,
}

impl Space {
    pub const CALLERS: Space = Space { pids: Pids::Callers, devpts: Devpts::Callers };

    /// Brings this process, which is in the pid namespace already, into a mount namespace with the right /proc and /dev/pts.
    pub fn enter(self) -> Result<()> {
        if self == Space::CALLERS {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| denied("a mount namespace", errno))?;
        mounting("/", mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE))?;
        if self.pids == Pids::Fresh {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mounting("/proc", mount(Some("proc"), "/proc", Some("proc"), flags, NONE))?;
        }
        if self.devpts == Devpts::Private {
            mount_devpts()?;
        }
        Ok(())
    }
}

const NONE: Option<&str> = None;

/// What this process forks from now on begins in a fresh pid namespace, whose first process is its init.
pub fn unshare_pids() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| denied("a pid namespace", errno))
}

fn denied(what: &str, errno: Errno) -> Error {
    match errno {
        Errno::EPERM => Error::failed(format!("{what} of its own needs CAP_SYS_ADMIN; restore as root")),
        Errno::ENOSPC | Errno::EUSERS => {
            Error::failed(format!("no further {what} is allowed; raise the limits in /proc/sys/user"))
        }
        errno => {
            Error::failed(format!("making {what} failed: {}; restore into the namespaces that are there", errno.desc()))
        }
    }
}

fn mounting(path: &'static str, result: std::result::Result<(), Errno>) -> Result<()> {
    result.map_err(|errno| {
        Error::failed(format!(
            "mounting {path} in the session's mount namespace failed: {}; restore without it",
            errno.desc()
        ))
    })
}

/// Mounts an instance with the options of the present one.
fn mount_devpts() -> Result<()> {
    let mounts = mountinfo::read_all(Pid(std::process::id() as i32))?;
    let present = mounts.iter().rfind(|mount| mount.mount_point == Path::new("/dev/pts") && mount.fs_type == "devpts");
    let options = present.map_or("mode=620,ptmxmode=666", |mount| mount.super_options.as_str());
    let lasting = |option: &&str| ["gid=", "mode=", "ptmxmode=", "max="].iter().any(|key| option.starts_with(key));
    let options: Vec<&str> = ["newinstance"].into_iter().chain(options.split(',').filter(lasting)).collect();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mounting("/dev/pts", mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some(options.join(",").as_str())))?;
    // A plain node /dev/ptmx leads to the instance beside it, a bind mount to the one that it was bound from.
    let bound = statfs("/dev/ptmx").is_ok_and(|fs| fs.filesystem_type().0 == DEVPTS_MAGIC);
    let device = |path: &str| std::fs::metadata(path).map(|data| data.dev()).ok();
    if bound && device("/dev/ptmx") != device("/dev/pts") {
        mounting("/dev/ptmx", mount(Some("/dev/pts/ptmx"), "/dev/ptmx", NONE, MsFlags::MS_BIND, NONE))?;
    }
    Ok(())
}

/// statfs(2).
const DEVPTS_MAGIC: i64 = 0x1cd1;
