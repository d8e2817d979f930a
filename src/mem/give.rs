//! Giving a task pages from outside, beside what it reads by itself: two processors for one task's memory.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use crate::error::{Context, Error, Result, Subject};
use crate::ids::{Pid, RemoteAddr};
use crate::sys::process::{RemoteRange, process_vm_writev};

use super::inherit::Stored;
use super::pages::{PAGE, PageRange};

/// Less memory is not worth a thread.
const WORTHWHILE: u64 = 16 << 20;
/// Bytes that are read and written at a time: they stay in the cache.
const BLOCK: u64 = 256 << 10;

/// Divides pages into those that the task reads and those that it is given, which are none where there are few.
pub fn split(all: Vec<Stored>) -> (Vec<Stored>, Vec<Stored>) {
    let pages: u64 = all.iter().map(|stored| stored.range.pages).sum();
    if pages * PAGE < WORTHWHILE {
        return (all, Vec::new());
    }
    let (mut inside, mut outside, mut left) = (Vec::new(), Vec::new(), pages / 2);
    for stored in all {
        let (first, second) = divide(stored, left);
        left -= first.range.pages;
        inside.extend(Some(first).filter(|part| part.range.pages > 0));
        outside.extend(Some(second).filter(|part| part.range.pages > 0));
    }
    (inside, outside)
}

/// The first pages, at most so many, and the rest.
fn divide(stored: Stored, pages: u64) -> (Stored, Stored) {
    let PageRange { start, pages: all } = stored.range;
    let first = all.min(pages);
    let part = |start, pages, offset| Stored { range: PageRange { start, pages }, offset, ..stored };
    (part(start, first, stored.offset), part(start + first * PAGE, all - first, stored.offset + first * PAGE))
}

/// Copies pages from their files into mappings of a task that are writable.
pub fn copy<'a>(pid: Pid, all: &[Stored], file: impl Fn(u32) -> Option<BorrowedFd<'a>>) -> Result<()> {
    let mut buffer = vec![0u8; BLOCK as usize];
    for stored in all {
        let fd = file(stored.pid).ok_or(Error::Gone(pid))?;
        let file = File::from(fd.try_clone_to_owned().during("copying a descriptor", Subject::None)?);
        let len = stored.range.pages * PAGE;
        for at in (0..len).step_by(BLOCK as usize) {
            let bytes = &mut buffer[..BLOCK.min(len - at) as usize];
            file.read_exact_at(bytes, stored.offset + at).during("reading the pages", Subject::Pid(pid))?;
            write(pid, stored.range.start + at, bytes)?;
        }
    }
    Ok(())
}

fn write(pid: Pid, at: u64, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let range = RemoteRange { addr: RemoteAddr(at + done as u64), len: bytes.len() - done };
        done += process_vm_writev(pid, &[range], &bytes[done..]).during("writing the pages", Subject::Pid(pid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_is_given() {
        let stored = |start, pages, offset| Stored { range: PageRange { start, pages }, pid: 1, offset };
        let few = vec![stored(0x1000, 10, 0)];
        assert_eq!(split(few.clone()), (few, Vec::new()));
        let all = vec![stored(0x1000, 1, 0), stored(0x10_0000, 8191, PAGE)];
        let border = 0x10_0000 + 4095 * PAGE;
        let inside = vec![stored(0x1000, 1, 0), stored(0x10_0000, 4095, PAGE)];
        assert_eq!(split(all), (inside, vec![stored(border, 4096, 4096 * PAGE)]));
    }
}
