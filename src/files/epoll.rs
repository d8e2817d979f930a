//! epoll(7): the instance and what it watches.
//!
//! The list comes from fdinfo; which description an entry watches from kcmp(2), since its number may have been closed or given to another file.
//! Entries are made again in the task, under their numbers, when everything that they watch is in its final state.
//!
//! The kernel does not show what is on the ready list, but poll(2) of the instance tells whether anything is. Where nothing is, edges
//! (EPOLLET) that the targets' state raises at once have been seen, and are taken; otherwise they are left, so that none is lost. An EPOLLONESHOT
//! entry that has fired fires again here, before others are there to be disturbed.
//!
//! Lost: that an entry is not on the list though its target is ready. A master in packet mode wakes only those who ask for input, so one that
//! asks for EPOLLPRI alone is not told of its status, and is after a restore.
//!
//! Refused: an entry on what only a process outside the tree has open; one that has fired and whose target is not ready for anything now.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Context, Error, Result, Subject};
use crate::files::dump::{Description, Recorder, Table, fetch};
use crate::files::kind::Descriptor;
use crate::files::ofd::OfdId;
use crate::files::restore::set_status_flags;
use crate::image::{Images, pb};
use crate::inject::Infected;
use crate::inject::batch::{Ask, Batch};
use crate::plan::{Slots, descriptors};
use crate::sys::event::{self, EpollEntry};

/// What is no event: EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT and EPOLLET. An entry with nothing else has fired.
const PRIVATE: u32 = 0xf << 28;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
const EDGE: u32 = libc::EPOLLET as u32;
/// Everything that makes an entry fire.
const ANY: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32;
/// Most events that one call takes.
const TAKEN: usize = 1024;
/// The kernel's `struct epoll_event`, packed.
const EVENT_SIZE: usize = 12;

/// The entry of an epoll instance, and our own part of it.
pub fn record(
    recorder: &Recorder<'_>,
    description: &Description<'_>,
    own: &mut pb::PtyagentOfd,
) -> Result<pb::FileEntry> {
    let mut places = BTreeMap::new();
    let mut tfd = Vec::new();
    for (_, text) in description.descriptor.info.extra.iter().filter(|(key, _)| key == "tfd") {
        let entry = parse(text).ok_or_else(|| Error::unexpected("the fdinfo of an epoll instance", text.clone()))?;
        let place = places.entry(entry.tfd).or_insert(0u32);
        let target = target(recorder, description, &entry, *place)?;
        *place += 1;
        if has_fired(&entry) && !is_ready(fetch(target.0, target.1.fd)?.as_fd()) {
            let kind = format!(
                "an epoll entry on descriptor {} that has fired (EPOLLONESHOT) and is not ready now",
                entry.tfd
            );
            return Err(description.refuse(kind, "let the program arm it again, then dump again"));
        }
        own.epoll_targets.push(target.2.0);
        tfd.push(pb::EventpollTfdEntry { id: description.id.0, ..entry });
    }
    own.epoll_ready = Some(is_ready(description.copy));
    let epfd = pb::EventpollFileEntry { id: description.id.0, flags: description.flags, fown: description.fown, tfd };
    Ok(pb::FileEntry { epfd: Some(epfd), ..description.entry(pb::FdTypes::Eventpoll) })
}

fn has_fired(entry: &pb::EventpollTfdEntry) -> bool {
    entry.events & ONESHOT != 0 && entry.events & !PRIVATE == 0
}

fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut one = [PollFd::new(fd, PollFlags::from_bits_retain(ANY as i16))];
    poll(&mut one, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// "NUMBER events: HEX data: HEX pos:NUMBER ino:HEX sdev:HEX"; the last three since Linux 5.0.
fn parse(text: &str) -> Option<pb::EventpollTfdEntry> {
    let spaced = text.replace(':', " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let value = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
    let hex = |name: &str| value(name).and_then(|text| u64::from_str_radix(text, 16).ok());
    Some(pb::EventpollTfdEntry {
        tfd: words.first()?.parse().ok()?,
        events: hex("events")? as u32,
        data: hex("data")?,
        pos: value("pos").and_then(|text| text.parse().ok()),
        inode: hex("ino"),
        dev: hex("sdev").map(|dev| dev as u32),
        ..Default::default()
    })
}

/// A descriptor of the tree that is what an entry watches, and its description.
fn target<'a>(
    recorder: &Recorder<'a>,
    description: &Description<'_>,
    entry: &pb::EventpollTfdEntry,
    place: u32,
) -> Result<(&'a Table<'a>, &'a Descriptor, OfdId)> {
    let holder = description.table.pid;
    let watched = EpollEntry { instance: description.descriptor.fd.0, number: entry.tfd as i32, place };
    let all = || {
        let tables = recorder.tables.iter();
        tables.flat_map(|table| table.descriptors.iter().map(move |descriptor| (table, descriptor)))
    };
    let under_number = all().filter(|(_, descriptor)| descriptor.fd.0 as u32 == entry.tfd);
    let of_inode = all().filter(|(_, descriptor)| entry.inode.is_none_or(|inode| descriptor.stat.inode == inode));
    let mut seen = BTreeSet::new();
    for (table, descriptor) in under_number.chain(of_inode) {
        let Some(id) = recorder.ofds.get(&(table.pid, descriptor.fd)) else { continue };
        if !seen.insert(*id) {
            continue;
        }
        let same = event::is_watched(table.seen.into(), descriptor.fd.0, description.table.seen.into(), watched);
        if same.during("looking for what an epoll instance watches", Subject::Fd(holder, watched.instance))? {
            return Ok((table, descriptor, *id));
        }
    }
    let kind = format!("an epoll entry (once descriptor {}) on what no process of the tree has open", entry.tfd);
    Err(description.refuse(kind, "dump a tree that has all of its users in it, or end the program"))
}

/// An instance that watches nothing yet.
pub fn open(entry: &pb::EventpollFileEntry) -> Result<OwnedFd> {
    let fd = event::epoll().during("making an epoll instance", Subject::None)?;
    set_status_flags(fd.as_fd(), entry.flags)?;
    Ok(fd)
}

/// The entries of one instance with the files that they watch.
fn entries<'a>(
    images: &'a Images,
    instance: &'a pb::EventpollFileEntry,
) -> impl Iterator<Item = (u32, &'a pb::EventpollTfdEntry)> {
    let own = images.own_ofd(instance.id);
    instance.tfd.iter().enumerate().filter_map(move |(at, entry)| Some((*own?.epoll_targets.get(at)?, entry)))
}

/// Files that have to stay open in a task, in their slots, until its instances are filled: what its table does not have under the number.
pub fn needed(images: &Images, pid: u32) -> BTreeSet<u32> {
    let table = descriptors::table(images, pid);
    let under = |number: u32| table.iter().find(|entry| entry.fd == number).map(|entry| entry.id);
    let mut needed = BTreeSet::new();
    for (_, instance) in descriptors::epolls(images, pid) {
        for (target, entry) in entries(images, instance).filter(|(target, entry)| under(entry.tfd) != Some(*target)) {
            needed.insert(target);
            needed.extend(under(entry.tfd));
        }
    }
    needed
}

/// Makes the entries of all instances that a task is the first to have, the inner ones first, and closes what was kept for it.
pub fn fill(tracee: &mut Infected, images: &Images, slots: &Slots, pid: u32) -> Result<()> {
    let table = descriptors::table(images, pid);
    let mut waiting = descriptors::epolls(images, pid);
    while !waiting.is_empty() {
        let inner = |instance: &pb::EventpollFileEntry| {
            !entries(images, instance).any(|(target, _)| waiting.iter().any(|(_, other)| other.id == target))
        };
        let at = waiting.iter().position(|(_, instance)| inner(instance)).unwrap_or(0);
        let (number, instance) = waiting.remove(at);
        let mut filling = Filling { batch: Batch::new(), slots, table: &table, number };
        filling.instance(images, instance);
        tracee.ask(filling.batch)?.all_done("filling an epoll instance", Subject::None)?;
    }
    let mut batch = Batch::new();
    let base = u64::from(slots.base.unsigned_abs());
    batch.must(libc::SYS_close_range, [base.into(), u64::from(u32::MAX).into(), 0u64.into()]);
    tracee.ask(batch)?.all_done("closing what was kept for epoll", Subject::None)
}

struct Filling<'a> {
    batch: Batch,
    slots: &'a Slots,
    table: &'a [&'a pb::FdinfoEntry],
    /// The instance's descriptor in the task.
    number: u32,
}

impl Filling<'_> {
    fn instance(&mut self, images: &Images, instance: &pb::EventpollFileEntry) {
        let quiet = images.own_ofd(instance.id).and_then(|own| own.epoll_ready) == Some(false);
        let class = |entry: &pb::EventpollTfdEntry| match entry {
            entry if has_fired(entry) => 0,
            entry if quiet && entry.events & EDGE != 0 => 1,
            _ => 2,
        };
        for (target, entry) in entries(images, instance).filter(|(_, entry)| class(entry) == 0) {
            self.add(target, entry, entry.events | ANY);
            self.take();
        }
        for (target, entry) in entries(images, instance).filter(|(_, entry)| class(entry) == 1) {
            self.add(target, entry, entry.events);
        }
        if entries(images, instance).any(|(_, entry)| class(entry) == 1) {
            self.take();
        }
        for (target, entry) in entries(images, instance).filter(|(_, entry)| class(entry) == 2) {
            self.add(target, entry, entry.events);
        }
    }

    /// EPOLL_CTL_ADD under the recorded number, which is lent to the target where it is closed or another file's by now.
    fn add(&mut self, target: u32, entry: &pb::EventpollTfdEntry, events: u32) {
        let slot = |id: u32| self.slots.files.get(&id).copied().unwrap_or(-1);
        let there = self.table.iter().find(|other| other.fd == entry.tfd);
        let lent = there.is_none_or(|there| there.id != target);
        let number = u64::from(entry.tfd);
        if lent {
            self.batch.must(libc::SYS_dup3, [slot(target).into(), number.into(), libc::O_CLOEXEC.into()]);
        }
        let mut event = [0u8; EVENT_SIZE];
        event[..4].copy_from_slice(&events.to_ne_bytes());
        event[4..].copy_from_slice(&entry.data.to_ne_bytes());
        let event = self.batch.input(&event);
        let instance = u64::from(self.number);
        self.batch
            .must(libc::SYS_epoll_ctl, [instance.into(), libc::EPOLL_CTL_ADD.into(), number.into(), event.into()]);
        match there.filter(|_| lent) {
            Some(there) => {
                let flags = if there.flags & 1 != 0 { libc::O_CLOEXEC } else { 0 };
                self.batch.must(libc::SYS_dup3, [slot(there.id).into(), number.into(), flags.into()]);
            }
            None if lent => {
                self.batch.must(libc::SYS_close, [number.into()]);
            }
            None => {}
        }
    }

    /// Takes the events that are there.
    fn take(&mut self) {
        let events = self.batch.output(TAKEN * EVENT_SIZE);
        let instance = u64::from(self.number);
        let args = [instance.into(), events.into(), TAKEN.into(), 0u64.into(), 0u64.into(), 8u64.into()];
        self.batch.must(libc::SYS_epoll_pwait, args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_parsed() {
        let entry = parse("5 events: 40000019 data: 7fff00000001  pos:12 ino:3f sdev:e").unwrap();
        assert_eq!((entry.tfd, entry.events, entry.data), (5, 0x4000_0019, 0x7fff_0000_0001));
        assert_eq!((entry.pos, entry.inode, entry.dev), (Some(12), Some(0x3f), Some(14)));
        assert!(!has_fired(&entry));
        assert!(has_fired(&parse("5 events: c0000000 data: 1").unwrap()));
        assert!(parse("events: 1 data: 1").is_none());
    }
}
