//! The parasite's blob: the ELF file that build.rs made, loaded for one address.

use goblin::elf::program_header::PT_LOAD;
use goblin::elf::{Elf, reloc};

use crate::error::{Error, Result};
use crate::wire;

const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/parasite.elf"));

/// The blob's bytes for a region at a given address.
#[derive(Debug)]
pub struct Blob {
    /// What goes to the start of the region.
    pub bytes: Vec<u8>,
    /// Offset of `start`.
    pub entry: u64,
}

/// Loads and relocates the blob for a region at `base`.
pub fn load(base: u64) -> Result<Blob> {
    let bad = |detail: String| Error::unexpected("the parasite's blob", detail);
    let elf = Elf::parse(ELF).map_err(|error| bad(error.to_string()))?;
    let mut bytes = Vec::new();
    for segment in elf.program_headers.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let content = ELF.get(segment.file_range()).ok_or_else(|| bad("a segment outside the file".into()))?;
        let at = usize::try_from(segment.p_vaddr).map_err(|error| bad(error.to_string()))?;
        let end = at + content.len();
        if end as u64 > wire::DATA_OFFSET {
            return Err(bad(format!("{end} bytes")));
        }
        bytes.resize(bytes.len().max(end), 0);
        bytes[at..end].copy_from_slice(content);
    }
    for relocation in elf.dynrelas.iter() {
        let at = usize::try_from(relocation.r_offset).unwrap_or(usize::MAX);
        let place = bytes
            .get_mut(at..at.saturating_add(8))
            .filter(|_| relocation.r_type == reloc::R_X86_64_RELATIVE)
            .ok_or_else(|| bad("a relocation that is not relative".into()))?;
        let value = base.wrapping_add_signed(relocation.r_addend.unwrap_or(0));
        place.copy_from_slice(&value.to_le_bytes());
    }
    Ok(Blob { bytes, entry: elf.entry })
}
