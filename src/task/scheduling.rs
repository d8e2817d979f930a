//! How the kernel lets a thread run: nice value, I/O priority, policy, priority and slice. Calls that take a thread id tell; each thread sets its own.

use crate::image::pb;
use crate::inject::batch::Batch;
use crate::sys::process::attributes::SchedAttr;

const SCHED_OTHER: u32 = 0;
const SCHED_IDLE: u32 = 5;
const SCHED_DEADLINE: u32 = 6;
/// The policies whose threads may have a slice of their own: with SCHED_BATCH.
pub const FAIR: [u32; 3] = [SCHED_OTHER, 3, SCHED_IDLE];
/// In a policy, and as a flag of struct sched_attr.
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;
const SCHED_FLAG_RESET_ON_FORK: u64 = 1;

/// A time of the deadline class. The fair class has a runtime too, its slice.
pub fn deadline(sched: &SchedAttr, nanoseconds: u64) -> Option<u64> {
    (sched.policy == SCHED_DEADLINE).then_some(nanoseconds)
}

/// The nice value, the I/O priority, policy and priority. All are set, because a thread begins with those of the leader.
pub fn restore(batch: &mut Batch, core: &pb::CoreEntry, own: &pb::PtyagentThread) {
    let Some(thread) = &core.thread_core else { return };
    let (policy, priority) = (thread.sched_policy.unwrap_or(0), thread.sched_prio.unwrap_or(0));
    let reset = own.sched_flags.unwrap_or(0) & SCHED_FLAG_RESET_ON_FORK;
    let nice = thread.sched_nice.unwrap_or(0);
    batch.must(libc::SYS_setpriority, [u64::from(libc::PRIO_PROCESS).into(), 0u64.into(), nice.into()]);
    if let Some(ioprio) = own.ioprio {
        batch.must(libc::SYS_ioprio_set, [1u64.into(), 0u64.into(), u64::from(ioprio).into()]);
    }
    let attr = |batch: &mut Batch, policy: u32| {
        let words = [own.sched_runtime, own.sched_deadline, own.sched_period].map(|word| word.unwrap_or(0));
        let head = [48u32.to_ne_bytes(), policy.to_ne_bytes()].concat();
        let nice = [nice.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
        let attr = [head, reset.to_ne_bytes().to_vec(), nice, words.map(u64::to_ne_bytes).concat()].concat();
        batch.input(&attr)
    };
    if policy == SCHED_IDLE {
        // The kernel keeps the slice that the thread was born with there, and takes another one in SCHED_OTHER only.
        let other = attr(batch, SCHED_OTHER);
        batch.call(libc::SYS_sched_setattr, [0u64.into(), other.into(), 0u64.into()]);
    } else if policy == SCHED_DEADLINE || own.sched_runtime.is_some() {
        let attr = attr(batch, policy);
        batch.must(libc::SYS_sched_setattr, [0u64.into(), attr.into(), 0u64.into()]);
        return;
    }
    let parameter = batch.input(&priority.to_ne_bytes());
    let policy = policy | if reset != 0 { SCHED_RESET_ON_FORK } else { 0 };
    batch.must(libc::SYS_sched_setscheduler, [0u64.into(), u64::from(policy).into(), parameter.into()]);
}
