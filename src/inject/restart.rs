//! How a stopped thread gets back into the call that the stop interrupted.
//!
//! The kernel restarts an interrupted call itself when the thread goes on with its recorded registers (rax = -512..-516 and orig_rax >= 0).
//! When the thread is sent elsewhere in between and the tracer dies, nobody does that, so the way back has to be right by itself:
//! FACTS B2. What a mere stop ends with EINTR is in `trace::broken`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use libc::user_regs_struct;

use crate::trace::broken::ERESTARTNOHAND;

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
pub(super) const ERESTART_RESTARTBLOCK: i64 = -516;
const SYSCALL_LEN: u64 = 2;

/// Whether a signal that the thread does not block is pending, so that EINTR is the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    Nothing,
    Deliverable,
}

/// Whether a thread was in a poll without a timeout: there is none to keep, and the kernel's own restart would hide the call's number from the
/// next dump.
pub fn is_endless(regs: &user_regs_struct) -> bool {
    regs.rax as i64 == ERESTART_RESTARTBLOCK && regs.orig_rax as i64 == libc::SYS_poll && (regs.rdx as i32) < 0
}

/// The same state expressed without the kernel's restart: what a stub has to load so that the call is made again.
pub fn without_kernel_restart(regs: &user_regs_struct) -> user_regs_struct {
    let mut regs = *regs;
    if (regs.orig_rax as i64) < 0 {
        return regs;
    }
    match regs.rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
            regs.rax = regs.orig_rax;
            regs.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
        }
        ERESTART_RESTARTBLOCK => {
            regs.rax = libc::SYS_restart_syscall as u64;
            regs.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
        }
        _ => {}
    }
    regs.orig_rax = u64::MAX;
    regs
}

/// Calls that the kernel goes on with by its restart block: nanosleep, clock_nanosleep, poll, futex.
const RESTARTED: [i64; 4] = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_poll, libc::SYS_futex];
/// Bytes before a call's instruction in which its number is looked for.
const LOOK_BACK: u64 = 48;

/// The number of the call that a thread is in, where it is one that the kernel has restarted once already and that therefore shows as
/// restart_syscall: only the code before the instruction still has the number. `code` ends at the instruction.
fn restarted_call(code: &[u8]) -> Option<i64> {
    // The nearest "mov eax, number" from which the instructions lead right up to the call.
    (0..code.len()).rev().find_map(|at| {
        let tail = code.get(at..)?;
        let mut decoder = iced_x86::Decoder::new(64, tail, iced_x86::DecoderOptions::NONE);
        let first = decoder.decode();
        let is_number = first.mnemonic() == iced_x86::Mnemonic::Mov
            && first.op0_register() == iced_x86::Register::EAX
            && first.op1_kind() == iced_x86::OpKind::Immediate32;
        let number = i64::from(first.immediate32());
        let straight = decoder.iter().all(|next| !next.is_invalid());
        (is_number && straight && RESTARTED.contains(&number)).then_some(number)
    })
}

/// The number of the call that a thread was stopped in. None where it was in none, or its code does not tell which.
pub fn number(regs: &user_regs_struct, mem: &File) -> Option<i64> {
    if !is_restarted(regs) {
        return (regs.orig_rax as i64 >= 0).then_some(regs.orig_rax as i64);
    }
    let mut code = [0u8; LOOK_BACK as usize];
    mem.read_exact_at(&mut code, regs.rip.wrapping_sub(SYSCALL_LEN + LOOK_BACK)).ok()?;
    restarted_call(&code)
}

/// Whether a thread is in a call that the kernel has restarted once already.
pub fn is_restarted(regs: &user_regs_struct) -> bool {
    regs.orig_rax as i64 == libc::SYS_restart_syscall && by_the_kernel(regs)
}

/// Whether a thread is in a call that the kernel goes on with by its restart block.
pub fn by_the_kernel(regs: &user_regs_struct) -> bool {
    regs.rax as i64 == ERESTART_RESTARTBLOCK && regs.orig_rax as i64 >= 0
}

/// What the registers of a thread in such a call are after another stop in it.
pub fn restarted(regs: &user_regs_struct) -> user_regs_struct {
    user_regs_struct { orig_rax: libc::SYS_restart_syscall as u64, ..*regs }
}

/// Whether the kernel itself will go on with the call that a stop interrupted, up to the deadline that it had, if no signal handler is called.
pub fn goes_on(regs: &user_regs_struct) -> bool {
    match regs.rax as i64 {
        ERESTART_RESTARTBLOCK => regs.orig_rax as i64 >= 0,
        // Up to a point in time.
        ERESTARTNOHAND => regs.orig_rax as i64 == libc::SYS_clock_nanosleep,
        _ => false,
    }
}

/// The arguments of the call that a thread is in.
pub fn arguments(regs: &user_regs_struct) -> [u64; 6] {
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]
}

/// The registers behind a call that is made again from its start, or that the kernel goes on with.
pub(super) fn behind(regs: &user_regs_struct) -> user_regs_struct {
    let made_again = (regs.orig_rax as i64) < 0;
    user_regs_struct { rip: regs.rip.wrapping_add(if made_again { SYSCALL_LEN } else { 0 }), ..*regs }
}

/// The registers of a thread of which the kernel was told to go on with `nr` by its restart block.
pub(super) fn by_restart_block(regs: &user_regs_struct, nr: i64) -> user_regs_struct {
    user_regs_struct { rax: ERESTART_RESTARTBLOCK as u64, orig_rax: nr as u64, ..*regs }
}

/// The registers with which any task makes the call again from its start, with its whole timeout: what CRIU's images have. None where the
/// thread was in no call that goes on.
pub fn from_the_start(regs: &user_regs_struct) -> Option<user_regs_struct> {
    let goes_on = matches!(
        regs.rax as i64,
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK if regs.orig_rax as i64 >= 0
    );
    goes_on.then(|| user_regs_struct { rax: regs.orig_rax, rip: regs.rip.wrapping_sub(SYSCALL_LEN), ..*regs })
}

/// The registers that the kernel itself goes on with, from those of [`from_the_start`] and what rax was at the stop.
pub fn at_the_stop(regs: &user_regs_struct, rax: i64) -> user_regs_struct {
    user_regs_struct { rax: rax as u64, rip: regs.rip.wrapping_add(SYSCALL_LEN), ..*regs }
}

/// What a recorded thread continues with in a new task, which has no restart block of its own.
///
/// A call that the kernel would have gone on with by its restart block (nanosleep, poll, futex with a timeout) is made again from its
/// start, with its whole timeout; see `call` for what gives the new task such a block. All other restarts are left to the kernel.
pub fn in_a_new_task(regs: &user_regs_struct) -> user_regs_struct {
    match from_the_start(regs) {
        Some(again) if regs.rax as i64 == ERESTART_RESTARTBLOCK => user_regs_struct { orig_rax: u64::MAX, ..again },
        _ => *regs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::broken::{is_broken, made_again};

    fn at(orig_rax: i64, rax: i64) -> user_regs_struct {
        let mut regs = crate::inject::zero_regs();
        (regs.orig_rax, regs.rax, regs.rip) = (orig_rax as u64, rax as u64, 0x1002);
        regs
    }

    #[test]
    fn a_thread_outside_a_call_is_left_as_it_is() {
        let regs = at(-1, -512);
        assert_eq!(without_kernel_restart(&regs), regs);
    }

    #[test]
    fn restarts_go_back_over_the_syscall_instruction() {
        for rax in [-512, -513, -514] {
            let regs = without_kernel_restart(&at(0, rax));
            assert_eq!((regs.rax, regs.rip), (0, 0x1000));
        }
        let regs = without_kernel_restart(&at(35, -516));
        assert_eq!((regs.rax, regs.rip), (219, 0x1000));
    }

    #[test]
    fn a_call_from_its_start_can_be_taken_back() {
        for rax in [-512, -513, -514, -516] {
            let regs = at(7, rax);
            let again = from_the_start(&regs).unwrap();
            assert_eq!((again.rax, again.rip, again.orig_rax), (7, 0x1000, 7));
            assert_eq!(at_the_stop(&again, rax), regs);
        }
        assert_eq!(from_the_start(&at(7, -4)).or(from_the_start(&at(-1, -512))), None);
    }

    #[test]
    fn the_number_of_a_restarted_call_is_in_the_code() {
        let code = [0xba, 7, 0, 0, 0, 0xb8, 0xe6, 0, 0, 0, 0x4d, 0x89, 0xc2];
        assert_eq!(restarted_call(&code), Some(libc::SYS_clock_nanosleep));
        assert_eq!(restarted_call(&[0x90; 8]), None);
    }

    #[test]
    fn a_poll_without_timeout_is_made_again() {
        let mut regs = at(libc::SYS_poll, -516);
        assert!(!is_endless(&regs));
        regs.rdx = u64::MAX;
        assert!(is_endless(&regs));
        let again = made_again(&regs, None);
        assert_eq!((again.rax as i64, again.rip, again.orig_rax as i64), (-514, 0x1002, libc::SYS_poll));
    }

    #[test]
    fn an_epoll_wait_is_made_again_by_the_kernel() {
        assert!(is_broken(&at(libc::SYS_epoll_wait, -4)) && !is_broken(&at(libc::SYS_close, -4)));
        assert!(!is_broken(&at(-1, -4)));
        let regs = made_again(&at(libc::SYS_epoll_wait, -4), Some(7));
        assert_eq!((regs.rax as i64, regs.rip, regs.orig_rax as i64), (-514, 0x1002, libc::SYS_epoll_wait));
        assert_eq!((regs.r10, goes_on(&regs)), (7, false));
    }
}
