//! The code of a rest, and what a thread in its middle stands for.
//!
//! It changes neither flags nor stack, and no register but those that a system call changes or that it gives back:
//!
//! ```text
//!   0  syscall              the rest of the call
//!   2  cqo                  rdx = all ones where it failed
//!   4  mov rcx, rdx
//!   7  jrcxz 16
//!   9  mov eax, done        it failed: what was done before counts, as it would have in one call
//!  14  jmp 23
//!  16  lea rax, [rax+done]
//!  23  mov rdi, ...         and rsi, rdx, r10, r8, r9, rcx, r11
//! 103  jmp [rip]            behind the call
//! ```

use libc::user_regs_struct;

use super::call::Call;
use super::{Cut, Whereabouts};
use crate::inject::restart::Pending;

/// The operands of a stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stub {
    pub done: u64,
    /// rdi, rsi, rdx, r10, r8, r9, rcx, r11 and rip behind the call.
    pub words: [u64; 9],
}

const FAILED: usize = 9;
const RETURNED: usize = 23;
/// Where each operand lies.
const DONE: [usize; 2] = [10, 19];
const WORDS: [usize; 9] = [25, 35, 45, 55, 65, 75, 85, 95, 109];
pub const LEN: usize = 117;
const TEMPLATE: [u8; LEN] = {
    let mut code = [0u8; LEN];
    let parts: [(usize, &[u8]); 14] = [
        (0, &[0x0f, 0x05, 0x48, 0x99, 0x48, 0x89, 0xd1]),
        (7, &[0xe3, 0x07]),
        (FAILED, &[0xb8]),
        (14, &[0xeb, 0x07]),
        (16, &[0x48, 0x8d, 0x80]),
        (RETURNED, &[0x48, 0xbf]),
        (33, &[0x48, 0xbe]),
        (43, &[0x48, 0xba]),
        (53, &[0x49, 0xba]),
        (63, &[0x49, 0xb8]),
        (73, &[0x49, 0xb9]),
        (83, &[0x48, 0xb9]),
        (93, &[0x49, 0xbb]),
        (103, &[0xff, 0x25]),
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
    /// That which leads to `behind`. None where more is done than its operand can say.
    pub fn new(behind: &user_regs_struct, done: u64) -> Option<Stub> {
        let user_regs_struct { rdi, rsi, rdx, r10, r8, r9, rcx, r11, rip, .. } = *behind;
        i32::try_from(done).ok()?;
        Some(Stub { done, words: [rdi, rsi, rdx, r10, r8, r9, rcx, r11, rip] })
    }

    pub fn encode(&self) -> [u8; LEN] {
        let mut code = TEMPLATE;
        // An operand of 32 bits that the processor extends with its sign.
        let done = (self.done as u32).to_le_bytes();
        DONE.iter().for_each(|at| code[*at..at + 4].copy_from_slice(&done));
        for (at, word) in WORDS.into_iter().zip(self.words) {
            code[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        code
    }

    pub fn decode(slot: &[u8]) -> Option<Stub> {
        let word = |at: usize| slot.get(at..at + 8).and_then(|it| it.try_into().ok()).map_or(0, u64::from_le_bytes);
        let done = u32::from_le_bytes(slot.get(DONE[0]..DONE[0] + 4)?.try_into().ok()?);
        let stub = Stub { done: done.into(), words: WORDS.map(word) };
        (stub.encode().as_slice() == slot.get(..LEN)?).then_some(stub)
    }

    /// What registers stand for that are so many bytes into the stub.
    pub fn whereabouts(&self, regs: &user_regs_struct, offset: u64, pending: Pending) -> Whereabouts {
        let [rdi, rsi, rdx, r10, r8, r9, rcx, r11, rip] = self.words;
        let behind = |rax: u64| {
            let orig_rax = u64::MAX;
            user_regs_struct { rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, rcx, r11, rip, ..*regs }
        };
        let raw = regs.rax as i64;
        let total = if raw < 0 { self.done } else { self.done + raw as u64 };
        let in_call = offset == 0 || (offset == 2 && regs.orig_rax as i64 >= 0);
        if !in_call {
            let summed = offset == 14 || offset >= RETURNED as u64;
            return Whereabouts { regs: behind(if summed { regs.rax } else { total }), cut: None };
        }
        let call = Call::new(if offset == 0 { raw } else { regs.orig_rax as i64 }, regs);
        let moved = if offset == 0 { 0 } else { raw.max(0) as u64 };
        let restarts = offset == 0 || (-516..=-512).contains(&raw) || raw == -i64::from(libc::EINTR);
        if pending == Pending::Nothing && (restarts || raw > 0) {
            let cut = Cut { call, before: self.done, moved, stub: Some(*regs) };
            return Whereabouts { regs: behind(self.done + moved), cut: Some(cut) };
        }
        Whereabouts { regs: behind(if offset == 0 { self.done } else { total }), cut: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    const STUB: Stub = Stub { done: 7000, words: [1, 0x1000, 48000, 10, 8, 9, 3, 0x246, 0x4000] };

    fn behind(offset: u64, rax: i64, orig_rax: i64, pending: Pending) -> (u64, Option<u64>) {
        let mut regs = crate::inject::zero_regs();
        (regs.rip, regs.rax, regs.orig_rax, regs.rdi) = (offset, rax as u64, orig_rax as u64, 1);
        let found = STUB.whereabouts(&regs, offset, pending);
        (found.regs.rax, found.cut.map(|cut| cut.moved))
    }

    #[test]
    fn the_stub_changes_no_flags_and_decodes() {
        let code = STUB.encode();
        assert_eq!(Stub::decode(&code), Some(STUB));
        let mut targets = Vec::new();
        for instruction in Decoder::with_ip(64, &code[..109], 0, DecoderOptions::NONE).iter() {
            assert!(!instruction.is_invalid());
            assert!(instruction.rflags_modified() == 0 || instruction.mnemonic() == Mnemonic::Syscall);
            targets.extend((instruction.near_branch_target() != 0).then_some(instruction.near_branch_target()));
        }
        assert_eq!(targets, [16, 23]);
    }

    #[test]
    fn every_register_is_given_back() {
        let mut regs = crate::inject::zero_regs();
        (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8) = (1, 2, 3, 4, 5);
        (regs.r9, regs.rcx, regs.r11, regs.rip, regs.rbx) = (6, 7, 8, 9, 10);
        let stub = Stub::new(&regs, 5).unwrap();
        let inside = user_regs_struct { rax: 3, rbx: 10, ..crate::inject::zero_regs() };
        let wanted = user_regs_struct { rax: 8, orig_rax: u64::MAX, ..regs };
        assert_eq!(stub.whereabouts(&inside, 16, Pending::Nothing), Whereabouts { regs: wanted, cut: None });
        assert_eq!(Stub::new(&regs, 1 << 31), None);
    }

    #[test]
    fn a_thread_in_the_stub_is_found_where_it_really_is() {
        const WRITE: i64 = libc::SYS_write;
        assert_eq!(behind(0, WRITE, -1, Pending::Nothing), (7000, Some(0)));
        assert_eq!(behind(2, -512, WRITE, Pending::Nothing), (7000, Some(0)));
        assert_eq!(behind(2, 500, WRITE, Pending::Nothing), (7500, Some(500)));
        assert_eq!(behind(2, -5, WRITE, Pending::Nothing), (7000, None));
        assert_eq!(behind(2, -512, WRITE, Pending::Deliverable), (7000, None));
        for offset in [2, 4, 7, 16] {
            assert_eq!(behind(offset, 500, -1, Pending::Nothing), (7500, None));
        }
        assert_eq!(behind(9, -5, -1, Pending::Nothing), (7000, None));
        for offset in [14, 23, 33, 103] {
            assert_eq!(behind(offset, 7500, -1, Pending::Nothing), (7500, None));
        }
    }
}
