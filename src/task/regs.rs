//! Registers and extended state of a thread, between the kernel's structures and CRIU's entries.
//!
//! The extended state goes whole, as the kernel gives it, into our own image, since CRIU's entry has fields for the features it knows only;
//! CRIU's entry gets the legacy part and the AVX part, so that CRIU can restore ours.

use libc::user_regs_struct;

use crate::error::{Error, Result};
use crate::image::pb;
use crate::inject::restart::Pending;

/// CRIU's `mode`: 64-bit registers.
const NATIVE: i32 = 1;
const FXSAVE_SIZE: usize = 512;
const XSAVE_HEADER_SIZE: usize = 64;
/// Where the YMM halves lie in XSAVE's standard format (Intel SDM volume 1, 13.4.3: CPUID leaf 0xD, sub-leaf 2; the same on every CPU).
const YMM_OFFSET: usize = 576;
const YMM_SIZE: usize = 256;

/// Whether a signal that the mask lets through waits in `queues`.
pub fn deliverable<'a>(sigmask: u64, queues: impl IntoIterator<Item = &'a pb::SignalQueueEntry>) -> Pending {
    let open = queues.into_iter().flat_map(|queue| &queue.signals).any(|info| {
        let signal = info.siginfo.first().copied().unwrap_or(0);
        (1..=64).contains(&signal) && sigmask & (1 << (signal - 1)) == 0
    });
    if open { Pending::Deliverable } else { Pending::Nothing }
}

pub fn to_entry(regs: &user_regs_struct) -> pb::UserX86RegsEntry {
    pb::UserX86RegsEntry {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        bp: regs.rbp,
        bx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        ax: regs.rax,
        cx: regs.rcx,
        dx: regs.rdx,
        si: regs.rsi,
        di: regs.rdi,
        orig_ax: regs.orig_rax,
        ip: regs.rip,
        cs: regs.cs,
        flags: regs.eflags,
        sp: regs.rsp,
        ss: regs.ss,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
        ds: regs.ds,
        es: regs.es,
        fs: regs.fs,
        gs: regs.gs,
        mode: Some(NATIVE),
    }
}

pub fn from_entry(entry: &pb::UserX86RegsEntry) -> user_regs_struct {
    user_regs_struct {
        r15: entry.r15,
        r14: entry.r14,
        r13: entry.r13,
        r12: entry.r12,
        rbp: entry.bp,
        rbx: entry.bx,
        r11: entry.r11,
        r10: entry.r10,
        r9: entry.r9,
        r8: entry.r8,
        rax: entry.ax,
        rcx: entry.cx,
        rdx: entry.dx,
        rsi: entry.si,
        rdi: entry.di,
        orig_rax: entry.orig_ax,
        rip: entry.ip,
        cs: entry.cs,
        eflags: entry.flags,
        rsp: entry.sp,
        ss: entry.ss,
        fs_base: entry.fs_base,
        gs_base: entry.gs_base,
        ds: entry.ds,
        es: entry.es,
        fs: entry.fs,
        gs: entry.gs,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 2).map_or(0, |b| u32::from(u16::from_le_bytes([b[0], b[1]])))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// CRIU's floating-point entry from an XSAVE image.
pub fn to_fp_entry(xstate: &[u8]) -> Result<pb::UserX86FpregsEntry> {
    let too_short = || Error::unexpected("the extended state", format!("{} bytes", xstate.len()));
    let legacy = xstate.get(..FXSAVE_SIZE).ok_or_else(too_short)?;
    let quad = |at: usize| legacy.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let header = xstate.get(FXSAVE_SIZE..FXSAVE_SIZE + XSAVE_HEADER_SIZE);
    let ymm = xstate.get(YMM_OFFSET..YMM_OFFSET + YMM_SIZE);
    let xsave = header.zip(ymm).map(|(header, ymm)| pb::UserX86XsaveEntry {
        // Only what CRIU's entry carries: x87, SSE and AVX.
        xstate_bv: header.get(..8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes) & 7,
        ymmh_space: words(ymm),
        ..Default::default()
    });
    Ok(pb::UserX86FpregsEntry {
        cwd: u16_at(legacy, 0),
        swd: u16_at(legacy, 2),
        twd: u16_at(legacy, 4),
        fop: u16_at(legacy, 6),
        rip: quad(8),
        rdp: quad(16),
        mxcsr: quad(24) as u32,
        mxcsr_mask: (quad(24) >> 32) as u32,
        st_space: words(&legacy[32..160]),
        xmm_space: words(&legacy[160..416]),
        padding: words(&legacy[416..464]),
        xsave,
    })
}

/// An XSAVE image of `size` bytes from CRIU's entry, for images that CRIU wrote.
pub fn from_fp_entry(entry: &pb::UserX86FpregsEntry, size: usize) -> Vec<u8> {
    let mut xstate = vec![0u8; size.max(YMM_OFFSET + YMM_SIZE)];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(room) = xstate.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    };
    for (at, value) in [(0, entry.cwd), (2, entry.swd), (4, entry.twd), (6, entry.fop)] {
        put(at, &(value as u16).to_le_bytes());
    }
    put(8, &entry.rip.to_le_bytes());
    put(16, &entry.rdp.to_le_bytes());
    put(24, &entry.mxcsr.to_le_bytes());
    put(28, &entry.mxcsr_mask.to_le_bytes());
    for (at, space, most) in [(32, &entry.st_space, 32), (160, &entry.xmm_space, 64)] {
        let bytes: Vec<u8> = space.iter().take(most).flat_map(|word| word.to_le_bytes()).collect();
        put(at, &bytes);
    }
    let features = entry.xsave.as_ref().map_or(3, |xsave| xsave.xstate_bv & 7);
    put(FXSAVE_SIZE, &features.to_le_bytes());
    if let Some(xsave) = &entry.xsave {
        let bytes: Vec<u8> = xsave.ymmh_space.iter().take(64).flat_map(|word| word.to_le_bytes()).collect();
        put(YMM_OFFSET, &bytes);
    }
    xstate.truncate(size);
    xstate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::zero_regs;

    #[test]
    fn registers_survive_the_round_trip() {
        let mut regs = zero_regs();
        (regs.rax, regs.rip, regs.fs_base, regs.eflags, regs.orig_rax) = (1, 2, 3, 0x246, u64::MAX);
        assert_eq!(from_entry(&to_entry(&regs)), regs);
    }

    #[test]
    fn the_legacy_and_avx_parts_survive_the_round_trip() {
        let mut xstate: Vec<u8> = (0..832u32).map(|n| n as u8).collect();
        xstate[464..512].fill(0);
        xstate[512..576].fill(0);
        xstate[512] = 7;
        xstate[416..464].fill(0);
        let entry = to_fp_entry(&xstate).unwrap();
        assert_eq!(from_fp_entry(&entry, 832), xstate);
    }

    #[test]
    fn a_blocked_signal_is_not_deliverable() {
        let mut info = vec![0u8; 128];
        info[0] = libc::SIGUSR1 as u8;
        let queue = pb::SignalQueueEntry { signals: vec![pb::SiginfoEntry { siginfo: info }] };
        assert_eq!(deliverable(1 << (libc::SIGUSR1 - 1), [&queue]), Pending::Nothing);
        assert_eq!(deliverable(0, [&queue]), Pending::Deliverable);
    }
}
