//! Where a thread has its restartable sequence area: rseq(2), Linux 4.18.
//!
//! ptrace tells it since Linux 5.13. Before, it is looked for where the C library of the process has it, and the thread is asked inside, by calls
//! that fail in any case, whether it is registered there:
//!
//! - a registration at an address of the kernel's: EFAULT where none is registered, else EINVAL (kernel/rseq.c);
//! - an end of the registration with a wrong signature: EPERM at the registered address, else EINVAL.
//!
//! Refused on those kernels: an area that is registered anywhere else.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use goblin::elf::Elf;

use crate::error::{Errno, Error, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::inject::batch::{Answers, Batch, CallId};
use crate::inject::open_mem;
use crate::procfs::{self, maps};
use crate::sys::ptrace::{self, RseqConfiguration};

pub const UNREGISTER: u64 = 1;
/// The only size of an area that kernels which do not tell it allow.
const SIZE: u32 = 32;
/// glibc's on x86: sysdeps/unix/sysv/linux/x86/bits/rseq.h.
const SIGNATURE: u32 = 0x5305_3053;
/// Aligned as an area is, and no address of a process.
const NOWHERE: u64 = 1 << 63;
/// The loader's, which has the distance of each thread's area from its thread pointer (glibc 2.35).
const OFFSET: &str = "__rseq_offset";

/// What is known from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    Told(Option<RseqConfiguration>),
    /// Registered there, or not at all, or somewhere else.
    Guessed(Option<RseqConfiguration>),
}

impl Area {
    /// Of a thread that we have stopped.
    pub fn of(pid: Pid, tid: Tid) -> Result<Area> {
        match ptrace::rseq_configuration(tid) {
            Ok(config) => Ok(Area::Told(Some(config).filter(|config| config.pointer != 0))),
            Err(Errno::ESRCH) => Err(Error::Gone(pid)),
            // EIO where the kernel has no such request, anything where a container forbids it.
            Err(_) => Ok(Area::Guessed(guess(pid, tid)?)),
        }
    }

    /// Where it is, if there is one.
    pub fn place(&self) -> Option<RseqConfiguration> {
        let (Area::Told(place) | Area::Guessed(place)) = self;
        *place
    }
}

/// glibc's place for it. A process without glibc's loader has none.
fn guess(pid: Pid, tid: Tid) -> Result<Option<RseqConfiguration>> {
    let mappings = maps::read(pid)?;
    let is_loader = |name: &[u8]| {
        Path::new(std::ffi::OsStr::from_bytes(name))
            .file_name()
            .is_some_and(|name| name.as_bytes().starts_with(b"ld-linux"))
    };
    let Some(loader) = mappings.iter().find(|mapping| mapping.offset == 0 && is_loader(mapping.name.as_bytes())) else {
        return Ok(None);
    };
    let root = procfs::path(pid, "root");
    let path = root.join(Path::new(&loader.name).strip_prefix("/").unwrap_or(Path::new(&loader.name)));
    let Some(at) = std::fs::read(path).ok().and_then(|bytes| symbol(&bytes)) else { return Ok(None) };
    let mut offset = [0u8; 8];
    let mem = open_mem(tid)?;
    if mem.read_exact_at(&mut offset, loader.start.0 + at).is_err() {
        return Ok(None);
    }
    let regs = nix::sys::ptrace::getregs(nix::unistd::Pid::from_raw(tid.0));
    let regs = regs.map_err(|errno| Error::of_pid("reading the registers", pid, errno))?;
    let pointer = regs.fs_base.wrapping_add_signed(i64::from_ne_bytes(offset));
    // Where the loader has not come so far yet the pointer leads nowhere.
    let is_memory = mem.read_exact_at(&mut [0; SIZE as usize], pointer).is_ok();
    Ok(is_memory.then(|| RseqConfiguration::new(pointer, SIZE, SIGNATURE)))
}

fn symbol(loader: &[u8]) -> Option<u64> {
    let elf = Elf::parse(loader).ok()?;
    let named = elf.dynsyms.iter().find(|symbol| elf.dynstrtab.get_at(symbol.st_name) == Some(OFFSET))?;
    Some(named.st_value)
}

/// What a thread was asked of a guess.
#[derive(Debug)]
pub struct Asked {
    guess: Option<RseqConfiguration>,
    anywhere: CallId,
    there: CallId,
}

/// Adds the questions to a batch that the thread itself runs, where they are needed.
pub fn ask(batch: &mut Batch, area: &Area) -> Option<Asked> {
    let Area::Guessed(guess) = *area else { return None };
    let size = u64::from(SIZE);
    let anywhere = batch.call(libc::SYS_rseq, [NOWHERE.into(), size.into(), 0u64.into(), 0u64.into()]);
    let pointer = guess.map_or(NOWHERE, |guess| guess.pointer);
    let wrong = u64::from(!SIGNATURE);
    let there = batch.call(libc::SYS_rseq, [pointer.into(), size.into(), UNREGISTER.into(), wrong.into()]);
    Some(Asked { guess, anywhere, there })
}

impl Asked {
    /// Where the area is, if there is one.
    pub fn answers(&self, answers: &Answers, pid: Pid, comm: &str) -> Result<Option<RseqConfiguration>> {
        match (answers.result(self.anywhere), answers.result(self.there)) {
            // ENOSYS: a kernel without restartable sequences.
            (Err(Errno::EFAULT | Errno::ENOSYS), _) => Ok(None),
            (_, Err(Errno::EPERM)) => Ok(self.guess),
            _ => Err(Error::Refused(Refusal {
                pid,
                comm: comm.to_owned(),
                fd: None,
                kind: "it has a restartable sequence area that this kernel does not tell of".into(),
                remedy: "use Linux 5.13 or newer".into(),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sleeper(std::process::Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn the_guess_is_what_the_kernel_tells() {
        let sleeper = Sleeper(std::process::Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = nix::unistd::Pid::from_raw(sleeper.0.id() as i32);
        // Once it sleeps its loader has done all.
        let call = format!("{} ", libc::SYS_clock_nanosleep);
        while !std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap().starts_with(&call) {
            std::thread::yield_now();
        }
        nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).unwrap();
        nix::sys::ptrace::interrupt(pid).unwrap();
        nix::sys::wait::waitpid(pid, None).unwrap();
        let (pid, tid) = (Pid(pid.as_raw()), Tid(pid.as_raw()));
        let guessed = guess(pid, tid).unwrap();
        assert!(guessed.is_some());
        if let Ok(told) = ptrace::rseq_configuration(tid) {
            assert_eq!(guessed, Some(told));
        }
    }
}
