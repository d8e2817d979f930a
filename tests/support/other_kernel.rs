//! Images as a kernel with another vDSO would have written them.
//!
//! Its vDSO is this one's with another build id: what a restore has to do is the same, and the program's addresses are right in it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ptyagent::image::{DigestStream, Images, Kind, Overwrite, Writer};
use ptyagent::mem::status;

const PAGE: u64 = 4096;

/// Copies a directory of images; `change` may change what they say, and `pages` the pages of each process.
pub fn copy_images(from: &Path, to: &Path, change: impl FnOnce(&mut Images), pages: impl Fn(&Images, u32, &mut [u8])) {
    let mut images = Images::read(from).unwrap();
    change(&mut images);
    let mut writer = Writer::create(to, Overwrite::Refuse).unwrap();
    let own = images.pagemaps.iter().map(|(pid, pagemap)| (Some(*pid), pagemap));
    let shared = images.shmem_pagemaps.values().map(|pagemap| (None, pagemap));
    for (pid, pagemap) in own.chain(shared) {
        let id = pagemap.head.pages_id;
        let mut bytes = fs::read(from.join(Kind::Pages(id).name())).unwrap();
        if let Some(pid) = pid {
            pages(&images, pid, &mut bytes);
        }
        let mut digest = DigestStream::default();
        digest.update(&bytes);
        writer.pages_file(id).unwrap().write_all_at(&bytes, 0).unwrap();
        writer.set_pages(id, digest.finish());
    }
    writer.commit(&images).unwrap();
}

/// Copies a directory of images; the copy is of a kernel with another vDSO.
pub fn of_another_kernel(from: &Path, to: &Path) {
    let other_vdso = |images: &Images, pid: u32, bytes: &mut [u8]| {
        for vma in images.mm[&pid].vmas.iter().filter(|vma| vma.status & status::VDSO != 0) {
            let mut at = 0;
            for run in &images.pagemaps[&pid].entries {
                if (run.vaddr..run.vaddr + run.pages() * PAGE).contains(&vma.start) {
                    let vdso = (at + vma.start - run.vaddr) as usize;
                    change_build_id(&mut bytes[vdso..vdso + (vma.end - vma.start) as usize]);
                }
                at += run.pages() * PAGE;
            }
        }
    };
    copy_images(from, to, |_| (), other_vdso);
}

/// Changes one byte of the note that holds the build id.
fn change_build_id(vdso: &mut [u8]) {
    let note = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
    let at = vdso.windows(note.len()).position(|bytes| bytes == note).expect("the build id of the vDSO");
    vdso[at + note.len()] ^= 0xff;
}
