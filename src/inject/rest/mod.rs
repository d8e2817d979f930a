//! Calls that a stop cuts short: a blocked write, or a read that waits for more bytes, returns what it has done so far.
//!
//! The kernel has no way back into such a call (FACTS A7). So the victim goes on in a [`stub`] that makes the rest of the call, adds what was done
//! before, and returns to behind the call. It lies in the vDSO's tail and stays there when the controller has left; a later controller
//! finds a thread in it and reads from its operands where the thread really is. A restored thread gets one too, and the slots that a signal handler
//! returns to come back as they were.
//!
//! There are as many slots as the vDSO's tail has room for, two at least on all kernels so far. A rest of several pieces of memory takes two, one for
//! the list of them. No slot is overwritten while a thread is in it, and one that no thread needs any more is cleared at the next visit. A thread that
//! finds no room returns with what was done.
//!
//! A signal handler that was to be told by a short count is called all the same; a call that it interrupts ends short, as ever, unless it is to
//! be restarted.

mod call;
mod stub;

use std::fs::File;
use std::os::unix::fs::FileExt;

use libc::user_regs_struct;

use super::restart::Pending;
use crate::error::{Context, Result, Subject};
use crate::ids::Pid;

pub use call::{Call, Left, Rest, Through, Transfer};
use stub::{LEN, Stub};

/// Bytes of a slot.
pub const SIZE: usize = 128;
/// What a slot begins with that holds no code but a list of pieces.
const LIST: &[u8; 8] = b"pieces\0\0";

/// Where a stopped thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    /// Its registers, in no stub of ours; behind a call that was cut short, with what that has done so far.
    pub regs: user_regs_struct,
    pub cut: Option<Cut>,
}

/// A call that was cut short, perhaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub call: Call,
    /// Moved before, and by this call.
    pub before: u64,
    pub moved: u64,
    /// The registers of a thread that is in the stub of an earlier cut.
    pub stub: Option<user_regs_struct>,
}

/// Whether a slot may be used: it is empty, or it holds something of ours.
pub fn is_free(slot: &[u8]) -> bool {
    slot.iter().all(|byte| *byte == 0) || slot.starts_with(LIST) || Stub::decode(slot).is_some()
}

/// Where a stopped thread is, whose registers are `regs`; `slots` are the addresses of the slots.
pub fn whereabouts(
    mem: &File,
    pid: Pid,
    regs: &user_regs_struct,
    slots: &[u64],
    pending: Pending,
) -> Result<Whereabouts> {
    for at in slots {
        let offset = regs.rip.wrapping_sub(*at);
        if offset < LEN as u64 {
            if let Some(stub) = Stub::decode(&read(mem, pid, *at)?) {
                return Ok(stub.whereabouts(regs, offset, pending));
            }
        }
    }
    let moved = regs.rax;
    if pending == Pending::Deliverable || (regs.orig_rax as i64) < 0 || moved as i64 <= 0 {
        return Ok(Whereabouts { regs: *regs, cut: None });
    }
    let call = Call::new(regs.orig_rax as i64, regs);
    Ok(Whereabouts { regs: *regs, cut: Some(Cut { call, before: 0, moved, stub: None }) })
}

impl Cut {
    /// What the call has moved of what it was asked for. None where it has moved all, or is no call that moves piece after piece.
    pub fn transfer(&self, mem: &File, pid: Pid) -> Result<Option<Transfer>> {
        let Cut { call, before, moved, .. } = *self;
        let wanted = call::wanted(mem, pid, &call)?.filter(|wanted| moved < *wanted);
        Ok(wanted.map(|wanted| Transfer { call, before, moved, wanted }))
    }
}

/// What makes the rest of a call; see [`Rest`]. None where it cannot be made.
pub fn rest(mem: &File, pid: Pid, transfer: &Transfer, left: Left) -> Result<Option<Rest>> {
    call::rest(mem, pid, transfer, left, SIZE - LIST.len())
}

fn read(mem: &File, pid: Pid, at: u64) -> Result<[u8; SIZE]> {
    let mut slot = [0u8; SIZE];
    mem.read_exact_at(&mut slot, at).during("reading the vDSO", Subject::Pid(pid))?;
    Ok(slot)
}

/// The slots that no thread of the process needs and to which no signal handler returns. `threads` are the registers of all of them.
pub fn unused(mem: &File, pid: Pid, slots: &[u64], threads: &[user_regs_struct]) -> Result<Vec<u64>> {
    let is_in = |slot: u64| threads.iter().any(|regs| within(slot, regs.rip) || within(slot, regs.rsi));
    let mut unused: Vec<u64> = slots.iter().copied().filter(|slot| !is_in(*slot)).collect();
    let mut full = Vec::new();
    for slot in &unused {
        full.extend((read(mem, pid, *slot)? != [0; SIZE]).then_some(*slot));
    }
    // The stacks are read only where there is something to find.
    let stacks = threads.iter().take_while(|_| !full.is_empty()).map(|regs| stack(mem, regs));
    let needed: Vec<u64> = stacks.flat_map(|stack| leads_to(&full, &stack)).collect();
    unused.retain(|slot| !needed.contains(slot));
    Ok(unused)
}

/// Whether an address lies in a slot.
fn within(slot: u64, address: u64) -> bool {
    address.wrapping_sub(slot) < SIZE as u64
}

/// The slots to which a word of a stack leads.
fn leads_to(slots: &[u64], stack: &[u8]) -> Vec<u64> {
    let words = stack.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
    words.filter_map(|word| slots.iter().copied().find(|slot| within(*slot, word))).collect()
}

/// What lies above a stack pointer: as much as can be read, at most 8 MiB.
fn stack(mem: &File, regs: &user_regs_struct) -> Vec<u8> {
    const CHUNK: usize = 64 * 1024;
    let mut bytes = Vec::new();
    let mut chunk = vec![0u8; CHUNK];
    while bytes.len() < 8 << 20 {
        match mem.read_at(&mut chunk, regs.rsp.wrapping_add(bytes.len() as u64)) {
            Ok(count @ 1..) => bytes.extend_from_slice(&chunk[..count]),
            _ => break,
        }
    }
    bytes
}

/// Puts the rest of a call into unused slots; yields the registers that begin it, where there are enough.
pub fn place(
    mem: &File,
    pid: Pid,
    unused: &[u64],
    behind: &user_regs_struct,
    rest: &Rest,
) -> Result<Option<user_regs_struct>> {
    let (Some(slot), Some(stub)) = (unused.first(), Stub::new(behind, rest.done)) else { return Ok(None) };
    let write = |at: u64, bytes: &[u8]| mem.write_all_at(bytes, at).during("writing the entry code", Subject::Pid(pid));
    let call = match (rest.data.is_empty(), unused.get(1)) {
        (true, _) => rest.call,
        (false, None) => return Ok(None),
        (false, Some(list)) => {
            let (call, data) = rest.placed(list + LIST.len() as u64);
            write(*list, &[&LIST[..], &data].concat())?;
            call
        }
    };
    write(*slot, &stub.encode())?;
    let [rdi, rsi, rdx, r10, r8, r9] = call.args;
    let (rip, rax, orig_rax) = (*slot, call.nr as u64, u64::MAX);
    Ok(Some(user_regs_struct { rip, rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..*behind }))
}

/// Clears slots that nobody needs.
pub fn clear(mem: &File, pid: Pid, slots: &[u64]) -> Result<()> {
    for at in slots {
        if read(mem, pid, *at)? != [0; SIZE] {
            mem.write_all_at(&[0; SIZE], *at).during("putting the vDSO back", Subject::Pid(pid))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_to_which_a_handler_returns_is_in_use() {
        let stack = [0u64, 0x2002, 5, 0x3080, 0x407f].map(u64::to_le_bytes).concat();
        assert_eq!(leads_to(&[0x1000, 0x2000, 0x3000, 0x4000], &stack), [0x2000, 0x4000]);
    }

    #[test]
    fn what_is_ours_is_free() {
        let stub = Stub::new(&crate::inject::zero_regs(), 1).unwrap();
        assert!(is_free(&stub.encode()) && is_free(&[0; SIZE]) && is_free(LIST) && !is_free(&[1; SIZE]));
    }
}
