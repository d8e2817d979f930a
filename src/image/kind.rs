//! The files of an image directory: their names and their magic numbers.

/// What a file of the directory holds; the number is the one in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Inventory,
    Pstree,
    /// By thread id.
    Core(u32),
    /// By process id, as `Mm`, `Fs`, `Creds` and `Pagemap`.
    Ids(u32),
    Mm(u32),
    Fs(u32),
    Creds(u32),
    Pagemap(u32),
    /// Shared memory, by its shmid.
    PagemapShmem(u32),
    /// Raw pages, by the pages_id that a pagemap names; no magic number, no entries.
    Pages(u32),
    /// By files_id.
    Fdinfo(u32),
    Files,
    TtyInfo,
    TtyData,
    PipesData,
    FifoData,
    RemapFpath,
    FileLocks,
    /// By remap_id, which is hexadecimal in the name.
    GhostFile(u32),
    SkQueues,
    Seccomp,
    Memfd,
    /// System V shared memory, by the id of the IPC namespace.
    IpcShm(u32),
    Timens(u32),
    StatsDump,
    StatsRestore,
    /// ptyagent.img.
    Own,
}

/// Begins every file of a version 1.1 directory except the inventory and the service files.
pub const IMG_COMMON: u32 = 0x5456_4319;
/// Begins the service files: the statistics.
pub const IMG_SERVICE: u32 = 0x5510_5940;
/// Of ptyagent.img, behind [`IMG_COMMON`]: the letters "PTYA" in file order. No magic of CRIU's.
pub const OWN_MAGIC: u32 = 0x4159_5450;

impl Kind {
    /// The file's name in the directory.
    pub fn name(self) -> String {
        match self {
            Kind::Inventory => "inventory.img".into(),
            Kind::Pstree => "pstree.img".into(),
            Kind::Core(id) => format!("core-{id}.img"),
            Kind::Ids(id) => format!("ids-{id}.img"),
            Kind::Mm(id) => format!("mm-{id}.img"),
            Kind::Fs(id) => format!("fs-{id}.img"),
            Kind::Creds(id) => format!("creds-{id}.img"),
            Kind::Pagemap(id) => format!("pagemap-{id}.img"),
            Kind::PagemapShmem(id) => format!("pagemap-shmem-{id}.img"),
            Kind::Pages(id) => format!("pages-{id}.img"),
            Kind::Fdinfo(id) => format!("fdinfo-{id}.img"),
            Kind::Files => "files.img".into(),
            Kind::TtyInfo => "tty-info.img".into(),
            Kind::TtyData => "tty-data.img".into(),
            Kind::PipesData => "pipes-data.img".into(),
            Kind::FifoData => "fifo-data.img".into(),
            Kind::RemapFpath => "remap-fpath.img".into(),
            Kind::FileLocks => "filelocks.img".into(),
            Kind::GhostFile(id) => format!("ghost-file-{id:x}.img"),
            Kind::SkQueues => "sk-queues.img".into(),
            Kind::Seccomp => "seccomp.img".into(),
            Kind::Memfd => "memfd.img".into(),
            Kind::IpcShm(id) => format!("ipcns-shm-{id}.img"),
            Kind::Timens(id) => format!("timens-{id}.img"),
            Kind::StatsDump => "stats-dump".into(),
            Kind::StatsRestore => "stats-restore".into(),
            Kind::Own => "ptyagent.img".into(),
        }
    }

    /// The kind that a name belongs to, if it is one of ours: a number with a sign, a leading zero or in the wrong base is not.
    pub fn parse(name: &str) -> Option<Kind> {
        let kind = match name {
            "stats-dump" => Kind::StatsDump,
            "stats-restore" => Kind::StatsRestore,
            _ => {
                let stem = name.strip_suffix(".img")?;
                match stem.rsplit_once('-') {
                    None => Self::plain(stem)?,
                    Some((prefix, number)) => Self::plain(stem).or_else(|| Self::numbered(prefix, number))?,
                }
            }
        };
        (kind.name() == name).then_some(kind)
    }

    fn plain(stem: &str) -> Option<Kind> {
        Some(match stem {
            "inventory" => Kind::Inventory,
            "pstree" => Kind::Pstree,
            "files" => Kind::Files,
            "tty-info" => Kind::TtyInfo,
            "tty-data" => Kind::TtyData,
            "pipes-data" => Kind::PipesData,
            "fifo-data" => Kind::FifoData,
            "remap-fpath" => Kind::RemapFpath,
            "filelocks" => Kind::FileLocks,
            "sk-queues" => Kind::SkQueues,
            "seccomp" => Kind::Seccomp,
            "memfd" => Kind::Memfd,
            "ptyagent" => Kind::Own,
            _ => return None,
        })
    }

    fn numbered(prefix: &str, number: &str) -> Option<Kind> {
        if prefix == "ghost-file" {
            return u32::from_str_radix(number, 16).ok().map(Kind::GhostFile);
        }
        let id = number.parse().ok()?;
        Some(match prefix {
            "core" => Kind::Core(id),
            "ids" => Kind::Ids(id),
            "mm" => Kind::Mm(id),
            "fs" => Kind::Fs(id),
            "creds" => Kind::Creds(id),
            "pagemap" => Kind::Pagemap(id),
            "pagemap-shmem" => Kind::PagemapShmem(id),
            "pages" => Kind::Pages(id),
            "fdinfo" => Kind::Fdinfo(id),
            "ipcns-shm" => Kind::IpcShm(id),
            "timens" => Kind::Timens(id),
            _ => return None,
        })
    }

    /// The numbers that the file begins with, in order; raw pages have none.
    pub fn magics(self) -> Vec<u32> {
        match self {
            Kind::Pages(_) => Vec::new(),
            Kind::Inventory => vec![self.magic()],
            Kind::StatsDump | Kind::StatsRestore => vec![IMG_SERVICE, self.magic()],
            _ => vec![IMG_COMMON, self.magic()],
        }
    }

    /// The number that tells the kind; 0 for raw pages.
    fn magic(self) -> u32 {
        match self {
            Kind::Inventory => 0x5831_3116,
            Kind::Pstree => 0x5027_3030,
            Kind::Core(_) => 0x5505_3847,
            Kind::Ids(_) => 0x5443_2030,
            Kind::Mm(_) => 0x5749_2820,
            Kind::Fs(_) => 0x5140_3912,
            Kind::Creds(_) => 0x5402_3547,
            Kind::Pagemap(_) | Kind::PagemapShmem(_) => 0x5608_4025,
            Kind::Pages(_) => 0,
            Kind::Fdinfo(_) => 0x5621_3732,
            Kind::Files => 0x5630_3138,
            Kind::TtyInfo => 0x5945_3036,
            Kind::TtyData => 0x5941_3026,
            Kind::PipesData => 0x5645_3709,
            Kind::FifoData => 0x5933_3054,
            Kind::RemapFpath => 0x5913_3954,
            Kind::FileLocks => 0x5432_3616,
            Kind::GhostFile(_) => 0x5258_3605,
            Kind::SkQueues => 0x5626_4026,
            Kind::Seccomp => 0x6441_3049,
            Kind::Memfd => 0x4845_3499,
            Kind::IpcShm(_) => 0x4628_3044,
            Kind::Timens(_) => 0x4311_4433,
            Kind::StatsDump | Kind::StatsRestore => 0x5709_3306,
            Kind::Own => OWN_MAGIC,
        }
    }

    /// The kind of a file by the numbers that it begins with; the number in its name is not known and is 0.
    pub fn by_magic(first: u32, second: Option<u32>) -> Option<Kind> {
        let kinds = [
            Kind::Pstree,
            Kind::Core(0),
            Kind::Ids(0),
            Kind::Mm(0),
            Kind::Fs(0),
            Kind::Creds(0),
            Kind::Pagemap(0),
            Kind::Fdinfo(0),
            Kind::Files,
            Kind::TtyInfo,
            Kind::TtyData,
            Kind::PipesData,
            Kind::FifoData,
            Kind::RemapFpath,
            Kind::FileLocks,
            Kind::GhostFile(0),
            Kind::SkQueues,
            Kind::Seccomp,
            Kind::Memfd,
            Kind::IpcShm(0),
            Kind::Timens(0),
            Kind::StatsDump,
            Kind::Own,
        ];
        if first == Kind::Inventory.magic() {
            return Some(Kind::Inventory);
        }
        kinds.into_iter().find(|kind| kind.magics() == [first, second.unwrap_or(0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back() {
        let kinds = [
            Kind::Core(7),
            Kind::PagemapShmem(0),
            Kind::IpcShm(1),
            Kind::GhostFile(0x1a),
            Kind::TtyInfo,
            Kind::Own,
            Kind::StatsDump,
        ];
        for kind in kinds {
            assert_eq!(Kind::parse(&kind.name()), Some(kind));
        }
        for name in ["core-+7.img", "core-007.img", "core-.img", "../core-7.img", "ghost-file-1A.img", "x.img", ""] {
            assert_eq!(Kind::parse(name), None, "{name}");
        }
    }
}
