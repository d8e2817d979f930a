//! Builds the parasite for the host target with the same compiler, and refuses a blob that could not work.
//!
//! The result is `parasite.elf` in OUT_DIR; the library relocates it when it loads it. Refused: an undefined symbol, a writable
//! section with content, a segment that is writable and executable, a relocation other than a relative one, a blob over 32 KiB.

use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::program_header::{PF_W, PF_X, PT_LOAD};
use goblin::elf::{Elf, reloc, section_header};

const MAX_BLOB: u64 = 32 * 1024;

pub fn build() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("parasite.elf");
    for path in ["parasite/src", "ld/parasite.ld", "build", "build.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    compile(&out);
    check(&std::fs::read(&out).expect("the blob was just linked"));
}

fn compile(out: &Path) {
    let rustc = std::env::var_os("RUSTC").expect("cargo sets RUSTC");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let mut command = Command::new(rustc);
    command.arg("--crate-name=parasite").arg("--crate-type=bin").arg("--edition=2024");
    command.arg("--target").arg(std::env::var_os("TARGET").expect("cargo sets TARGET"));
    for option in [
        "opt-level=s",
        "panic=abort",
        "overflow-checks=off",
        "debug-assertions=off",
        "relocation-model=pic",
        "link-self-contained=no",
        "strip=none",
        "linker-flavor=gcc",
    ] {
        command.arg("-C").arg(option);
    }
    let script = format!("-Wl,-T,{}", root.join("ld/parasite.ld").display());
    for argument in [
        "-fuse-ld=bfd",
        "-nostartfiles",
        "-nostdlib",
        "-static-pie",
        "-Wl,--no-dynamic-linker,--build-id=none,-z,norelro,-z,noexecstack,--gc-sections,--no-warn-rwx-segments",
        &script,
    ] {
        command.arg("-C").arg(format!("link-arg={argument}"));
    }
    command.arg("-D").arg("warnings").arg("-o").arg(out).arg(root.join("parasite/src/main.rs"));
    let status = command.status().expect("the compiler starts");
    assert!(status.success(), "the parasite does not build; see the messages above");
}

fn check(bytes: &[u8]) {
    let elf = Elf::parse(bytes).expect("the blob is an ELF file");
    for symbol in elf.syms.iter().skip(1) {
        let name = elf.strtab.get_at(symbol.st_name).unwrap_or("?");
        let undefined = symbol.st_shndx == section_header::SHN_UNDEF as usize && !name.is_empty();
        assert!(!undefined || name == "_GLOBAL_OFFSET_TABLE_", "the blob has an undefined symbol: {name}");
    }
    for segment in elf.program_headers.iter().filter(|segment| segment.p_type == PT_LOAD) {
        assert!(segment.p_flags & PF_W == 0 || segment.p_flags & PF_X == 0, "a segment is writable and executable");
        assert!(segment.p_vaddr + segment.p_memsz <= MAX_BLOB, "the blob is over {MAX_BLOB} bytes");
    }
    for section in &elf.section_headers {
        let name = elf.shdr_strtab.get_at(section.sh_name).unwrap_or("?");
        let writable = u64::from(section_header::SHF_WRITE) & section.sh_flags != 0;
        let constant = [".data.rel.ro", ".got", ".dynamic"].contains(&name);
        assert!(!writable || constant || section.sh_size == 0, "the blob has writable data in {name}");
    }
    for relocation in elf.dynrelas.iter() {
        assert!(relocation.r_type == reloc::R_X86_64_RELATIVE, "the blob has a relocation that is not relative");
    }
}
