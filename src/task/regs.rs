//! Registers and extended state of a thread, between the kernel's structures and CRIU's entries.
//!
//! The extended state goes whole, as the kernel gives it, into our own image, since CRIU's entry has fields for the features it knows only;
//! CRIU's entry gets those, so that CRIU can restore ours.

use libc::user_regs_struct;

use crate::error::{Error, Result};
use crate::image::pb;
use crate::inject::restart::Pending;

use super::cpu::{Layout, component_name};

/// CRIU's `mode`: 64-bit registers.
const NATIVE: i32 = 1;
const FXSAVE_SIZE: usize = 512;
const XSAVE_HEADER_SIZE: usize = 64;

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

fn quad_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn quads(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|quad| quad_at(quad, 0)).collect()
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// CRIU's floating-point entry from an XSAVE image.
pub fn to_fp_entry(xstate: &[u8], layout: &Layout) -> Result<pb::UserX86FpregsEntry> {
    let too_short = || Error::unexpected("the extended state", format!("{} bytes", xstate.len()));
    let legacy = xstate.get(..FXSAVE_SIZE).ok_or_else(too_short)?;
    Ok(pb::UserX86FpregsEntry {
        cwd: u16_at(legacy, 0),
        swd: u16_at(legacy, 2),
        twd: u16_at(legacy, 4),
        fop: u16_at(legacy, 6),
        rip: quad_at(legacy, 8),
        rdp: quad_at(legacy, 16),
        mxcsr: quad_at(legacy, 24) as u32,
        mxcsr_mask: (quad_at(legacy, 24) >> 32) as u32,
        st_space: words(&legacy[32..160]),
        xmm_space: words(&legacy[160..416]),
        padding: words(&legacy[416..464]),
        xsave: (xstate.len() > FXSAVE_SIZE).then(|| to_xsave_entry(xstate, layout)),
    })
}

/// Bits of the components that CRIU's entry carries.
const LEGACY: u64 = 3;
const AVX: u32 = 2;
const BOUNDS: [u32; 2] = [3, 4];
const AVX_512: [u32; 3] = [5, 6, 7];
const KEYS: u32 = 9;
const CARRIED: u64 = LEGACY | 1 << AVX | 0b11 << 3 | 0b111 << 5 | 1 << KEYS;

fn to_xsave_entry(xstate: &[u8], layout: &Layout) -> pb::UserX86XsaveEntry {
    let part = |number: u32| layout.get(&number).and_then(|place| xstate.get(place.clone())).unwrap_or_default();
    pb::UserX86XsaveEntry {
        xstate_bv: quad_at(xstate, FXSAVE_SIZE) & CARRIED,
        ymmh_space: words(part(AVX)),
        bndreg_state: quads(part(BOUNDS[0])),
        bndcsr_state: quads(part(BOUNDS[1])),
        opmask_reg: quads(part(AVX_512[0])),
        zmm_upper: quads(part(AVX_512[1])),
        hi16_zmm: quads(part(AVX_512[2])),
        pkru: words(part(KEYS)),
        cet: None,
    }
}

/// An XSAVE image of `size` bytes from CRIU's entry, for images that CRIU wrote. Fails where it has a component that the layout has not.
pub fn from_fp_entry(entry: &pb::UserX86FpregsEntry, layout: &Layout, size: usize) -> Result<Vec<u8>> {
    let mut xstate = vec![0u8; size.max(FXSAVE_SIZE + XSAVE_HEADER_SIZE)];
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
        put(at, &bytes_of(&space[..space.len().min(most)]));
    }
    let used = entry.xsave.as_ref().map_or(LEGACY, |xsave| xsave.xstate_bv);
    if used & !CARRIED != 0 || entry.xsave.as_ref().is_some_and(|xsave| xsave.cet.is_some_and(|cet| cet.cet & 1 != 0)) {
        return Err(Error::failed(format!(
            "a thread has extended state that images of CRIU do not carry ({used:#x}); dump it with ptyagent"
        )));
    }
    put(FXSAVE_SIZE, &used.to_le_bytes());
    for (number, bytes) in entry.xsave.as_ref().map(components).into_iter().flatten() {
        match layout.get(&number) {
            Some(place) if place.len() <= bytes.len() => put(place.start, &bytes[..place.len()]),
            _ if used & (1 << number) == 0 => {}
            _ => {
                return Err(Error::Lacking(format!(
                    "a thread uses {}, which this processor has not; restore it on one that has it",
                    component_name(number)
                )));
            }
        }
    }
    xstate.truncate(size);
    Ok(xstate)
}

/// The bytes of each component behind the legacy part.
fn components(xsave: &pb::UserX86XsaveEntry) -> [(u32, Vec<u8>); 7] {
    let quads = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    [
        (AVX, bytes_of(&xsave.ymmh_space)),
        (BOUNDS[0], quads(&xsave.bndreg_state)),
        (BOUNDS[1], quads(&xsave.bndcsr_state)),
        (AVX_512[0], quads(&xsave.opmask_reg)),
        (AVX_512[1], quads(&xsave.zmm_upper)),
        (AVX_512[2], quads(&xsave.hi16_zmm)),
        (KEYS, bytes_of(&xsave.pkru)),
    ]
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
    fn what_criu_carries_of_the_extended_state_survives_the_round_trip() {
        // As an AMD processor has it, without the bounds.
        let layout = Layout::from([(2, 576..832), (5, 832..896), (6, 896..1408), (7, 1408..2432), (9, 2432..2440)]);
        let mut xstate: Vec<u8> = (0..2440u32).map(|n| (n * 7) as u8).collect();
        xstate[416..576].fill(0);
        xstate[512..514].copy_from_slice(&0x2e7u16.to_le_bytes());
        let entry = to_fp_entry(&xstate, &layout).unwrap();
        assert_eq!(from_fp_entry(&entry, &layout, 2440).unwrap(), xstate);
        let error = from_fp_entry(&entry, &Layout::from([(2, 576..832)]), 832).unwrap_err().to_string();
        assert!(error.contains("AVX-512 masks"), "{error}");
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
