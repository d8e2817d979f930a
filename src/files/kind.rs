//! Which kernel object a descriptor is.
//!
//! All from outside: the link of /proc/PID/fd/N, stat(2) through it, fdinfo, and for sockets one extended attribute. An object
//! is told apart by its inode type, then by its device number, its link's name or its file system. What we cannot
//! carry has a name and a remedy here, and is refused with them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Refusal, Result};
use crate::files::locks::{self, Lock};
use crate::files::socket::is_carried;
use crate::ids::{Pid, PtyIndex, RemoteFd};
use crate::procfs::{self, Device, FdInfo, fdinfo};
use crate::sys::process::attributes::getxattr;

/// What an O_PATH descriptor points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathTarget {
    Regular,
    Directory,
    /// The node of a pty slave, or /dev/ptmx.
    Terminal,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    Directory,
    Null,
    Zero,
    Full,
    Random,
    Urandom,
    /// `None` before Linux 4.18, which does not tell from outside.
    TtyMaster {
        index: Option<PtyIndex>,
    },
    TtySlave {
        index: PtyIndex,
    },
    /// A slave whose master is closed: its node is gone, its number may be another terminal's by now.
    HungUpSlave {
        index: PtyIndex,
    },
    DevTty,
    Console,
    /// 0 is the foreground one.
    Vt {
        number: u32,
    },
    Serial(Device),
    /// A BSD-style pty, majors 2 and 3.
    LegacyPty(Device),
    Pipe {
        inode: u64,
    },
    Fifo,
    /// The protocol as the kernel names it: "UNIX-STREAM", "TCP", "NETLINK".
    Socket {
        protocol: Option<String>,
    },
    Eventfd,
    Epoll,
    Signalfd,
    Timerfd,
    Inotify,
    Fanotify,
    Memfd,
    SecretMem,
    Pidfd,
    PathOnly(PathTarget),
    CharDevice(Device),
    BlockDevice(Device),
    IoUring,
    Userfaultfd,
    Perf,
    Bpf,
    Namespace,
    MessageQueue,
    /// Its path leads to another process later.
    ProcessFile,
    /// What was written to it holds as long as it is open.
    PressureTrigger,
    HugePages,
    /// A regular file without a name.
    Removed,
    /// A FIFO or device without a name.
    DeletedFile,
    DeletedDirectory,
    /// Its path leads to another file or nowhere: renamed over, mounted over, or outside our root.
    Hidden,
    Other(String),
}

impl FileKind {
    /// What the user can do about an object that we cannot carry; `None` where we can.
    pub fn remedy(&self) -> Option<&'static str> {
        use FileKind::*;
        match self {
            Regular | Directory | Null | Zero | Full | Random | Urandom => None,
            TtyMaster { .. } | TtySlave { .. } | HungUpSlave { .. } | DevTty | Pipe { .. } | Fifo => None,
            PathOnly(_) => None,
            Epoll | Eventfd | Signalfd | Timerfd | Pidfd | Inotify | Removed | Memfd => None,
            Console | Vt { .. } | Serial(_) => None,
            LegacyPty(_) => Some("run the session on a pseudoterminal (ssh, tmux, script), then dump it"),
            DeletedFile => Some("let the program close the removed file, then dump again"),
            DeletedDirectory => Some("make the program leave the removed directory, then dump again"),
            Hidden => Some("put the file back under its name or let the program close it, then dump again"),
            Socket { protocol } if is_carried(protocol.as_deref()) => None,
            Socket { .. } => {
                Some("sockets of this family are not carried: end the program that holds it, then dump again")
            }
            ProcessFile => Some("let the program close it, then dump again"),
            _ => Some("end the program that uses it, then dump again"),
        }
    }

    /// Whether it is a terminal of any sort.
    pub fn is_tty(&self) -> bool {
        use FileKind::*;
        matches!(
            self,
            TtyMaster { .. }
                | TtySlave { .. }
                | HungUpSlave { .. }
                | DevTty
                | Console
                | Vt { .. }
                | Serial(_)
                | LegacyPty(_)
        )
    }
}

/// A noun phrase with its article.
impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use FileKind::*;
        let name = match self {
            TtyMaster { index: Some(index) } => return write!(f, "the master of pseudoterminal {index}"),
            TtySlave { index } => return write!(f, "the slave of pseudoterminal {index}"),
            HungUpSlave { index } => return write!(f, "the hung up slave of pseudoterminal {index}"),
            Vt { number } => return write!(f, "virtual console {number}"),
            Serial(device) => return write!(f, "a serial terminal ({device})"),
            LegacyPty(device) => return write!(f, "a BSD-style pseudoterminal ({device})"),
            Pipe { inode } => return write!(f, "a pipe ({inode})"),
            Socket { protocol: Some(protocol) } => return write!(f, "a socket ({protocol})"),
            CharDevice(device) => return write!(f, "a character device ({device})"),
            BlockDevice(device) => return write!(f, "a block device ({device})"),
            Other(link) => return write!(f, "an object of an unknown kind ({link})"),
            Regular => "a regular file",
            Directory => "a directory",
            Null => "/dev/null",
            Zero => "/dev/zero",
            Full => "/dev/full",
            Random => "/dev/random",
            Urandom => "/dev/urandom",
            TtyMaster { index: None } => "the master of a pseudoterminal",
            DevTty => "/dev/tty",
            Console => "the system console",
            Fifo => "a FIFO",
            Socket { protocol: None } => "a socket",
            Eventfd => "an eventfd",
            Epoll => "an epoll instance",
            Signalfd => "a signalfd",
            Timerfd => "a timerfd",
            Inotify => "an inotify instance",
            Fanotify => "a fanotify group",
            Memfd => "a memory file (memfd)",
            SecretMem => "a secret memory file",
            Pidfd => "a pidfd",
            PathOnly(PathTarget::Regular) => "a path handle (O_PATH) on a regular file",
            PathOnly(PathTarget::Directory) => "a path handle (O_PATH) on a directory",
            PathOnly(PathTarget::Terminal) => "a path handle (O_PATH) on a terminal",
            PathOnly(PathTarget::Other) => "a path handle (O_PATH) on something that is neither a file nor a directory",
            ProcessFile => "a file of a process in /proc",
            PressureTrigger => "a trigger of pressure stall information",
            IoUring => "an io_uring instance",
            Userfaultfd => "a userfaultfd",
            Perf => "a perf event",
            Bpf => "a BPF object",
            Namespace => "a namespace handle",
            MessageQueue => "a POSIX message queue",
            HugePages => "a file of explicit huge pages (hugetlbfs)",
            Removed => "a removed file",
            DeletedFile => "a removed FIFO or device",
            DeletedDirectory => "a removed directory",
            Hidden => "a file that its path no longer leads to",
        };
        f.write_str(name)
    }
}

/// What stat(2) says about the object behind a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    pub device: Device,
    pub inode: u64,
    /// Type and permissions.
    pub mode: u32,
    pub links: u64,
    pub rdev: Device,
    /// In bytes.
    pub size: u64,
}

impl FileStat {
    fn of(metadata: &std::fs::Metadata) -> FileStat {
        FileStat {
            device: Device::from_stat(metadata.dev()),
            inode: metadata.ino(),
            mode: metadata.mode(),
            links: metadata.nlink(),
            rdev: Device::from_stat(metadata.rdev()),
            size: metadata.size(),
        }
    }
}

/// One descriptor of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub fd: RemoteFd,
    /// The link as the kernel shows it: a path with perhaps " (deleted)" behind it, or `kind:[number]`.
    pub link: OsString,
    pub kind: FileKind,
    pub stat: FileStat,
    pub info: FdInfo,
}

impl Descriptor {
    /// Everything that /proc says about it, or `None` where it was closed meanwhile.
    pub fn read(pid: Pid, fd: RemoteFd) -> Result<Option<Descriptor>> {
        match Descriptor::read_open(pid, fd) {
            Ok(descriptor) => Ok(Some(descriptor)),
            Err(Error::Gone(_)) if procfs::path(pid, "stat").exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What it is now, where `before` is what it was a moment ago: as [`read`](Descriptor::read), but link, mount and inode that are still the
    /// same are not looked at again. The size is that of before.
    pub fn read_again(pid: Pid, before: &Descriptor) -> Result<Option<Descriptor>> {
        let fd = before.fd;
        match (fdinfo::link(pid, fd), FdInfo::read(pid, fd)) {
            (Ok(link), Ok(info)) if before.is_still(&link, &info) => Ok(Some(Descriptor { info, ..before.clone() })),
            _ => Descriptor::read(pid, fd),
        }
    }

    fn is_still(&self, link: &OsStr, info: &FdInfo) -> bool {
        let same = |info: &FdInfo| (info.ino, info.mnt_id, info.flags, info.tty_index);
        self.link == link && info.ino.is_some() && same(&self.info) == same(info)
    }

    fn read_open(pid: Pid, fd: RemoteFd) -> Result<Descriptor> {
        let path = procfs::path(pid, &format!("fd/{fd}"));
        let link = fdinfo::link(pid, fd)?;
        let info = FdInfo::read(pid, fd)?;
        let stat = match std::fs::metadata(&path) {
            Ok(metadata) => FileStat::of(&metadata),
            Err(error) => return Err(procfs::failure("looking at a descriptor", pid, &error)),
        };
        let kind = match classify(&link, &stat, &info) {
            FileKind::Socket { .. } => FileKind::Socket { protocol: socket_protocol(&path) },
            FileKind::Regular | FileKind::Removed if is_on(&path, MQUEUE_MAGIC) => FileKind::MessageQueue,
            FileKind::Regular | FileKind::Removed | FileKind::Memfd if is_on(&path, HUGETLBFS_MAGIC) => {
                FileKind::HugePages
            }
            FileKind::Regular | FileKind::Directory | FileKind::PathOnly(_) if procfs::is_of_process(&link) => {
                FileKind::ProcessFile
            }
            FileKind::Regular if info.flags & libc::O_ACCMODE as u32 != 0 && is_pressure(&link) => {
                FileKind::PressureTrigger
            }
            kind if needs_path(&kind) && !leads_to(&link, &stat) => FileKind::Hidden,
            kind => kind,
        };
        Ok(Descriptor { fd, link, kind, stat, info })
    }

    /// An error where we cannot carry it: its kind, or a lock on it.
    pub fn refuse_unsupported(&self, pid: Pid, comm: &str) -> Result<()> {
        let refuse = |kind: String, remedy: &str| {
            let (comm, remedy) = (comm.to_owned(), remedy.to_owned());
            Err(Error::Refused(Refusal { pid, comm, fd: Some(self.fd.0), kind, remedy }))
        };
        if let Some(remedy) = self.kind.remedy() {
            return refuse(self.to_string(), remedy);
        }
        if self.kind == FileKind::Removed && locks::is_leased(self) {
            return refuse(format!("a lease on {self}"), "let the program release it, then dump again");
        }
        match self.info.locks.iter().find(|line| Lock::parse(line).is_none()) {
            Some(line) => refuse(
                format!("a lock of an unknown kind on {self} ({line})"),
                "let the program release it, then dump again",
            ),
            None => Ok(()),
        }
    }
}

/// The kind, and the path where that adds something.
impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        match &self.kind {
            FileKind::Other(_) => Ok(()),
            kind if self.link == *kind.to_string() => Ok(()),
            _ if self.link.as_bytes().starts_with(b"/") => write!(f, " ({})", Path::new(&self.link).display()),
            _ => Ok(()),
        }
    }
}

/// Kinds that are opened again by their path.
fn needs_path(kind: &FileKind) -> bool {
    use FileKind::*;
    matches!(kind, Regular | Directory | Null | Zero | Full | Random | Urandom | Fifo | PathOnly(_))
}

/// Whether the path is that of the object, as far as we may look.
fn leads_to(link: &OsStr, stat: &FileStat) -> bool {
    match std::fs::symlink_metadata(Path::new(link)) {
        Ok(metadata) => metadata.ino() == stat.inode && Device::from_stat(metadata.dev()) == stat.device,
        Err(error) => error.raw_os_error() == Some(libc::EACCES),
    }
}

/// Documentation/accounting/psi.rst.
fn is_pressure(link: &OsStr) -> bool {
    link.as_bytes().starts_with(b"/proc/pressure/") || link.as_bytes().ends_with(b".pressure")
}

fn socket_protocol(path: &Path) -> Option<String> {
    let name = getxattr(path, c"system.sockprotoname").ok()?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Some(String::from_utf8_lossy(name.get(..end)?).into_owned())
}

/// include/uapi/linux/magic.h.
const MQUEUE_MAGIC: i64 = 0x1980_0202;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Whether a file is on a file system of this kind.
fn is_on(path: &Path, magic: i64) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type().0 == magic)
}

/// The kind as far as link, stat and fdinfo tell.
pub fn classify(link: &OsStr, stat: &FileStat, info: &FdInfo) -> FileKind {
    let name = link.as_bytes();
    let removed = name.ends_with(b" (deleted)") && !(stat.links > 0 && leads_to(link, stat));
    let path_only = info.flags & libc::O_PATH as u32 != 0;
    match stat.mode & libc::S_IFMT {
        _ if name.starts_with(b"/memfd:") && removed => FileKind::Memfd,
        _ if name.starts_with(b"/secretmem") && removed => FileKind::SecretMem,
        libc::S_IFREG if is_object(name) => object(name),
        libc::S_IFDIR if removed => FileKind::DeletedDirectory,
        libc::S_IFCHR if removed && !path_only && hung_up(stat.rdev).is_some() => {
            hung_up(stat.rdev).unwrap_or(FileKind::DeletedFile)
        }
        libc::S_IFREG if removed && stat.links == 0 => FileKind::Removed,
        libc::S_IFREG if removed => FileKind::Hidden,
        libc::S_IFIFO | libc::S_IFCHR | libc::S_IFBLK if removed && stat.links == 0 => FileKind::DeletedFile,
        libc::S_IFREG if path_only => FileKind::PathOnly(PathTarget::Regular),
        libc::S_IFDIR if path_only => FileKind::PathOnly(PathTarget::Directory),
        libc::S_IFCHR if path_only && (slave_index(stat.rdev).is_some() || stat.rdev == PTMX) => {
            FileKind::PathOnly(PathTarget::Terminal)
        }
        _ if path_only => FileKind::PathOnly(PathTarget::Other),
        libc::S_IFREG => FileKind::Regular,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFCHR => char_device(stat.rdev, info),
        libc::S_IFBLK => FileKind::BlockDevice(stat.rdev),
        libc::S_IFIFO if name.starts_with(b"pipe:[") => FileKind::Pipe { inode: stat.inode },
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket { protocol: None },
        _ => object(name),
    }
}

/// Whether a link names no path: `kind:[number]` or `anon_inode:kind`.
fn is_object(link: &[u8]) -> bool {
    !link.starts_with(b"/") && link.contains(&b':')
}

/// The objects that have no path: their inodes have no type of their own (a regular one since 6.17).
fn object(link: &[u8]) -> FileKind {
    let other = || FileKind::Other(String::from_utf8_lossy(link).into_owned());
    if link.starts_with(b"pidfd:") {
        return FileKind::Pidfd;
    }
    let Some(name) = link.strip_prefix(b"anon_inode:") else {
        let kind = link.split(|byte| *byte == b':').next().unwrap_or_default();
        let is_namespace = procfs::attributes::NAMESPACES.iter().any(|name| name.as_bytes() == kind);
        return if is_namespace { FileKind::Namespace } else { other() };
    };
    let name = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]")).unwrap_or(name);
    match name {
        b"eventfd" => FileKind::Eventfd,
        b"eventpoll" => FileKind::Epoll,
        b"signalfd" => FileKind::Signalfd,
        b"timerfd" => FileKind::Timerfd,
        b"inotify" => FileKind::Inotify,
        b"fanotify" => FileKind::Fanotify,
        b"pidfd" => FileKind::Pidfd,
        b"io_uring" => FileKind::IoUring,
        b"userfaultfd" => FileKind::Userfaultfd,
        b"perf_event" => FileKind::Perf,
        b"secretmem" => FileKind::SecretMem,
        name if name.starts_with(b"bpf") || name.starts_with(b"btf") => FileKind::Bpf,
        _ => other(),
    }
}

const PTMX: Device = Device { major: 5, minor: 2 };

/// The index of a pty slave's device number. A major beyond the first is only ever used with the 8-bit minors of old.
fn slave_index(device: Device) -> Option<PtyIndex> {
    (136..=143).contains(&device.major).then(|| PtyIndex((device.major - 136) * 256 + device.minor))
}

fn hung_up(device: Device) -> Option<FileKind> {
    slave_index(device).map(|index| FileKind::HungUpSlave { index })
}

/// Documentation/admin-guide/devices.txt; include/uapi/linux/major.h.
fn char_device(device: Device, info: &FdInfo) -> FileKind {
    let Device { major, minor } = device;
    match (major, minor) {
        (1, 3) => FileKind::Null,
        (1, 5) => FileKind::Zero,
        (1, 7) => FileKind::Full,
        (1, 8) => FileKind::Random,
        (1, 9) => FileKind::Urandom,
        (2 | 3, _) => FileKind::LegacyPty(device),
        (4, 0..=63) => FileKind::Vt { number: minor },
        (5, 0) => FileKind::DevTty,
        (5, 1) => FileKind::Console,
        (5, 2) | (128..=135, _) => FileKind::TtyMaster { index: info.tty_index },
        (136..=143, _) => FileKind::TtySlave { index: PtyIndex((major - 136) * 256 + minor) },
        // tty drivers: multiport cards, ISDN, USB, ACM, embedded, 3270, virtio and hypervisor consoles.
        (4 | 19 | 22 | 24 | 32 | 43 | 46 | 48 | 57 | 71 | 75 | 78 | 105 | 112, _) => FileKind::Serial(device),
        (148 | 154 | 156 | 164 | 166 | 172 | 174 | 188 | 204 | 208 | 210 | 216 | 224 | 227 | 229, _) => {
            FileKind::Serial(device)
        }
        _ => FileKind::CharDevice(device),
    }
}

#[cfg(test)]
mod tests;
