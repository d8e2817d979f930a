//! The format that the controller and the parasite share: one region of memory, no messages.
//!
//! The region is a memfd that both map. At its start lies the blob's code, at [`DATA_OFFSET`] the [`Header`], and behind it
//! the victim's extended state, the parasite's stack, the batch and free room for the kinds. The controller writes a
//! [`Batch`](Call) and sets [`Header::state`] to [`REQUEST`] while the tracee is stopped; the parasite runs the calls in order, writes each
//! result, sets [`DONE`], wakes the controller's futex and spins until the controller stops it again. A tracee that is resumed
//! from a stop with no request in place has lost its controller: it runs the undo batch and leaves.

use core::sync::atomic::AtomicU32;

pub const MAGIC: u32 = 0x7079_7401;
pub const VERSION: u32 = 1;

/// Bytes reserved for the blob's code at the start of the region; the build fails on a larger blob.
pub const DATA_OFFSET: u64 = 32 * 1024;

/// `Header::state`: nothing asked. A parasite that runs in this state has lost its controller.
pub const IDLE: u32 = 0;
/// `Header::state`: the batch is complete and to be run.
pub const REQUEST: u32 = 1;
/// `Header::state`: the batch has been run and its results are in place.
pub const DONE: u32 = 2;
/// `Header::state`: the parasite is on its way out; no request is taken any more.
pub const LEAVING: u32 = 3;

/// How the parasite reads argument `i` of a call: two bits of [`Call::kinds`] each.
pub const ARG_VALUE: u32 = 0;
/// The argument is an offset into the region and is passed as an address.
pub const ARG_REGION: u32 = 1;
/// The argument is an offset into the region; the eight bytes there are passed.
pub const ARG_LOAD: u32 = 2;

/// [`Call::flags`]: if this call fails, the rest of the batch is not run.
pub const STOP_ON_ERROR: u32 = 1;

/// Not a system call: the queue operation that a batch cannot express, see `queue`.
pub const OP_QUEUE_DRAIN: u64 = 1 << 32;
/// Not a system call: puts back what `OP_QUEUE_DRAIN` holds.
pub const OP_QUEUE_PUT_BACK: u64 = (1 << 32) + 1;

/// Result of a call that was not run because an earlier one failed.
pub const NOT_RUN: i64 = i64::MIN;

/// One system call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub nr: u64,
    pub args: [u64; 6],
    pub kinds: u32,
    pub flags: u32,
    /// The kernel's raw answer, a negated errno on failure.
    pub result: i64,
}

/// A run of [`Call`]s somewhere in the region.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Offset of the first call in the region.
    pub offset: u64,
    pub calls: u64,
}

/// Registers that the parasite loads on its way out; the exit stub in the vDSO loads the rest (rax, rcx, rdx, rsi, rdi, r8 to r11, rip) and
/// puts the signal mask back.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    pub rbx: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub eflags: u64,
    /// Where the exit stub lies; it unmaps the region, loads the other registers and jumps to where the victim was.
    pub exit_stub: u64,
}

/// The controller's and the parasite's common state, at [`DATA_OFFSET`].
#[repr(C)]
pub struct Header {
    pub magic: u32,
    pub version: u32,
    pub state: AtomicU32,
    pub executed: u32,
    /// Address of the region in the victim.
    pub base: u64,
    /// Bytes of the region.
    pub size: u64,
    pub batch: Span,
    /// Run when the controller is gone, before leaving.
    pub undo: Span,
    pub resume: Resume,
    /// Offset of the XSAVE area, 64-byte aligned.
    pub xsave: u64,
}

/// Offset of [`Header::xsave`]'s area.
pub const XSAVE_OFFSET: u64 = DATA_OFFSET + 4096;
/// Bytes for the XSAVE area: all that CPUID leaf 0xD may ask for (AMX tiles included).
pub const XSAVE_SIZE: u64 = 16 * 1024;
/// The parasite's stack lies behind the XSAVE area and grows down from here.
pub const STACK_TOP: u64 = XSAVE_OFFSET + XSAVE_SIZE + 32 * 1024;
/// Batches lie here, then the kinds' buffers.
pub const ARENA_OFFSET: u64 = STACK_TOP;
/// Default bytes of the whole region.
pub const REGION_SIZE: u64 = 6 * 1024 * 1024;
/// From here on the region is not for batches: the undo batch and what it puts back.
pub const HOLD_OFFSET: u64 = 512 * 1024;
/// Bytes for one terminal's queues.
pub const HOLD_SIZE: u64 = 96 * 1024;
/// The undo batch lies here; before it there is room for the queues of [`HOLDS`] terminals.
pub const UNDO_OFFSET: u64 = REGION_SIZE - 64 * 1024;
pub const HOLDS: u64 = (UNDO_OFFSET - HOLD_OFFSET) / HOLD_SIZE;

const _: () = {
    assert!(size_of::<Call>() == 72);
    assert!(size_of::<Resume>() == 72);
    assert!(size_of::<Header>() == 144);
    assert!(size_of::<Header>() as u64 <= 4096);
    assert!(XSAVE_OFFSET % 64 == 0);
    assert!(ARENA_OFFSET < HOLD_OFFSET && HOLD_OFFSET < REGION_SIZE);
};
