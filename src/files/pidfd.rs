//! pidfd_open(2): handles on processes of the tree, opened inside the task that has them, when the process is there again.
//!
//! Refused: a handle on a process outside the tree or on one that is gone, a handle on a thread, a handle that two tables share.

use crate::error::{Result, Subject};
use crate::files::dump::{Description, Recorder};
use crate::image::{Images, pb};
use crate::inject::Infected;
use crate::inject::batch::{Ask, Batch};
use crate::plan::Slots;

const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// The entry of a pidfd.
pub fn record(recorder: &Recorder<'_>, description: &Description<'_>) -> Result<pb::FileEntry> {
    let info = &description.descriptor.info;
    let pid: i32 = info.value("Pid").and_then(|text| text.parse().ok()).unwrap_or(-1);
    let remedy = "let the program close it, then dump again";
    if pid <= 0 {
        return Err(description.refuse("a pidfd of a process that is gone", remedy));
    }
    if description.flags & PIDFD_THREAD != 0 {
        return Err(description.refuse(format!("a pidfd of thread {pid}"), remedy));
    }
    if !recorder.tree.contains(&crate::ids::Pid(pid)) {
        return Err(description.refuse(format!("a pidfd of process {pid}, which is not part of the tree"), remedy));
    }
    let tables = recorder.ofds.iter().filter(|(_, id)| **id == description.id).map(|((pid, _), _)| *pid);
    if tables.into_iter().any(|holder| holder != description.table.pid) {
        return Err(description.refuse(format!("a pidfd of process {pid} that two processes share"), remedy));
    }
    let ino = description.descriptor.stat.inode as u32;
    let entry =
        pb::PidfdEntry { id: description.id.0, ino, flags: description.flags, nspid: pid, fown: description.fown };
    Ok(pb::FileEntry { pidfd: Some(entry), ..description.entry(pb::FdTypes::Pidfd) })
}

/// Opens the pidfds of a table in their slots.
pub fn open_inside(tracee: &mut Infected, images: &Images, slots: &Slots, table: &[&pb::FdinfoEntry]) -> Result<()> {
    let mut batch = Batch::new();
    let mut opened = std::collections::BTreeSet::new();
    for entry in table {
        let Some(pidfd) = images.file(entry.id).and_then(|file| file.pidfd.as_ref()) else { continue };
        let Some(slot) = slots.files.get(&entry.id).filter(|_| opened.insert(entry.id)) else { continue };
        let flags = pidfd.flags & libc::O_NONBLOCK as u32;
        let fd = batch.must(libc::SYS_pidfd_open, [pidfd.nspid.into(), u64::from(flags).into()]);
        batch.must(libc::SYS_dup3, [fd.into(), (*slot).into(), libc::O_CLOEXEC.into()]);
        batch.must(libc::SYS_close, [fd.into()]);
    }
    if batch.is_empty() { Ok(()) } else { tracee.ask(batch)?.all_done("opening a pidfd", Subject::None) }
}
