//! One processor for a restore and the tasks that it builds: they work in turns, and to wake another processor for each turn takes longer than
//! most turns do.

use crate::error::{Context, Result, Subject};
use crate::ids::Pid;
use crate::sys::process::attributes::{current_processor, sched_getaffinity, sched_setaffinity};
use crate::task::thread::Affinity;

/// The processors that this process may use. It may use all that the kernel allows it where setting all bits changes nothing.
pub fn affinity() -> Result<Affinity> {
    let us = Pid(std::process::id() as i32).into();
    let ask = || sched_getaffinity(us).during("asking for the affinity", Subject::None);
    let ours = ask()?;
    let all = vec![u8::MAX; ours.len()];
    sched_setaffinity(&all).during("setting the affinity", Subject::None)?;
    if ask()? == ours {
        return Ok(Affinity { ours, set: all });
    }
    sched_setaffinity(&ours).during("setting the affinity", Subject::None)?;
    Ok(Affinity { set: ours.clone(), ours })
}

/// Lets the calling thread run on any of the processors again.
pub fn unpin(affinity: &Affinity) {
    // It only costs time where it fails.
    let _ = sched_setaffinity(&affinity.set);
}

/// Until it is dropped, this thread and what it makes stay on one processor.
pub struct Pinned {
    before: Vec<u8>,
}

impl Pinned {
    /// `len` is that of a mask in bytes, `before` the mask to go back to.
    pub fn to_this_processor(len: usize, before: Vec<u8>) -> Pinned {
        let mut mask = vec![0u8; len];
        let here = current_processor().and_then(|number| Some((mask.get_mut(number / 8)?, number)));
        if let Some((byte, number)) = here {
            *byte = 1 << (number % 8);
            let _ = sched_setaffinity(&mask);
        }
        Pinned { before }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(&self.before);
    }
}
