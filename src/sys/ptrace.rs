//! ptrace requests on one thread, and waiting for it. Source: ptrace(2), kernel/ptrace.c.

use std::mem::MaybeUninit;

use libc::{c_void, iovec, pid_t, siginfo_t, user_regs_struct};
use nix::errno::Errno;

use crate::ids::Tid;

/// Options of every seizure. TRACESYSGOOD marks syscall stops, without which a tracer's death at one delivers a real SIGTRAP (FACTS B3).
pub const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD;
pub const OPTION_SUSPEND_SECCOMP: i32 = 1 << 21;
pub const OPTION_EXITKILL: i32 = libc::PTRACE_O_EXITKILL;
pub const OPTION_TRACECLONE: i32 = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;

const NT_X86_XSTATE: usize = 0x202;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
/// Bytes of the kernel's signal set.
const SIGSET_SIZE: usize = 8;

fn request(request: u32, tid: Tid, addr: usize, data: usize) -> Result<i64, Errno> {
    // SAFETY: the callers below pass addresses of live buffers of the size that the request reads or writes; every other
    // request takes plain numbers.
    let result = unsafe { libc::ptrace(request, tid.0, addr as *mut c_void, data as *mut c_void) };
    Errno::result(result)
}

/// PTRACE_SEIZE: attaches without stopping.
pub fn seize(tid: Tid, options: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

/// PTRACE_SETOPTIONS on a stopped tracee.
pub fn set_options(tid: Tid, options: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// PTRACE_INTERRUPT: asks for a PTRACE_EVENT_STOP.
pub fn interrupt(tid: Tid) -> Result<(), Errno> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// PTRACE_CONT, delivering `signal` where it is not 0.
pub fn cont(tid: Tid, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// PTRACE_SYSCALL: runs to the next syscall entry or exit.
pub fn cont_to_syscall(tid: Tid) -> Result<(), Errno> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// PTRACE_DETACH, delivering `signal` where it is not 0.
pub fn detach(tid: Tid, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// PTRACE_GETEVENTMSG: the child's id at a clone event.
pub fn event_message(tid: Tid) -> Result<u64, Errno> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize)?;
    Ok(message)
}

/// PTRACE_GETREGS: the general registers.
pub fn get_regs(tid: Tid) -> Result<user_regs_struct, Errno> {
    let mut regs = MaybeUninit::<user_regs_struct>::zeroed();
    request(libc::PTRACE_GETREGS, tid, 0, regs.as_mut_ptr() as usize)?;
    // SAFETY: plain integers, zeroed above and filled by the kernel.
    Ok(unsafe { regs.assume_init() })
}

/// PTRACE_SETREGS: the general registers, fs_base and gs_base among them, at once.
pub fn set_regs(tid: Tid, regs: &user_regs_struct) -> Result<(), Errno> {
    request(libc::PTRACE_SETREGS, tid, 0, &raw const *regs as usize).map(drop)
}

/// PTRACE_GETREGSET NT_X86_XSTATE: the extended state in XSAVE's standard format, as long as this CPU's is.
pub fn get_xstate(tid: Tid) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; 16 * 1024];
    let mut iov = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, &raw mut iov as usize)?;
    bytes.truncate(iov.iov_len);
    Ok(bytes)
}

/// PTRACE_SETREGSET NT_X86_XSTATE.
pub fn set_xstate(tid: Tid, bytes: &[u8]) -> Result<(), Errno> {
    let mut iov = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, &raw mut iov as usize).map(drop)
}

/// PTRACE_GETSIGMASK: the mask, or the one that sigsuspend and its like will put back.
pub fn get_sigmask(tid: Tid) -> Result<u64, Errno> {
    let mut mask = 0u64;
    request(PTRACE_GETSIGMASK, tid, SIGSET_SIZE, &raw mut mask as usize)?;
    Ok(mask)
}

/// PTRACE_SETSIGMASK; SIGKILL and SIGSTOP stay open.
pub fn set_sigmask(tid: Tid, mask: u64) -> Result<(), Errno> {
    request(PTRACE_SETSIGMASK, tid, SIGSET_SIZE, &raw const mask as usize).map(drop)
}

/// Which queue of pending signals to peek into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingQueue {
    Thread,
    Process,
}

#[repr(C)]
struct PeekArgs {
    off: u64,
    flags: u32,
    nr: i32,
}

/// PTRACE_PEEKSIGINFO: up to `count` pending signals from `offset` on, as raw 128-byte siginfo, without taking them.
pub fn peek_siginfo(tid: Tid, queue: PendingQueue, offset: u64, count: usize) -> Result<Vec<[u8; 128]>, Errno> {
    const PTRACE_PEEKSIGINFO: u32 = 0x4209;
    let mut infos = vec![[0u8; 128]; count];
    let flags = u32::from(queue == PendingQueue::Process);
    let args = PeekArgs { off: offset, flags, nr: i32::try_from(count).unwrap_or(i32::MAX) };
    let got = request(PTRACE_PEEKSIGINFO, tid, &raw const args as usize, infos.as_mut_ptr() as usize)?;
    infos.truncate(usize::try_from(got).unwrap_or(0));
    Ok(infos)
}

/// The registered restartable sequence area of a thread.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RseqConfiguration {
    /// Address of the area, 0 where none is registered.
    pub pointer: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
    pad: u32,
}

impl RseqConfiguration {
    pub fn new(pointer: u64, size: u32, signature: u32) -> RseqConfiguration {
        RseqConfiguration { pointer, size, signature, flags: 0, pad: 0 }
    }
}

/// PTRACE_GET_RSEQ_CONFIGURATION (5.13); EIO before.
pub fn rseq_configuration(tid: Tid) -> Result<RseqConfiguration, Errno> {
    let mut config = RseqConfiguration::new(0, 0, 0);
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of_val(&config), &raw mut config as usize)?;
    Ok(config)
}

/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: whether system calls of a thread may come back to it as signals (prctl(2),
/// PR_SET_SYSCALL_USER_DISPATCH). EIO before Linux 6.4.
pub fn dispatches_calls(tid: Tid) -> Result<bool, Errno> {
    const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
    // struct ptrace_sud_config: mode, selector, offset, len.
    let mut config = [0u64; 4];
    request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of_val(&config), &raw mut config as usize)?;
    Ok(config[0] != 0)
}

/// PTRACE_SECCOMP_GET_FILTER: the program of a filter, 0 the oldest. ENOENT: there is no such filter; EACCES: without CAP_SYS_ADMIN; EINVAL: no
/// filters at all. Linux 4.4.
pub fn seccomp_filter(tid: Tid, index: usize) -> Result<Vec<u8>, Errno> {
    const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
    let count = request(PTRACE_SECCOMP_GET_FILTER, tid, index, 0)?;
    let mut program = vec![0u8; usize::try_from(count).unwrap_or(0) * 8];
    request(PTRACE_SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as usize)?;
    Ok(program)
}

/// PTRACE_SECCOMP_GET_METADATA: the flags of a filter, SECCOMP_FILTER_FLAG_LOG alone. Linux 4.16.
pub fn seccomp_flags(tid: Tid, index: usize) -> Result<u32, Errno> {
    const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
    let mut metadata = [index as u64, 0];
    request(PTRACE_SECCOMP_GET_METADATA, tid, size_of_val(&metadata), metadata.as_mut_ptr() as usize)?;
    Ok(metadata[1] as u32)
}

/// How a wait for a thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Killed(i32),
    /// The signal, and the PTRACE_EVENT number (0 for none).
    Stopped(i32, i32),
    /// WNOHANG found nothing.
    Nothing,
}

/// Whether to block in a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitMode {
    Block,
    Poll,
}

/// waitpid(tid, __WALL): the next state change of one tracee or child; EINTR is retried.
pub fn wait(tid: Tid, mode: WaitMode) -> Result<Status, Errno> {
    let mut status = 0;
    let flags = libc::__WALL | if mode == WaitMode::Poll { libc::WNOHANG } else { 0 };
    loop {
        // SAFETY: the kernel writes one int.
        let result = unsafe { libc::waitpid(tid.0 as pid_t, &raw mut status, flags) };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => return Ok(Status::Nothing),
            Ok(_) => return Ok(decode(status)),
        }
    }
}

fn decode(status: i32) -> Status {
    if libc::WIFSTOPPED(status) {
        Status::Stopped(libc::WSTOPSIG(status), status >> 16)
    } else if libc::WIFSIGNALED(status) {
        Status::Killed(libc::WTERMSIG(status))
    } else {
        Status::Exited(libc::WEXITSTATUS(status))
    }
}

const _: () = assert!(size_of::<siginfo_t>() == 128 && size_of::<RseqConfiguration>() == 24);
