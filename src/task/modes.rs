//! How the instructions of a thread run, as prctl(2) and arch_prctl(2) keep it: the time stamp counter, CPUID, speculation, and what a machine
//! check does. Each thread is asked inside, and sets its own.

use crate::image::pb;
use crate::inject::batch::{Answers, Batch, Buffer, CallId};

/// For the leader of a process too: PF_MCE_ bits of one thread.
const PR_MCE_KILL_SET: u64 = 1;
const PR_GET_SPECULATION_CTRL: i32 = 52;
const PR_SET_SPECULATION_CTRL: i32 = 53;
/// In an answer: the state is the thread's own.
const PR_SPEC_PRCTL: u32 = 1;
const PR_SPEC_ENABLE: u32 = 2;
const PR_SPEC_DISABLE: u32 = 4;
/// Store bypass, indirect branches, flushing of the L1 data cache: what each is for a thread that never asked.
const SPECULATION: [u32; 3] = [PR_SPEC_ENABLE, PR_SPEC_ENABLE, PR_SPEC_DISABLE];
/// arch_prctl(2), Linux 4.12.
const ARCH_GET_CPUID: i32 = 0x1011;
const ARCH_SET_CPUID: i32 = 0x1012;

/// What was asked in a batch.
#[derive(Debug)]
pub struct Asked {
    tsc: (CallId, Buffer),
    cpuid: CallId,
    machine_check: CallId,
    speculation: [CallId; 3],
}

/// Adds the questions to a batch that the thread itself runs.
pub fn ask(batch: &mut Batch) -> Asked {
    let tsc = batch.output(8);
    Asked {
        tsc: (batch.call(libc::SYS_prctl, [libc::PR_GET_TSC.into(), tsc.into()]), tsc),
        cpuid: batch.call(libc::SYS_arch_prctl, [ARCH_GET_CPUID.into()]),
        machine_check: batch.call(libc::SYS_prctl, [libc::PR_MCE_KILL_GET.into()]),
        speculation: [0u64, 1, 2]
            .map(|which| batch.call(libc::SYS_prctl, [PR_GET_SPECULATION_CTRL.into(), which.into()])),
    }
}

/// What the thread answered; absent where the kernel or the processor has no such thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// PR_TSC_ENABLE or PR_TSC_SIGSEGV.
    pub tsc: Option<u32>,
    /// Whether CPUID raises SIGSEGV.
    pub cpuid_faults: Option<bool>,
    /// PR_MCE_KILL_ policy.
    pub machine_check: Option<u32>,
    /// PR_SPEC_ states that prctl sets.
    pub speculation: [Option<u32>; 3],
}

impl Asked {
    pub fn answers(&self, answers: &Answers) -> Modes {
        let value = |call: CallId| answers.result(call).ok().map(|value| value as u32);
        Modes {
            tsc: value(self.tsc.0).map(|_| answers.u32(self.tsc.1, 0)),
            cpuid_faults: value(self.cpuid).map(|enabled| enabled == 0),
            machine_check: value(self.machine_check),
            speculation: self
                .speculation
                .map(|call| value(call).filter(|state| state & PR_SPEC_PRCTL != 0).map(|state| state & !PR_SPEC_PRCTL)),
        }
    }
}

impl Modes {
    /// Adds them to a thread's own entry.
    pub fn record(&self, own: &mut pb::PtyagentThread) {
        let [store_bypass, indirect_branch, l1d_flush] = self.speculation;
        own.tsc = self.tsc;
        own.cpuid_faults = self.cpuid_faults;
        own.mce_kill = self.machine_check;
        own.spec_store_bypass = store_bypass;
        own.spec_indirect_branch = indirect_branch;
        own.spec_l1d_flush = l1d_flush;
    }
}

/// Adds the calls that set them. A thread begins with those of its maker, so what is as usual is set too, but need not be there to be set.
///
/// The leader sets its own after its threads were made: what is forced on a thread is never taken off it or those that it makes.
pub fn restore(batch: &mut Batch, own: &pb::PtyagentThread) {
    if let Some(tsc) = own.tsc {
        batch.must(libc::SYS_prctl, [libc::PR_SET_TSC.into(), u64::from(tsc).into()]);
    }
    match own.cpuid_faults {
        Some(true) => drop(batch.must(libc::SYS_arch_prctl, [ARCH_SET_CPUID.into(), 0u64.into()])),
        Some(false) => drop(batch.may(libc::SYS_arch_prctl, [ARCH_SET_CPUID.into(), 1u64.into()])),
        None => {}
    }
    if let Some(policy) = own.mce_kill {
        let args = [libc::PR_MCE_KILL.into(), PR_MCE_KILL_SET.into(), u64::from(policy).into()];
        batch.must(libc::SYS_prctl, args);
    }
    let recorded = [own.spec_store_bypass, own.spec_indirect_branch, own.spec_l1d_flush];
    for ((which, usual), state) in (0u64..).zip(SPECULATION).zip(recorded) {
        let Some(state) = state else { continue };
        let args = [PR_SET_SPECULATION_CTRL.into(), which.into(), u64::from(state).into()];
        match state == usual {
            true => drop(batch.may(libc::SYS_prctl, args)),
            false => drop(batch.must(libc::SYS_prctl, args)),
        }
    }
}
