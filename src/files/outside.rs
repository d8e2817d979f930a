//! Who else has what the tree has open: processes outside it that hold a pipe, a removed file or a memory file of its.
//!
//! Whatever is made anew by a restore is another object for those that stay, so that a dump refuses it. Every process that /proc shows is asked; one that
//! cannot be looked into counts as not holding anything.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;

use crate::error::{Error, Refusal, Result};
use crate::files::dump::Table;
use crate::files::kind::{Descriptor, FileKind};
use crate::ids::Pid;
use crate::procfs::Device;

/// Device and inode.
type Object = (Device, u64);

/// What a descriptor leads to, where a restore makes it anew and a process outside could have it through /proc, fork(2) or a message.
fn object(descriptor: &Descriptor) -> Option<Object> {
    let made = matches!(descriptor.kind, FileKind::Pipe { .. } | FileKind::Removed);
    made.then_some((descriptor.stat.device, descriptor.stat.inode))
}

/// Refuses objects of the tree that a process outside it has open.
pub fn refuse_shared(tables: &[Table<'_>]) -> Result<()> {
    let mut wanted: BTreeMap<OsString, BTreeSet<Object>> = BTreeMap::new();
    for descriptor in tables.iter().flat_map(|table| table.descriptors) {
        if let Some(object) = object(descriptor) {
            wanted.entry(descriptor.link.clone()).or_default().insert(object);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let outside = holders(&tables.iter().map(|table| table.pid).collect(), &wanted);
    for table in tables {
        for descriptor in table.descriptors {
            let Some(other) = object(descriptor).and_then(|object| outside.get(&object)) else { continue };
            let kind = match descriptor.kind {
                FileKind::Pipe { .. } => format!("a pipe whose other end process {other} holds, outside the tree"),
                _ => format!("{descriptor} that process {other}, outside the tree, has open too"),
            };
            return Err(Error::Refused(Refusal {
                pid: table.pid,
                comm: table.comm.to_owned(),
                fd: Some(descriptor.fd.0),
                kind,
                remedy: format!("dump a tree that has process {other} in it, or end that process"),
            }));
        }
    }
    Ok(())
}

/// A process outside for each object that one has open.
fn holders(inside: &BTreeSet<Pid>, wanted: &BTreeMap<OsString, BTreeSet<Object>>) -> BTreeMap<Object, Pid> {
    let mut found = BTreeMap::new();
    let us = Pid(std::process::id() as i32);
    for pid in crate::procfs::tree::all().unwrap_or_default() {
        if inside.contains(&pid) || pid == us {
            continue;
        }
        let Ok(directory) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for path in directory.flatten().map(|entry| entry.path()) {
            let Ok(link) = std::fs::read_link(&path) else { continue };
            let Some(objects) = wanted.get(link.as_os_str()) else { continue };
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let object = (Device::from_stat(metadata.dev()), metadata.ino());
            if objects.contains(&object) {
                found.insert(object, pid);
            }
        }
    }
    found
}
