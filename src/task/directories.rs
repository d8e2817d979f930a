//! The working directory and umask of a thread that has them for itself: unshare(2) with CLONE_FS.
//!
//! kcmp(2) and /proc tell, outside. On the way back the thread is made without CLONE_FS and goes to its directory by its path.
//!
//! Refused: a root directory of its own, a directory that was removed or replaced, and what threads or processes have in common without their leader.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::image::pb;
use crate::inject::batch::Batch;
use crate::procfs::{self, Status};
use crate::sys::process::KcmpType;

use super::sharing;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    pub cwd: PathBuf,
    pub umask: u32,
}

/// Those of a stopped thread; none where it has them in common with `host`, the leader where that lives.
pub fn read(pid: Pid, host: Tid, tid: Tid, status: &Status) -> Result<Option<Directories>> {
    if sharing::is_one(host, tid, KcmpType::Fs)? {
        return Ok(None);
    }
    let cwd = procfs::readlink("reading the directory of a thread", pid, &format!("task/{tid}/cwd"))?;
    Ok(Some(Directories { cwd: cwd.into(), umask: status.umask.unwrap_or(0o022) }))
}

/// A thread with directories of its own, and the name of its process.
pub struct Owner<'a> {
    pub pid: Pid,
    pub tid: Tid,
    pub comm: &'a str,
    pub directories: &'a Directories,
}

/// Refuses what cannot be given again. `hosts` are threads of all processes, the leaders where they live.
pub fn refuse_unsupported(owners: &[Owner<'_>], hosts: &[Tid]) -> Result<()> {
    for (at, owner) in owners.iter().enumerate() {
        let Owner { pid, tid, .. } = *owner;
        let identity = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        let of_thread = |name: &str| identity(&procfs::thread_path(pid, tid, name));
        if of_thread("root") != identity(Path::new("/")) {
            return Err(owner.refuse("a root directory of its own", "end that program"));
        }
        if of_thread("cwd") != identity(&owner.directories.cwd) {
            return Err(owner.refuse("a working directory that was removed or replaced", "make it change to another"));
        }
        let rest = owners.iter().skip(at + 1).map(|owner| owner.tid);
        for other in rest.chain(hosts.iter().copied()) {
            if sharing::is_one(tid, other, KcmpType::Fs)? {
                let what = format!("its working directory and umask in common with {other}");
                return Err(owner.refuse(&what, "end that program"));
            }
        }
    }
    Ok(())
}

impl Owner<'_> {
    fn refuse(&self, what: &str, remedy: &str) -> Error {
        let (kind, remedy) = (format!("its thread {} has {what}", self.tid), format!("{remedy}, then dump again"));
        Error::Refused(Refusal { pid: self.pid, comm: self.comm.to_owned(), fd: None, kind, remedy })
    }
}

/// Adds them to a thread's record.
pub fn record(own: &mut pb::PtyagentThread, directories: &Directories) {
    own.cwd = Some(directories.cwd.as_os_str().as_bytes().to_vec());
    own.umask = Some(directories.umask);
}

/// Adds the calls by which a thread that was made without CLONE_FS takes its own.
pub fn restore(batch: &mut Batch, own: &pb::PtyagentThread) {
    let Some(cwd) = &own.cwd else { return };
    let path = batch.input(&[cwd.as_slice(), b"\0"].concat());
    batch.must(libc::SYS_chdir, [path.into()]);
    batch.must(libc::SYS_umask, [u64::from(own.umask.unwrap_or(0o022)).into()]);
}
