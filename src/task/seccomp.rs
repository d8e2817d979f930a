//! Seccomp filters of the threads of a process: seccomp(2).
//!
//! 1. Dump: the programs are read by PTRACE_SECCOMP_GET_FILTER, and while a thread is in our hands they are suspended
//!    (PTRACE_O_SUSPEND_SECCOMP). Both need CAP_SYS_ADMIN. A suspension ends with its tracer, so the parasite of a controller that was killed
//!    leaves under the filters: they are evaluated beforehand for every call that is made inside, and a process is refused whose filters
//!    would kill it for one, or keep the parasite from leaving.
//! 2. Restore: they are installed, the oldest first, before the credentials (without no_new_privs it takes CAP_SYS_ADMIN), and suspended until
//!    the task is let go. Those that all threads begin with the leader installs before it makes the others: they are the same ones then, as
//!    SECCOMP_FILTER_FLAG_TSYNC asks.
//!
//! Refused: strict mode, and filters with a listener (SECCOMP_RET_USER_NOTIF), which some other process holds.

use crate::error::{Context, Error, Refusal, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::image::{Images, pb};
use crate::inject::Infected;
use crate::inject::batch::{Ask, Batch};
use crate::sys::ptrace;
use crate::trace::Stopped;

use super::leader;

/// Bytes of one instruction, struct sock_filter: code, jumps, operand.
const INSTRUCTION: usize = 8;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// seccomp(2): the operation that installs a filter.
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// SECCOMP_RET_ACTION_FULL, and what a filter may decide; the smallest as a signed number goes first.
const ACTION: u32 = 0xffff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const USER_NOTIF: u32 = 0x7fc0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
const RET_K: u16 = 0x06;

/// What a parasite without a controller cannot leave without.
const LEAVING: [i64; 2] = [libc::SYS_munmap, libc::SYS_rt_sigprocmask];
/// What it may call otherwise, beside the first batch: to come in, to wait, and to ask terminals and put back what it took from them.
const STAYING: [i64; 12] = [
    libc::SYS_memfd_create,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_close,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_ioctl,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_poll,
    libc::SYS_wait4,
];

/// One filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// An array of struct sock_filter.
    pub program: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_LOG.
    pub flags: u32,
}

/// The filters of a stopped thread in the order of their installation.
pub fn filters(tid: Tid) -> Result<Vec<Filter>> {
    let mut filters = Vec::new();
    loop {
        let failed = |errno| Error::sys("reading the flags of a seccomp filter", Subject::Tid(tid), errno);
        match ptrace::seccomp_filter(tid, filters.len()) {
            Ok(program) => {
                let flags = ptrace::seccomp_flags(tid, filters.len()).map_err(failed)?;
                filters.push(Filter { program, flags });
            }
            Err(nix::errno::Errno::ENOENT) => break,
            Err(errno) => {
                return Err(Error::sys("reading the seccomp filters (needs CAP_SYS_ADMIN)", Subject::Tid(tid), errno));
            }
        }
    }
    Ok(filters)
}

/// Refuses a process whose filters would harm it if its controller died while `first` or any other call of the parasite runs inside.
pub fn refuse_harmful(pid: Pid, comm: &str, filters: &[Filter], first: &Batch) -> Result<()> {
    let calls = LEAVING.into_iter().chain(STAYING).map(|nr| (nr, [0; 6]));
    refuse_harmful_calls(pid, comm, filters, calls.chain(first.plain_calls()))?;
    for nr in LEAVING {
        if !matches!(verdict(filters, nr, [0; 6]), Some(ALLOW | LOG)) {
            return refuse(pid, comm, &format!("that denies system call {nr}, which a dump makes in it"));
        }
    }
    Ok(())
}

/// Refuses a process of which a thread has filters that would harm it for one of these calls.
pub fn refuse_harmful_calls(
    pid: Pid,
    comm: &str,
    filters: &[Filter],
    calls: impl Iterator<Item = (i64, [u64; 6])>,
) -> Result<()> {
    if filters.iter().any(|filter| has_listener(&filter.program)) {
        return refuse(pid, comm, "that asks another process (SECCOMP_RET_USER_NOTIF)");
    }
    for (nr, args) in calls {
        if matches!(verdict(filters, nr, args), Some(KILL_PROCESS | KILL_THREAD | TRAP) | None) {
            return refuse(pid, comm, &format!("that kills it for system call {nr}, which a dump makes in it"));
        }
    }
    Ok(())
}

fn refuse(pid: Pid, comm: &str, what: &str) -> Result<()> {
    let (kind, remedy) = (format!("it runs under a seccomp filter {what}"), "end that program, then dump again".into());
    Err(Error::Refused(Refusal { pid, comm: comm.to_owned(), fd: None, kind, remedy }))
}

/// The action that all filters together decide on; none where one of them is not understood.
fn verdict(filters: &[Filter], nr: i64, args: [u64; 6]) -> Option<u32> {
    let mut data = (nr as u32).to_ne_bytes().to_vec();
    data.extend(AUDIT_ARCH_X86_64.to_ne_bytes());
    data.extend([0u8; 8]);
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let mut decided = ALLOW;
    for filter in filters {
        let action = run(&filter.program, &data)? & ACTION;
        if (action as i32) < decided as i32 {
            decided = action;
        }
    }
    Some(decided)
}

fn instructions(filter: &[u8]) -> impl Iterator<Item = (u16, u8, u8, u32)> + '_ {
    filter
        .chunks_exact(INSTRUCTION)
        .map(|i| (u16::from_ne_bytes([i[0], i[1]]), i[2], i[3], u32::from_ne_bytes([i[4], i[5], i[6], i[7]])))
}

fn has_listener(filter: &[u8]) -> bool {
    instructions(filter).any(|(code, _, _, k)| code == RET_K && k & ACTION == USER_NOTIF)
}

/// Runs a classic BPF program (Documentation/networking/filter.rst) in the dialect that seccomp admits: kernel/seccomp.c, seccomp_check_filter.
fn run(filter: &[u8], data: &[u8]) -> Option<u32> {
    let program: Vec<_> = instructions(filter).collect();
    let (mut a, mut x, mut memory, mut at) = (0u32, 0u32, [0u32; 16], 0usize);
    loop {
        let (code, if_true, if_false, k) = *program.get(at)?;
        at += 1;
        let slot = (k as usize).min(15);
        let operand = if code & 0x08 != 0 { x } else { k };
        match code {
            0x20 => a = u32::from_ne_bytes(data.get(k as usize..k as usize + 4)?.try_into().ok()?),
            0x80 => a = data.len() as u32,
            0x81 => x = data.len() as u32,
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = memory[slot],
            0x61 => x = memory[slot],
            0x02 => memory[slot] = a,
            0x03 => memory[slot] = x,
            0x07 => x = a,
            0x87 => a = x,
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            0x34 | 0x3c => match a.checked_div(operand) {
                Some(quotient) => a = quotient,
                None => return Some(0),
            },
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0x64 | 0x6c => a = a.checked_shl(operand).unwrap_or(0),
            0x74 | 0x7c => a = a.checked_shr(operand).unwrap_or(0),
            0xa4 | 0xac => a ^= operand,
            0x84 => a = a.wrapping_neg(),
            0x05 => at = at.checked_add(k as usize)?,
            0x15 | 0x1d => at += usize::from(if a == operand { if_true } else { if_false }),
            0x25 | 0x2d => at += usize::from(if a > operand { if_true } else { if_false }),
            0x35 | 0x3d => at += usize::from(if a >= operand { if_true } else { if_false }),
            0x45 | 0x4d => at += usize::from(if a & operand != 0 { if_true } else { if_false }),
            RET_K => return Some(k),
            0x16 => return Some(a),
            _ => return None,
        }
    }
}

/// Adds the filters of a thread to the images, those that are there already left out; yields the index of the newest.
pub fn record(images: &mut Images, filters: &[Filter]) -> Option<u32> {
    if filters.is_empty() {
        return None;
    }
    let known = &mut images.seccomp.get_or_insert_default().seccomp_filters;
    let mut prev = None;
    for Filter { program, flags } in filters {
        let entry = pb::SeccompFilter { filter: program.clone(), prev, flags: (*flags != 0).then_some(*flags) };
        let at = known.iter().position(|other| *other == entry).unwrap_or(known.len());
        if at == known.len() {
            known.push(entry);
        }
        prev = Some(at as u32);
    }
    prev
}

/// The recorded filters of a thread, the oldest first. None where the images contradict themselves.
fn recorded(images: &Images, tid: u32) -> Option<Vec<Filter>> {
    let mut next = images.cores.get(&tid)?.thread_core.as_ref().and_then(|thread| thread.seccomp_filter);
    let known = images.seccomp.as_ref().map_or(&[][..], |seccomp| &seccomp.seccomp_filters);
    let mut filters = Vec::new();
    while let Some(index) = next {
        let entry = known.get(index as usize)?;
        // Each refers to one that was there before.
        next = entry.prev.filter(|prev| *prev < index);
        if next != entry.prev || entry.filter.len() % INSTRUCTION != 0 {
            return None;
        }
        filters.push(Filter { program: entry.filter.clone(), flags: entry.flags.unwrap_or(0) });
    }
    filters.reverse();
    Some(filters)
}

/// The filters of a thread: those that all threads of its process have first, and then its own.
fn parts(images: &Images, pid: u32, tid: u32) -> Result<(Vec<Filter>, Vec<Filter>)> {
    let damaged = || Error::failed("a seccomp filter of the images is damaged; dump again");
    let mut common = recorded(images, tid).ok_or_else(damaged)?;
    let mut alike = common.len();
    let threads = images.pstree.iter().filter(|entry| entry.pid == pid).flat_map(|entry| &entry.threads);
    for other in threads {
        let other = recorded(images, *other).ok_or_else(damaged)?;
        alike = common.iter().zip(&other).take(alike).take_while(|(one, other)| one == other).count();
    }
    let own = common.split_off(alike);
    Ok((common, own))
}

/// Installs what all threads of a process have, in its leader before it makes the others.
pub fn restore_common(tracee: &mut Infected, images: &Images, pid: u32, options: i32) -> Result<()> {
    let (common, _) = parts(images, pid, pid)?;
    suspend(&common, tracee.stopped()?, options)?;
    install(tracee, &common)
}

/// Installs what the thread with the parasite alone has. `options` are those that it has.
pub fn restore_host(tracee: &mut Infected, images: &Images, pid: u32, options: i32) -> Result<()> {
    let (common, own) = parts(images, pid, leader::host(images, pid))?;
    suspend(if own.is_empty() { &common } else { &own }, tracee.stopped()?, options)?;
    install(tracee, &own)
}

/// What a thread that is not the leader has beyond that, and is to install when it is suspended.
pub fn of_thread(images: &Images, pid: u32, tid: u32) -> Result<Vec<Filter>> {
    parts(images, pid, tid).map(|(_, own)| own)
}

/// Suspends filters until the trace options are set anew.
pub fn suspend(filters: &[Filter], thread: &Stopped, options: i32) -> Result<()> {
    if filters.is_empty() {
        return Ok(());
    }
    thread.set_options(options | ptrace::OPTION_SUSPEND_SECCOMP).map_err(|error| match error {
        Error::Sys { errno: nix::errno::Errno::EPERM, .. } => {
            Error::failed("a seccomp filter can be put back only with CAP_SYS_ADMIN; restore as root")
        }
        other => other,
    })
}

/// Installs filters, the oldest first.
pub fn install(thread: &mut impl Ask, filters: &[Filter]) -> Result<()> {
    for Filter { program, flags } in filters {
        let mut batch = Batch::new();
        let mut header = [0u8; 16];
        header[..2].copy_from_slice(&((program.len() / INSTRUCTION) as u16).to_ne_bytes());
        let program = batch.input(program);
        let header = batch.input(&header);
        batch.store_address(header, 8, program);
        let flags = u64::from(*flags);
        let call = batch.must(libc::SYS_seccomp, [SECCOMP_SET_MODE_FILTER.into(), flags.into(), header.into()]);
        let answers = thread.ask(batch)?;
        answers.result(call).during("installing a seccomp filter", Subject::None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(list: &[(u16, u8, u8, u32)]) -> Filter {
        let bytes =
            |(code, t, f, k): &(u16, u8, u8, u32)| [&code.to_ne_bytes()[..], &[*t, *f], &k.to_ne_bytes()].concat();
        Filter { program: list.iter().flat_map(bytes).collect(), flags: 0 }
    }

    /// Kills for `nr`, gives EPERM for getpid, allows the rest.
    fn kills(nr: i64) -> Filter {
        program(&[
            (0x20, 0, 0, 0),
            (0x15, 2, 0, nr as u32),
            (0x15, 2, 0, libc::SYS_getpid as u32),
            (0x06, 0, 0, ALLOW),
            (0x06, 0, 0, KILL_PROCESS),
            (0x06, 0, 0, 0x0005_0001),
        ])
    }

    #[test]
    fn filters_are_evaluated_and_the_strictest_wins() {
        let one = [kills(libc::SYS_mmap)];
        assert_eq!(verdict(&one, libc::SYS_mmap, [0; 6]), Some(KILL_PROCESS));
        assert_eq!(verdict(&one, libc::SYS_getpid, [0; 6]), Some(0x0005_0000));
        assert_eq!(verdict(&one, libc::SYS_munmap, [0; 6]), Some(ALLOW));
        let both = [kills(libc::SYS_mmap), program(&[(0x06, 0, 0, TRAP)])];
        assert_eq!(verdict(&both, libc::SYS_munmap, [0; 6]), Some(TRAP));
        assert_eq!(verdict(&both, libc::SYS_mmap, [0; 6]), Some(KILL_PROCESS));
        // The low half of the second argument, masked.
        let argument =
            [program(&[(0x20, 0, 0, 24), (0x54, 0, 0, 4), (0x45, 0, 1, 4), (0x06, 0, 0, 0), (0x06, 0, 0, ALLOW)])];
        assert_eq!(verdict(&argument, 1, [0, 6, 0, 0, 0, 0]), Some(KILL_THREAD));
        assert_eq!(verdict(&argument, 1, [0, 3, 0, 0, 0, 0]), Some(ALLOW));
        assert_eq!(verdict(&[program(&[(0x28, 0, 0, 0)])], 1, [0; 6]), None);
        assert_eq!(verdict(&[program(&[])], 1, [0; 6]), None);
    }

    #[test]
    fn harmful_filters_are_refused() {
        let judge = |filter: Filter| {
            let mut first = Batch::new();
            first.call(libc::SYS_getitimer, [1u64.into()]);
            refuse_harmful(Pid(1), "x", &[filter], &first).map_err(|error| error.to_string())
        };
        assert_eq!(judge(kills(libc::SYS_ptrace)), Ok(()));
        for nr in [libc::SYS_getitimer, libc::SYS_munmap, libc::SYS_futex] {
            assert!(judge(kills(nr)).unwrap_err().contains(&format!("kills it for system call {nr}")));
        }
        assert!(judge(program(&[(0x06, 0, 0, 0x0005_0001)])).unwrap_err().contains("denies system call 11"));
        assert!(judge(program(&[(0x06, 0, 0, USER_NOTIF)])).unwrap_err().contains("asks another process"));
    }

    #[test]
    fn chains_are_recorded_and_found() {
        let mut images = Images::default();
        let logs = Filter { flags: 2, ..kills(3) };
        let chains = [vec![kills(1), kills(2)], vec![kills(1), logs.clone(), kills(2)], vec![kills(1)]];
        for (tid, chain) in (7..).zip(&chains) {
            let thread = pb::ThreadCoreEntry { seccomp_filter: record(&mut images, chain), ..Default::default() };
            images.cores.insert(tid, pb::CoreEntry { thread_core: Some(thread), ..Default::default() });
        }
        images.pstree.push(pb::PstreeEntry { pid: 7, threads: vec![7, 8, 9], ..Default::default() });
        assert_eq!(images.seccomp.as_ref().unwrap().seccomp_filters.len(), 4);
        assert_eq!(recorded(&images, 8), Some(chains[1].clone()));
        assert_eq!(parts(&images, 7, 8).unwrap(), (vec![kills(1)], vec![logs, kills(2)]));
        assert_eq!(parts(&images, 7, 9).unwrap(), (vec![kills(1)], vec![]));
        images.seccomp.as_mut().unwrap().seccomp_filters[1].prev = Some(2);
        assert_eq!(recorded(&images, 7), None);
    }
}
