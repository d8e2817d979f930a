//! What this processor says of itself.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// CPUID: eax, ebx, ecx and edx of a leaf; zeros above the highest one of its range.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)]
    // SAFETY: every x86_64 processor has the instruction; it touches registers only.
    let (highest, answer) = unsafe { (__cpuid_count(leaf & 0xffff_0000, 0).eax, __cpuid_count(leaf, subleaf)) };
    if leaf > highest { [0; 4] } else { [answer.eax, answer.ebx, answer.ecx, answer.edx] }
}

/// XCR0: the extended state that the kernel has enabled; 1 (x87) where the processor has no XSAVE.
pub fn xcr0() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if cpuid(1, 0)[2] & OSXSAVE == 0 {
        return 1;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that the instruction may be used; it writes these two registers only.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}
