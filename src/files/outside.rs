//! Who else has what the tree has open: processes outside it that hold a pipe, a removed file or a memory file of its.
//!
//! Whatever is made anew by a restore is another object for those that stay, so that a dump refuses it. Every process that /proc shows is asked; one that
//! cannot be looked into counts as not holding anything.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Refusal, Result};
use crate::files::dump::Table;
use crate::files::kind::{Descriptor, FileKind};
use crate::ids::Pid;
use crate::mem;
use crate::procfs::{Device, Mapping, Sharing};

/// Device and inode.
type Object = (Device, u64);

/// What a descriptor leads to, where a restore makes it anew and a process outside could have it through /proc, fork(2) or a message.
fn object(descriptor: &Descriptor) -> Option<Object> {
    let made = matches!(descriptor.kind, FileKind::Pipe { .. } | FileKind::Removed | FileKind::Memfd);
    made.then_some((descriptor.stat.device, descriptor.stat.inode))
}

/// What a shared mapping shows that has no name.
fn mapped(mapping: &Mapping) -> Option<Object> {
    let made = mapping.deleted && mapping.sharing == Sharing::Shared && !mem::is_shared_anonymous(mapping);
    made.then_some((mapping.device, mapping.inode))
}

/// A process of the tree, its name and its mappings.
pub type Mapped<'a> = (Pid, &'a str, &'a [Mapping]);

/// Refuses objects of the tree that a process outside it has open, or shows in its memory.
pub fn refuse_shared(tables: &[Table<'_>], mappings: &[Mapped<'_>]) -> Result<()> {
    let mut wanted = Wanted::default();
    for descriptor in tables.iter().flat_map(|table| table.descriptors) {
        if let Some(object) = object(descriptor) {
            wanted.links.insert(descriptor.link.clone());
            wanted.objects.insert(object);
            wanted.memory |= !matches!(descriptor.kind, FileKind::Pipe { .. });
        }
    }
    for (mapping, object) in mappings.iter().flat_map(|one| one.2).filter_map(|one| Some((one, mapped(one)?))) {
        wanted.links.insert(OsStr::from_bytes(&[mapping.name.as_bytes(), b" (deleted)"].concat()).to_owned());
        wanted.objects.insert(object);
        wanted.memory = true;
    }
    if wanted.objects.is_empty() {
        return Ok(());
    }
    let outside = holders(&tables.iter().map(|table| table.pid).collect(), &wanted);
    let refuse = |pid: Pid, comm: &str, fd: Option<i32>, kind: String, other: Pid| {
        let remedy = format!("dump a tree that has process {other} in it, or end that process");
        Err(Error::Refused(Refusal { pid, comm: comm.to_owned(), fd, kind, remedy }))
    };
    for table in tables {
        for descriptor in table.descriptors {
            let Some(other) = object(descriptor).and_then(|object| outside.get(&object)) else { continue };
            let kind = match descriptor.kind {
                FileKind::Pipe { .. } => format!("a pipe whose other end process {other} holds, outside the tree"),
                _ => format!("{descriptor} that process {other}, outside the tree, has too"),
            };
            return refuse(table.pid, table.comm, Some(descriptor.fd.0), kind, *other);
        }
    }
    for (pid, comm, mappings) in mappings {
        let other = |mapping| mapped(mapping).and_then(|object| Some((mapping, outside.get(&object)?)));
        let Some((mapping, other)) = mappings.iter().find_map(other) else { continue };
        let name = Path::new(&mapping.name).display();
        let kind = format!("memory at {} of {name} that process {other}, outside the tree, has too", mapping.start);
        return refuse(*pid, comm, None, kind, *other);
    }
    Ok(())
}

/// What is looked for.
#[derive(Default)]
struct Wanted {
    /// How links of /proc call the objects.
    links: BTreeSet<OsString>,
    objects: BTreeSet<Object>,
    /// Whether mappings may show them.
    memory: bool,
}

/// A process outside for each object that one has.
fn holders(inside: &BTreeSet<Pid>, wanted: &Wanted) -> BTreeMap<Object, Pid> {
    let mut found = BTreeMap::new();
    let us = Pid(std::process::id() as i32);
    for pid in crate::procfs::tree::all().unwrap_or_default() {
        if inside.contains(&pid) || pid == us {
            continue;
        }
        let mappings = if wanted.memory { crate::procfs::maps::read(pid).unwrap_or_default() } else { Vec::new() };
        let shown = mappings.iter().filter_map(mapped);
        found.extend(shown.filter(|object| wanted.objects.contains(object)).map(|object| (object, pid)));
        let Ok(directory) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for path in directory.flatten().map(|entry| entry.path()) {
            let link = std::fs::read_link(&path);
            if !link.is_ok_and(|link| wanted.links.contains(link.as_os_str())) {
                continue;
            }
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let object = (Device::from_stat(metadata.dev()), metadata.ino());
            if wanted.objects.contains(&object) {
                found.insert(object, pid);
            }
        }
    }
    found
}
