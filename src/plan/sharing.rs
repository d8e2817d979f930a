//! Which task is made with what of its maker's, where several have one descriptor table or one set of directories.

use std::path::Path;

use crate::error::Result;
use crate::image::{Images, pb};

use super::{Birth, Step, inconsistent};

/// The flags of clone(2) for what a task shares with its maker: CLONE_FILES, CLONE_FS.
pub fn flags(images: &Images, pid: u32, maker: u32) -> u64 {
    let (Some(ours), Some(theirs)) = (images.ids.get(&pid), images.ids.get(&maker)) else { return 0 };
    let flag = |same: bool, flag: i32| if same { flag as u64 } else { 0 };
    flag(ours.files_id == theirs.files_id, libc::CLONE_FILES) | flag(ours.fs_id == theirs.fs_id, libc::CLONE_FS)
}

/// The tasks that have the descriptor table of this one, in the order in which they are built.
pub fn table_holders(images: &Images, pid: u32) -> Vec<u32> {
    let id = |pid: u32| images.ids.get(&pid).map_or(pid, |ids| ids.files_id);
    images.pstree.iter().map(|entry| entry.pid).filter(|other| id(*other) == id(pid)).collect()
}

/// Checks that every task that shares something is made by one that shares it too, but for the first.
pub(super) fn validate(images: &Images, steps: &[Step], dir: &Path) -> Result<()> {
    inherited(images, steps, dir, "its descriptor table", |ids| ids.files_id)?;
    inherited(images, steps, dir, "its directories", |ids| ids.fs_id)
}

fn inherited(
    images: &Images,
    steps: &[Step],
    dir: &Path,
    what: &str,
    id: fn(&pb::TaskKobjIdsEntry) -> u32,
) -> Result<()> {
    let mut made: Vec<u32> = Vec::new();
    for step in steps {
        let Step::Create { pid, birth } = step else { continue };
        let Some(own) = images.ids.get(pid).map(id) else { continue };
        let inherits = match birth {
            Birth::Root => false,
            Birth::Child { maker } | Birth::Sibling { maker } => images.ids.get(maker).map(id) == Some(own),
        };
        if !inherits && made.contains(&own) {
            let reason = format!("process {pid} shares {what} with one that is not its parent");
            return Err(inconsistent(dir, reason));
        }
        made.push(own);
    }
    Ok(())
}
