//! The things that are tried, each in a function of its own.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use nix::sys::ptrace::Options;

use super::Availability::{Limited, No, Yes};
use super::{Availability, Item};
use crate::error::Errno;
use crate::ids::{Pid, RemoteAddr, RemoteFd, Tid};
use crate::procfs::{self, Stat, maps, tree};
use crate::sys::process::probe::{self, Attempt, MmMap, try_in_child};
use crate::sys::process::stub::{OnParentDeath, Stub, StubPid, clone_with_pid};
use crate::sys::process::{KcmpType, RemoteRange, kcmp, memfd_create, pidfd_getfd, pidfd_open, process_vm_readv};
use crate::sys::process::{pidfd_send_signal, wait4};
use crate::sys::{pagemap, ptrace};

/// What the bootstrap code needs in the unused tail of the vDSO, in bytes, generously.
const STUB_LEN: usize = 300;

/// Lies in a page that cannot be written.
const READ_ONLY: &str = "read-only";

#[cfg(test)]
pub(super) const COUNT: usize = 18;

/// The answer of one probe.
type Outcome = (Availability, String);

pub(super) fn all() -> Vec<Item> {
    let mut items = traced_items();
    items.extend([
        item("yama ptrace_scope", yama(), "Only root, or an ancestor of the session, may dump it."),
        item("pidfd_open", own_pidfd(), "Processes cannot be pinned against reuse of their numbers: nothing works."),
        item("pidfd_getfd", foreign_descriptor(), "Open files cannot be asked from outside: nothing can be dumped."),
        item("kcmp", comparison(), "Shared open files cannot be told from separate ones: no session can be dumped."),
        item(
            "choose a pid",
            chosen_pid(),
            "A restore needs root, CAP_CHECKPOINT_RESTORE or --pidns to give processes their numbers.",
        ),
        item(
            "executable memfd",
            executable_memory(),
            "The parasite cannot be placed: nothing can be dumped or restored.",
        ),
        item(
            "PAGEMAP_SCAN",
            pagemap_scan(),
            "Memory is looked through page by page, which takes longer for large processes.",
        ),
        item(
            "PR_SET_MM_MAP",
            memory_layout(),
            "Restored processes may show a wrong program link, name or arguments in ps and /proc.",
        ),
        item(
            "open a slave by its master",
            peer(),
            "Terminals are opened by path, which fails across mount namespaces.",
        ),
        item(
            "TIOCSTI",
            simulated_input(),
            "Nothing is lost while the master is at hand; otherwise unread input cannot be put back.",
        ),
        item(
            "private devpts",
            private_devpts(),
            "A restore with --pts-index private needs a user namespace, or does not work where that is forbidden too.",
        ),
        item("terminals", pty_limit(), "New terminals cannot be made: close some, or raise kernel.pty.max."),
    ]);
    items
}

fn item(name: &'static str, (status, detail): Outcome, cost: &'static str) -> Item {
    Item { name, status, detail, cost }
}

fn me() -> Pid {
    Pid(nix::unistd::getpid().as_raw())
}

/// Yes with a text, or no with the error.
fn plainly(result: Result<(), Errno>, text: &str) -> Outcome {
    match result {
        Ok(()) => (Yes, text.to_owned()),
        Err(errno) => failed(errno),
    }
}

fn failed(errno: Errno) -> Outcome {
    (No, format!("{} ({errno:?})", errno.desc()))
}

/// A paused child that is killed and reaped at the end of its scope.
struct ProbeChild(Stub);

impl ProbeChild {
    fn start() -> Result<ProbeChild, Errno> {
        clone_with_pid(StubPid::Any, 0, OnParentDeath::Die).map(ProbeChild)
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.0.pid.0)
    }

    fn tid(&self) -> Tid {
        self.0.pid.into()
    }

    /// Attaches and waits for the stop.
    fn stop(&self) -> Result<(), Errno> {
        nix::sys::ptrace::seize(self.pid(), Options::PTRACE_O_TRACESYSGOOD)?;
        nix::sys::ptrace::interrupt(self.pid())?;
        wait4(self.0.pid, 0).map(drop)
    }
}

impl Drop for ProbeChild {
    fn drop(&mut self) {
        if pidfd_send_signal(self.0.handle.as_fd(), libc::SIGKILL).is_err() {
            return;
        }
        while let Ok(Some((_, status))) = wait4(self.0.pid, 0) {
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                break;
            }
        }
    }
}

/// The items that need a stopped child.
fn traced_items() -> Vec<Item> {
    let child = ProbeChild::start();
    let stopped = match &child {
        Ok(child) => child.stop(),
        Err(errno) => Err(*errno),
    };
    let with_child = |probe: fn(&ProbeChild) -> Outcome| match (&child, stopped) {
        (Ok(child), Ok(())) => probe(child),
        (Err(errno), _) => failed(*errno),
        (_, Err(errno)) => failed(errno),
    };
    let attached = plainly(stopped, "seized and stopped a child");
    vec![
        item("attach to a process", attached, "Nothing can be dumped or restored."),
        item(
            "vDSO tail",
            vdso_tail(),
            "Code is started through an instruction of the program itself, which some programs lack.",
        ),
        item(
            "write read-only memory",
            with_child(forced_write),
            "The bootstrap code cannot be placed: nothing can be dumped.",
        ),
        item(
            "rseq state",
            with_child(rseq),
            "A thread inside a restartable sequence is only found by a guess at its C library.",
        ),
        item("extended registers", with_child(xstate), "Vector registers cannot be saved: nothing can be dumped."),
        item("suspend seccomp", suspended_seccomp(), "Programs under a seccomp filter are refused."),
    ]
}

/// The address behind the code of our vDSO and the number of unused bytes there.
fn own_vdso_tail() -> Result<(RemoteAddr, usize), Outcome> {
    let maps = maps::read_with_flags(me()).map_err(|error| (No, error.to_string()))?;
    let Some(vdso) = maps.iter().find(|mapping| mapping.is("[vdso]")) else {
        return Err((Limited, "this kernel maps no vDSO".to_owned()));
    };
    if vdso.flags.as_ref().is_some_and(|flags| flags.has(b"sl")) {
        return Err((Limited, "the vDSO is sealed".to_owned()));
    }
    let mut image = vec![0; vdso.len() as usize];
    let range = RemoteRange { addr: vdso.start, len: image.len() };
    process_vm_readv(me(), &[range], &mut image).map_err(failed)?;
    let room = image.iter().rev().take_while(|byte| **byte == 0).count();
    Ok((RemoteAddr(vdso.end.0 - room as u64), room))
}

fn vdso_tail() -> Outcome {
    match own_vdso_tail() {
        Ok((_, room)) if room >= STUB_LEN => (Yes, format!("{room} unused bytes, {STUB_LEN} wanted")),
        Ok((_, room)) => (Limited, format!("only {room} unused bytes, {STUB_LEN} wanted")),
        Err(outcome) => outcome,
    }
}

fn forced_write(child: &ProbeChild) -> Outcome {
    let at = match own_vdso_tail() {
        Ok((at, room)) if room > 0 => RemoteAddr(at.0 + room as u64 - 1),
        // Any read-only page of ours, which the child has a copy of, will do.
        _ => RemoteAddr(READ_ONLY.as_ptr() as u64),
    };
    let memory = File::options().write(true).open(procfs::path(child.0.pid, "mem"));
    match memory.and_then(|memory| memory.write_at(&[0], at.0)) {
        Ok(_) => (Yes, "wrote to a page of a child that it cannot write itself".to_owned()),
        Err(error) => (No, error.to_string()),
    }
}

fn rseq(child: &ProbeChild) -> Outcome {
    match ptrace::rseq_configuration(child.tid()).map(|config| config.pointer) {
        Ok(0) => (Yes, "readable; none registered here".to_owned()),
        Ok(_) => (Yes, "readable".to_owned()),
        Err(errno) => failed(errno),
    }
}

fn xstate(child: &ProbeChild) -> Outcome {
    match ptrace::get_xstate(child.tid()) {
        Ok(state) => (Yes, format!("{} bytes for each thread", state.len())),
        Err(errno) => failed(errno),
    }
}

fn suspended_seccomp() -> Outcome {
    const PTRACE_O_SUSPEND_SECCOMP: i32 = 1 << 21;
    let seized = ProbeChild::start()
        .and_then(|child| nix::sys::ptrace::seize(child.pid(), Options::from_bits_retain(PTRACE_O_SUSPEND_SECCOMP)));
    plainly(seized, "allowed")
}

fn yama() -> Outcome {
    let text = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match text.as_deref().map(str::trim) {
        Err(_) => (Yes, "no such restriction in this kernel".to_owned()),
        Ok("0") => (Yes, "0".to_owned()),
        Ok("1" | "2") if nix::unistd::geteuid().is_root() => (Yes, "restricts other users than root only".to_owned()),
        Ok("1") => (Limited, "1: only ancestors may attach".to_owned()),
        Ok(scope) => (No, format!("{scope}: this user may not attach")),
    }
}

fn own_pidfd() -> Outcome {
    plainly(pidfd_open(me()).map(drop), "works")
}

/// A file that a child has inherited, and the child.
fn shared_file() -> Result<(std::os::fd::OwnedFd, ProbeChild), Errno> {
    let file = memfd_create(c"probe", 0)?;
    Ok((file, ProbeChild::start()?))
}

fn foreign_descriptor() -> Outcome {
    let fetched = shared_file()
        .and_then(|(file, child)| pidfd_getfd(child.0.handle.as_fd(), RemoteFd(file.as_raw_fd())).map(drop));
    plainly(fetched, "fetched a descriptor of a child")
}

fn comparison() -> Outcome {
    let compared = shared_file().and_then(|(file, child)| {
        let index = file.as_raw_fd() as u64;
        kcmp(me().into(), child.tid(), KcmpType::File, index, index)
    });
    match compared {
        Ok(order) if order.is_eq() => (Yes, "found a file shared with a child".to_owned()),
        Ok(_) => (No, "did not find a file shared with a child".to_owned()),
        Err(errno) => failed(errno),
    }
}

/// A few free numbers, the highest first.
fn free_pids() -> Vec<Pid> {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let limit: i32 = text.trim().parse().unwrap_or(32768);
    let taken = tree::all().unwrap_or_default();
    (2..limit).rev().map(Pid).filter(|pid| taken.binary_search(pid).is_err()).take(4).collect()
}

fn chosen_pid() -> Outcome {
    let mut last = Errno::EAGAIN;
    for pid in free_pids() {
        match clone_with_pid(StubPid::Exactly(pid), 0, OnParentDeath::Die).map(ProbeChild) {
            Ok(child) => return (Yes, format!("made a child with pid {}", child.0.pid)),
            // A thread has the number: those are not listed.
            Err(Errno::EEXIST) => last = Errno::EEXIST,
            Err(errno) => return failed(errno),
        }
    }
    failed(last)
}

fn executable_memory() -> Outcome {
    let setting = std::fs::read_to_string("/proc/sys/vm/memfd_noexec").unwrap_or_default();
    let text = match setting.trim() {
        "" => "works".to_owned(),
        level => format!("works, vm.memfd_noexec is {level}"),
    };
    plainly(probe::executable_memfd(), &text)
}

fn pagemap_scan() -> Outcome {
    let page = READ_ONLY.as_ptr() as u64 & !4095;
    match File::open("/proc/self/pagemap") {
        Ok(file) => {
            let mut region = [pagemap::Region::default()];
            let scan = pagemap::scan(file.as_fd(), page, page + 4096, pagemap::PAGE_IS_PRESENT, 0, &mut region);
            plainly(scan.map(drop), "works")
        }
        Err(error) => (No, error.to_string()),
    }
}

fn memory_layout() -> Outcome {
    let Ok(stat) = Stat::read(me()) else { return (No, "our own stat cannot be read".to_owned()) };
    let plain = MmMap {
        start_code: stat.start_code,
        end_code: stat.end_code,
        start_data: stat.start_data,
        end_data: stat.end_data,
        start_brk: stat.start_brk,
        brk: stat.start_brk,
        start_stack: stat.start_stack,
        arg_start: stat.arg_start,
        arg_end: stat.arg_end,
        env_start: stat.env_start,
        env_end: stat.env_end,
        exe_fd: u32::MAX,
        ..MmMap::default()
    };
    if let Err(errno) = try_in_child(Attempt::MmMap(&plain)) {
        return failed(errno);
    }
    let Ok(program) = File::open("/proc/self/exe") else { return (Limited, "our program cannot be opened".to_owned()) };
    let named = MmMap { exe_fd: program.as_raw_fd() as u32, ..plain };
    match try_in_child(Attempt::MmMap(&named)) {
        // Busy comes after the check of privileges: the old program is still mapped.
        Ok(()) | Err(Errno::EBUSY) => (Yes, "works, the program link included".to_owned()),
        Err(errno) => (Limited, format!("the program link cannot be set: {}", errno.desc())),
    }
}

/// An unlocked master.
fn new_master() -> Result<nix::pty::PtyMaster, Errno> {
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_CLOEXEC;
    let master = nix::pty::posix_openpt(flags)?;
    nix::pty::unlockpt(&master)?;
    Ok(master)
}

fn peer() -> Outcome {
    plainly(new_master().and_then(|master| probe::peer_opens(master.as_fd())), "works")
}

fn simulated_input() -> Outcome {
    let pushed = new_master().and_then(|master| try_in_child(Attempt::Tiocsti(master.as_fd())));
    plainly(pushed, "works on an own terminal")
}

fn private_devpts() -> Outcome {
    if try_in_child(Attempt::Devpts).is_ok() {
        return (Yes, "works".to_owned());
    }
    let map = |id: u32| format!("{id} {id} 1");
    let (uid_map, gid_map) = (map(nix::unistd::geteuid().as_raw()), map(nix::unistd::getegid().as_raw()));
    let attempt = Attempt::DevptsUnprivileged { uid_map: uid_map.as_bytes(), gid_map: gid_map.as_bytes() };
    match try_in_child(attempt) {
        Ok(()) => (Limited, "works in a user namespace".to_owned()),
        Err(errno) => failed(errno),
    }
}

fn pty_limit() -> Outcome {
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/pty/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let (Some(max), Some(used)) = (number("max"), number("nr")) else {
        return (Limited, "kernel.pty cannot be read".to_owned());
    };
    let reserve = number("reserve").unwrap_or(0);
    let detail = format!("{used} of {max} in use, {reserve} of them reserved for the first devpts instance");
    match used {
        used if used >= max => (No, detail),
        used if used + reserve >= max => (Limited, detail),
        _ => (Yes, detail),
    }
}
