//! The one instruction that talks to the kernel.

#![allow(unsafe_code)]

use core::arch::asm;

/// The kernel's raw answer: a negated errno in -4095..0, else the result. The caller answers for every address among the
/// arguments. Source: syscall(2), x86-64 convention; rcx and r11 are lost.
pub fn syscall(nr: u64, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    let result: i64;
    // SAFETY: the instruction changes rax, rcx and r11 only, all declared; memory is the caller's business, and no option
    // promises that it is left alone.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
