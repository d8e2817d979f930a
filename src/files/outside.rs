//! Who else has what the tree has open: processes outside it that hold a pipe, a removed file or a memory file of its; and what the user lets go of.
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
use crate::ids::{Pid, RemoteFd};
use crate::image::pb;
use crate::mem;
use crate::procfs::{Device, Mapping, Sharing, Stat};

/// Which connections the user lets go of: they come back closed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LetGo {
    #[default]
    None,
    All,
    Only(Vec<Chosen>),
}

/// One socket or pipe, as a user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// As `ls -l /proc/PID/fd` shows it.
    Inode(u64),
    Descriptor(Pid, RemoteFd),
}

/// What of a tree leads out of it, and may be let go of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LetGoOf {
    /// Unix sockets whose peer is outside.
    pub unix: LetGo,
    /// TCP connections.
    pub tcp: LetGo,
    /// Pipes with an end outside.
    pub pipes: LetGo,
}

impl LetGo {
    /// The inodes of the chosen ones. Fails for one that the tree does not have.
    pub fn inodes(&self, tables: &[Table<'_>]) -> Result<BTreeSet<u64>> {
        let LetGo::Only(chosen) = self else { return Ok(BTreeSet::new()) };
        let all = || tables.iter().flat_map(|table| table.descriptors.iter().map(move |one| (table.pid, one)));
        let inode_of = |chosen: &Chosen| {
            let mut found = all().filter(|(pid, one)| match *chosen {
                Chosen::Inode(inode) => one.stat.inode == inode,
                Chosen::Descriptor(of, fd) => (*pid, one.fd) == (of, fd),
            });
            found.next().map(|(_, one)| one.stat.inode).ok_or_else(|| {
                let what = match chosen {
                    Chosen::Inode(inode) => format!("no process of the session has inode {inode} open"),
                    Chosen::Descriptor(pid, fd) => format!("the session has no descriptor {fd} of process {pid}"),
                };
                Error::failed(format!("{what}; leave it out, then dump again"))
            })
        };
        chosen.iter().map(inode_of).collect()
    }

    /// Whether it covers a descriptor, where these are the inodes of the chosen ones.
    pub fn covers(&self, chosen: &BTreeSet<u64>, descriptor: &Descriptor) -> bool {
        match self {
            LetGo::None => false,
            LetGo::All => true,
            LetGo::Only(_) => chosen.contains(&descriptor.stat.inode),
        }
    }
}

/// How a refusal offers to let go of a descriptor.
pub fn offer(flag: &str, table: &Table<'_>, descriptor: &Descriptor) -> String {
    let one = match table.is_in_flight() {
        true => descriptor.stat.inode.to_string(),
        false => format!("{}:{}", table.pid, descriptor.fd),
    };
    format!("dump with {flag}={one} ({flag} for all such), which brings it back closed")
}

/// The record of something that was let go of.
pub fn loss(table: &Table<'_>, descriptor: &Descriptor, text: &str) -> pb::PtyagentLoss {
    let (pid, fd) = (Some(table.pid.0 as u32), Some(descriptor.fd.0));
    pb::PtyagentLoss { pid, fd, text: Some(format!("{text}: it comes back closed")) }
}

/// A process as a refusal names it: its number and its program's name.
pub fn called(pid: Pid) -> String {
    match Stat::read(pid) {
        Ok(stat) => format!("process {pid} ({})", stat.comm_text()),
        Err(_) => format!("process {pid}"),
    }
}

/// Device and inode.
type Object = (Device, u64);

/// What a descriptor leads to, where a restore makes it anew and a process outside could have it through /proc, fork(2) or a message.
fn object(descriptor: &Descriptor) -> Option<Object> {
    let made = matches!(descriptor.kind, FileKind::Pipe { .. } | FileKind::Removed | FileKind::Memfd);
    made.then_some((descriptor.stat.device, descriptor.stat.inode))
}

/// What a shared mapping shows that has no name.
fn mapped(mapping: &Mapping) -> Option<Object> {
    let made = mapping.deleted && mapping.sharing == Sharing::Shared && !mem::shared::is_shown_by(mapping);
    made.then_some((mapping.device, mapping.inode))
}

/// A process of the tree, its name and its mappings.
pub type Mapped<'a> = (Pid, &'a str, &'a [Mapping]);

/// Refuses objects of the tree that a process outside it has open, or shows in its memory; yields the pipes that are let go of.
pub fn refuse_shared(tables: &[Table<'_>], mappings: &[Mapped<'_>], let_go: &LetGo) -> Result<Vec<pb::PtyagentLoss>> {
    let chosen = let_go.inodes(tables)?;
    let mut losses = Vec::new();
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
        return Ok(losses);
    }
    let outside = holders(&tables.iter().map(|table| table.pid).collect(), &wanted);
    let refuse = |pid: Pid, comm: &str, fd: Option<i32>, kind: String, remedy: String| {
        Err(Error::Refused(Refusal { pid, comm: comm.to_owned(), fd, kind, remedy }))
    };
    let remedy = |other: Pid| format!("dump a tree that has process {other} in it, or end that process");
    let all = tables.iter().flat_map(|table| table.descriptors.iter().map(move |one| (table, one)));
    for (table, descriptor) in all {
        let Some(other) = object(descriptor).and_then(|object| outside.get(&object)).copied() else { continue };
        let (pid, comm, fd) = (table.pid, table.comm, Some(descriptor.fd.0));
        if !matches!(descriptor.kind, FileKind::Pipe { .. }) {
            let kind = format!("{descriptor} that {}, outside the tree, has too", called(other));
            return refuse(pid, comm, fd, kind, remedy(other));
        }
        let kind = format!("a pipe that {}, outside the tree, has open", called(other));
        if !let_go.covers(&chosen, descriptor) {
            return refuse(
                pid,
                comm,
                fd,
                kind,
                format!("{}, or {}", remedy(other), offer(EXT_PIPE, table, descriptor)),
            );
        }
        losses.push(loss(table, descriptor, &kind));
    }
    for (pid, comm, mappings) in mappings {
        let other = |mapping| mapped(mapping).and_then(|object| Some((mapping, outside.get(&object)?)));
        let Some((mapping, other)) = mappings.iter().find_map(other) else { continue };
        let name = Path::new(&mapping.name).display();
        let start = mapping.start;
        let kind = format!("memory at {start} of {name} that {}, outside the tree, has too", called(*other));
        return refuse(*pid, comm, None, kind, remedy(*other));
    }
    Ok(losses)
}

const EXT_PIPE: &str = "--ext-pipe";

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
        let mappings = if wanted.memory { crate::procfs::maps::of_any(pid) } else { Vec::new() };
        let shown = mappings.iter().filter_map(mapped);
        found.extend(shown.filter(|object| wanted.objects.contains(object)).map(|object| (object, pid)));
        for path in crate::procfs::fdinfo::links(pid) {
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
