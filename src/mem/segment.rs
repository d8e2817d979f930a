//! System V shared memory: segments by their id, with key, size, owner, mode and creator, attached by any number of tasks.
//!
//! A mapping of /proc/PID/maps names the key and, as its inode, the id; /proc/sysvipc/shm tells the rest. The content is that of shared memory
//! in general (see `shared`). A dump that kills the session removes its segments too. On the way back each one is made under its own id and by its
//! creator's number where that is free, and attached by the restore; the tasks inherit it as they do other shared memory. Choosing the id needs
//! CAP_CHECKPOINT_RESTORE.
//!
//! Refused: a segment that somebody outside the tree has attached, segments of huge pages. A segment that no process has attached belongs to nobody
//! and stays where it is; times and the last user of a segment are not kept.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use crate::error::{Context, Errno, Error, Refusal, Result, Subject};
use crate::ids::Pid;
use crate::image::{Images, pb};
use crate::procfs::sysvipc::{self, SHM_DEST, SHM_LOCKED, Segment};
use crate::procfs::{self, Mapping, Sharing};
use crate::sys::process::errand::{self, Errand, Ids};
use crate::sys::process::stub::StubPid;
use crate::sys::region::Access;
use crate::sys::shm;

use super::pages::PAGE;
use super::status;

/// How the kernel names what a mapping of a segment shows, before the key in hexadecimal.
const PREFIX: &[u8] = b"/SYSV";
/// The id that the next segment gets. Linux 3.8.
const NEXT_ID: &str = "/proc/sys/kernel/shm_next_id";

/// Whether a mapping shows a segment.
pub fn is_view(mapping: &Mapping) -> bool {
    let named = mapping.name.as_bytes().starts_with(PREFIX);
    named && mapping.deleted && mapping.sharing == Sharing::Shared && mapping.device.major == 0
}

/// The F_GETFL access mode of the attachment that a mapping shows: without SHM_RDONLY it can be made writable.
pub fn access_mode(mapping: &Mapping) -> i32 {
    let may_write = mapping.flags.as_ref().is_none_or(|flags| flags.has(b"mw"));
    if may_write { libc::O_RDWR } else { libc::O_RDONLY }
}

/// Adds the segments that the tree shows to the images; refuses those that others have attached too. The tree is stopped.
pub fn record<'a>(images: &mut Images, tree: impl IntoIterator<Item = (Pid, &'a [Mapping])>) -> Result<()> {
    let mut views: BTreeMap<i32, Vec<(Pid, &Mapping)>> = BTreeMap::new();
    for (pid, mappings) in tree {
        for mapping in mappings.iter().filter(|mapping| is_view(mapping)) {
            views.entry(mapping.inode as i32).or_default().push((pid, mapping));
        }
    }
    if views.is_empty() {
        return Ok(());
    }
    let known = sysvipc::segments()?;
    for (id, views) in views {
        let Some((pid, mapping)) = views.first().copied() else { continue };
        let segment = known.iter().find(|segment| segment.id == id);
        let segment =
            segment.ok_or_else(|| Error::failed(format!("process {pid} shows segment {id}, which is not")))?;
        if segment.attached != views.len() as u64 {
            let inside = views.iter().map(|(pid, _)| *pid).collect();
            return Err(attached_outside(pid, mapping, segment, inside)?);
        }
        images.segments.push(to_entry(segment));
        let name_key = mapping.name.as_bytes().get(PREFIX.len()..).and_then(|key| std::str::from_utf8(key).ok());
        let own = pb::PtyagentSegment {
            id: Some(id as u32),
            creator: Some(segment.creator.0 as u32),
            name_key: name_key.and_then(|key| u32::from_str_radix(key, 16).ok()),
        };
        images.own.get_or_insert_default().segments.push(own);
    }
    Ok(())
}

fn to_entry(segment: &Segment) -> pb::IpcShmEntry {
    let desc = pb::IpcDescEntry {
        key: segment.key as u32,
        uid: segment.uid,
        gid: segment.gid,
        cuid: segment.cuid,
        cgid: segment.cgid,
        mode: segment.mode,
        id: segment.id as u32,
    };
    pb::IpcShmEntry { desc, size: segment.size, in_pagemaps: Some(true) }
}

fn attached_outside(pid: Pid, mapping: &Mapping, segment: &Segment, inside: Vec<Pid>) -> Result<Error> {
    let namespace = |pid: Pid| std::fs::read_link(procfs::path(pid, "ns/ipc")).ok();
    let shows = |other: &Pid| {
        let mappings = procfs::maps::of_any(*other);
        let shown = || mappings.iter().any(|mapping| is_view(mapping) && mapping.inode as i32 == segment.id);
        !inside.contains(other) && namespace(*other) == namespace(pid) && shown()
    };
    let (who, remedy) = match procfs::tree::all()?.into_iter().find(shows) {
        Some(other) => (format!("process {other}"), format!("dump a tree that has process {other} in it")),
        None => ("another process".to_owned(), "end whoever else uses it (ipcs -m -p), then dump again".to_owned()),
    };
    Ok(Error::Refused(Refusal {
        pid,
        comm: procfs::Stat::read(pid)?.comm_text(),
        fd: None,
        kind: format!(
            "System V segment {} at {:#x}, which {who} outside the tree has attached too",
            segment.id, mapping.start.0
        ),
        remedy,
    }))
}

/// Removes the segments of a session that was killed, as far as nobody has come to use them; yields what stays, one sentence each.
pub fn remove(images: &Images) -> Vec<String> {
    let stays = |entry: &pb::IpcShmEntry| {
        let id = entry.desc.id;
        match shm::remove(id as i32) {
            Ok(()) | Err(Errno::EINVAL | Errno::EIDRM) => None,
            Err(errno) => {
                let reason = errno.desc();
                Some(format!("System V segment {id} is still there ({reason}): ipcrm -m {id} before a restore"))
            }
        }
    };
    images.segments.iter().filter_map(stays).collect()
}

/// The recorded segment with this id.
pub fn of(images: &Images, id: u32) -> Option<&pb::IpcShmEntry> {
    images.segments.iter().find(|entry| entry.desc.id == id)
}

/// Bytes in whole pages.
pub fn size(entry: &pb::IpcShmEntry) -> u64 {
    entry.size.next_multiple_of(PAGE)
}

/// Whether it ends with its last attachment. Such ones are made first: another one may have their key by now.
pub fn is_removed(entry: &pb::IpcShmEntry) -> bool {
    entry.desc.mode & SHM_DEST != 0
}

/// What a recorded mapping of shared memory was attached for.
pub fn access(vma: &pb::VmaEntry) -> Access {
    let read_only = vma.fdflags.is_some_and(|flags| flags as i32 & libc::O_ACCMODE == libc::O_RDONLY);
    if vma.status & status::SYSVIPC != 0 && read_only { Access::ReadOnly } else { Access::ReadWrite }
}

/// A segment that the restore has made. Dropping it removes it.
#[derive(Debug)]
pub struct Made(Option<i32>);

impl Made {
    /// The session runs, and the segment is its.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            let _ = shm::remove(id);
        }
    }
}

/// Makes an empty segment that only its creator and the privileged may use.
pub fn make(images: &Images, entry: &pb::IpcShmEntry) -> Result<Made> {
    let own = images.own.iter().flat_map(|own| &own.segments).find(|own| own.id == Some(entry.desc.id));
    let key = own.and_then(|own| own.name_key).filter(|_| is_removed(entry)).unwrap_or(entry.desc.key) as i32;
    let id = entry.desc.id as i32;
    let known = sysvipc::segments()?;
    if known.iter().any(|segment| segment.id == id) {
        return Err(Error::failed(format!(
            "System V segment {id} is there already; ipcrm -m {id}, then restore again"
        )));
    }
    if key != libc::IPC_PRIVATE && known.iter().any(|segment| segment.key == key) {
        return Err(Error::failed(format!(
            "a System V segment with key {key:#x} is there already; ipcrm -M {key:#x}, then restore again"
        )));
    }
    std::fs::write(NEXT_ID, id.to_string()).map_err(|error| {
        let reason = error.kind();
        Error::failed(format!(
            "the id of System V segment {id} cannot be chosen ({NEXT_ID}: {reason}), which needs CAP_CHECKPOINT_RESTORE; restore as root"
        ))
    })?;
    let made = create(entry, key, own.and_then(|own| own.creator));
    let made = made.inspect_err(|_| spend_id()).during("making a System V segment", Subject::None)?;
    let made_id = made.0;
    match made_id == Some(id) {
        true => Ok(made),
        false => Err(Error::failed(format!("System V segment {id} could not have its id; restore again"))),
    }
}

/// By the process that made it, where its number is free.
fn create(entry: &pb::IpcShmEntry, key: i32, creator: Option<u32>) -> std::result::Result<Made, Errno> {
    let desc = &entry.desc;
    let ours = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let ids = (ours != (desc.cuid, desc.cgid)).then_some(Ids { uid: desc.cuid, gid: desc.cgid, groups: &[] });
    let errand = Errand::Segment(key, entry.size, 0o600);
    let number = creator.filter(|pid| *pid > 0).map_or(StubPid::Any, |pid| StubPid::Exactly(Pid(pid as i32)));
    let made = match errand::run(number, ids, errand) {
        // In use, too high here, or not to be chosen by us.
        Err(Errno::EEXIST | Errno::EINVAL | Errno::EPERM) if number != StubPid::Any => {
            errand::run(StubPid::Any, ids, errand)
        }
        made => made,
    };
    made.map(|(id, _)| Made(Some(id as i32)))
}

/// Nobody else is to get the id that was chosen.
fn spend_id() {
    if let Ok(id) = shm::create(libc::IPC_PRIVATE, 1, 0o600) {
        let _ = shm::remove(id);
    }
}

/// Gives a segment that has its content, and is attached, its owner and mode.
pub fn settle(entry: &pb::IpcShmEntry) -> Result<()> {
    let desc = &entry.desc;
    let id = desc.id as i32;
    if desc.mode & SHM_LOCKED != 0 {
        shm::lock(id).during("locking a System V segment", Subject::None)?;
    }
    shm::set(id, desc.uid, desc.gid, desc.mode & 0o777).during("setting the owner of a segment", Subject::None)?;
    if is_removed(entry) { shm::remove(id).during("removing a segment's id", Subject::None) } else { Ok(()) }
}
