//! /proc/PID/maps and smaps.
//!
//! smaps adds the VmFlags and makes the kernel walk the page tables: 14 ms for 1 GiB of small pages, where maps takes 0.2 ms.
//! So [`read`] is for everybody and [`read_with_flags`] for who needs the flags.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::{Device, lines, lossy, number, words};
use crate::error::{Error, Result};
use crate::ids::{Pid, RemoteAddr};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Private,
    Shared,
}

/// The two-letter flags of a mapping. Documentation/filesystems/proc.rst, show_smap_vma_flags in fs/proc/task_mmu.c.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmFlags(pub Vec<[u8; 2]>);

impl VmFlags {
    /// Whether the flag, such as `b"io"`, is there.
    pub fn has(&self, flag: &[u8; 2]) -> bool {
        self.0.contains(flag)
    }

    /// Whether it is locked as its pages come (MLOCK_ONFAULT), a flag of which older kernels do not know the name. Of a locked mapping it is the
    /// only one (fs/proc/task_mmu.c).
    pub fn is_locked_on_fault(&self) -> bool {
        self.has(b"lf") || self.has(b"lo") && self.has(b"??")
    }
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub start: RemoteAddr,
    /// Behind the last byte.
    pub end: RemoteAddr,
    /// PROT_READ, PROT_WRITE and PROT_EXEC bits.
    pub prot: i32,
    pub sharing: Sharing,
    /// In bytes into the file; 0 for memory without a file.
    pub offset: u64,
    /// Of the file's file system as the kernel knows it, which need not be the `st_dev` that stat(2) gives (btrfs, overlayfs).
    pub device: Device,
    pub inode: u64,
    /// A path, a `[name]` or nothing. A newline is unescaped (the kernel escapes nothing else, so that a file name which has the
    /// four characters `\012` in it looks the same); " (deleted)" is cut off.
    pub name: OsString,
    /// The name ended with " (deleted)". A file that is really named so looks the same: compare device and inode.
    pub deleted: bool,
    /// From smaps only.
    pub flags: Option<VmFlags>,
    /// pkeys(7): the protection key, where it is not the default one; from smaps only.
    pub protection_key: Option<u32>,
    /// Whether any page of it is in memory or swapped out, the zero page left aside; from smaps only.
    pub populated: Option<bool>,
}

impl Mapping {
    /// In bytes.
    pub fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether everything but the flags is the same.
    pub fn is_same_range(&self, other: &Mapping) -> bool {
        let Mapping { start, end, prot, sharing, offset, device, inode, name, deleted, .. } = other;
        (&self.start, &self.end, &self.prot, &self.sharing) == (start, end, prot, sharing)
            && (&self.offset, &self.device, &self.inode) == (offset, device, inode)
            && (&self.name, &self.deleted) == (name, deleted)
    }

    /// Whether the kernel says that it is of this kind, such as "[vdso]".
    pub fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// The link of /proc that leads to what a mapping of this process shows. Following it needs CAP_CHECKPOINT_RESTORE.
    pub fn link(&self, pid: Pid) -> std::path::PathBuf {
        super::path(pid, &format!("map_files/{:x}-{:x}", self.start.0, self.end.0))
    }

    /// Whether a file of some kind, a shared memory file included, is behind it.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.name.as_bytes().starts_with(b"/")
    }

    fn parse(line: &[u8]) -> Option<Mapping> {
        let mut rest = line;
        let mut field = || {
            let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            word
        };
        let range = field();
        let (mode, offset, device, inode) = (field(), field(), field(), field());
        let dash = range.iter().position(|byte| *byte == b'-')?;
        let colon = device.iter().position(|byte| *byte == b':')?;
        let [read, write, execute, sharing] = *mode else { return None };
        let bit = |letter: u8, bit: i32| if letter == b'-' { 0 } else { bit };
        let padded = rest.iter().position(|byte| *byte != b' ').and_then(|at| rest.get(at..)).unwrap_or_default();
        let (name, deleted) = match padded.strip_suffix(b" (deleted)") {
            Some(name) => (name, true),
            None => (padded, false),
        };
        let (start, end): (u64, u64) = (number(&range[..dash], 16)?, number(&range[dash + 1..], 16)?);
        if end < start {
            return None;
        }
        Some(Mapping {
            start: RemoteAddr(start),
            end: RemoteAddr(end),
            prot: bit(read, libc::PROT_READ) | bit(write, libc::PROT_WRITE) | bit(execute, libc::PROT_EXEC),
            sharing: if sharing == b's' { Sharing::Shared } else { Sharing::Private },
            offset: number(offset, 16)?,
            device: Device { major: number(&device[..colon], 16)?, minor: number(&device[colon + 1..], 16)? },
            inode: number(inode, 10)?,
            name: unescape_newlines(name),
            deleted,
            flags: None,
            protection_key: None,
            populated: None,
        })
    }
}

/// Undoes `\012` only.
fn unescape_newlines(name: &[u8]) -> OsString {
    if !name.contains(&b'\\') {
        return OsStr::from_bytes(name).to_owned();
    }
    let mut pieces = Vec::new();
    let mut rest = name;
    while let Some(at) = rest.windows(4).position(|four| four == b"\\012") {
        pieces.push(&rest[..at]);
        rest = &rest[at + 4..];
    }
    pieces.push(rest);
    OsStr::from_bytes(&pieces.join(&b'\n')).to_owned()
}

/// Whether a line of smaps begins a mapping: its first word is a range and not a key with a colon.
fn begins_mapping(line: &[u8]) -> bool {
    words(line).next().is_some_and(|word| !word.ends_with(b":") && word.contains(&b'-'))
}

/// Parses maps or smaps; the mappings come in ascending order.
pub fn parse(text: &[u8]) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in lines(text) {
        if begins_mapping(line) {
            let mapping = Mapping::parse(line);
            mappings.push(mapping.ok_or_else(|| Error::unexpected("the maps of a process", lossy(line)))?);
        } else if let (Some(flags), Some(last)) = (line.strip_prefix(b"VmFlags:"), mappings.last_mut()) {
            last.flags = Some(VmFlags(words(flags).filter_map(|word| word.try_into().ok()).collect()));
        } else if let (Some(key), Some(last)) = (line.strip_prefix(b"ProtectionKey:"), mappings.last_mut()) {
            last.protection_key = number(key.trim_ascii(), 10).filter(|key| *key != 0);
        } else if let (Some(size), Some(last)) =
            (line.strip_prefix(b"Rss:").or(line.strip_prefix(b"Swap:")), mappings.last_mut())
        {
            let some = words(size).next().is_none_or(|size| size != b"0");
            last.populated = Some(some || last.populated == Some(true));
        }
    }
    Ok(mappings)
}

/// The mappings without their flags; empty for a zombie and a kernel thread. EACCES: no ptrace access.
pub fn read(pid: Pid) -> Result<Vec<Mapping>> {
    parse(&super::read("reading the maps", pid, "maps")?)
}

/// The mappings of any process, through whichever of its threads shows them; none where it may not be looked into.
pub fn of_any(pid: Pid) -> Vec<Mapping> {
    let found = read(pid).unwrap_or_default();
    let other = Some(pid).filter(|_| found.is_empty()).map(super::tree::seen).filter(|seen| *seen != pid);
    other.map_or(found, |seen| read(seen).unwrap_or_default())
}

/// The mappings with their flags.
pub fn read_with_flags(pid: Pid) -> Result<Vec<Mapping>> {
    parse(&super::read("reading the smaps", pid, "smaps")?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] =
        b"560443352000-560443354000 r--p 00000000 fe:00 247030                     /usr/bin/a b\\012c\\\n\
        Size:                  8 kB\nRss:                   4 kB\nSwap:                  0 kB\nVmFlags: rd mr mw me \n\
        7f0000000000-7f0000001000 rw-s 00002000 00:01 1026                       /dev/zero (deleted)\n\
        Rss:                   0 kB\nSwap:                  0 kB\nProtectionKey:         3\nVmFlags: rd wr sh io\n\
        7f0000002000-7f0000003000 rwxp 00000000 00:00 0 \n\
        7ffcb2f45000-7ffcb2f47000 r-xp 00000000 00:00 0                          [vdso]\n";

    #[test]
    fn names_flags_and_modes_are_parsed() {
        let maps = parse(TEXT).unwrap();
        assert_eq!(maps.len(), 4);
        assert_eq!(maps[0].name, "/usr/bin/a b\nc\\");
        assert_eq!((maps[0].start, maps[0].len(), maps[0].inode), (RemoteAddr(0x560443352000), 8192, 247030));
        assert_eq!(maps[0].device, Device { major: 0xfe, minor: 0 });
        assert!(maps[0].flags.as_ref().unwrap().has(b"mw"));
        assert_eq!(
            (maps[1].name.as_bytes(), maps[1].deleted, maps[1].sharing),
            (&b"/dev/zero"[..], true, Sharing::Shared)
        );
        assert_eq!((maps[1].offset, maps[1].prot), (0x2000, libc::PROT_READ | libc::PROT_WRITE));
        assert!(maps[1].flags.as_ref().unwrap().has(b"io"));
        assert_eq!((maps[0].protection_key, maps[1].protection_key), (None, Some(3)));
        assert_eq!([0, 1, 2].map(|n: usize| maps[n].populated), [Some(true), Some(false), None]);
        assert_eq!((maps[2].name.is_empty(), maps[2].has_file(), maps[2].prot), (true, false, 7));
        assert!(maps[3].is("[vdso]"));
    }

    #[test]
    fn both_texts_of_this_process_agree() {
        let pid = Pid(std::process::id() as i32);
        let stack = |maps: &[Mapping]| maps.iter().find(|mapping| mapping.is("[stack]")).unwrap().end;
        let (plain, flagged) = (read(pid).unwrap(), read_with_flags(pid).unwrap());
        assert_eq!(stack(&plain), stack(&flagged));
        assert!(plain.iter().all(|mapping| mapping.flags.is_none()));
        assert!(flagged.iter().all(|mapping| mapping.flags.is_some()));
    }

    #[test]
    fn a_malformed_line_is_an_error() {
        assert!(parse(b"5604-xx r--p 0 fe:00 1 /a\n").is_err());
        assert!(parse(b"2000-1000 r--p 0 fe:00 1 /a\n").is_err());
        assert!(parse(b"1000-2000 r--p 0\n").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0..TEXT.len(), with: u8) {
            let _ = parse(&bytes);
            let mut text = TEXT.to_vec();
            text[at] = with;
            let _ = parse(&text);
        }
    }
}
