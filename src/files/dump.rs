//! Descriptor tables and open file descriptions as entries of the images.
//!
//! Flags, position and path come from /proc; the rest from the controller's own copy of the description (pidfd_getfd). What each kind
//! records is in the kind's own file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::error::{Context, Errno, Error, Refusal, Result, Subject};
use crate::files::kind::{Descriptor, FileKind};
use crate::files::memfd::{self, Memfds};
use crate::files::ofd::{OfdId, OfdTable};
use crate::files::removed::{self, Holder, Removed};
use crate::files::socket::{self, Sockets};
use crate::files::{epoll, eventfd, inotify, owner, pidfd, pipe, regular, signalfd, timerfd};
use crate::ids::{Pid, RemoteFd};
use crate::image::{Images, pb};
use crate::sys::process::pidfd_getfd;

/// A process and what is needed to look into its descriptor table.
#[derive(Debug)]
pub struct Table<'a> {
    pub pid: Pid,
    /// The thread whose directory of /proc shows the table.
    pub seen: Pid,
    pub comm: &'a str,
    /// Of that thread.
    pub pidfd: BorrowedFd<'a>,
    pub descriptors: &'a [Descriptor],
}

impl Table<'_> {
    /// Whether it holds what waits in messages, which no process has open under a number yet.
    pub fn is_in_flight(&self) -> bool {
        self.pid.0 as u32 == std::process::id()
    }
}

/// Gives out ids of file entries: descriptions first, then what only a path names (a mapping, an executable, a directory).
#[derive(Debug)]
pub struct FileIds {
    next: u32,
    paths: BTreeMap<(Vec<u8>, u32), u32>,
    /// By device, inode and flags.
    objects: BTreeMap<(u64, u64, u32), u32>,
    pub removed: Removed,
    pub memfds: Memfds,
}

impl FileIds {
    pub fn after(table: &OfdTable, removed: Removed) -> FileIds {
        let last = table.values().map(|id| id.0).max().unwrap_or(0);
        FileIds { next: last + 1, paths: BTreeMap::new(), objects: BTreeMap::new(), removed, memfds: Memfds::default() }
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
        images.files.push(regular::reg_entry(
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

    /// The id of the removed or memory file behind a link of /proc, to be opened with these flags. `name` is what the kernel calls it.
    pub fn of_object(
        &mut self,
        images: &mut Images,
        (link, name): (&Path, &OsStr),
        flags: u32,
        holder: Holder<'_>,
    ) -> Result<u32> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(link).during("looking at", Subject::Path(link.into()))?;
        let key = (metadata.dev(), metadata.ino(), flags);
        if let Some(id) = self.objects.get(&key) {
            return Ok(*id);
        }
        let id = self.fresh();
        let fown = pb::FownEntry::default();
        if crate::procfs::is_memfd(name) {
            let inode_id = self.memfds.of(images, link, name, holder)?;
            images.files.push(memfd::entry(id, inode_id, flags, 0, fown));
        } else {
            images.files.push(regular::reg_entry(id, name.as_bytes(), flags, 0, fown, Some(&metadata)));
            self.removed.keep(images, id, link, name, holder)?;
        }
        self.objects.insert(key, id);
        Ok(id)
    }
}

/// One open file description, for the dump half of its kind.
#[derive(Debug)]
pub struct Description<'a> {
    /// The first process that has it, and under which number.
    pub table: &'a Table<'a>,
    pub descriptor: &'a Descriptor,
    pub id: OfdId,
    /// The controller's own copy.
    pub copy: BorrowedFd<'a>,
    /// F_GETFL, with nothing of the descriptor's.
    pub flags: u32,
    pub fown: pb::FownEntry,
}

impl Description<'_> {
    /// The head of its entry, to which the kind adds its body.
    pub fn entry(&self, kind: pb::FdTypes) -> pb::FileEntry {
        pb::FileEntry { r#type: kind as i32, id: self.id.0, ..Default::default() }
    }

    /// Whether it can be read from.
    pub fn reads(&self) -> bool {
        self.flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32
    }

    /// The refusal of it: a noun phrase, and what the user can do.
    pub fn refuse(&self, kind: impl Into<String>, remedy: &str) -> Error {
        Error::Refused(Refusal {
            pid: self.table.pid,
            comm: self.table.comm.to_owned(),
            fd: Some(self.descriptor.fd.0),
            kind: kind.into(),
            remedy: remedy.to_owned(),
        })
    }
}

/// What the kinds need to know of the tree besides the description itself.
#[derive(Debug)]
pub struct Recorder<'a> {
    pub images: &'a mut Images,
    pub ids: &'a mut FileIds,
    pub tables: &'a [Table<'a>],
    pub ofds: &'a OfdTable,
    /// All processes that will be there again, those that have ended among them.
    pub tree: &'a BTreeSet<Pid>,
    /// The terminal peer that a description leads to.
    pub tty_ids: &'a BTreeMap<OfdId, u32>,
    pub pipes: pipe::PipeIds,
    pub sockets: &'a Sockets<'a>,
}

/// Records the descriptor tables and every open file description of a tree once.
///
/// `tty_ids` gives the terminal peer that a description leads to. Refused: what the kinds refuse.
pub fn record(
    images: &mut Images,
    ids: &mut FileIds,
    tables: &[Table<'_>],
    ofds: &OfdTable,
    tree: &BTreeSet<Pid>,
    tty_ids: &BTreeMap<OfdId, u32>,
    sockets: &Sockets<'_>,
) -> Result<()> {
    let mut recorder = Recorder { images, ids, tables, ofds, tree, tty_ids, pipes: pipe::PipeIds::default(), sockets };
    let mut seen = BTreeSet::new();
    for table in tables {
        let mut entries = Vec::new();
        for descriptor in table.descriptors {
            let id = *ofds.get(&(table.pid, descriptor.fd)).ok_or(Error::Gone(table.pid))?;
            entries.push(pb::FdinfoEntry {
                id: id.0,
                flags: u32::from(descriptor.info.is_close_on_exec()),
                r#type: type_of(descriptor) as i32,
                fd: descriptor.fd.0 as u32,
                xattr_security_selinux: None,
            });
            if seen.insert(id) {
                recorder.describe(table, descriptor, id)?;
            }
        }
        if table.is_in_flight() {
            continue;
        }
        let files_id = recorder.images.ids.get(&(table.pid.0 as u32)).map_or(table.pid.0 as u32, |ids| ids.files_id);
        recorder.images.fdinfo.insert(files_id, entries);
    }
    Ok(())
}

/// The controller's copy of a description.
pub fn fetch(table: &Table<'_>, fd: RemoteFd) -> Result<OwnedFd> {
    pidfd_getfd(table.pidfd, fd).map_err(|errno| match errno {
        Errno::ENOSYS => Error::failed(
            "pidfd_getfd(2) is missing, without which open files cannot be asked: use Linux 5.6 or newer, outside a container that forbids the call",
        ),
        errno => Error::sys("fetching a copy", Subject::Fd(table.pid, fd.0), errno),
    })
}

fn type_of(descriptor: &Descriptor) -> pb::FdTypes {
    match descriptor.kind {
        FileKind::Pipe { .. } => pb::FdTypes::Pipe,
        FileKind::Fifo => pb::FdTypes::Fifo,
        FileKind::Eventfd => pb::FdTypes::Eventfd,
        FileKind::Epoll => pb::FdTypes::Eventpoll,
        FileKind::Signalfd => pb::FdTypes::Signalfd,
        FileKind::Timerfd => pb::FdTypes::Timerfd,
        FileKind::Pidfd => pb::FdTypes::Pidfd,
        FileKind::Memfd => pb::FdTypes::Memfd,
        FileKind::Inotify => pb::FdTypes::Inotify,
        FileKind::Socket { ref protocol } => socket::type_of(protocol.as_deref()),
        _ if descriptor.kind.is_tty() => pb::FdTypes::Tty,
        _ => pb::FdTypes::Reg,
    }
}

impl Recorder<'_> {
    fn describe(&mut self, table: &Table<'_>, descriptor: &Descriptor, id: OfdId) -> Result<()> {
        let copy = fetch(table, descriptor.fd)?;
        let flags = descriptor.info.flags & !(libc::O_CLOEXEC as u32);
        let fown = owner::record(copy.as_fd(), flags);
        let description = Description { table, descriptor, id, copy: copy.as_fd(), flags, fown };
        let mut own = pb::PtyagentOfd {
            id: Some(id.0),
            path: Some(descriptor.link.clone().into_vec()),
            position: Some(descriptor.info.pos.max(0) as u64),
            flags: Some(flags),
            via_dev_tty: (descriptor.kind == FileKind::DevTty).then_some(true),
            ..owner::record_own(copy.as_fd())
        };
        let entry = self.entry_of(&description, &mut own)?;
        self.images.files.push(entry);
        self.images.own.get_or_insert_default().ofds.push(own);
        Ok(())
    }

    /// The entry of a description, with what its kind adds to our own record: one line for each kind.
    fn entry_of(&mut self, description: &Description<'_>, own: &mut pb::PtyagentOfd) -> Result<pb::FileEntry> {
        if let Some(tty_info_id) = self.tty_ids.get(&description.id) {
            return Ok(self.terminal(description, *tty_info_id));
        }
        match description.descriptor.kind {
            FileKind::Pipe { .. } => pipe::record(self.images, &mut self.pipes, description),
            FileKind::Fifo => pipe::record_fifo(self, description),
            FileKind::Eventfd => eventfd::record(description, own),
            FileKind::Epoll => epoll::record(self, description, own),
            FileKind::Signalfd => signalfd::record(description),
            FileKind::Timerfd => timerfd::record(description, own),
            FileKind::Pidfd => pidfd::record(self, description),
            FileKind::Socket { .. } => self.sockets.record(self.images, description),
            FileKind::Inotify => inotify::record(self, description),
            FileKind::Removed => self.removed(description),
            FileKind::Memfd => self.memfd(description),
            _ => Ok(regular::record(description)),
        }
    }

    /// A description of a memory file.
    fn memfd(&mut self, description: &Description<'_>) -> Result<pb::FileEntry> {
        let Description { table, descriptor, id, flags, fown, .. } = *description;
        let link = crate::procfs::path(table.seen, &format!("fd/{}", descriptor.fd));
        let holder = Holder { pid: table.pid, comm: table.comm, fd: Some(descriptor.fd.0) };
        let inode_id = self.ids.memfds.of(self.images, &link, &descriptor.link, holder)?;
        Ok(memfd::entry(id.0, inode_id, flags, descriptor.info.pos.max(0) as u64, fown))
    }

    /// A description of a removed file.
    fn removed(&mut self, description: &Description<'_>) -> Result<pb::FileEntry> {
        let Description { table, descriptor, id, .. } = description;
        let link = crate::procfs::path(table.seen, &format!("fd/{}", descriptor.fd));
        let holder = Holder { pid: table.pid, comm: table.comm, fd: Some(descriptor.fd.0) };
        self.ids.removed.keep(self.images, id.0, &link, removed::name(&descriptor.link), holder)?;
        Ok(regular::record(description))
    }

    /// A terminal, whose state is recorded elsewhere.
    fn terminal(&mut self, description: &Description<'_>, tty_info_id: u32) -> pb::FileEntry {
        // TIOCGPTPEER leaves O_CLOEXEC among the flags of the description, which /proc hides.
        let all = nix::fcntl::fcntl(description.copy, nix::fcntl::FcntlArg::F_GETFL).unwrap_or(0) as u32;
        let flags = description.flags | all & libc::O_CLOEXEC as u32;
        let regf_id = Some(self.ids.of_path(self.images, Path::new(&description.descriptor.link), description.flags));
        let tty = pb::TtyFileEntry { id: description.id.0, tty_info_id, flags, fown: description.fown, regf_id };
        pb::FileEntry { tty: Some(tty), ..description.entry(pb::FdTypes::Tty) }
    }
}
