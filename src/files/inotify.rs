//! inotify(7): an instance and its watches, with their numbers.
//!
//! The watches come from fdinfo. Which path leads to a watched inode is told by its file handle (open_by_handle_at(2), which needs
//! CAP_DAC_READ_SEARCH), else by a descriptor of the tree that has it open. On the way back the watches are set when the restore has closed all that it
//! had opened, since that would be an event; numbers in between are used up. The next new watch may get a number that one had before that is gone.
//!
//! Refused: an instance with unread events, a watch on what no path leads to, any watch on a kernel that does not tell all of its flags (before Linux 5.19).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Context, Error, Result, Subject};
use crate::files::dump::{Description, Recorder};
use crate::files::regular::open_path;
use crate::files::restore::set_status_flags;
use crate::image::pb;
use crate::procfs::{Device, mountinfo};
use crate::sys::{event, file};

/// What a program may ask for, and what fdinfo may show: IN_ALL_EVENTS, IN_EXCL_UNLINK and IN_ONESHOT.
const MASK: u32 = 0xfff | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

/// The entry of an inotify instance.
pub fn record(recorder: &Recorder<'_>, description: &Description<'_>) -> Result<pb::FileEntry> {
    let unread = crate::sys::tty::unread(description.copy).during("asking for unread events", Subject::None)?;
    if unread > 0 {
        let kind = format!("an inotify instance with {unread} bytes of unread events");
        return Err(description.refuse(kind, "let the program read them, then dump again"));
    }
    let mut wd = Vec::new();
    for (_, text) in description.descriptor.info.extra.iter().filter(|(key, _)| key.starts_with("inotify wd")) {
        let watch = parse(text).ok_or_else(|| Error::unexpected("the fdinfo of an inotify instance", text.clone()))?;
        if !tells_flags() {
            let kind = "an inotify watch of which this kernel does not tell all flags (Linux 5.19 does)";
            return Err(description.refuse(kind, "end the program that uses it, then dump again"));
        }
        let path = by_handle(description, &watch).or_else(|| by_descriptor(recorder, &watch));
        let Some(path) = path.and_then(|path| path.into_os_string().into_string().ok()) else {
            let kind =
                format!("an inotify watch ({}) on a file that no path leads to (inode {})", watch.wd, watch.i_ino);
            return Err(description.refuse(kind, "end the program that uses it, or run as root, then dump again"));
        };
        let f_handle = pb::FhEntry { path: Some(path), ..watch.f_handle };
        wd.push(pb::InotifyWdEntry { id: description.id.0, f_handle, ..watch });
    }
    wd.sort_by_key(|watch| watch.wd);
    let entry = pb::InotifyFileEntry { id: description.id.0, flags: description.flags, fown: description.fown, wd };
    Ok(pb::FileEntry { ify: Some(entry), ..description.entry(pb::FdTypes::Inotify) })
}

/// "NUMBER ino:HEX sdev:HEX mask:HEX ignored_mask:HEX fhandle-bytes:HEX fhandle-type:HEX f_handle:HEX", the last three where the file system has
/// handles. fs/notify/fdinfo.c.
fn parse(text: &str) -> Option<pb::InotifyWdEntry> {
    let mut words = text.split_whitespace();
    let wd = words.next()?.parse().ok()?;
    let fields: Vec<(&str, &str)> = words.filter_map(|word| word.split_once(':')).collect();
    let value = |name: &str| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let hex = |name: &str| value(name).and_then(|text| u64::from_str_radix(text, 16).ok());
    let handle = value("f_handle").unwrap_or_default().as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = handle.map(byte).collect::<Option<_>>()?;
    let word = |part: &[u8]| {
        let mut word = [0u8; 8];
        word[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(word)
    };
    let f_handle = pb::FhEntry {
        bytes: bytes.len() as u32,
        r#type: hex("fhandle-type").unwrap_or(0) as u32,
        handle: bytes.chunks(8).map(word).collect(),
        ..Default::default()
    };
    Some(pb::InotifyWdEntry {
        wd,
        i_ino: hex("ino")?,
        s_dev: hex("sdev")? as u32,
        mask: hex("mask")? as u32 & MASK,
        ignored_mask: hex("ignored_mask").unwrap_or(0) as u32,
        f_handle,
        ..Default::default()
    })
}

fn tells_flags() -> bool {
    let Ok(uname) = nix::sys::utsname::uname() else { return false };
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 19)
}

/// The kernel's own number of a device: 20 bits of minor.
fn device(watch: &pb::InotifyWdEntry) -> Device {
    Device { major: watch.s_dev >> 20, minor: watch.s_dev & 0xf_ffff }
}

fn by_handle(description: &Description<'_>, watch: &pb::InotifyWdEntry) -> Option<PathBuf> {
    let handle = &watch.f_handle;
    let bytes: Vec<u8> = handle.handle.iter().flat_map(|word| word.to_le_bytes()).collect();
    let bytes = bytes.get(..handle.bytes as usize).filter(|bytes| !bytes.is_empty())?;
    let mounts = mountinfo::read_all(description.table.seen).ok()?;
    mounts.iter().filter(|mount| mount.device == device(watch)).find_map(|mount| {
        let root = open_path(&mount.mount_point, libc::O_RDONLY | libc::O_NONBLOCK).ok()?;
        let found =
            file::open_by_handle(root.as_fd(), handle.r#type as i32, bytes, libc::O_PATH | libc::O_CLOEXEC).ok()?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
        leads_to(&path, watch, None).then_some(path)
    })
}

fn by_descriptor(recorder: &Recorder<'_>, watch: &pb::InotifyWdEntry) -> Option<PathBuf> {
    let all = recorder.tables.iter().flat_map(|table| table.descriptors);
    let of_it = all.filter(|descriptor| descriptor.stat.inode == watch.i_ino);
    let mut paths = of_it.map(|descriptor| (PathBuf::from(&descriptor.link), descriptor.stat.device));
    paths.find(|(path, device)| leads_to(path, watch, Some(*device))).map(|(path, _)| path)
}

/// Whether a path leads to what is watched; `on` is the file system where that is known by another number than the kernel's own.
fn leads_to(path: &Path, watch: &pb::InotifyWdEntry, on: Option<Device>) -> bool {
    let same = |metadata: std::fs::Metadata| {
        let on = on.is_none_or(|device| Device::from_stat(metadata.dev()) == device);
        metadata.ino() == watch.i_ino && on
    };
    path.is_absolute() && std::fs::symlink_metadata(path).is_ok_and(same)
}

/// An instance that watches nothing yet.
pub fn open(entry: &pb::InotifyFileEntry) -> Result<OwnedFd> {
    let fd = event::inotify().during("making an inotify instance", Subject::None)?;
    set_status_flags(fd.as_fd(), entry.flags)?;
    Ok(fd)
}

/// Sets the watches of an instance under their numbers, by their paths, as files are opened again by theirs.
pub fn watch(fd: BorrowedFd<'_>, entry: &pb::InotifyFileEntry) -> Result<()> {
    for watch in &entry.wd {
        let path = Path::new(watch.f_handle.path());
        let subject = || Subject::Path(path.into());
        loop {
            let number = event::inotify_add(fd, path, watch.mask & MASK | libc::IN_DONT_FOLLOW);
            let number = number.during("watching", subject())?;
            if number as u32 == watch.wd {
                break;
            }
            event::inotify_remove(fd, number).during("giving a number back", subject())?;
            discard_events(fd)?;
            if number as u32 > watch.wd {
                return Err(Error::failed(format!("watch {} of an inotify instance cannot be had", watch.wd)));
            }
        }
    }
    Ok(())
}

/// Takes the news of removed watches.
fn discard_events(fd: BorrowedFd<'_>) -> Result<()> {
    let mut buffer = [0u8; 4096];
    loop {
        let mut one = [PollFd::new(fd, PollFlags::POLLIN)];
        if poll(&mut one, PollTimeout::ZERO).during("looking for events", Subject::None)? == 0 {
            return Ok(());
        }
        nix::unistd::read(fd, &mut buffer).during("reading events", Subject::None)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_parsed() {
        let text = "3 ino:9e7e sdev:800013 mask:84000fce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d";
        let watch = parse(text).unwrap();
        assert_eq!((watch.wd, watch.i_ino, watch.mask), (3, 0x9e7e, 0x8400_0fce));
        assert_eq!(device(&watch), Device { major: 8, minor: 19 });
        assert_eq!((watch.f_handle.bytes, watch.f_handle.r#type), (8, 1));
        assert_eq!(watch.f_handle.handle, [0x6d1b_0d64_0000_9e7e]);
        assert_eq!(parse("1 ino:2 sdev:3 mask:4 ignored_mask:0").unwrap().f_handle.bytes, 0);
        assert!(parse("x ino:2").is_none());
    }
}
