//! What the kernel keeps for an address space as a whole: what new mappings get by themselves, what may be mapped, how its pages are used.
//!
//! All of it is asked inside, but for mlockall(2), which no call tells: a mapping made by the parasite is locked where all later ones are. On
//! the way back everything is set when the memory is complete.

use crate::error::Result;
use crate::ids::Pid;
use crate::image::pb;
use crate::inject::batch::{Answers, Batch, CallId};
use crate::procfs::{Status, maps};

const PR_SET_THP_DISABLE: i32 = 41;
const PR_GET_THP_DISABLE: i32 = 42;
/// Linux 6.3.
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
/// Linux 6.4.
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;
/// membarrier(2): the answer to this command is the set of the registering ones; Linux 6.3.
const GET_REGISTRATIONS: u64 = 1 << 9;
/// Expedited barriers that fail with EPERM unless they are registered for, each with the command that registers: private, for cores, for
/// restartable sequences. Without GET_REGISTRATIONS they tell; the one for all processes has no such call.
const EXPEDITED: [(u64, u64); 3] = [(1 << 3, 1 << 4), (1 << 5, 1 << 6), (1 << 7, 1 << 8)];
const MCL_FUTURE: u32 = libc::MCL_FUTURE as u32;
const MCL_ONFAULT: u32 = libc::MCL_ONFAULT as u32;

/// What was asked in a batch.
#[derive(Debug)]
pub struct Asked {
    thp_disabled: CallId,
    mdwe: CallId,
    merge: CallId,
    registrations: CallId,
    expedited: [CallId; 3],
}

/// Adds the questions to a task's batch.
pub fn ask(batch: &mut Batch) -> Asked {
    let prctl = |batch: &mut Batch, option: i32| batch.call(libc::SYS_prctl, [option.into()]);
    let barrier = |batch: &mut Batch, command: u64| batch.call(libc::SYS_membarrier, [command.into()]);
    Asked {
        thp_disabled: prctl(batch, PR_GET_THP_DISABLE),
        mdwe: prctl(batch, PR_GET_MDWE),
        merge: prctl(batch, PR_GET_MEMORY_MERGE),
        registrations: barrier(batch, GET_REGISTRATIONS),
        expedited: EXPEDITED.map(|(command, _)| barrier(batch, command)),
    }
}

/// What the task answered; absent where it is as in every new process, or the kernel has no such thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Bit 0: disabled; bit 1: but where it is advised (PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18).
    pub thp_disabled: Option<u32>,
    /// PR_MDWE_ bits.
    pub mdwe: Option<u32>,
    pub merge: Option<bool>,
    /// MEMBARRIER_CMD_REGISTER_ commands that were given.
    pub membarrier: Option<u32>,
    /// MCL_ bits: [`locks_later`] tells.
    pub locks_later: Option<u32>,
}

impl Asked {
    pub fn answers(&self, answers: &Answers) -> Policy {
        let set = |call: CallId| answers.result(call).ok().filter(|value| *value != 0).map(|value| value as u32);
        let registered = match answers.result(self.registrations) {
            Ok(commands) => commands as u32,
            Err(_) => EXPEDITED
                .iter()
                .zip(self.expedited)
                .filter(|(_, call)| answers.result(*call).is_ok())
                .fold(0, |commands, ((_, register), _)| commands | *register as u32),
        };
        Policy {
            thp_disabled: set(self.thp_disabled),
            mdwe: set(self.mdwe),
            merge: set(self.merge).map(|value| value != 0),
            membarrier: Some(registered).filter(|commands| *commands != 0),
            locks_later: None,
        }
    }
}

/// The MCL_ bits by which later mappings are locked; none without. `before` is the status from before the parasite's region was mapped, at `region`.
///
/// MCL_FUTURE locks that region too, so that the locked memory of the process has grown.
pub fn locks_later(pid: Pid, before: &Status, region: u64) -> Result<Option<u32>> {
    if Status::read(pid)?.locked_kib <= before.locked_kib {
        return Ok(None);
    }
    let mappings = maps::read_with_flags(pid)?;
    let on_fault = mappings
        .iter()
        .filter(|mapping| mapping.start.0 <= region && region < mapping.end.0)
        .any(|mapping| mapping.flags.as_ref().is_some_and(maps::VmFlags::is_locked_on_fault));
    Ok(Some(if on_fault { MCL_FUTURE | MCL_ONFAULT } else { MCL_FUTURE }))
}

/// Adds the calls that set all of it, when nothing is to be mapped or protected any more. PR_SET_MEMORY_MERGE may need CAP_SYS_RESOURCE.
pub fn restore(batch: &mut Batch, core: &pb::CoreEntry, own: &pb::PtyagentTask) {
    let disabled = own.thp_disable_flags.or(own.thp_disabled.map(u32::from)).unwrap_or(0);
    if disabled & 1 != 0 {
        let flags = u64::from(disabled & !1);
        batch.must(libc::SYS_prctl, [PR_SET_THP_DISABLE.into(), 1u64.into(), flags.into()]);
    }
    if own.memory_merge == Some(true) {
        batch.must(libc::SYS_prctl, [PR_SET_MEMORY_MERGE.into(), 1u64.into()]);
    }
    let commands = core.tc.as_ref().and_then(|task| task.membarrier_registration_mask).unwrap_or(0);
    for command in (0..32u64).map(|bit| 1 << bit).filter(|command| u64::from(commands) & command != 0) {
        batch.must(libc::SYS_membarrier, [command.into()]);
    }
    if let Some(bits) = own.mlockall {
        batch.must(libc::SYS_mlockall, [u64::from(bits).into()]);
    }
    if let Some(bits) = own.mdwe {
        batch.must(libc::SYS_prctl, [PR_SET_MDWE.into(), u64::from(bits).into()]);
    }
}
