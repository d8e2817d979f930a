//! The processor that a session ran on: its instruction sets, and how it lays out the extended state.
//!
//! Programs choose their code by the instruction sets that they find at their start, so a restore on a processor that lacks one is refused by its
//! name. The extended state (XSAVE's standard format) has an offset for each component that may differ between processors (CPUID leaf
//! 0xD, Intel SDM volume 1, 13.4.3); it is laid out anew, component by component. One that this processor has not is left out where it is
//! in its initial state (its bit in XSTATE_BV is clear), and refused otherwise.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::{Images, pb};
use crate::sys::cpu::{cpuid, xcr0};

const LEGACY: usize = 512;
const HEADER_END: usize = 576;
/// Where the kernel puts XCR0 into the bytes of the legacy part that are the software's (struct _fpx_sw_bytes and arch/x86 regset.c).
const SOFTWARE: usize = 464;
/// x87 and SSE: the legacy part.
const LEGACY_FEATURES: u64 = 3;
/// Names of the components by their bits.
const COMPONENTS: [(u32, &str); 15] = [
    (2, "AVX"),
    (3, "MPX bounds"),
    (4, "MPX configuration"),
    (5, "AVX-512 masks"),
    (6, "AVX-512 upper halves"),
    (7, "AVX-512 upper registers"),
    (8, "processor trace"),
    (9, "protection keys"),
    (10, "PASID"),
    (11, "shadow stack"),
    (12, "kernel shadow stack"),
    (14, "user interrupts"),
    (17, "AMX configuration"),
    (18, "AMX tiles"),
    (19, "APX"),
];

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Instruction sets that a program may use: name as in /proc/cpuinfo, leaf, sub-leaf, register and bit of CPUID, and the XCR0 bits without
/// which it cannot be used.
#[rustfmt::skip]
const SETS: &[(&str, u32, u32, usize, u32, u64)] = &[
    ("pni", 1, 0, ECX, 0, 0), ("pclmulqdq", 1, 0, ECX, 1, 0), ("ssse3", 1, 0, ECX, 9, 0), ("fma", 1, 0, ECX, 12, 4),
    ("cx16", 1, 0, ECX, 13, 0), ("sse4_1", 1, 0, ECX, 19, 0), ("sse4_2", 1, 0, ECX, 20, 0), ("movbe", 1, 0, ECX, 22, 0),
    ("popcnt", 1, 0, ECX, 23, 0), ("aes", 1, 0, ECX, 25, 0), ("xsave", 1, 0, ECX, 27, 0), ("avx", 1, 0, ECX, 28, 4),
    ("f16c", 1, 0, ECX, 29, 4), ("rdrand", 1, 0, ECX, 30, 0),
    ("bmi1", 7, 0, EBX, 3, 0), ("hle", 7, 0, EBX, 4, 0), ("avx2", 7, 0, EBX, 5, 4), ("bmi2", 7, 0, EBX, 8, 0),
    ("rtm", 7, 0, EBX, 11, 0), ("avx512f", 7, 0, EBX, 16, 0xe4), ("avx512dq", 7, 0, EBX, 17, 0xe4),
    ("rdseed", 7, 0, EBX, 18, 0), ("adx", 7, 0, EBX, 19, 0), ("avx512ifma", 7, 0, EBX, 21, 0xe4),
    ("clflushopt", 7, 0, EBX, 23, 0), ("clwb", 7, 0, EBX, 24, 0), ("avx512cd", 7, 0, EBX, 28, 0xe4),
    ("sha_ni", 7, 0, EBX, 29, 0), ("avx512bw", 7, 0, EBX, 30, 0xe4), ("avx512vl", 7, 0, EBX, 31, 0xe4),
    ("avx512vbmi", 7, 0, ECX, 1, 0xe4), ("ospke", 7, 0, ECX, 4, 0), ("waitpkg", 7, 0, ECX, 5, 0),
    ("avx512_vbmi2", 7, 0, ECX, 6, 0xe4), ("gfni", 7, 0, ECX, 8, 0), ("vaes", 7, 0, ECX, 9, 4),
    ("vpclmulqdq", 7, 0, ECX, 10, 4), ("avx512_vnni", 7, 0, ECX, 11, 0xe4), ("avx512_bitalg", 7, 0, ECX, 12, 0xe4),
    ("avx512_vpopcntdq", 7, 0, ECX, 14, 0xe4), ("rdpid", 7, 0, ECX, 22, 0), ("cldemote", 7, 0, ECX, 25, 0),
    ("movdiri", 7, 0, ECX, 27, 0), ("movdir64b", 7, 0, ECX, 28, 0), ("avx512_vp2intersect", 7, 0, EDX, 8, 0xe4),
    ("serialize", 7, 0, EDX, 14, 0), ("amx_bf16", 7, 0, EDX, 22, 0x60000), ("avx512_fp16", 7, 0, EDX, 23, 0xe4),
    ("amx_tile", 7, 0, EDX, 24, 0x60000), ("amx_int8", 7, 0, EDX, 25, 0x60000),
    ("sha512", 7, 1, EAX, 0, 4), ("sm3", 7, 1, EAX, 1, 4), ("sm4", 7, 1, EAX, 2, 4), ("avx_vnni", 7, 1, EAX, 4, 4),
    ("avx512_bf16", 7, 1, EAX, 5, 0xe4), ("avx_ifma", 7, 1, EAX, 23, 4), ("avx_vnni_int8", 7, 1, EDX, 4, 4),
    ("avx_ne_convert", 7, 1, EDX, 5, 4), ("xsaveopt", 0xd, 1, EAX, 0, 0), ("xsavec", 0xd, 1, EAX, 1, 0),
    ("lahf_lm", 0x8000_0001, 0, ECX, 0, 0), ("abm", 0x8000_0001, 0, ECX, 5, 0), ("sse4a", 0x8000_0001, 0, ECX, 6, 0),
    ("3dnowprefetch", 0x8000_0001, 0, ECX, 8, 0), ("xop", 0x8000_0001, 0, ECX, 11, 4),
    ("fma4", 0x8000_0001, 0, ECX, 16, 4), ("tbm", 0x8000_0001, 0, ECX, 21, 0), ("rdtscp", 0x8000_0001, 0, EDX, 27, 0),
];

/// What a restore does on a processor that lacks an instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    Refuse,
    /// The user knows that the programs do without.
    Allow,
}

/// Fills in what the images say of this processor.
pub fn record(kernel: &mut pb::PtyagentKernel) {
    let here = Processor::here();
    kernel.xfeatures = Some(here.xfeatures);
    kernel.instruction_sets = here.sets;
    kernel.xstate_components = here.components;
}

/// Where the components of the extended state are in its standard format, by their bits.
pub type Layout = BTreeMap<u32, Range<usize>>;

/// This processor's.
pub fn layout() -> Layout {
    let xfeatures = xcr0();
    let place = |number: u32| {
        let [size, offset, ..] = cpuid(0xd, number);
        (number, offset as usize..offset as usize + size as usize)
    };
    (2..63).filter(|number| xfeatures & (1 << number) != 0).map(place).collect()
}

/// A processor, ours or a recorded one.
#[derive(Debug, Clone, PartialEq)]
pub struct Processor {
    sets: Vec<String>,
    xfeatures: u64,
    components: Vec<pb::PtyagentXstateComponent>,
}

impl Processor {
    pub fn here() -> Processor {
        let xfeatures = xcr0();
        let usable = |(_, leaf, subleaf, register, bit, state): &&(&str, u32, u32, usize, u32, u64)| {
            cpuid(*leaf, *subleaf)[*register] & (1 << *bit) != 0 && xfeatures & *state == *state
        };
        let component = |(number, place): (u32, Range<usize>)| pb::PtyagentXstateComponent {
            number: Some(number),
            offset: Some(place.start as u32),
            size: Some(place.len() as u32),
        };
        Processor {
            sets: SETS.iter().filter(usable).map(|set| set.0.to_owned()).collect(),
            xfeatures,
            components: layout().into_iter().map(component).collect(),
        }
    }

    /// The one that a dump recorded; none in images of other programs.
    fn of(images: &Images) -> Option<Processor> {
        let kernel = images.own.as_ref()?.kernel.as_ref()?;
        Some(Processor {
            sets: kernel.instruction_sets.clone(),
            xfeatures: kernel.xfeatures?,
            components: kernel.xstate_components.clone(),
        })
    }

    /// Refuses images of a processor that has what this one lacks, before anything is created.
    pub fn check(&self, images: &Images, mismatch: Mismatch) -> Result<()> {
        let recorded = Processor::of(images);
        let sets = recorded.iter().flat_map(|recorded| &recorded.sets);
        let missing: Vec<&str> = sets.filter(|set| !self.sets.contains(set)).map(String::as_str).collect();
        if !missing.is_empty() && mismatch == Mismatch::Refuse {
            return Err(Error::Lacking(format!(
                "the session ran on a processor with {}, which this one has not; restore it on one that has it, or with --allow-cpu-mismatch if no program of it uses that",
                missing.join(", ")
            )));
        }
        for thread in images.own.iter().flat_map(|own| &own.threads) {
            if let Some(xstate) = &thread.xstate {
                let len = self.len();
                self.lay_out(images, thread.tid.unwrap_or(0), xstate, len)?;
            }
        }
        Ok(())
    }

    pub fn layout(&self) -> Layout {
        let place = |one: &pb::PtyagentXstateComponent| one.offset() as usize..(one.offset() + one.size()) as usize;
        self.components.iter().map(|one| (one.number(), place(one))).collect()
    }

    /// Bytes of the extended state.
    fn len(&self) -> usize {
        let end = |component: &pb::PtyagentXstateComponent| (component.offset() + component.size()) as usize;
        self.components.iter().map(end).max().unwrap_or(HEADER_END)
    }

    /// A recorded extended state as this processor lays it out, in `len` bytes.
    pub fn lay_out(&self, images: &Images, tid: u32, xstate: &[u8], len: usize) -> Result<Vec<u8>> {
        let recorded = Processor::of(images).unwrap_or_else(|| self.clone());
        let fail = |text: String| Error::failed(format!("thread {tid} {text}"));
        let short = || fail("has an extended state that is cut off; dump again".into());
        if recorded == *self && xstate.len() == len {
            return Ok(xstate.to_vec());
        }
        let used = u64_at(xstate, LEGACY).ok_or_else(short)?;
        let mut out = vec![0u8; len.max(HEADER_END)];
        out[..SOFTWARE].copy_from_slice(xstate.get(..SOFTWARE).ok_or_else(short)?);
        out[SOFTWARE..SOFTWARE + 8].copy_from_slice(&self.xfeatures.to_le_bytes());
        out[LEGACY..LEGACY + 8].copy_from_slice(&used.to_le_bytes());
        let (theirs, ours) = (recorded.layout(), self.layout());
        for number in (0..63).filter(|number| used & !LEGACY_FEATURES & (1 << number) != 0) {
            let (Some(from), Some(to)) = (theirs.get(&number), ours.get(&number)) else {
                return Err(Error::Lacking(format!(
                    "thread {tid} uses {}, which this processor has not; restore it on one that has it",
                    component_name(number)
                )));
            };
            let (Some(from), Some(to)) = (xstate.get(from.clone()), out.get_mut(to.clone())) else {
                return Err(short());
            };
            if from.len() != to.len() {
                return Err(fail(format!("uses {} of another size than this processor's", component_name(number))));
            }
            to.copy_from_slice(from);
        }
        Ok(out)
    }
}

pub fn component_name(number: u32) -> String {
    COMPONENTS
        .iter()
        .find(|(bit, _)| *bit == number)
        .map_or_else(|| format!("extended state {number}"), |(_, name)| (*name).to_owned())
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(components: &[(u32, u32, u32)]) -> Processor {
        let component = |(number, offset, size): &(u32, u32, u32)| pb::PtyagentXstateComponent {
            number: Some(*number),
            offset: Some(*offset),
            size: Some(*size),
        };
        let xfeatures = components.iter().fold(3, |bits, (number, ..)| bits | 1 << number);
        Processor { sets: vec!["avx".into()], xfeatures, components: components.iter().map(component).collect() }
    }

    fn images(processor: &Processor) -> Images {
        let kernel = pb::PtyagentKernel {
            xfeatures: Some(processor.xfeatures),
            instruction_sets: processor.sets.clone(),
            xstate_components: processor.components.clone(),
            ..Default::default()
        };
        Images { own: Some(pb::PtyagentEntry { kernel: Some(kernel), ..Default::default() }), ..Default::default() }
    }

    /// A state in which the components `used` are not initial, each filled with its number.
    fn state(processor: &Processor, used: u64) -> Vec<u8> {
        let mut bytes = vec![0u8; processor.len()];
        bytes[24] = 0x80;
        bytes[LEGACY..LEGACY + 8].copy_from_slice(&used.to_le_bytes());
        for component in processor.components.iter().filter(|one| used & (1 << one.number()) != 0) {
            let start = component.offset() as usize;
            bytes[start..start + component.size() as usize].fill(component.number() as u8);
        }
        bytes
    }

    const WITH_MPX: &[(u32, u32, u32)] = &[(2, 576, 256), (3, 960, 64), (9, 2688, 8)];
    const WITHOUT: &[(u32, u32, u32)] = &[(2, 576, 256), (9, 832, 8)];

    #[test]
    fn components_move_to_where_this_processor_has_them() {
        let (there, here) = (processor(WITH_MPX), processor(WITHOUT));
        let used = 1 << 1 | 1 << 2 | 1 << 9;
        let out = here.lay_out(&images(&there), 1, &state(&there, used), here.len()).unwrap();
        let mut expected = state(&here, used);
        expected[SOFTWARE..SOFTWARE + 8].copy_from_slice(&here.xfeatures.to_le_bytes());
        assert_eq!(out, expected);
        // And back: what this processor has not got is in its initial state there.
        let back = there.lay_out(&images(&here), 1, &out, there.len()).unwrap();
        let mut expected = state(&there, used);
        expected[SOFTWARE..SOFTWARE + 8].copy_from_slice(&there.xfeatures.to_le_bytes());
        assert_eq!(back, expected);
    }

    #[test]
    fn state_that_this_processor_has_not_is_refused_by_name() {
        let (there, here) = (processor(WITH_MPX), processor(WITHOUT));
        let error = here.lay_out(&images(&there), 7, &state(&there, 1 << 3), here.len()).unwrap_err().to_string();
        assert!(error.contains("thread 7") && error.contains("MPX bounds"), "{error}");
        assert!(here.lay_out(&images(&there), 7, &[0; 100], here.len()).is_err());
    }

    #[test]
    fn a_missing_instruction_set_is_refused_by_name_unless_allowed() {
        let here = processor(WITHOUT);
        let mut there = here.clone();
        there.sets.push("avx512f".into());
        let error = here.check(&images(&there), Mismatch::Refuse).unwrap_err().to_string();
        assert!(error.contains("avx512f") && !error.contains("avx,"), "{error}");
        here.check(&images(&there), Mismatch::Allow).unwrap();
        there.check(&images(&here), Mismatch::Refuse).unwrap();
    }

    #[test]
    fn the_kernel_names_the_same_instruction_sets() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags\t\t: ")).unwrap();
        let flags: Vec<&str> = flags.split(' ').collect();
        let here = Processor::here();
        // The kernel may hide more than CPUID does (by clearcpuid= or a workaround), but shows nothing that is not there.
        let hidden: Vec<&str> = SETS
            .iter()
            .map(|set| set.0)
            .filter(|name| flags.contains(name) && !here.sets.iter().any(|set| set == name))
            .collect();
        assert_eq!(hidden, [""; 0]);
        assert!(here.sets.iter().any(|set| set == "sse4_2") == flags.contains(&"sse4_2"));
    }
}
