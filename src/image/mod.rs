//! The image directory: CRIU's files, and `ptyagent.img` for what they have no field for.
//!
//! [`Images`] is the decoded directory: plain data, no descriptors and no live pids. [`Writer`] makes a directory appear
//! complete or not at all; [`Images::read`] reads one and refuses what is missing, cut off or damaged. A directory that CRIU
//! wrote has no `ptyagent.img`: it is read without digests, so that only damage to its structure is noticed.
//!
//! Refused: a directory that others could have written, files that are not regular, an inventory of another version than 2,
//! incremental images (pages in a parent directory).

pub mod cc;
pub mod codec;
pub mod digest;
pub mod frame;
pub mod kind;
pub mod lock;
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

use serde::Serialize;

pub use digest::{Digest, DigestStream};
pub use kind::Kind;
pub use read::PageCheck;
pub use write::{CommitReport, Overwrite, Writer};

/// Everything a directory holds except the pages themselves.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Images {
    #[serde(skip_serializing_if = "text::is_default")]
    pub inventory: pb::InventoryEntry,
    /// Parents before children.
    #[serde(skip_serializing_if = "text::is_default")]
    pub pstree: Vec<pb::PstreeEntry>,
    /// By thread id.
    #[serde(skip_serializing_if = "text::is_default")]
    pub cores: BTreeMap<u32, pb::CoreEntry>,
    /// By process id, as `mm`, `fs`, `creds` and `pagemaps`.
    #[serde(skip_serializing_if = "text::is_default")]
    pub ids: BTreeMap<u32, pb::TaskKobjIdsEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub mm: BTreeMap<u32, pb::MmEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub fs: BTreeMap<u32, pb::FsEntry>,
    /// Only in directories of old versions of CRIU: newer ones have credentials in the core of each thread.
    #[serde(skip_serializing_if = "text::is_default")]
    pub creds: BTreeMap<u32, pb::CredsEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub pagemaps: BTreeMap<u32, Pagemap>,
    /// By shmid.
    #[serde(skip_serializing_if = "text::is_default")]
    pub shmem_pagemaps: BTreeMap<u32, Pagemap>,
    /// Descriptor tables, by files_id.
    #[serde(skip_serializing_if = "text::is_default")]
    pub fdinfo: BTreeMap<u32, Vec<pb::FdinfoEntry>>,
    /// Open file descriptions.
    #[serde(skip_serializing_if = "text::is_default")]
    pub files: Vec<pb::FileEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub tty_info: Vec<pb::TtyInfoEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub tty_data: Vec<pb::TtyDataEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub pipes_data: Vec<PipeData>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub fifo_data: Vec<PipeData>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub locks: Vec<pb::FileLockEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub remaps: Vec<pb::RemapFilePathEntry>,
    /// Unlinked files, by remap_id.
    #[serde(skip_serializing_if = "text::is_default")]
    pub ghosts: BTreeMap<u32, GhostFile>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub sk_queues: Vec<SkPacket>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub seccomp: Option<pb::SeccompEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub memfds: Vec<pb::MemfdInodeEntry>,
    /// System V shared memory.
    #[serde(skip_serializing_if = "text::is_default")]
    pub segments: Vec<pb::IpcShmEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub timens: BTreeMap<u32, pb::TimensEntry>,
    #[serde(skip_serializing_if = "text::is_default")]
    pub stats: Option<pb::StatsEntry>,
    /// None in a directory that CRIU wrote. Its `files` are made by the [`Writer`]: what the caller puts there is not written.
    #[serde(skip_serializing_if = "text::is_default")]
    pub own: Option<pb::PtyagentEntry>,
    /// Names of files whose content is not known to us: of CRIU's kinds that we have no use for.
    #[serde(skip_serializing_if = "text::is_default")]
    pub unknown: Vec<String>,
}

/// Which pages are stored, and in which file.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Pagemap {
    pub head: pb::PagemapHead,
    /// In the order of the file of pages, each run behind the one before.
    pub entries: Vec<pb::PagemapEntry>,
}

impl Pagemap {
    /// How many pages are in the directory's own file.
    pub fn stored_pages(&self) -> u64 {
        let runs = self.entries.iter().filter(|run| run.is_stored());
        runs.fold(0, |sum, run| sum.saturating_add(run.pages()))
    }
}

/// The unread content of a pipe or named pipe.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct PipeData {
    /// Its `bytes` is the length of `data`: the writer sets it.
    pub entry: pb::PipeDataEntry,
    #[serde(serialize_with = "text::required")]
    pub data: Vec<u8>,
}

/// A message that waits in a socket.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct SkPacket {
    /// Its `length` is the length of `data`: the writer sets it.
    pub entry: pb::SkPacketEntry,
    #[serde(serialize_with = "text::required")]
    pub data: Vec<u8>,
}

/// An unlinked file.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct GhostFile {
    /// Its `chunks` says which of the two contents it has: the writer sets it.
    pub entry: pb::GhostFileEntry,
    pub content: GhostContent,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum GhostContent {
    Whole(#[serde(serialize_with = "text::required")] Vec<u8>),
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

    /// The command name of a process, empty where it has no record.
    pub fn comm(&self, pid: u32) -> String {
        let task = self.cores.get(&pid).and_then(|core| core.tc.as_ref());
        task.map_or_else(String::new, |task| String::from_utf8_lossy(&task.comm).into_owned())
    }

    /// How many pages of its processes are in the directory.
    pub fn stored_pages(&self) -> u64 {
        self.pagemaps.values().map(Pagemap::stored_pages).fold(0, u64::saturating_add)
    }

    /// Our own record of a thread.
    pub fn own_thread(&self, tid: u32) -> Option<&pb::PtyagentThread> {
        self.own.iter().flat_map(|own| &own.threads).find(|thread| thread.tid == Some(tid))
    }

    /// Our own record of a socket, by its file id.
    pub fn own_socket(&self, id: u32) -> Option<&pb::PtyagentSocket> {
        self.own.iter().flat_map(|own| &own.sockets).find(|socket| socket.id == Some(id))
    }

    /// The memory file that a file entry leads to.
    pub fn memfd(&self, file: &pb::MemfdFileEntry) -> Option<&pb::MemfdInodeEntry> {
        self.memfds.iter().find(|inode| inode.inode_id == u64::from(file.inode_id))
    }

    /// Our own record of an open file description.
    pub fn own_ofd(&self, id: u32) -> Option<&pb::PtyagentOfd> {
        self.own.iter().flat_map(|own| &own.ofds).find(|ofd| ofd.id == Some(id))
    }
}
