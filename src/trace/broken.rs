//! Calls that a mere stop ends with EINTR, which the program would see.
//!
//! FACTS B3 lists them; the kernel is told to restart them, right after the stop, so that whatever becomes of the controller then, they go on.

use libc::user_regs_struct;

use super::{StopReason, Stopped};
use crate::error::Result;

pub const ERESTARTNOHAND: i64 = -514;
const EINTR: i64 = -4;
/// Missing in libc for this target.
const SYS_IO_PGETEVENTS: i64 = 333;

/// Calls that a stop breaks with EINTR though no signal was delivered (signal(7), "Interruption of system calls ... by stop signals").
///
/// The calls on sockets are on it for SO_RCVTIMEO and SO_SNDTIMEO; with EINTR nothing was transferred yet, so that calling again is safe. A
/// connect(2) that is made again waits for the same connection.
const BROKEN_BY_A_STOP: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
    SYS_IO_PGETEVENTS,
    libc::SYS_io_uring_enter,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
];

/// Whether the stop alone ended the call that a thread was in with EINTR.
pub fn is_broken(regs: &user_regs_struct) -> bool {
    regs.rax as i64 == EINTR && BROKEN_BY_A_STOP.contains(&(regs.orig_rax as i64))
}

/// The registers with which the kernel makes a call again from its start, unless a signal handler is called first: then it is EINTR.
/// An epoll_wait then waits for `wait_ms`, the milliseconds that it has left, where that is known.
pub fn made_again(regs: &user_regs_struct, wait_ms: Option<u32>) -> user_regs_struct {
    let mut regs = user_regs_struct { rax: ERESTARTNOHAND as u64, ..*regs };
    if let (libc::SYS_epoll_wait | libc::SYS_epoll_pwait, Some(left)) = (regs.orig_rax as i64, wait_ms) {
        regs.r10 = left.into();
    }
    regs
}

/// Lets the kernel go on with a call that only the stop has broken, from its start; at a signal that has no handler too. A process that a
/// signal had stopped has seen a stop, whatever we do.
pub fn mend(stopped: &Stopped) -> Result<()> {
    if !matches!(stopped.reason(), StopReason::Interrupt | StopReason::Signal(_)) {
        return Ok(());
    }
    let regs = stopped.regs()?;
    if is_broken(&regs) { stopped.set_regs(&made_again(&regs, None)) } else { Ok(()) }
}
