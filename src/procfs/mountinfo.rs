//! /proc/PID/mountinfo.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Device, lines, lossy, number, read, unescape, words};
use crate::error::{Error, Result};
use crate::ids::Pid;

/// One mount of a process's mount namespace that its root can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: i32,
    pub parent: i32,
    /// The `st_dev` of what is on it (but for file systems with several, such as btrfs).
    pub device: Device,
    /// The directory of the file system that is the root of the mount.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    pub options: String,
    pub fs_type: String,
    pub source: OsString,
    /// Of the file system (super block).
    pub super_options: String,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Mount> {
        let mut words = words(line);
        let (id, parent) = (number(words.next()?, 10)?, number(words.next()?, 10)?);
        let mut device = words.next()?.split(|byte| *byte == b':');
        let device = Device { major: number(device.next()?, 10)?, minor: number(device.next()?, 10)? };
        let (root, mount_point) = (unescape(words.next()?), unescape(words.next()?));
        let options = lossy(words.next()?);
        // Any number of propagation fields ends with a lone dash.
        words.by_ref().find(|word| *word == b"-")?;
        let rest: Vec<&[u8]> = words.collect();
        let (fs_type, source, super_options) = match rest.as_slice() {
            [fs_type, source, super_options] => (fs_type, unescape(source), lossy(super_options)),
            // An empty source is printed as nothing.
            [fs_type, super_options] => (fs_type, OsString::new(), lossy(super_options)),
            _ => return None,
        };
        Some(Mount {
            id,
            parent,
            device,
            root: root.into(),
            mount_point: mount_point.into(),
            options,
            fs_type: lossy(fs_type),
            source,
            super_options,
        })
    }
}

pub fn parse(text: &[u8]) -> Result<Vec<Mount>> {
    lines(text)
        .map(|line| Mount::parse(line).ok_or_else(|| Error::unexpected("the mountinfo of a process", lossy(line))))
        .collect()
}

/// All mounts, in the kernel's order. EINVAL: a zombie.
pub fn read_all(pid: Pid) -> Result<Vec<Mount>> {
    parse(&read("reading the mountinfo", pid, "mountinfo")?)
}

/// The mount with this id (from an fdinfo), or `None` where it is not in this process's namespace or below its root.
pub fn find(mounts: &[Mount], id: i32) -> Option<&Mount> {
    mounts.iter().find(|mount| mount.id == id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::procfs::FdInfo;

    const TEXT: &str = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        36 35 98:0 /a\\040b /mnt\\0122 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
        37 35 0:50 / /x rw -  tmpfs  rw\n";

    #[test]
    fn mounts_are_parsed() {
        let mounts = parse(TEXT.as_bytes()).unwrap();
        assert_eq!(mounts.len(), 3);
        let mount = find(&mounts, 36).unwrap();
        assert_eq!((mount.root.to_str(), mount.mount_point.to_str()), (Some("/a b"), Some("/mnt\n2")));
        assert_eq!((mount.device, mount.fs_type.as_str()), (Device { major: 98, minor: 0 }, "ext3"));
        assert_eq!((mounts[2].source.is_empty(), mounts[2].super_options.as_str()), (true, "rw"));
        assert!(find(&mounts, 1).is_none());
        assert!(parse(b"22 27 0:21 / /proc rw\n").is_err());
    }

    #[test]
    fn the_mount_of_an_own_descriptor_is_found() {
        use std::os::fd::AsRawFd;
        let pid = Pid(std::process::id() as i32);
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let info = FdInfo::read(pid, crate::ids::RemoteFd(file.as_raw_fd())).unwrap();
        assert_eq!(find(&read_all(pid).unwrap(), info.mnt_id).unwrap().fs_type, "proc");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0..TEXT.len(), with: u8) {
            let _ = parse(&bytes);
            let mut text = TEXT.as_bytes().to_vec();
            text[at] = with;
            let _ = parse(&text);
        }
    }
}
