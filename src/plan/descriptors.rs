//! Where each file is open while tasks are being built.
//!
//! The restore opens every file once, above all numbers that a recorded table uses; every stub inherits them all, puts copies
//! where its table wants them and closes the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::error::Result;
use crate::image::{Images, pb};
use crate::tty::record::is_hung_up;

use super::sockets::is_socket;
use super::{Step, inconsistent};

/// Lowest number for the files of the session: below it the restore has what it needs itself.
const LOWEST: i32 = 512;
/// How many descriptors the restore may need beside two for each file and each terminal.
const OTHERS: i32 = 64;

/// The number of each file, and of each task's file of pages.
#[derive(Debug, Default, Serialize)]
pub struct Slots {
    /// The first number above all recorded ones.
    pub base: i32,
    pub files: BTreeMap<u32, i32>,
    pub pages: BTreeMap<u32, i32>,
}

/// Gives every file its number.
pub(super) fn slots(images: &Images, dir: &Path) -> Result<Slots> {
    let ids: BTreeSet<u32> = images.files.iter().map(|file| file.id).collect();
    let own = 2 * (images.files.len() + images.tty_info.len());
    let mut base = LOWEST.max(i32::try_from(own).unwrap_or(i32::MAX).saturating_add(OTHERS));
    for entry in images.fdinfo.values().flatten() {
        let number =
            i32::try_from(entry.fd).map_err(|_| inconsistent(dir, format!("{} is no descriptor", entry.fd)))?;
        base = base.max(number.saturating_add(1));
        if !ids.contains(&entry.id) {
            return Err(inconsistent(dir, format!("descriptor {number} refers to no file")));
        }
    }
    let mut next = base;
    let mut take = || {
        next += 1;
        next - 1
    };
    let files = ids.into_iter().map(|id| (id, take())).collect();
    let pages = images.pagemaps.keys().map(|pid| (*pid, take())).collect();
    Ok(Slots { base, files, pages })
}

/// Adds the steps that open everything that is not a terminal opened by its own session.
pub(super) fn open_steps(images: &Images, steps: &mut Vec<Step>) {
    let pipes: BTreeSet<u32> =
        images.files.iter().filter_map(|file| file.pipe.as_ref()).map(|pipe| pipe.pipe_id).collect();
    steps.extend(pipes.into_iter().map(|pipe| Step::OpenPipe { pipe }));
    let early = |file: &&pb::FileEntry| file.tty.as_ref().is_some_and(|tty| is_hung_up(tty.tty_info_id / 2));
    // A pidfd is opened in the task, when the process is there.
    // Sockets have steps of their own.
    let names = names(images);
    let elsewhere = |file: &&pb::FileEntry| {
        is_dev_tty(images, file) || file.pidfd.is_some() || is_socket(file) || names.contains(&file.id)
    };
    for file in images.files.iter().filter(|file| !elsewhere(file) && !early(file)) {
        steps.push(Step::OpenFile { id: file.id });
    }
}

/// Entries that only say by which path a FIFO or a terminal was opened.
fn names(images: &Images) -> BTreeSet<u32> {
    let fifos = images.files.iter().filter_map(|file| file.fifo.as_ref()?.regf_id);
    fifos.chain(images.files.iter().filter_map(|file| file.tty.as_ref()?.regf_id)).collect()
}

/// Adds the steps that open the descriptions of one terminal.
pub(super) fn open_slaves(images: &Images, index: u32, steps: &mut Vec<Step>) {
    let of_it = |file: &&pb::FileEntry| file.tty.as_ref().is_some_and(|tty| tty.tty_info_id / 2 == index);
    steps.extend(images.files.iter().filter(of_it).map(|file| Step::OpenFile { id: file.id }));
}

/// The descriptor table of a task, in ascending order.
pub fn table(images: &Images, pid: u32) -> Vec<&pb::FdinfoEntry> {
    let files_id = images.ids.get(&pid).map_or(pid, |ids| ids.files_id);
    let mut table: Vec<&pb::FdinfoEntry> = images.fdinfo.get(&files_id).into_iter().flatten().collect();
    table.sort_by_key(|entry| entry.fd);
    table
}

/// The epoll instances that a task is the first of the tree to have, with one of its numbers for each.
pub fn epolls(images: &Images, pid: u32) -> Vec<(u32, &pb::EventpollFileEntry)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for task in &images.pstree {
        for entry in table(images, task.pid) {
            let Some(instance) = images.file(entry.id).and_then(|file| file.epfd.as_ref()) else { continue };
            if seen.insert(entry.id) && task.pid == pid {
                found.push((entry.fd, instance));
            }
        }
        if task.pid == pid {
            break;
        }
    }
    found
}

/// Whether a description was opened as /dev/tty, so that only a member of the session can open it.
pub fn is_dev_tty(images: &Images, file: &pb::FileEntry) -> bool {
    images.own_ofd(file.id).is_some_and(|own| own.via_dev_tty == Some(true))
}
