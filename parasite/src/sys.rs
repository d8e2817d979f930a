//! The raw system call instruction.

#![allow(unsafe_code)]

use core::arch::asm;

/// Runs one system call; yields the kernel's raw answer, a negated errno on failure.
pub fn syscall(nr: u64, args: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the memory that a call touches is named by the caller's arguments, who owns it; the instruction itself clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr as i64 => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
