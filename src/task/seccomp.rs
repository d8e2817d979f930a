//! Seccomp filters of a process: seccomp(2).
//!
//! 1. Dump: the programs are read by PTRACE_SECCOMP_GET_FILTER, and while the process is in our hands they are suspended
//!    (PTRACE_O_SUSPEND_SECCOMP). Both need CAP_SYS_ADMIN. A suspension ends with its tracer, so the parasite of a controller that was killed
//!    leaves under the filters: they are evaluated beforehand for every call that is made inside, and a process is refused whose filters
//!    would kill it for one, or keep the parasite from leaving.
//! 2. Restore: they are installed, the oldest first, before the credentials (without no_new_privs it takes CAP_SYS_ADMIN), and suspended until
//!    the task is let go.
//!
//! Refused: strict mode, and filters with a listener (SECCOMP_RET_USER_NOTIF), which some other process holds.

use crate::error::{Context, Error, Refusal, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::image::{Images, pb};
use crate::inject::Infected;
use crate::inject::batch::{Ask, Batch};
use crate::sys::ptrace;

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

/// The filters of a stopped thread in the order of their installation, as arrays of struct sock_filter.
pub fn filters(tid: Tid) -> Result<Vec<Vec<u8>>> {
    let mut filters = Vec::new();
    loop {
        match ptrace::seccomp_filter(tid, filters.len()) {
            Ok(program) => filters.push(program),
            Err(nix::errno::Errno::ENOENT) => break,
            Err(errno) => {
                return Err(Error::sys("reading the seccomp filters (needs CAP_SYS_ADMIN)", Subject::Tid(tid), errno));
            }
        }
    }
    // The kernel numbers them from the newest on.
    filters.reverse();
    Ok(filters)
}

/// Refuses a process whose filters would harm it if its controller died while `first` or any other call of ours runs inside.
pub fn refuse_harmful(pid: Pid, comm: &str, filters: &[Vec<u8>], first: &Batch) -> Result<()> {
    let refuse = |kind: String| {
        let remedy = "end that program, then dump again".into();
        Err(Error::Refused(Refusal { pid, comm: comm.to_owned(), fd: None, kind, remedy }))
    };
    if filters.iter().any(|filter| has_listener(filter)) {
        return refuse("it runs under a seccomp filter that asks another process (SECCOMP_RET_USER_NOTIF)".into());
    }
    let others = STAYING.map(|nr| (nr, [0; 6])).into_iter().chain(first.plain_calls());
    for (nr, args) in LEAVING.map(|nr| (nr, [0; 6])).into_iter().chain(others) {
        let action = verdict(filters, nr, args);
        let harmful = matches!(action, Some(KILL_PROCESS | KILL_THREAD | TRAP) | None);
        let leaving = LEAVING.contains(&nr);
        if harmful || leaving && !matches!(action, Some(ALLOW | LOG)) {
            let outcome = if leaving && !harmful { "denies" } else { "kills it for" };
            return refuse(format!(
                "it runs under a seccomp filter that {outcome} system call {nr}, which a dump makes in it"
            ));
        }
    }
    Ok(())
}

/// The action that all filters together decide on; none where one of them is not understood.
fn verdict(filters: &[Vec<u8>], nr: i64, args: [u64; 6]) -> Option<u32> {
    let mut data = (nr as u32).to_ne_bytes().to_vec();
    data.extend(AUDIT_ARCH_X86_64.to_ne_bytes());
    data.extend([0u8; 8]);
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let mut decided = ALLOW;
    for filter in filters {
        let action = run(filter, &data)? & ACTION;
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

/// Adds the filters of a process to the images; yields the index of the newest.
pub fn record(images: &mut Images, filters: &[Vec<u8>]) -> Option<u32> {
    let known = &mut images.seccomp.get_or_insert_default().seccomp_filters;
    let mut prev = None;
    for filter in filters {
        known.push(pb::SeccompFilter { filter: filter.clone(), prev, flags: None });
        prev = Some(known.len() as u32 - 1);
    }
    prev
}

/// The recorded filters of a thread, the oldest first. None where the images contradict themselves.
pub fn recorded(images: &Images, core: &pb::CoreEntry) -> Option<Vec<Vec<u8>>> {
    let mut next = core.thread_core.as_ref().and_then(|thread| thread.seccomp_filter);
    let known = images.seccomp.as_ref().map_or(&[][..], |seccomp| &seccomp.seccomp_filters);
    let mut filters = Vec::new();
    while let Some(index) = next {
        let entry = known.get(index as usize)?;
        // Each refers to one that was there before.
        next = entry.prev.filter(|prev| *prev < index);
        if next != entry.prev || entry.filter.len() % INSTRUCTION != 0 {
            return None;
        }
        filters.push(entry.filter.clone());
    }
    filters.reverse();
    Some(filters)
}

/// Installs the filters in a task, suspended until its trace options are set anew. `options` are those that it has.
pub fn restore(tracee: &mut Infected, images: &Images, core: &pb::CoreEntry, options: i32) -> Result<()> {
    let subject = Subject::Pid(tracee.pid());
    let filters =
        recorded(images, core).ok_or_else(|| Error::failed("a seccomp filter of the images is damaged; dump again"))?;
    if filters.is_empty() {
        return Ok(());
    }
    tracee.stopped()?.set_options(options | ptrace::OPTION_SUSPEND_SECCOMP).map_err(|error| match error {
        Error::Sys { errno: nix::errno::Errno::EPERM, .. } => {
            Error::failed("a seccomp filter can be put back only with CAP_SYS_ADMIN; restore as root")
        }
        other => other,
    })?;
    for filter in &filters {
        let mut batch = Batch::new();
        let program = batch.input(filter);
        let mut header = [0u8; 16];
        header[..2].copy_from_slice(&((filter.len() / INSTRUCTION) as u16).to_ne_bytes());
        let header = batch.input(&header);
        batch.store_address(header, 8, program);
        let call = batch.must(libc::SYS_seccomp, [SECCOMP_SET_MODE_FILTER.into(), 0u64.into(), header.into()]);
        let answers = tracee.ask(batch)?;
        answers.result(call).during("installing a seccomp filter", subject.clone())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(list: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let bytes =
            |(code, t, f, k): &(u16, u8, u8, u32)| [&code.to_ne_bytes()[..], &[*t, *f], &k.to_ne_bytes()].concat();
        list.iter().flat_map(bytes).collect()
    }

    /// Kills for `nr`, gives EPERM for getpid, allows the rest.
    fn kills(nr: i64) -> Vec<u8> {
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
        assert_eq!(verdict(&[Vec::new()], 1, [0; 6]), None);
    }

    #[test]
    fn harmful_filters_are_refused() {
        let judge = |filter: Vec<u8>| {
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
        record(&mut images, &[kills(1)]);
        let newest = record(&mut images, &[kills(2), kills(3)]);
        let thread = pb::ThreadCoreEntry { seccomp_filter: newest, ..Default::default() };
        let core = pb::CoreEntry { thread_core: Some(thread), ..Default::default() };
        assert_eq!(recorded(&images, &core), Some(vec![kills(2), kills(3)]));
        images.seccomp.as_mut().unwrap().seccomp_filters[1].prev = Some(2);
        assert_eq!(recorded(&images, &core), None);
    }
}
