//! /proc: pure parsers of its texts, and a reader beside each.
//!
//! A parser takes the bytes of a file and never panics, whatever they are; what a kernel does not print is an `Option`. A reader
//! yields [`Error::Gone`] where the process has vanished (ENOENT and ESRCH, which /proc mixes) and [`Error::Sys`] with EACCES or
//! EPERM where we may not look. Formats: proc(5), fs/proc/ of the kernel.

pub mod attributes;
pub mod fdinfo;
pub mod maps;
pub mod mountinfo;
pub mod stat;
pub mod status;
pub mod sysvipc;
pub mod tree;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Errno, Error, Result, Subject};
use crate::ids::{Pid, Tid};

pub use attributes::{Auxv, Namespaces};
pub use fdinfo::FdInfo;
pub use maps::{Mapping, Sharing, VmFlags};
pub use mountinfo::Mount;
pub use stat::{Stat, State};
pub use status::Status;

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl Device {
    /// From `st_dev` or `st_rdev`.
    pub fn from_stat(dev: u64) -> Device {
        Device { major: libc::major(dev), minor: libc::minor(dev) }
    }

    /// From the kernel's `new_encode_dev` form, as in field tty_nr of stat; `None` for 0, no device.
    pub fn from_tty_nr(raw: i32) -> Option<Device> {
        let raw = raw as u32;
        (raw != 0).then_some(Device { major: (raw >> 8) & 0xfff, minor: (raw & 0xff) | ((raw >> 12) & 0xfff00) })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// `/proc/PID/name`.
pub fn path(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Whether what a link or a mapping shows is a memory file of memfd_create(2).
pub fn is_memfd(shown: &OsStr) -> bool {
    shown.as_bytes().starts_with(b"/memfd:")
}

/// Whether a path is that of a process's directory in /proc, or below it.
pub fn is_of_process(path: &OsStr) -> bool {
    path.as_bytes().strip_prefix(b"/proc/").and_then(<[u8]>::first).is_some_and(u8::is_ascii_digit)
}

/// `/proc/PID/task/TID/name`.
pub fn thread_path(pid: Pid, tid: Tid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/task/{tid}/{name}"))
}

/// The error of looking at a file of a process: a vanished one is [`Error::Gone`].
pub fn failure(operation: &'static str, pid: Pid, error: &io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ESRCH) => Error::Gone(pid),
        _ => Error::io(operation, Subject::Pid(pid), error),
    }
}

/// The whole of a file of /proc. Its size is not known before, so that asking for it, and beginning with a small buffer, would only cost time.
fn whole(path: &Path) -> io::Result<Vec<u8>> {
    const STEP: usize = 16 * 1024;
    let mut file = File::open(path)?;
    let mut bytes = vec![0; STEP];
    let mut len = 0;
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if len == bytes.len() {
            bytes.resize(2 * len, 0);
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

fn read(operation: &'static str, pid: Pid, name: &str) -> Result<Vec<u8>> {
    whole(&path(pid, name)).map_err(|error| failure(operation, pid, &error))
}

/// As [`read`], for a file that a process may lack while it is there: `None` for ENOENT.
fn read_optional(operation: &'static str, pid: Pid, name: &str) -> Result<Option<Vec<u8>>> {
    match whole(&path(pid, name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(failure(operation, pid, &error)),
    }
}

/// The target of a link of a process, as the kernel gives it (not necessarily a path).
pub fn readlink(operation: &'static str, pid: Pid, name: &str) -> Result<OsString> {
    let target = std::fs::read_link(path(pid, name)).map_err(|error| failure(operation, pid, &error))?;
    Ok(target.into_os_string())
}

/// Undoes `\ooo`, the kernel's mangling of bytes that would end a field; a backslash with anything else behind it stays.
pub fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                plain.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain)
}

/// The byte of a `\ooo` at the start of `text`.
fn octal(text: &[u8]) -> Option<u8> {
    match text {
        [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
            Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
        }
        _ => None,
    }
}

/// The number that `text` is, in the given base, with nothing around it.
fn number<T: TryFrom<i128>>(text: &[u8], base: u32) -> Option<T> {
    let text = std::str::from_utf8(text).ok()?;
    T::try_from(i128::from_str_radix(text, base).ok()?).ok()
}

/// Blank-separated words.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// A `key:<blanks>value` line in its two parts.
fn key_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((line.get(..colon)?, line.get(colon + 1..)?.trim_ascii()))
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_nothing_else() {
        assert_eq!(unescape(br"/a\040b\134c\012"), "/a b\\c\n");
        assert_eq!(unescape(br"\04 \999 \"), r"\04 \999 \");
    }

    #[test]
    fn device_numbers_decode() {
        assert_eq!(Device::from_tty_nr(0), None);
        assert_eq!(Device::from_tty_nr(34816), Some(Device { major: 136, minor: 0 }));
        // Index 1048575 on the last slave major: minor bits 8 to 19 lie above the major.
        assert_eq!(Device::from_tty_nr(0xfff_08bff_u32 as i32), Some(Device { major: 139, minor: 0xfffff }));
    }

    #[test]
    fn a_process_that_is_not_there_is_gone() {
        assert!(matches!(Stat::read(Pid(i32::MAX)), Err(Error::Gone(Pid(i32::MAX)))));
    }
}
