//! Calls that a stop cuts short: a blocked write, or a read that waits for more bytes, returns what it has done so far.
//!
//! The kernel has no way back into such a call (FACTS A7). So the victim goes on in a stub that makes the rest of the call, adds what was done
//! before, and returns to behind the call. It lies in the vDSO's tail and stays there when the controller has left; a later controller
//! finds a thread in it and reads from its operands where the thread really is. There are two slots, so that no stub is overwritten
//! while a thread is in it; one that no thread needs any more is cleared at the next visit. The images keep the rest of a call, and a restored
//! thread goes on in a stub too.
//!
//! The stub changes neither flags nor stack, and no register but those that a system call changes or that it gives back:
//!
//! ```text
//!   0  syscall              the rest of the call
//!   2  cqo                  rdx = all ones where it failed
//!   4  mov rcx, rdx
//!   7  jrcxz 16
//!   9  mov eax, done        it failed: what was done before counts, as it would have in one call
//!  14  jmp 23
//!  16  lea rax, [rax+done]
//!  23  mov rdx, ...         and rsi, rcx, r11
//!  63  jmp [rip]            behind the call
//! ```
//!
//! A signal handler that was to be told by a short count is called all the same; a call that it interrupts ends short, as ever, unless it is to
//! be restarted.

use std::fs::File;
use std::os::unix::fs::FileExt;

use libc::user_regs_struct;

use super::restart::Pending;
use crate::error::{Context, Result, Subject};
use crate::ids::Pid;

/// Bytes of a slot.
pub const SIZE: usize = 128;

/// A call that moved some of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// SYS_read or SYS_write.
    pub nr: i64,
    pub fd: i32,
    /// Bytes moved so far, at least one.
    pub done: u64,
    /// Bytes asked for.
    pub wanted: u64,
}

/// What is left of a call that moved some of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    pub transfer: Transfer,
    /// Bytes that it still has to move.
    pub left: u64,
}

/// Where a stopped thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// As the registers say, in no stub of ours.
    Itself(user_regs_struct),
    /// Behind a call that was cut short: the registers are those behind it, rax what it has done so far.
    Cut(user_regs_struct, Transfer),
}

/// The operands of a stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stub {
    done: u64,
    /// rdx, rsi, rcx, r11 and rip behind the call.
    rdx: u64,
    rsi: u64,
    rcx: u64,
    r11: u64,
    rip: u64,
}

const FAILED: usize = 9;
const RETURNED: usize = 23;
/// Where each operand lies.
const DONE: [usize; 2] = [10, 19];
const WORDS: [usize; 5] = [25, 35, 45, 55, 69];
const LEN: usize = 77;
const TEMPLATE: [u8; LEN] = {
    let mut code = [0u8; LEN];
    let parts: [(usize, &[u8]); 10] = [
        (0, &[0x0f, 0x05, 0x48, 0x99, 0x48, 0x89, 0xd1]),
        (7, &[0xe3, 0x07]),
        (FAILED, &[0xb8]),
        (14, &[0xeb, 0x07]),
        (16, &[0x48, 0x8d, 0x80]),
        (RETURNED, &[0x48, 0xba]),
        (33, &[0x48, 0xbe]),
        (43, &[0x48, 0xb9]),
        (53, &[0x49, 0xbb]),
        (63, &[0xff, 0x25]),
    ];
    let mut part = 0;
    while part < parts.len() {
        let (at, bytes) = parts[part];
        let mut n = 0;
        while n < bytes.len() {
            code[at + n] = bytes[n];
            n += 1;
        }
        part += 1;
    }
    code
};

impl Stub {
    fn encode(&self) -> Option<[u8; LEN]> {
        let mut code = TEMPLATE;
        // An operand of 32 bits that the processor extends with its sign.
        let done = i32::try_from(self.done).ok()?.to_le_bytes();
        DONE.iter().for_each(|at| code[*at..at + 4].copy_from_slice(&done));
        for (at, word) in WORDS.into_iter().zip([self.rdx, self.rsi, self.rcx, self.r11, self.rip]) {
            code[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        Some(code)
    }

    fn decode(slot: &[u8]) -> Option<Stub> {
        let word = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
        let done = u32::from_le_bytes(slot.get(DONE[0]..DONE[0] + 4)?.try_into().ok()?);
        let [rdx, rsi, rcx, r11, rip] = WORDS.map(word);
        let stub = Stub { done: done.into(), rdx: rdx?, rsi: rsi?, rcx: rcx?, r11: r11?, rip: rip? };
        (stub.encode()?.as_slice() == slot.get(..LEN)?).then_some(stub)
    }

    /// What the registers in the stub stand for.
    fn whereabouts(&self, regs: &user_regs_struct, offset: u64, pending: Pending) -> Whereabouts {
        let behind = |rax: u64| user_regs_struct {
            rax,
            orig_rax: u64::MAX,
            rdx: self.rdx,
            rsi: self.rsi,
            rcx: self.rcx,
            r11: self.r11,
            rip: self.rip,
            ..*regs
        };
        let raw = regs.rax as i64;
        let total = if raw < 0 { self.done } else { self.done + raw as u64 };
        let in_call = offset == 0 || (offset == 2 && regs.orig_rax as i64 >= 0);
        if !in_call {
            let summed = offset == 14 || offset >= RETURNED as u64;
            return Whereabouts::Itself(behind(if summed { regs.rax } else { total }));
        }
        let nr = if offset == 0 { raw } else { regs.orig_rax as i64 };
        let done = if offset == 0 { self.done } else { total };
        let restarts = offset == 0 || (-516..=-512).contains(&raw) || raw == -i64::from(libc::EINTR);
        let cut = done < self.rdx && pending == Pending::Nothing && (restarts || raw > 0);
        if !cut {
            return Whereabouts::Itself(behind(done));
        }
        let transfer = Transfer { nr, fd: regs.rdi as i32, done, wanted: self.rdx };
        Whereabouts::Cut(behind(done), transfer)
    }
}

/// Whether a slot may be used: it is empty, or it holds a stub of ours.
pub fn is_free(slot: &[u8]) -> bool {
    slot.iter().all(|byte| *byte == 0) || Stub::decode(slot).is_some()
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
    let nr = regs.orig_rax as i64;
    let transfer = Transfer { nr, fd: regs.rdi as i32, done: regs.rax, wanted: regs.rdx };
    let moved = 0 < regs.rax as i64 && regs.rax < regs.rdx;
    match moved && [libc::SYS_read, libc::SYS_write].contains(&nr) && pending == Pending::Nothing {
        true => Ok(Whereabouts::Cut(*regs, transfer)),
        false => Ok(Whereabouts::Itself(*regs)),
    }
}

fn read(mem: &File, pid: Pid, at: u64) -> Result<[u8; SIZE]> {
    let mut slot = [0u8; SIZE];
    mem.read_exact_at(&mut slot, at).during("reading the vDSO", Subject::Pid(pid))?;
    Ok(slot)
}

/// The slots that no thread of the process is in and to which no signal handler returns. `threads` are the registers of all of them.
pub fn unused(mem: &File, pid: Pid, slots: &[u64], threads: &[user_regs_struct]) -> Result<Vec<u64>> {
    let mut unused = Vec::new();
    for slot in slots {
        // The stacks are read only where there is something to find.
        let is_empty = read(mem, pid, *slot)? == [0; SIZE];
        if is_empty || !threads.iter().any(|regs| uses(*slot, regs, &stack(mem, regs))) {
            unused.push(*slot);
        }
    }
    Ok(unused)
}

/// Whether a thread is in a slot, or a word of its stack leads there.
fn uses(slot: u64, regs: &user_regs_struct, stack: &[u8]) -> bool {
    let within = |address: u64| address.wrapping_sub(slot) < SIZE as u64;
    let mut words = stack.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
    within(regs.rip) || words.any(within)
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

/// Puts the stub for the rest of a call into a slot; yields the registers that begin it, where the call can be expressed.
pub fn place(
    mem: &File,
    pid: Pid,
    slot: u64,
    behind: &user_regs_struct,
    rest: &Rest,
) -> Result<Option<user_regs_struct>> {
    let Rest { transfer, left } = rest;
    let user_regs_struct { rdx, rsi, rcx, r11, rip, .. } = *behind;
    let Some(code) = (Stub { done: transfer.done, rdx, rsi, rcx, r11, rip }).encode() else { return Ok(None) };
    mem.write_all_at(&code, slot).during("writing the entry code", Subject::Pid(pid))?;
    Ok(Some(user_regs_struct {
        rip: slot,
        rax: transfer.nr as u64,
        orig_rax: u64::MAX,
        rsi: rsi.wrapping_add(transfer.done),
        rdx: *left,
        ..*behind
    }))
}

/// The first slot that is empty.
pub fn empty(mem: &File, pid: Pid, slots: &[u64]) -> Result<Option<u64>> {
    for slot in slots {
        if read(mem, pid, *slot)? == [0; SIZE] {
            return Ok(Some(*slot));
        }
    }
    Ok(None)
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
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    const STUB: Stub = Stub { done: 7000, rdx: 48000, rsi: 0x1000, rcx: 3, r11: 0x246, rip: 0x4000 };

    fn regs(offset: u64, rax: i64, orig_rax: i64) -> user_regs_struct {
        let mut regs = crate::inject::zero_regs();
        (regs.rip, regs.rax, regs.orig_rax, regs.rdi) = (offset, rax as u64, orig_rax as u64, 1);
        regs
    }

    fn behind(offset: u64, rax: i64, orig_rax: i64, pending: Pending) -> (u64, Option<u64>) {
        match STUB.whereabouts(&regs(offset, rax, orig_rax), offset, pending) {
            Whereabouts::Itself(regs) => (regs.rax, None),
            Whereabouts::Cut(regs, transfer) => (regs.rax, Some(transfer.done)),
        }
    }

    #[test]
    fn the_stub_changes_no_flags_and_decodes() {
        let code = STUB.encode().unwrap();
        assert_eq!(Stub::decode(&code), Some(STUB));
        assert!(is_free(&code) && is_free(&[0; SIZE]) && !is_free(&[1; SIZE]));
        let mut targets = Vec::new();
        for instruction in Decoder::with_ip(64, &code[..69], 0, DecoderOptions::NONE).iter() {
            assert!(!instruction.is_invalid());
            assert!(instruction.rflags_modified() == 0 || instruction.mnemonic() == Mnemonic::Syscall);
            targets.extend((instruction.near_branch_target() != 0).then_some(instruction.near_branch_target()));
        }
        assert_eq!(targets, [16, 23]);
    }

    #[test]
    fn a_thread_in_the_stub_is_found_where_it_really_is() {
        const WRITE: i64 = libc::SYS_write;
        assert_eq!(behind(0, WRITE, -1, Pending::Nothing), (7000, Some(7000)));
        assert_eq!(behind(2, -512, WRITE, Pending::Nothing), (7000, Some(7000)));
        assert_eq!(behind(2, 500, WRITE, Pending::Nothing), (7500, Some(7500)));
        assert_eq!(behind(2, 41000, WRITE, Pending::Nothing), (48000, None));
        assert_eq!(behind(2, -5, WRITE, Pending::Nothing), (7000, None));
        assert_eq!(behind(2, -512, WRITE, Pending::Deliverable), (7000, None));
        for offset in [2, 4, 7, 16] {
            assert_eq!(behind(offset, 500, -1, Pending::Nothing), (7500, None));
        }
        assert_eq!(behind(9, -5, -1, Pending::Nothing), (7000, None));
        for offset in [14, 23, 33, 63] {
            assert_eq!(behind(offset, 7500, -1, Pending::Nothing), (7500, None));
        }
    }

    #[test]
    fn a_slot_to_which_a_handler_returns_is_in_use() {
        let stack = [0u64, 0x2002, 5].map(u64::to_le_bytes).concat();
        let used = [0x1000, 0x2000, 0x3000].map(|slot| uses(slot, &regs(0x3010, 0, -1), &stack));
        assert_eq!(used, [false, true, true]);
    }
}
