//! What of a single thread stands in the way.

use super::refusals::refuse;
use super::{Alive, Survey, TaskFacts};
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::procfs::{Namespaces, Stat};
use crate::sys::process::KcmpType;
use crate::sys::process::attributes::{SchedAttr, core_sched_cookie, sched_getattr};
use crate::task::sharing;

/// The kernel's mark of a thread that PR_SET_IO_FLUSHER was called in. include/linux/sched.h.
const PF_LOCAL_THROTTLE: u32 = 0x0010_0000;
/// SCHED_CAPACITY_SCALE: no clamp from above.
const CAPACITY: u32 = 1024;

/// Refuses the first thread that has a descriptor table or namespaces of its own (unshare(2) in a thread), or one of the rarer
/// privileges that a restore could not give it. The leader is a thread too.
pub fn refuse_threads(survey: &Survey) -> Result<()> {
    for (task, alive) in survey.living() {
        let leader = Tid::from(task.pid);
        let ended = |tid: &Tid| *tid == leader && task.has_lost_leader();
        for tid in task.threads.iter().copied().filter(|tid| !ended(tid)) {
            let own = || if tid == task.body { Ok(()) } else { refuse_thread(task, alive, tid) };
            match refuse_rare(task, tid).and_then(|()| own()) {
                // It has ended since.
                Err(Error::Gone(_)) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

/// What only CAP_SYS_RESOURCE, a scheduler with clamps or one with groups of trust on a core would give again.
fn refuse_rare(task: &TaskFacts, tid: Tid) -> Result<()> {
    let failed = |operation| move |errno| Error::of_tid(operation, tid, errno);
    let flags = Stat::read_thread(task.pid, tid)?.flags;
    let attr = sched_getattr(tid).map_err(failed("asking for the scheduling"))?;
    // Without CONFIG_SCHED_CORE or without threads on a core there is nothing to ask for.
    let cookie = core_sched_cookie(tid).unwrap_or(0);
    let Some(kind) = rarity(flags, &attr, cookie) else { return Ok(()) };
    let kind = format!("its thread {tid} {kind}");
    refuse(task.pid, task.comm(), kind, "end that program, then dump again")
}

fn rarity(flags: u32, attr: &SchedAttr, cookie: u64) -> Option<&'static str> {
    let realtime = [libc::SCHED_FIFO as u32, libc::SCHED_RR as u32].contains(&attr.policy);
    let clamps = (attr.util_min, attr.util_max);
    let usual = matches!(clamps, (0, 0 | CAPACITY)) || realtime && clamps == (CAPACITY, CAPACITY);
    if flags & PF_LOCAL_THROTTLE != 0 {
        Some("takes part in writing to storage (PR_SET_IO_FLUSHER)")
    } else if cookie != 0 {
        Some("shares its core with chosen threads only (PR_SCHED_CORE)")
    } else if !usual {
        Some("has a utilisation clamp (SCHED_FLAG_UTIL_CLAMP)")
    } else {
        None
    }
}

fn refuse_thread(task: &TaskFacts, alive: &Alive, tid: Tid) -> Result<()> {
    let (pid, comm) = (task.pid, task.comm());
    let remedy = "end that program, then dump again";
    if !sharing::is_one(task.body, tid, KcmpType::Files)? {
        return refuse(pid, comm, format!("its thread {tid} has a descriptor table of its own"), remedy);
    }
    if !Namespaces::read(Pid(tid.0))?.differences(&alive.namespaces).is_empty() {
        return refuse(pid, comm, format!("its thread {tid} is in other namespaces than the process"), remedy);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_privileges_are_told() {
        let plain = SchedAttr::default();
        let clamped = |policy, util_min, util_max| SchedAttr { policy, util_min, util_max, ..plain };
        assert_eq!(rarity(0x0040_0100, &plain, 0), None);
        assert_eq!(rarity(0, &clamped(0, 0, 1024), 0), None);
        assert_eq!(rarity(0, &clamped(1, 1024, 1024), 0), None);
        assert!(rarity(0x0018_0000, &plain, 0).unwrap().contains("PR_SET_IO_FLUSHER"));
        assert!(rarity(0, &plain, 7).unwrap().contains("PR_SCHED_CORE"));
        assert!(rarity(0, &clamped(0, 100, 1024), 0).unwrap().contains("SCHED_FLAG_UTIL_CLAMP"));
        assert!(rarity(0, &clamped(0, 1024, 1024), 0).unwrap().contains("SCHED_FLAG_UTIL_CLAMP"));
    }
}
