//! The parasite: runs batches of system calls inside a victim, and leaves without a trace.
//!
//! It knows system calls, not kinds of kernel objects; what a batch means is the controller's business. It is entered at `start` with
//! rdi = address of the region and rsp inside it, saves the victim's extended state, serves requests (see `wire`), and when
//! its controller is gone runs the undo batch, loads the victim's registers and jumps to the exit stub in the vDSO's tail, which unmaps this
//! very code.

#![no_std]
#![no_main]

mod exit;
// The restore's half of the queues is unused here.
#[allow(dead_code)]
mod queue;
mod serve;
mod sys;
// The controller's half of the format is unused here.
#[allow(dead_code)]
mod wire;

const SCHED_YIELD: u64 = 24;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here can panic by design. If it does, the victim must not run on with a half-done batch: stay, so that the
    // controller reports that no answer came, and leave to it what happens.
    loop {
        sys::syscall(SCHED_YIELD, [0; 6]);
    }
}
