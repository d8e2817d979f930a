//! Archives of cpio's "newc" form: what a kernel unpacks as its first file system, and what a guest leaves on its disk.
//!
//! Documentation/driver-api/early-userspace/buffer-format.rst. Hard links are not told from copies.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"070701";
const FIELDS: usize = 13;
const HEAD: usize = 6 + FIELDS * 8;
const END: &str = "TRAILER!!!";

/// One file.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// Absolute.
    pub path: PathBuf,
    /// As st_mode.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// Of a device node: major and minor number.
    pub device: (u32, u32),
    /// Of a regular file its bytes, of a symbolic link its target.
    pub bytes: Vec<u8>,
}

impl Entry {
    pub fn file(path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) -> Entry {
        Entry { path: path.into(), mode: libc::S_IFREG | 0o644, bytes: bytes.into(), ..Entry::default() }
    }

    pub fn dir(path: impl Into<PathBuf>, mode: u32) -> Entry {
        Entry { path: path.into(), mode: libc::S_IFDIR | mode, ..Entry::default() }
    }

    pub fn link(path: impl Into<PathBuf>, target: &Path) -> Entry {
        let bytes = target.as_os_str().as_bytes().to_vec();
        Entry { path: path.into(), mode: libc::S_IFLNK | 0o777, bytes, ..Entry::default() }
    }

    pub fn device(path: &str, major: u32, minor: u32) -> Entry {
        Entry { path: path.into(), mode: libc::S_IFCHR | 0o600, device: (major, minor), ..Entry::default() }
    }

    /// The file at a path as it is; a link is not followed. Sockets and devices have no bytes.
    pub fn read(path: &Path) -> io::Result<Entry> {
        let data = fs::symlink_metadata(path)?;
        let bytes = match data.mode() & libc::S_IFMT {
            libc::S_IFREG => fs::read(path)?,
            libc::S_IFLNK => fs::read_link(path)?.as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let mtime = data.mtime().try_into().unwrap_or(0);
        Ok(Entry { path: path.to_owned(), mode: data.mode(), mtime, device: (0, 0), bytes })
    }

    /// A directory and all below it, parents first.
    pub fn tree(path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = vec![Entry::read(path)?];
        if entries[0].mode & libc::S_IFMT == libc::S_IFDIR {
            let mut below: Vec<PathBuf> =
                fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
            below.sort();
            for path in below {
                entries.extend(Entry::tree(&path)?);
            }
        }
        Ok(entries)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

fn pad(out: &mut impl Write, length: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..length.wrapping_neg() % 4])
}

fn put(out: &mut impl Write, inode: usize, entry: &Entry) -> io::Result<()> {
    let name = entry.path.strip_prefix("/").unwrap_or(&entry.path).as_os_str().as_bytes();
    let numbers = [
        inode as u32,
        entry.mode,
        0,
        0,
        1,
        entry.mtime,
        entry.bytes.len() as u32,
        0,
        0,
        entry.device.0,
        entry.device.1,
        name.len() as u32 + 1,
        0,
    ];
    out.write_all(MAGIC)?;
    for number in numbers {
        write!(out, "{number:08X}")?;
    }
    out.write_all(name)?;
    out.write_all(&[0])?;
    pad(out, HEAD + name.len() + 1)?;
    out.write_all(&entry.bytes)?;
    pad(out, entry.bytes.len())
}

/// Writes a whole archive. Archives may follow one another.
pub fn write<'a>(out: &mut impl Write, entries: impl IntoIterator<Item = &'a Entry>) -> io::Result<()> {
    for (index, entry) in entries.into_iter().enumerate() {
        put(out, index + 1, entry)?;
    }
    put(out, 0, &Entry::file(format!("/{END}"), []))
}

/// The entries of an archive; `None` where the bytes are not a whole one.
pub fn parse(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    loop {
        let head = bytes.get(..HEAD)?;
        if !head.starts_with(MAGIC) {
            return None;
        }
        let number = |field: usize| {
            let digits = std::str::from_utf8(&head[6 + field * 8..14 + field * 8]).ok()?;
            u32::from_str_radix(digits, 16).ok()
        };
        let (size, name) = (number(6)? as usize, number(11)? as usize);
        let path = std::str::from_utf8(bytes.get(HEAD..HEAD + name - 1)?).ok()?;
        if path == END {
            return Some(entries);
        }
        bytes = bytes.get((HEAD + name).next_multiple_of(4)..)?;
        entries.push(Entry {
            path: Path::new("/").join(path),
            mode: number(1)?,
            mtime: number(5)?,
            device: (number(9)?, number(10)?),
            bytes: bytes.get(..size)?.to_vec(),
        });
        bytes = bytes.get(size.next_multiple_of(4)..)?;
    }
}
