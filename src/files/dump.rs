//! Open file descriptions as entries: what each kind records.
//!
//! Flags, position and path come from /proc; the owner of O_ASYNC from the controller's own copy of the description (pidfd_getfd);
//! the content of a pipe is read through such a copy with tee(2), which takes nothing out.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::error::{Context, Error, Refusal, Result, Subject};
use crate::files::kind::{Descriptor, FileKind};
use crate::files::ofd::{OfdId, OfdTable};
use crate::ids::{Pid, RemoteFd};
use crate::image::{Images, PipeData, pb};
use crate::sys::process::pidfd_getfd;

/// A process and what is needed to look into its descriptor table.
#[derive(Debug)]
pub struct Table<'a> {
    pub pid: Pid,
    pub comm: &'a str,
    pub pidfd: BorrowedFd<'a>,
    pub descriptors: &'a [Descriptor],
}

/// Gives out ids of file entries: descriptions first, then what only a path names (a mapping, an executable, a directory).
#[derive(Debug)]
pub struct FileIds {
    next: u32,
    paths: BTreeMap<(Vec<u8>, u32), u32>,
}

impl FileIds {
    pub fn after(table: &OfdTable) -> FileIds {
        let last = table.values().map(|id| id.0).max().unwrap_or(0);
        FileIds { next: last + 1, paths: BTreeMap::new() }
    }

    pub fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// The id of a file that is to be opened by its path with these flags; its entry is added on first use.
    pub fn of_path(&mut self, images: &mut Images, path: &Path, flags: u32) -> u32 {
        let key = (path.as_os_str().as_bytes().to_vec(), flags);
        if let Some(id) = self.paths.get(&key) {
            return *id;
        }
        let id = self.fresh();
        images.files.push(reg_entry(
            id,
            &key.0,
            flags,
            0,
            pb::FownEntry::default(),
            std::fs::metadata(path).ok().as_ref(),
        ));
        self.paths.insert(key, id);
        id
    }
}

fn reg_entry(
    id: u32,
    path: &[u8],
    flags: u32,
    pos: u64,
    fown: pb::FownEntry,
    metadata: Option<&std::fs::Metadata>,
) -> pb::FileEntry {
    use std::os::unix::fs::MetadataExt;
    let reg = pb::RegFileEntry {
        id,
        flags,
        pos,
        fown,
        name: path.to_vec(),
        // Only a regular file's size has to be the same at the restore.
        size: metadata.filter(|metadata| metadata.is_file()).map(MetadataExt::size),
        mode: metadata.map(MetadataExt::mode),
        ..Default::default()
    };
    pb::FileEntry { r#type: pb::FdTypes::Reg as i32, id, reg: Some(reg), ..Default::default() }
}

/// Records the descriptor tables and every open file description of a tree once.
///
/// `tty_ids` gives the terminal peer that a description leads to. Refused: a pipe with an end outside the tree, a pipe in packet mode.
pub fn record(
    images: &mut Images,
    tables: &[Table<'_>],
    ofds: &OfdTable,
    tty_ids: &BTreeMap<OfdId, u32>,
) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    let mut pipes = BTreeMap::new();
    for table in tables {
        let mut entries = Vec::new();
        for descriptor in table.descriptors {
            let id = ofds.get(&(table.pid, descriptor.fd)).ok_or(Error::Gone(table.pid))?;
            let kind = type_of(descriptor);
            entries.push(pb::FdinfoEntry {
                id: id.0,
                flags: u32::from(descriptor.info.is_close_on_exec()),
                r#type: kind as i32,
                fd: descriptor.fd.0 as u32,
                xattr_security_selinux: None,
            });
            if seen.insert(*id) {
                let copy = fetch(table, descriptor.fd)?;
                record_ofd(images, table, descriptor, *id, tty_ids.get(id).copied(), copy.as_fd(), &mut pipes)?;
            }
        }
        let files_id = images.ids.get(&(table.pid.0 as u32)).map_or(table.pid.0 as u32, |ids| ids.files_id);
        images.fdinfo.insert(files_id, entries);
    }
    Ok(())
}

/// The controller's copy of a description.
pub fn fetch(table: &Table<'_>, fd: RemoteFd) -> Result<OwnedFd> {
    pidfd_getfd(table.pidfd, fd).during("fetching a copy", Subject::Fd(table.pid, fd.0))
}

fn type_of(descriptor: &Descriptor) -> pb::FdTypes {
    match descriptor.kind {
        FileKind::Pipe { .. } => pb::FdTypes::Pipe,
        FileKind::Fifo => pb::FdTypes::Fifo,
        _ if descriptor.kind.is_tty() => pb::FdTypes::Tty,
        _ => pb::FdTypes::Reg,
    }
}

fn record_ofd(
    images: &mut Images,
    table: &Table<'_>,
    descriptor: &Descriptor,
    id: OfdId,
    tty: Option<u32>,
    copy: BorrowedFd<'_>,
    pipes: &mut BTreeMap<u64, u32>,
) -> Result<()> {
    let flags = descriptor.info.flags & !(libc::O_CLOEXEC as u32);
    let fown = owner(copy, flags);
    let path = descriptor.link.as_bytes();
    let mut entry = pb::FileEntry { r#type: type_of(descriptor) as i32, id: id.0, ..Default::default() };
    match (&descriptor.kind, tty) {
        (_, Some(tty_info_id)) => {
            // TIOCGPTPEER leaves O_CLOEXEC among the flags of the description, which /proc hides.
            let all = nix::fcntl::fcntl(copy, nix::fcntl::FcntlArg::F_GETFL).unwrap_or(flags as i32) as u32;
            let flags = flags | all & libc::O_CLOEXEC as u32;
            entry.tty = Some(pb::TtyFileEntry { id: id.0, tty_info_id, flags, fown, regf_id: None });
        }
        (FileKind::Pipe { inode }, _) => {
            let pipe_id = pipe_id(images, pipes, *inode, table, descriptor, copy)?;
            entry.pipe = Some(pb::PipeEntry { id: id.0, pipe_id, flags, fown });
        }
        (FileKind::Fifo, _) => {
            let pipe_id = fifo_id(images, pipes, descriptor, copy)?;
            entry.fifo = Some(pb::FifoEntry { id: id.0, pipe_id, regf_id: None });
            entry.reg = reg_entry(id.0, path, flags, 0, fown, None).reg;
        }
        _ => {
            let metadata = std::fs::metadata(format!("/proc/{}/fd/{}", table.pid, descriptor.fd)).ok();
            let pos = descriptor.info.pos.max(0) as u64;
            entry = reg_entry(id.0, path, flags, pos, fown, metadata.as_ref());
        }
    }
    images.files.push(entry);
    let own = pb::PtyagentOfd {
        id: Some(id.0),
        path: Some(descriptor.link.clone().into_vec()),
        position: Some(descriptor.info.pos.max(0) as u64),
        flags: Some(flags),
        via_dev_tty: (descriptor.kind == FileKind::DevTty).then_some(true),
        ..owner_of(copy)
    };
    images.own.get_or_insert_default().ofds.push(own);
    Ok(())
}

/// F_GETOWN_EX, F_GETSIG and F_GETOWNER_UIDS of a description.
fn owner_of(copy: BorrowedFd<'_>) -> pb::PtyagentOfd {
    let (owner_type, owner_pid) = crate::sys::process::files::owner(copy).unwrap_or((0, 0));
    if owner_pid == 0 {
        return pb::PtyagentOfd::default();
    }
    let signal = crate::sys::process::files::owner_signal(copy).unwrap_or(0);
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

fn owner(copy: BorrowedFd<'_>, flags: u32) -> pb::FownEntry {
    if flags & libc::O_PATH as u32 != 0 {
        return pb::FownEntry::default();
    }
    let own = owner_of(copy);
    let uid = nix::unistd::getuid().as_raw();
    pb::FownEntry {
        uid: if own.owner_pid.is_some() { own.owner_uid.unwrap_or(uid) } else { 0 },
        euid: if own.owner_pid.is_some() { own.owner_euid.unwrap_or(uid) } else { 0 },
        signum: own.owner_signal.unwrap_or(0),
        pid_type: own.owner_type.unwrap_or(0),
        pid: own.owner_pid.unwrap_or(0) as u32,
    }
}

/// The id of an anonymous pipe; its content is recorded on first sight of a reading end.
fn pipe_id(
    images: &mut Images,
    pipes: &mut BTreeMap<u64, u32>,
    inode: u64,
    table: &Table<'_>,
    descriptor: &Descriptor,
    copy: BorrowedFd<'_>,
) -> Result<u32> {
    if descriptor.info.flags & libc::O_DIRECT as u32 != 0 {
        return Err(Error::Refused(Refusal {
            pid: table.pid,
            comm: table.comm.to_owned(),
            fd: Some(descriptor.fd.0),
            kind: "a pipe in packet mode (O_DIRECT)".into(),
            remedy: "end the program that uses it, then dump again".into(),
        }));
    }
    let next = pipes.len() as u32 + 1;
    let id = *pipes.entry(inode).or_insert(next);
    let writes_only = descriptor.info.flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32;
    if !writes_only && !images.pipes_data.iter().any(|data| data.entry.pipe_id == id) {
        images.pipes_data.push(content(id, copy)?);
    }
    Ok(id)
}

fn fifo_id(
    images: &mut Images,
    pipes: &mut BTreeMap<u64, u32>,
    descriptor: &Descriptor,
    copy: BorrowedFd<'_>,
) -> Result<u32> {
    let next = pipes.len() as u32 + 1;
    let id = *pipes.entry(descriptor.stat.inode).or_insert(next);
    let writes_only = descriptor.info.flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32;
    if !writes_only && !images.fifo_data.iter().any(|data| data.entry.pipe_id == id) {
        images.fifo_data.push(content(id, copy)?);
    }
    Ok(id)
}

/// What waits in a pipe, and its capacity in bytes, without taking anything out.
fn content(pipe_id: u32, reader: BorrowedFd<'_>) -> Result<PipeData> {
    use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, tee};
    let size = fcntl(reader, FcntlArg::F_GETPIPE_SZ).during("asking a pipe for its size", Subject::None)?;
    let (copy_reader, copy_writer) = nix::unistd::pipe().during("making a pipe", Subject::None)?;
    fcntl(&copy_writer, FcntlArg::F_SETPIPE_SZ(size)).during("sizing a pipe", Subject::None)?;
    let wanted = usize::try_from(size).unwrap_or(0);
    let copied = match tee(reader, copy_writer.as_fd(), wanted, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Err(nix::errno::Errno::EAGAIN) => 0,
        result => result.during("copying what is in a pipe", Subject::None)?,
    };
    let mut data = vec![0u8; copied];
    let mut done = 0;
    while done < copied {
        done += nix::unistd::read(&copy_reader, &mut data[done..]).during("reading a pipe", Subject::None)?;
    }
    let unread = crate::sys::tty::unread(reader).during("asking a pipe for its content", Subject::None)?;
    if usize::try_from(unread).unwrap_or(0) != copied {
        return Err(Error::failed(format!(
            "a pipe holds {unread} bytes of which only {copied} could be copied; let the reader go on and dump again"
        )));
    }
    let entry = pb::PipeDataEntry { pipe_id, bytes: copied as u32, size: Some(size as u32) };
    Ok(PipeData { entry, data })
}

/// Refuses pipes of which one end is held outside the tree: `inside` counts the descriptors of the tree by pipe inode.
///
/// Every process that /proc shows is asked; one that cannot be looked into counts as not holding it.
pub fn refuse_outside_pipes(tables: &[Table<'_>], outside: &BTreeMap<u64, Pid>) -> Result<()> {
    for table in tables {
        for descriptor in table.descriptors {
            let FileKind::Pipe { inode } = descriptor.kind else { continue };
            if let Some(other) = outside.get(&inode) {
                return Err(Error::Refused(Refusal {
                    pid: table.pid,
                    comm: table.comm.to_owned(),
                    fd: Some(descriptor.fd.0),
                    kind: format!("a pipe whose other end process {other} holds, outside the tree"),
                    remedy: format!("dump a tree that has process {other} in it, or end the pipeline"),
                }));
            }
        }
    }
    Ok(())
}

/// Which pipes processes outside the tree have open, by inode.
pub fn outside_pipes(inside: &[Pid], wanted: &std::collections::BTreeSet<u64>) -> BTreeMap<u64, Pid> {
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return found;
    }
    let us = Pid(std::process::id() as i32);
    for pid in crate::procfs::tree::all().unwrap_or_default() {
        if inside.contains(&pid) || pid == us {
            continue;
        }
        let Ok(directory) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in directory.flatten() {
            let Ok(link) = std::fs::read_link(entry.path()) else { continue };
            let inode = link
                .as_os_str()
                .to_str()
                .and_then(|name| name.strip_prefix("pipe:["))
                .and_then(|name| name.strip_suffix(']'))
                .and_then(|number| number.parse::<u64>().ok());
            if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
                found.insert(inode, pid);
            }
        }
    }
    found
}
