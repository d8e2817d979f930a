//! Small machine code in the unused zero tail of the [vdso], or of another text: run a call, clean up, find the way back.
//!
//! A stub is `syscall`, then the calls that undo the step if the tracer has died, then the victim's registers, then a jump to where the
//! victim was. While the tracer lives it never gets past the first `syscall`. So at every instant the victim returns on its own to what
//! it was doing (FACTS B2). Nothing touches the flags, the stack, or a register that `syscall` and the loads at the end do not give back.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use goblin::elf::Elf;
use libc::user_regs_struct;

use super::rest;
use crate::error::{Context, Error, Result, Subject};
use crate::ids::{Pid, RemoteAddr};

/// Bytes of one stub, at most; [`Room::place`] checks it.
const SLOT: u64 = 208;
/// Two slots that bootstrap calls use in turn, so that the one that is running is never written; one for the way out.
const SLOTS: u64 = 3;
/// Most slots for the rests of calls.
const RESTS: usize = 8;

/// Which bytes behind the content of a text stubs take, the first `used` being that content: those of the way in and out, and behind them the
/// rests of calls, as many as there is room for.
pub fn stubs_behind(used: usize) -> (Range<usize>, Range<usize>) {
    let start = used.next_multiple_of(16);
    let rests = start + (SLOT * SLOTS) as usize;
    (start..rests, rests..rests + RESTS * rest::SIZE)
}

/// One call of a stub, with its arguments.
#[derive(Debug, Clone, Copy)]
pub enum Cleanup {
    /// close() of what the stub's first call returned; harmless if that failed.
    CloseResult,
    /// munmap() of what the stub's first call returned; harmless if that failed.
    UnmapResult {
        len: u64,
    },
    Close {
        fd: i32,
    },
    Unmap {
        start: u64,
        len: u64,
    },
}

/// Where a stub leads: the registers and the signal mask that the victim gets back.
#[derive(Debug, Clone, Copy)]
pub struct WayBack {
    pub regs: user_regs_struct,
    pub sigmask: u64,
}

/// The zero tail of a text's last page in a victim.
#[derive(Debug)]
pub struct Room {
    start: u64,
    /// What the tail held, all zero, to be put back.
    original: Vec<u8>,
    /// Where the stubs go that a victim keeps, see `rest`; empty where the tail is too short for them.
    rests: Vec<u64>,
}

/// Where there may be room for the stubs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The [vdso] mapping: what lies behind its ELF image is zero.
    Vdso(Range<u64>),
    /// A private executable mapping of a file, for processes without a vDSO: linkers pad the text's last page with zeros.
    Text(Range<u64>),
}

impl Room {
    /// Finds room in the first place that has it: 624 unused bytes at the end, and what more there is for the rests of calls.
    pub fn find(mem: &File, pid: Pid, places: &[Place]) -> Result<Room> {
        for place in places {
            let room = match place {
                Place::Vdso(range) => Room::in_vdso(mem, pid, range)?,
                Place::Text(range) => Room::in_text(mem, pid, range)?,
            };
            if let Some(room) = room {
                return Ok(room);
            }
        }
        Err(Error::failed(format!(
            "process {pid} has no {} unused bytes behind its vDSO or any text, where the entry code would go; it cannot be entered",
            SLOT * SLOTS
        )))
    }

    fn in_vdso(mem: &File, pid: Pid, vdso: &Range<u64>) -> Result<Option<Room>> {
        let mut image = vec![0u8; usize::try_from(vdso.end - vdso.start).unwrap_or(0)];
        mem.read_exact_at(&mut image, vdso.start).during("reading the vDSO", Subject::Pid(pid))?;
        Ok(content_end(&image).and_then(|used| Room::behind(&image, used, vdso.start)))
    }

    fn in_text(mem: &File, pid: Pid, text: &Range<u64>) -> Result<Option<Room>> {
        const PAGE: u64 = 4096;
        let mut page = vec![0u8; PAGE as usize];
        let start = text.end - PAGE;
        mem.read_exact_at(&mut page, start).during("reading the text", Subject::Pid(pid))?;
        let used = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        // The last instruction's own bytes may be zero.
        Ok(Room::behind(&page, used + 16, start))
    }

    /// The room behind the first `used` bytes of what lies at `start`, where it is large enough.
    fn behind(bytes: &[u8], used: usize, start: u64) -> Option<Room> {
        let (entry, rests) = stubs_behind(used);
        let free = bytes.get(entry.clone())?.chunks(SLOT as usize).all(is_free);
        let slots = rests.step_by(rest::SIZE);
        let is_free = |at: &usize| bytes.get(*at..*at + rest::SIZE).is_some_and(rest::is_free);
        let rests = slots.filter(is_free).map(|at| start + at as u64).collect();
        free.then(|| Room { start: start + entry.start as u64, original: vec![0; entry.len()], rests })
    }

    /// The address of a slot.
    pub fn slot(&self, slot: Slot) -> RemoteAddr {
        RemoteAddr(self.start + SLOT * slot as u64)
    }

    /// Puts a stub into a slot that is not running; yields its address.
    pub fn place(&self, mem: &File, pid: Pid, slot: Slot, cleanup: &[Cleanup], back: &WayBack) -> Result<RemoteAddr> {
        let at = self.slot(slot);
        let code = assemble(at.0, cleanup, back);
        if code.len() as u64 > SLOT {
            return Err(Error::failed(format!("a stub of {} bytes does not fit its slot", code.len())));
        }
        mem.write_all_at(&code, at.0).during("writing the entry code", Subject::Pid(pid))?;
        Ok(at)
    }

    /// Puts the vDSO's own bytes back.
    pub fn put_back(&self, mem: &File, pid: Pid) -> Result<()> {
        mem.write_all_at(&self.original, self.start).during("putting the vDSO back", Subject::Pid(pid))
    }

    /// Whether a stub lies at this address that a controller has left behind, if any does.
    pub fn holds(&self, address: u64) -> bool {
        (self.start..self.start + SLOT * SLOTS).contains(&address)
    }

    /// The addresses of the slots of [`rest::SIZE`] bytes for the rests of calls.
    pub fn rests(&self) -> &[u64] {
        &self.rests
    }

    /// The vDSO was moved by this many bytes (a restore puts it where it was recorded).
    pub fn moved(&mut self, by: i64) {
        self.start = self.start.wrapping_add_signed(by);
        self.rests.iter_mut().for_each(|at| *at = at.wrapping_add_signed(by));
    }
}

/// Which part of the room a stub takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    Even = 0,
    Odd = 1,
    Exit = 2,
}

/// The end of everything that an ELF image's headers name, in bytes; behind it the last page of a vDSO is zero. None where it is no ELF image.
pub fn content_end(image: &[u8]) -> Option<usize> {
    let elf = Elf::parse(image).ok()?;
    let sections = elf.header.e_shoff + u64::from(elf.header.e_shnum) * u64::from(elf.header.e_shentsize);
    let segments = elf.program_headers.iter().map(|header| header.p_offset.saturating_add(header.p_filesz));
    let contents = elf
        .section_headers
        .iter()
        .filter(|header| header.sh_type != goblin::elf::section_header::SHT_NOBITS)
        .map(|header| header.sh_offset.saturating_add(header.sh_size));
    let end = segments.chain(contents).chain([sections]).max()?;
    usize::try_from(end).ok().filter(|end| *end <= image.len())
}

/// The memfd's name, which lies in the exit slot during the way in.
pub const REGION_NAME: &[u8; 9] = b"ptyagent\0";

/// Whether a slot is unused: zero, as the kernel made it, or left behind by a controller that died, or inherited from a stub by fork.
fn is_free(slot: &[u8]) -> bool {
    slot.iter().all(|byte| *byte == 0) || slot.starts_with(&SYSCALL) || slot.starts_with(REGION_NAME)
}

const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// The code of a stub that lies at `at`.
fn assemble(at: u64, cleanup: &[Cleanup], back: &WayBack) -> Vec<u8> {
    let mut code = Vec::with_capacity(256);
    code.extend(SYSCALL);
    for call in cleanup {
        match *call {
            Cleanup::CloseResult => {
                code.extend([0x48, 0x89, 0xc7]); // mov rdi, rax
                load_nr(&mut code, libc::SYS_close);
            }
            Cleanup::UnmapResult { len } => {
                code.extend([0x48, 0x89, 0xc7]); // mov rdi, rax
                load(&mut code, Register::Rsi, len);
                load_nr(&mut code, libc::SYS_munmap);
            }
            Cleanup::Close { fd } => {
                load(&mut code, Register::Rdi, fd as u64);
                load_nr(&mut code, libc::SYS_close);
            }
            Cleanup::Unmap { start, len } => {
                load(&mut code, Register::Rdi, start);
                load(&mut code, Register::Rsi, len);
                load_nr(&mut code, libc::SYS_munmap);
            }
        }
        code.extend(SYSCALL);
    }
    // rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8); the mask lies behind the code, its address is filled in below.
    load(&mut code, Register::Rdi, libc::SIG_SETMASK as u64);
    let mask_operand = code.len() + 2;
    load(&mut code, Register::Rsi, 0);
    load(&mut code, Register::Rdx, 0);
    load(&mut code, Register::R10, 8);
    load_nr(&mut code, libc::SYS_rt_sigprocmask);
    code.extend(SYSCALL);
    let regs = &back.regs;
    for (register, value) in [
        (Register::Rax, regs.rax),
        (Register::Rcx, regs.rcx),
        (Register::Rdx, regs.rdx),
        (Register::Rsi, regs.rsi),
        (Register::Rdi, regs.rdi),
        (Register::R8, regs.r8),
        (Register::R9, regs.r9),
        (Register::R10, regs.r10),
        (Register::R11, regs.r11),
    ] {
        load(&mut code, register, value);
    }
    code.extend([0xff, 0x25, 0, 0, 0, 0]); // jmp [rip + 0]
    code.extend(regs.rip.to_le_bytes());
    let mask_at = at + code.len() as u64;
    code.extend(back.sigmask.to_le_bytes());
    code[mask_operand..mask_operand + 8].copy_from_slice(&mask_at.to_le_bytes());
    code
}

/// Registers by their number in an instruction.
#[derive(Debug, Clone, Copy)]
enum Register {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
}

/// movabs register, value
fn load(code: &mut Vec<u8>, register: Register, value: u64) {
    let number = register as u8;
    code.extend([0x48 | (number >> 3), 0xb8 | (number & 7)]);
    code.extend(value.to_le_bytes());
}

/// mov eax, number of a call
fn load_nr(code: &mut Vec<u8>, nr: i64) {
    code.push(0xb8);
    code.extend((nr as u32).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, Mnemonic};

    fn way_back() -> WayBack {
        // SAFETY is not needed: the struct is plain integers and is built from its default zero bytes by the caller of ptrace; here by hand.
        let mut regs = crate::inject::zero_regs();
        regs.rax = u64::MAX;
        regs.rip = 0x5555_5555_4000;
        regs.r11 = 0x246;
        WayBack { regs, sigmask: 0xdead_beef }
    }

    #[test]
    fn every_stub_fits_and_decodes_to_what_it_should_do() {
        let cleanup = [Cleanup::UnmapResult { len: 1 << 20 }, Cleanup::Close { fd: 1023 }];
        let code = assemble(0x7fff_0000, &cleanup, &way_back());
        assert!(code.len() as u64 <= SLOT, "{} bytes", code.len());
        let mut text = String::new();
        let mut formatter = iced_x86_formatter();
        let mut calls = 0;
        for instruction in Decoder::with_ip(64, &code, 0x7fff_0000, DecoderOptions::NONE).iter() {
            assert!(!instruction.is_invalid());
            assert!(instruction.rflags_modified() == 0 || instruction.mnemonic() == Mnemonic::Syscall, "{text}");
            calls += usize::from(instruction.mnemonic() == Mnemonic::Syscall);
            text.clear();
            formatter.format(&instruction, &mut text);
            if instruction.flow_control() == FlowControl::IndirectBranch {
                break;
            }
        }
        assert_eq!(calls, 4);
        assert!(text.starts_with("jmp"), "{text}");
    }

    fn iced_x86_formatter() -> impl Formatter {
        iced_x86::NasmFormatter::new()
    }

    #[test]
    fn content_end_rejects_what_is_not_elf() {
        assert_eq!(content_end(b"not an image"), None);
        assert_eq!(content_end(&[]), None);
    }
}
