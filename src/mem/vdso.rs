//! The vDSO of a restored process, on this kernel or another.
//!
//! A program finds the vDSO's functions once and keeps their addresses. Where this kernel's vDSO is the recorded one, byte for byte, it is moved to
//! where it was. Otherwise the recorded image stays where the program knows it, as plain memory, and each of its functions begins with a jump to
//! the function of that name in this kernel's vDSO, which lies elsewhere:
//!
//! ```text
//! entry:       jmp trampoline             five bytes; the trampolines lie in the image's zero tail
//! trampoline:  jmp [rip]; target          no register is touched
//! ```
//!
//! A function that this kernel has not becomes the system call. One that is neither here nor a system call works on the program's
//! memory only (SGX, robust futexes) and stays as it is.
//!
//! The recorded data pages become zero pages. Code of the old image that a signal handler returns into reads there that no clock can be read
//! without the kernel, and asks by a system call (vdso_clock_mode VDSO_CLOCKMODE_NONE is 0, include/vdso/clocksource.h); the dump lets a
//! thread leave the vDSO before it counts as stopped.
//!
//! An image that was kept by an earlier restore is known by what it is, an ELF image of that name, and is led on to the next kernel's vDSO
//! in the same way.
//!
//! Refused: a thread that goes on inside one of these jumps.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use goblin::elf::Elf;

use crate::error::{Context, Error, Result, Subject};
use crate::ids::Pid;
use crate::image::{Digest, Images, Kind, digest, pb};
use crate::inject::{stubs_behind, vdso_content_end};
use crate::procfs::{self, Mapping};

use super::pages::PAGE;
use super::status;

/// The longest mapping that is looked at for an image that an earlier restore kept.
const LONGEST: u64 = 16 * PAGE;
const SONAME: &str = "linux-vdso.so.1";
/// Bytes of a jump at an entry.
const JUMP: usize = 5;
/// Bytes of a trampoline, or of a system call in its stead.
const TRAMPOLINE: usize = 32;

/// What a function does where the kernel's vDSO has none: the call with the same arguments and the same kind of result.
const CALLS: [(&str, i64); 5] = [
    ("clock_gettime", libc::SYS_clock_gettime),
    ("gettimeofday", libc::SYS_gettimeofday),
    ("clock_getres", libc::SYS_clock_getres),
    ("time", libc::SYS_time),
    ("getcpu", libc::SYS_getcpu),
];

/// An ELF image of a vDSO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    bytes: Vec<u8>,
    /// Where the zero tail begins.
    used: usize,
    /// Functions by their names without `__vdso_`: offset and length.
    functions: BTreeMap<String, (usize, usize)>,
}

impl Image {
    /// None where the bytes are no vDSO.
    pub fn parse(bytes: &[u8]) -> Option<Image> {
        let used = vdso_content_end(bytes)?;
        let elf = Elf::parse(bytes).ok().filter(|elf| elf.soname == Some(SONAME))?;
        let functions = elf.dynsyms.iter().filter(|symbol| symbol.is_function() && symbol.st_value != 0);
        let functions = functions
            .filter_map(|symbol| {
                let name = elf.dynstrtab.get_at(symbol.st_name)?;
                let name = name.strip_prefix("__vdso_").unwrap_or(name).to_owned();
                let place = (usize::try_from(symbol.st_value).ok()?, usize::try_from(symbol.st_size).ok()?);
                (place.0.checked_add(place.1)? <= used).then_some((name, place))
            })
            .collect();
        Some(Image { bytes: bytes.to_vec(), used, functions })
    }

    /// The vDSO of this process, which is that of every process here.
    pub fn ours() -> Result<Image> {
        let mappings = procfs::maps::read(Pid(std::process::id() as i32))?;
        let range = mappings.iter().find(|mapping| mapping.is("[vdso]")).map(range).ok_or_else(none_here)?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        let mem = File::open("/proc/self/mem").during("opening the memory", Subject::None)?;
        mem.read_exact_at(&mut bytes, range.start).during("reading the vDSO", Subject::None)?;
        Image::parse(&bytes).ok_or_else(|| Error::unexpected("the vDSO", "it is no ELF image"))
    }

    /// What the images say of the kernel's vDSO.
    pub fn record(&self) -> pb::PtyagentVdso {
        let elf = Elf::parse(&self.bytes).ok();
        let notes = elf.as_ref().and_then(|elf| elf.iter_note_headers(&self.bytes));
        let build_id = notes.and_then(|mut notes| {
            notes.find_map(|note| note.ok().filter(|note| note.name == "GNU" && note.n_type == 3))
        });
        pb::PtyagentVdso {
            build_id: build_id.map(|note| note.desc.to_vec()),
            digest: Some(Digest::from_blocks(self.used as u64, &[digest::block(self.content())]).value),
            len: Some(self.bytes.len() as u64),
            tail: Some(self.used as u64),
        }
    }

    fn content(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// What has to be written over an image of which this one is the content, and which lies at `at`, so that its functions are those of
    /// `target`, which lies at `to`. Offsets and bytes.
    fn leading_to(&self, at: u64, target: &Image, to: u64) -> Result<Vec<(usize, Vec<u8>)>> {
        // Entry code was there during the dump.
        let start = stubs_behind(self.used).0.start;
        let mut tail = vec![0u8; stubs_behind(self.used).0.end.min(self.bytes.len()).saturating_sub(start)];
        let mut places: BTreeMap<usize, usize> = BTreeMap::new();
        let mut patches = Vec::new();
        for (name, (offset, len)) in &self.functions {
            let there = target.functions.get(name).map(|(offset, _)| to.wrapping_add(*offset as u64));
            let Some(code) = there.map(jump_to).or_else(|| system_call(name)) else { continue };
            let next = TRAMPOLINE * places.len();
            let place = *places.entry(*offset).or_insert(next);
            let Some(room) = tail.get_mut(place..place + code.len()).filter(|_| *len >= JUMP) else {
                return Err(Error::Lacking(format!(
                    "the vDSO at {at:#x} has no room to lead {name} to this kernel's; restore on the kernel that the session was dumped on"
                )));
            };
            room.copy_from_slice(&code);
            let distance = (start + place) as i64 - (*offset + JUMP) as i64;
            let mut jump = vec![0xe9];
            jump.extend((distance as i32).to_le_bytes());
            patches.push((*offset, jump));
        }
        patches.push((start, tail));
        Ok(patches)
    }

    /// The rests of calls that a signal handler may return to: where they are and their bytes. None where there are none.
    fn rests(&self) -> Option<(usize, Vec<u8>)> {
        let range = stubs_behind(self.used).1;
        let bytes = self.bytes.get(range.start..range.end.min(self.bytes.len()))?;
        bytes.iter().any(|byte| *byte != 0).then(|| (range.start, bytes.to_vec()))
    }

    /// Whether an offset lies in a jump or a trampoline that [`leading_to`](Image::leading_to) writes, behind its start.
    fn is_torn(&self, offset: u64) -> bool {
        let inside = |start: usize| (1..JUMP as u64).contains(&offset.wrapping_sub(start as u64));
        let entry = stubs_behind(self.used).0;
        let behind = offset.wrapping_sub(entry.start as u64);
        let trampoline = behind < entry.len() as u64 && behind % TRAMPOLINE as u64 != 0;
        trampoline || self.functions.values().any(|(start, _)| inside(*start))
    }
}

fn none_here() -> Error {
    Error::Lacking("this kernel gives processes no vDSO, which a restore needs; boot without vdso=0".into())
}

fn range(mapping: &Mapping) -> Range<u64> {
    mapping.start.0..mapping.end.0
}

/// jmp [rip + 0], and the address.
fn jump_to(target: u64) -> Vec<u8> {
    let mut code = vec![0xff, 0x25, 0, 0, 0, 0];
    code.extend(target.to_le_bytes());
    code
}

/// The system call that does what the function does.
fn system_call(name: &str) -> Option<Vec<u8>> {
    let mut code = Vec::new();
    if name == "getrandom" {
        // An opaque_len of ~0 asks for the size of the state: with an error the C library uses the system call from then on.
        code.extend([0x49, 0x83, 0xf8, 0xff]); // cmp r8, -1
        code.extend([0x75, 0x08]); // jne +8
        code.extend([0x48, 0xc7, 0xc0]); // mov rax, -ENOSYS
        code.extend((-libc::ENOSYS).to_le_bytes());
        code.push(0xc3); // ret
    }
    let nr = match name {
        "getrandom" => libc::SYS_getrandom,
        _ => CALLS.iter().find(|(call, _)| *call == name)?.1,
    };
    code.push(0xb8); // mov eax, nr
    code.extend((nr as u32).to_le_bytes());
    code.extend([0x0f, 0x05, 0xc3]); // syscall; ret
    Some(code)
}

/// The vDSO of one recorded process.
#[derive(Debug, Default)]
struct Recorded {
    /// From the start of the data pages to the end of the image.
    group: Range<u64>,
    /// The kernel's own and those that earlier restores kept, with their addresses.
    images: Vec<(u64, Image)>,
    fits: bool,
}

/// How a process gets its vDSO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// The group of mappings goes to where it was.
    Moved { to: u64 },
    /// It lies anywhere, and the recorded one stays as plain memory.
    Kept,
}

/// This kernel's vDSO and those of the recorded processes.
#[derive(Debug)]
pub struct Vdsos {
    ours: Image,
    /// Lengths of the data pages and of the image.
    layout: (u64, u64),
    /// The kernel lets nobody move it (CONFIG_MSEAL_SYSTEM_MAPPINGS).
    pub sealed: bool,
    recorded: BTreeMap<u32, Recorded>,
}

impl Vdsos {
    /// Reads what the images have, and checks that each process can go on here.
    pub fn read(images: &Images, dir: &Path) -> Result<Vdsos> {
        let mappings = procfs::maps::read_with_flags(Pid(std::process::id() as i32))?;
        let group: Vec<&Mapping> = mappings.iter().filter(|mapping| is_group(mapping)).collect();
        let vdso_len = group.iter().filter(|mapping| mapping.is("[vdso]")).map(|mapping| mapping.len()).sum();
        let len: u64 = group.iter().map(|mapping| mapping.len()).sum();
        let sealed = |mapping: &&&Mapping| mapping.flags.as_ref().is_some_and(|flags| flags.has(b"sl"));
        let sealed = group.iter().any(|mapping| sealed(&mapping));
        let mut vdsos =
            Vdsos { ours: Image::ours()?, layout: (len - vdso_len, vdso_len), sealed, recorded: BTreeMap::new() };
        for pid in images.mm.keys() {
            let recorded = vdsos.recorded(images, dir, *pid)?;
            vdsos.recorded.insert(*pid, recorded);
        }
        Ok(vdsos)
    }

    fn recorded(&self, images: &Images, dir: &Path, pid: u32) -> Result<Recorded> {
        let vmas = images.mm.get(&pid).map(|mm| mm.vmas.as_slice()).unwrap_or_default();
        let of = |bit: u32| vmas.iter().filter(move |vma| vma.status & bit != 0);
        let (first, last) = (of(status::VVAR | status::VDSO).next(), of(status::VDSO).next_back());
        let Some((first, last)) = first.zip(last) else { return Ok(Recorded::default()) };
        let group = first.start..last.end;
        let layout = (last.start - first.start, last.end - last.start);
        let mut found = Vec::new();
        for vma in vmas.iter().filter(|vma| may_be_image(vma)) {
            let bytes = stored(images, dir, pid, vma.start..vma.end)?;
            if let Some(image) = Image::parse(&bytes) {
                found.push((vma.start, image));
            }
        }
        let native = found.iter().find(|(start, _)| *start == last.start);
        let Some((_, native)) = native else {
            return Err(crate::plan::inconsistent(dir, format!("process {pid} has no image of its vDSO")));
        };
        let fits = layout == self.layout && native.content() == self.ours.content() && !self.sealed;
        let recorded = Recorded { group, images: found, fits };
        if !fits {
            recorded.refuse_torn(images, pid)?;
        }
        Ok(recorded)
    }

    /// How a process gets its vDSO.
    pub fn fit(&self, pid: u32) -> Fit {
        match self.recorded.get(&pid).filter(|recorded| recorded.fits) {
            Some(recorded) => Fit::Moved { to: recorded.group.start },
            None => Fit::Kept,
        }
    }

    /// What is to be written to a process, when this kernel's data pages and vDSO begin at `group`, addresses and bytes: the ways from a vDSO that was
    /// kept, and the rests of calls in one that was moved.
    pub fn patches(&self, pid: u32, group: u64) -> Result<Vec<(u64, Vec<u8>)>> {
        let Some(recorded) = self.recorded.get(&pid) else { return Ok(Vec::new()) };
        if recorded.fits {
            let native = recorded.images.iter().filter(|(start, _)| *start == group + self.layout.0);
            let rests = native.filter_map(|(start, image)| image.rests().map(|(at, bytes)| (start + at as u64, bytes)));
            return Ok(rests.collect());
        }
        let mut all = Vec::new();
        for (start, image) in &recorded.images {
            let patches = image.leading_to(*start, &self.ours, group + self.layout.0)?;
            all.extend(patches.into_iter().map(|(offset, bytes)| (start + offset as u64, bytes)));
        }
        Ok(all)
    }
}

impl Recorded {
    /// Refuses a thread that would go on in the middle of a jump.
    fn refuse_torn(&self, images: &Images, pid: u32) -> Result<()> {
        let threads = images.pstree.iter().filter(|entry| entry.pid == pid).flat_map(|entry| &entry.threads);
        let cores = threads.filter_map(|tid| images.cores.get(tid));
        for ip in cores.filter_map(|core| core.thread_info.as_ref()).map(|info| info.gpregs.ip) {
            if self.images.iter().any(|(start, image)| image.is_torn(ip.wrapping_sub(*start))) {
                return Err(Error::Lacking(format!(
                    "process {pid} was stopped at {ip:#x}, in the first instructions of a vDSO that this kernel has not; restore it on the kernel that it was dumped on"
                )));
            }
        }
        Ok(())
    }
}

/// Whether a mapping is one of the vDSO's group.
pub fn is_group(mapping: &Mapping) -> bool {
    mapping.is("[vdso]") || mapping.is("[vvar]") || mapping.is("[vvar_vclock]")
}

fn may_be_image(vma: &pb::VmaEntry) -> bool {
    let anonymous = vma.status & status::ANON_PRIVATE != 0 && vma.prot & libc::PROT_EXEC as u32 != 0;
    (vma.status & status::VDSO != 0 || anonymous) && vma.end - vma.start <= LONGEST
}

/// The recorded bytes of a range; pages that are not stored are zero.
fn stored(images: &Images, dir: &Path, pid: u32, range: Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; usize::try_from(range.end - range.start).unwrap_or(0)];
    let Some(pagemap) = images.pagemaps.get(&pid) else { return Ok(bytes) };
    let path = dir.join(Kind::Pages(pagemap.head.pages_id).name());
    let file = File::open(&path).during("opening", Subject::Path(path.clone()))?;
    let mut at = 0;
    for run in pagemap.entries.iter().filter(|run| run.is_stored()) {
        let end = run.vaddr + run.pages() * PAGE;
        let both = run.vaddr.max(range.start)..end.min(range.end);
        if both.start < both.end {
            let to = (both.start - range.start) as usize..(both.end - range.start) as usize;
            let from = at + (both.start - run.vaddr);
            file.read_exact_at(&mut bytes[to], from).during("reading", Subject::Path(path.clone()))?;
        }
        at += run.pages() * PAGE;
    }
    Ok(bytes)
}

/// The recorded mappings with the vDSO's group as plain memory.
pub fn as_plain(mm: &pb::MmEntry) -> pb::MmEntry {
    let mut mm = mm.clone();
    for vma in mm.vmas.iter_mut().filter(|vma| vma.status & (status::VDSO | status::VVAR) != 0) {
        vma.status = status::REGULAR | status::ANON_PRIVATE;
        vma.flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
        (vma.pgoff, vma.madv) = (0, None);
    }
    mm
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};

    fn follow(code: &[u8], at: u64) -> Vec<iced_x86::Instruction> {
        Decoder::with_ip(64, code, at, DecoderOptions::NONE).iter().collect()
    }

    /// The image with the patches in it.
    fn patched(image: &Image, patches: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = image.bytes.clone();
        patches.iter().for_each(|(at, patch)| bytes[*at..*at + patch.len()].copy_from_slice(patch));
        bytes
    }

    #[test]
    fn every_function_leads_to_its_namesake() {
        let image = Image::ours().unwrap();
        assert!(image.functions.contains_key("clock_gettime") && image.functions.contains_key("getcpu"));
        let (at, to) = (0x7ffd_1234_0000, 0x10_0000_0000);
        let bytes = patched(&image, &image.leading_to(at, &image, to).unwrap());
        for (name, (offset, _)) in &image.functions {
            let entry = follow(&bytes[*offset..*offset + JUMP], at + *offset as u64);
            let trampoline = (entry[0].near_branch_target() - at) as usize;
            let code = follow(&bytes[trampoline..trampoline + 6], at + trampoline as u64);
            assert_eq!(code[0].flow_control(), FlowControl::IndirectBranch, "{name}");
            let target = u64::from_le_bytes(bytes[trampoline + 6..trampoline + 14].try_into().unwrap());
            assert_eq!(target, to + *offset as u64, "{name}");
        }
        // It is still a vDSO to the next kernel, which leads it on in the same way.
        let again = Image::parse(&bytes).unwrap();
        assert_eq!(again.functions, image.functions);
        assert_eq!(patched(&again, &again.leading_to(at, &image, to).unwrap()), bytes);
    }

    #[test]
    fn what_this_kernel_has_not_becomes_a_system_call() {
        let image = Image::ours().unwrap();
        let none = Image { functions: BTreeMap::new(), ..image.clone() };
        let bytes = patched(&image, &image.leading_to(0x1000, &none, 0).unwrap());
        for (name, nr) in CALLS {
            let (offset, _) = image.functions[name];
            let trampoline = follow(&bytes[offset..offset + JUMP], offset as u64)[0].near_branch_target() as usize;
            let code = follow(&bytes[trampoline..trampoline + 8], 0);
            assert_eq!(i64::from(code[0].immediate32()), nr, "{name}");
            assert_eq!(code[1].mnemonic(), Mnemonic::Syscall);
            assert_eq!(code[2].mnemonic(), Mnemonic::Ret);
        }
        assert_eq!(system_call("sgx_enter_enclave"), None);
    }

    #[test]
    fn getrandom_without_a_state_is_the_system_call() {
        let code = system_call("getrandom").unwrap();
        let code = follow(&code, 0);
        assert_eq!(code[1].near_branch_target(), code[4].ip());
        assert_eq!(code[2].immediate32to64(), -i64::from(libc::ENOSYS));
        assert_eq!(i64::from(code[4].immediate32()), libc::SYS_getrandom);
        assert_eq!(code[5].mnemonic(), Mnemonic::Syscall);
    }

    #[test]
    fn only_the_inside_of_a_jump_is_torn() {
        let image = Image::ours().unwrap();
        let (start, _) = image.functions["time"];
        let torn: Vec<u64> = (0..8).filter(|n| image.is_torn(start as u64 + n)).collect();
        assert_eq!(torn, [1, 2, 3, 4]);
    }

    #[test]
    fn other_bytes_are_no_vdso() {
        assert_eq!(Image::parse(&[0; 8192]), None);
        assert_eq!(Image::parse(b"\x7fELF"), None);
    }
}
