//! Leaving a restartable sequence before the registers are changed.
//!
//! A thread that stops inside a critical section would be sent to the section's abort handler by the kernel when it runs on. Sent somewhere
//! else first, the kernel finds it outside the section, forgets the section, and the thread finishes it unprotected (FACTS B3). So
//! the abort is done here, as the kernel would: rseq(2), kernel/rseq.c.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::{Context, Result, Subject};
use crate::ids::Pid;
use crate::sys::ptrace::RseqConfiguration;
use crate::trace::Stopped;

/// Offset of rseq_cs in struct rseq, and the size of struct rseq_cs.
const RSEQ_CS_AT: u64 = 8;
const DESCRIPTOR_SIZE: usize = 32;

/// Aborts the critical section that a stopped thread is in, if it is in one.
pub fn abort_section(stopped: &Stopped, mem: &File, pid: Pid, rseq: &RseqConfiguration) -> Result<()> {
    let mut pointer = [0u8; 8];
    let at = rseq.pointer + RSEQ_CS_AT;
    mem.read_exact_at(&mut pointer, at).during("reading the restartable sequence area", Subject::Pid(pid))?;
    let pointer = u64::from_ne_bytes(pointer);
    if pointer == 0 {
        return Ok(());
    }
    let mut descriptor = [0u8; DESCRIPTOR_SIZE];
    mem.read_exact_at(&mut descriptor, pointer).during("reading a restartable sequence", Subject::Pid(pid))?;
    let word = |at: usize| descriptor[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
    let (start, len, abort) = (word(8), word(16), word(24));
    let mut regs = stopped.regs()?;
    if regs.rip.wrapping_sub(start) >= len {
        return Ok(());
    }
    regs.rip = abort;
    // Registers first: a controller that dies between the two leaves a section that is not running, which the kernel clears.
    stopped.set_regs(&regs)?;
    mem.write_all_at(&[0u8; 8], at).during("leaving a restartable sequence", Subject::Pid(pid))
}
