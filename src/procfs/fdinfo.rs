//! /proc/PID/fd and /proc/PID/fdinfo.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{key_value, lines, lossy, number, path, read, readlink};
use crate::error::{Error, Result};
use crate::ids::{Pid, PtyIndex, RemoteFd};

/// What fdinfo says about one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdInfo {
    /// The file position in bytes.
    pub pos: i64,
    /// The open flags with access mode, in the numbers of the architecture; O_CLOEXEC in it is the descriptor's, not the OFD's.
    pub flags: u32,
    pub mnt_id: i32,
    /// Since Linux 5.14.
    pub ino: Option<u64>,
    /// Of a pty master. Since 4.18.
    pub tty_index: Option<PtyIndex>,
    /// POSIX, OFD and flock locks and leases that hang on this descriptor, as in /proc/locks.
    pub locks: Vec<String>,
    /// What is special to the kind, as key and value, in order.
    pub extra: Vec<(String, String)>,
}

impl FdInfo {
    pub fn read(pid: Pid, fd: RemoteFd) -> Result<FdInfo> {
        FdInfo::parse(&read("reading the fdinfo", pid, &format!("fdinfo/{fd}"))?)
    }

    pub fn parse(text: &[u8]) -> Result<FdInfo> {
        let (mut pos, mut flags, mut mnt_id) = (None, None, None);
        let (mut ino, mut tty_index) = (None, None);
        let (mut locks, mut extra) = (Vec::new(), Vec::new());
        for line in lines(text) {
            // A line without a colon belongs to a kind that prints tables (io_uring).
            let (key, value) = key_value(line).unwrap_or((line, b""));
            match key {
                b"pos" if pos.is_none() => pos = number(value, 10),
                b"flags" if flags.is_none() => flags = number(value, 8),
                b"mnt_id" if mnt_id.is_none() => mnt_id = number(value, 10),
                b"ino" if ino.is_none() => ino = number(value, 10),
                b"tty-index" => tty_index = number(value, 10).map(PtyIndex),
                b"lock" => locks.push(lossy(value)),
                _ => extra.push((lossy(key), lossy(value))),
            }
        }
        match (pos, flags, mnt_id) {
            (Some(pos), Some(flags), Some(mnt_id)) => Ok(FdInfo { pos, flags, mnt_id, ino, tty_index, locks, extra }),
            _ => Err(Error::unexpected("the fdinfo of a descriptor", lossy(text))),
        }
    }

    pub fn is_close_on_exec(&self) -> bool {
        self.flags & libc::O_CLOEXEC as u32 != 0
    }

    /// The first value of a line that is special to the kind.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.extra.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// The links to what any process has open, through whichever of its threads shows it; none where it may not be looked into.
pub fn links(pid: Pid) -> Vec<PathBuf> {
    let all = |pid| std::fs::read_dir(path(pid, "fd")).into_iter().flatten().flatten();
    let links = |pid| all(pid).map(|entry| entry.path()).collect::<Vec<PathBuf>>();
    let found = links(pid);
    let other = Some(pid).filter(|_| found.is_empty()).map(super::tree::seen).filter(|seen| *seen != pid);
    other.map_or(found, links)
}

/// The numbers of the open descriptors, ascending; empty for a zombie. EACCES: no ptrace access.
pub fn list(pid: Pid) -> Result<Vec<RemoteFd>> {
    let operation = "listing the descriptors";
    let directory = std::fs::read_dir(path(pid, "fd")).map_err(|error| super::failure(operation, pid, &error))?;
    let mut numbers = Vec::new();
    for entry in directory {
        let entry = entry.map_err(|error| super::failure(operation, pid, &error))?;
        if let Some(fd) = number(entry.file_name().as_bytes(), 10) {
            numbers.push(RemoteFd(fd));
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What the link of the descriptor shows: a path, or `kind:[number]`.
pub fn link(pid: Pid, fd: RemoteFd) -> Result<OsString> {
    readlink("reading a descriptor's link", pid, &format!("fd/{fd}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "pos:\t17\nflags:\t02100002\nmnt_id:\t24\nino:\t3\ntty-index:\t5\n\
        lock:\t1: POSIX  ADVISORY  WRITE 7 00:13:12 0 EOF\nlock:\t2: FLOCK  ADVISORY  READ 7 00:13:12 0 EOF\n\
        eventfd-count:                3\n";

    #[test]
    fn every_line_is_used() {
        let info = FdInfo::parse(TEXT.as_bytes()).unwrap();
        assert_eq!((info.pos, info.flags, info.mnt_id, info.ino), (17, 0o2100002, 24, Some(3)));
        assert_eq!((info.tty_index, info.locks.len()), (Some(PtyIndex(5)), 2));
        assert_eq!(info.locks[1], "2: FLOCK  ADVISORY  READ 7 00:13:12 0 EOF");
        assert_eq!(info.value("eventfd-count"), Some("3"));
        assert!(info.is_close_on_exec());
        assert!(FdInfo::parse(b"pos:\t0\nflags:\t0\n").is_err());
    }

    #[test]
    fn own_descriptors_are_listed() {
        let pid = Pid(std::process::id() as i32);
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = RemoteFd(file.as_raw_fd());
        assert!(list(pid).unwrap().contains(&fd));
        assert_eq!(link(pid, fd).unwrap(), "/dev/null");
        assert!(FdInfo::read(pid, fd).unwrap().is_close_on_exec());
        assert!(matches!(FdInfo::read(pid, RemoteFd(99_999)), Err(Error::Gone(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0..TEXT.len(), with: u8) {
            let _ = FdInfo::parse(&bytes);
            let mut text = TEXT.as_bytes().to_vec();
            text[at] = with;
            let _ = FdInfo::parse(&text);
        }
    }
}
