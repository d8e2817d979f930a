//! The image directory: CRIU's files, and `ptyagent.img` for what they have no field for.
//!
//! [`Images`] is the decoded directory: plain data, no descriptors and no live pids. [`Writer`] makes a directory appear
//! complete or not at all; [`Images::read`] reads one and refuses what is missing, cut off or damaged. A directory that CRIU
//! wrote has no `ptyagent.img`: it is read without digests, so that only damage to its structure is noticed.
//!
//! Refused: a directory that others could have written, files that are not regular, an inventory of another version than 2,
//! incremental images (pages in a parent directory).

pub mod codec;
pub mod digest;
pub mod frame;
pub mod kind;
pub mod own;
pub mod pagemap;
pub mod pb;
pub mod read;
pub mod text;
pub mod write;

#[cfg(test)]
pub mod sample;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use digest::{Digest, DigestStream};
pub use kind::Kind;
pub use read::PageCheck;
pub use write::{CommitReport, Overwrite, Writer};

/// Everything a directory holds except the pages themselves.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Images {
    pub inventory: pb::InventoryEntry,
    /// Parents before children.
    pub pstree: Vec<pb::PstreeEntry>,
    /// By thread id.
    pub cores: BTreeMap<u32, pb::CoreEntry>,
    /// By process id, as `mm`, `fs`, `creds` and `pagemaps`.
    pub ids: BTreeMap<u32, pb::TaskKobjIdsEntry>,
    pub mm: BTreeMap<u32, pb::MmEntry>,
    pub fs: BTreeMap<u32, pb::FsEntry>,
    /// Only in directories of old versions of CRIU: newer ones have credentials in the core of each thread.
    pub creds: BTreeMap<u32, pb::CredsEntry>,
    pub pagemaps: BTreeMap<u32, Pagemap>,
    /// By shmid.
    pub shmem_pagemaps: BTreeMap<u32, Pagemap>,
    /// Descriptor tables, by files_id.
    pub fdinfo: BTreeMap<u32, Vec<pb::FdinfoEntry>>,
    /// Open file descriptions.
    pub files: Vec<pb::FileEntry>,
    pub tty_info: Vec<pb::TtyInfoEntry>,
    pub tty_data: Vec<pb::TtyDataEntry>,
    pub pipes_data: Vec<PipeData>,
    pub fifo_data: Vec<PipeData>,
    pub remaps: Vec<pb::RemapFilePathEntry>,
    /// Unlinked files, by remap_id.
    pub ghosts: BTreeMap<u32, GhostFile>,
    pub sk_queues: Vec<SkPacket>,
    pub seccomp: Option<pb::SeccompEntry>,
    pub memfds: Vec<pb::MemfdInodeEntry>,
    pub timens: BTreeMap<u32, pb::TimensEntry>,
    pub stats: Option<pb::StatsEntry>,
    /// None in a directory that CRIU wrote. Its `files` are made by the [`Writer`]: what the caller puts there is not written.
    pub own: Option<pb::PtyagentEntry>,
    /// Names of files whose content is not known to us: of CRIU's kinds that we have no use for.
    pub unknown: Vec<String>,
}

/// Which pages are stored, and in which file.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Pagemap {
    pub head: pb::PagemapHead,
    /// In the order of the file of pages, each run behind the one before.
    pub entries: Vec<pb::PagemapEntry>,
}

/// The unread content of a pipe or named pipe.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct PipeData {
    /// Its `bytes` is the length of `data`: the writer sets it.
    pub entry: pb::PipeDataEntry,
    pub data: Vec<u8>,
}

/// A message that waits in a socket.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct SkPacket {
    /// Its `length` is the length of `data`: the writer sets it.
    pub entry: pb::SkPacketEntry,
    pub data: Vec<u8>,
}

/// An unlinked file.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct GhostFile {
    /// Its `chunks` says which of the two contents it has: the writer sets it.
    pub entry: pb::GhostFileEntry,
    pub content: GhostContent,
}

#[derive(Debug, Clone, PartialEq)]
pub enum GhostContent {
    Whole(Vec<u8>),
    /// Parts with their offsets in bytes, holes between them.
    Chunks(Vec<(u64, Vec<u8>)>),
}

impl Default for GhostContent {
    fn default() -> Self {
        GhostContent::Whole(Vec::new())
    }
}

impl Images {
    /// The open file description with this id.
    pub fn file(&self, id: u32) -> Option<&pb::FileEntry> {
        self.files.iter().find(|file| file.id == id)
    }

    /// The regular file entry with this id: what paths are given by.
    pub fn reg(&self, id: u32) -> Option<&pb::RegFileEntry> {
        self.files.iter().filter_map(|file| file.reg.as_ref()).find(|reg| reg.id == id)
    }

    /// The terminal peer with this id.
    pub fn tty(&self, id: u32) -> Option<&pb::TtyInfoEntry> {
        self.tty_info.iter().find(|tty| tty.id == id)
    }

    /// Our own record of a terminal peer.
    pub fn own_tty(&self, id: u32) -> Option<&pb::PtyagentTty> {
        self.own.iter().flat_map(|own| &own.ttys).find(|tty| tty.tty_info_id == Some(id))
    }

    /// Our own record of a process.
    pub fn own_task(&self, pid: u32) -> Option<&pb::PtyagentTask> {
        self.own.iter().flat_map(|own| &own.tasks).find(|task| task.pid == Some(pid))
    }

    /// Our own record of a thread.
    pub fn own_thread(&self, tid: u32) -> Option<&pb::PtyagentThread> {
        self.own.iter().flat_map(|own| &own.threads).find(|thread| thread.tid == Some(tid))
    }

    /// Our own record of an open file description.
    pub fn own_ofd(&self, id: u32) -> Option<&pb::PtyagentOfd> {
        self.own.iter().flat_map(|own| &own.ofds).find(|ofd| ofd.id == Some(id))
    }
}
