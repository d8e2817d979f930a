//! Descriptor tables and directories that several processes have in common: clone(2) with CLONE_FILES or CLONE_FS.
//!
//! kcmp(2) tells outside. Tasks that share an object have one id for it in the images, that of the first of them. On the way back a task is made
//! with the flags for what it shares with its maker; a table is filled by the last of its tasks to be built, since what it does not hold is
//! closed then. Refused: what the parent of the root shares, what a task shares with one that is not its maker, and memory.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::image::{Images, pb};
use crate::sys::process::{KcmpType, kcmp};

/// Whether two threads have one and the same object of this kind. Errors: [`Error::Gone`] where `other` has ended.
pub fn is_one(one: Tid, other: Tid, kind: KcmpType) -> Result<bool> {
    let order = kcmp(one, other, kind, 0, 0).map_err(|errno| Error::of_tid("comparing threads", other, errno))?;
    Ok(order.is_eq())
}

/// The first thread that has the same object of this kind, for each thread; found by sorting in the kernel's order.
pub fn groups(tids: &[Tid], kind: KcmpType) -> Result<BTreeMap<Tid, Tid>> {
    let mut sorted: Vec<Tid> = Vec::new();
    let mut firsts = BTreeMap::new();
    for &tid in tids {
        let (mut low, mut high) = (0, sorted.len());
        let mut first = tid;
        while let Some(&other) = sorted.get(low..high).and_then(|range| range.get(range.len() / 2)) {
            let middle = low + (high - low) / 2;
            let order = kcmp(other, tid, kind, 0, 0);
            match order.map_err(|errno| Error::of_tid("comparing two processes", tid, errno))? {
                Ordering::Equal => {
                    first = other;
                    break;
                }
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        if first == tid {
            sorted.insert(low, tid);
        }
        firsts.insert(tid, first);
    }
    Ok(firsts)
}

/// The ids of what a restore comes with itself: no task has the same table. The namespaces are those of all tasks, and have no ids.
pub fn outside() -> pb::TaskKobjIdsEntry {
    pb::TaskKobjIdsEntry {
        vm_id: u32::MAX,
        files_id: u32::MAX,
        fs_id: u32::MAX,
        sighand_id: u32::MAX,
        ..Default::default()
    }
}

/// Gives every process the ids of its objects. They come parents first, each with a living thread, and are stopped.
pub fn record(images: &mut Images, processes: &[(Pid, Tid)]) -> Result<()> {
    let hosts: Vec<Tid> = processes.iter().map(|(_, host)| *host).collect();
    let (files, directories) = (groups(&hosts, KcmpType::Files)?, groups(&hosts, KcmpType::Fs)?);
    for (pid, host) in processes {
        let process = |of: &Tid| processes.iter().find(|(_, host)| host == of).map_or(pid, |(pid, _)| pid);
        let id = |groups: &BTreeMap<Tid, Tid>| process(groups.get(host).unwrap_or(host)).0 as u32;
        let own = pid.0 as u32;
        let ids = pb::TaskKobjIdsEntry {
            vm_id: own,
            files_id: id(&files),
            fs_id: id(&directories),
            sighand_id: own,
            ..Default::default()
        };
        images.ids.insert(own, ids);
    }
    Ok(())
}
