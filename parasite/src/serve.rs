//! The serve loop: take a request, run its batch, answer, wait to be stopped.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::queue;
use crate::sys::syscall;
use crate::wire::{self, Call, Header, Span};

const SCHED_YIELD: u64 = 24;
const FUTEX: u64 = 202;
const CLOCK_GETTIME: u64 = 228;
const FUTEX_WAKE: u64 = 1;
const CLOCK_MONOTONIC: u64 = 1;
/// How long an answered request may stay uncollected before the controller counts as gone, in milliseconds.
const PATIENCE: i64 = 2500;
/// What one look counts for at most, in milliseconds: while this thread did not run, because of others or because the whole machine stood still, the
/// controller may not have run either.
const LOOK: i64 = 20;

/// Serves until the controller is gone; then what is to be undone has been undone.
///
/// # Safety
/// `base` is the address of a region laid out as `wire` says, which nobody else writes while this thread runs.
pub unsafe extern "C" fn serve(base: u64) {
    // SAFETY: the region holds a header at DATA_OFFSET, 8-byte aligned, for as long as this code is mapped.
    let header = unsafe { &*((base + wire::DATA_OFFSET) as *const Header) };
    while next(base, header) == Next::Serve {}
    // SAFETY: as above; the undo span was complete before the controller let this thread run.
    unsafe { run(base, header.undo) };
}

#[derive(PartialEq)]
enum Next {
    Serve,
    Leave,
}

fn next(base: u64, header: &Header) -> Next {
    match header.state.load(Ordering::Acquire) {
        wire::REQUEST => {
            // SAFETY: the controller completed the batch before it set REQUEST.
            unsafe { run(base, header.batch) };
            header.state.store(wire::DONE, Ordering::Release);
            syscall(FUTEX, [&raw const header.state as u64, FUTEX_WAKE, 1, 0, 0, 0]);
            wait_for_stop(&header.state)
        }
        // Resumed from a stop without a request: the tracer is gone.
        wire::IDLE => Next::Leave,
        _ => wait_for_stop(&header.state),
    }
}

/// Spins until the controller has stopped this thread and set another state, or for too long.
///
/// The window between the answer and the stop is the only one in which a dead controller is not noticed at once. A sleep
/// would have to end by a timeout, and those overwrite the victim's restart block when interrupted.
fn wait_for_stop(state: &AtomicU32) -> Next {
    let (mut last, mut waited) = (milliseconds(), 0);
    while state.load(Ordering::Acquire) == wire::DONE {
        syscall(SCHED_YIELD, [0; 6]);
        let now = milliseconds();
        waited += (now - last).min(LOOK);
        last = now;
        if waited > PATIENCE
            && state.compare_exchange(wire::DONE, wire::LEAVING, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            return Next::Leave;
        }
    }
    Next::Serve
}

fn milliseconds() -> i64 {
    let mut now = [0i64; 2];
    syscall(CLOCK_GETTIME, [CLOCK_MONOTONIC, now.as_mut_ptr() as u64, 0, 0, 0, 0]);
    now[0] * 1000 + now[1] / 1_000_000
}

/// Runs the calls of a span in order and writes each result.
///
/// # Safety
/// The span lies in the region at `base` and holds calls whose pointers are good.
unsafe fn run(base: u64, span: Span) {
    let calls = (base + span.offset) as *mut Call;
    let mut n = 0;
    while n < span.calls {
        // SAFETY: `n` is inside the span.
        let call = unsafe { &mut *calls.add(n as usize) };
        let mut args = call.args;
        for (i, arg) in args.iter_mut().enumerate() {
            match (call.kinds >> (2 * i as u32)) & 3 {
                wire::ARG_REGION => *arg += base,
                // SAFETY: an offset of eight bytes in the region, 8-byte aligned.
                wire::ARG_LOAD => *arg = unsafe { *((base + *arg) as *const u64) },
                _ => {}
            }
        }
        // SAFETY: for a queue operation the first argument is the address of a hold in the region, which nobody else has.
        call.result = unsafe { perform(call.nr, args) };
        if (-4095..0).contains(&call.result) && call.flags & wire::STOP_ON_ERROR != 0 {
            break;
        }
        n += 1;
    }
}

/// Runs one call of a batch.
///
/// # Safety
/// For the queue operations `args[0]` is the address of a [`queue::Hold`] that nobody else uses.
unsafe fn perform(nr: u64, args: [u64; 6]) -> i64 {
    let hold = args[0] as *mut queue::Hold;
    match nr {
        // SAFETY: the caller's promise.
        wire::OP_QUEUE_DRAIN => queue::drain(unsafe { &mut *hold }),
        // SAFETY: the caller's promise.
        wire::OP_QUEUE_PUT_BACK => queue::put_back(unsafe { &mut *hold }),
        _ => syscall(nr, args),
    }
}
