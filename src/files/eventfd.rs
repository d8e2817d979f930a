//! eventfd(2): the counter, and whether a read takes all of it or one.
//!
//! From fdinfo. Refused: an eventfd on a kernel that does not tell whether it is a semaphore (before Linux 6.5).

use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Context, Error, Result, Subject};
use crate::files::dump::Description;
use crate::files::restore::set_status_flags;
use crate::image::{Images, pb};
use crate::sys::event;

/// The entry of an eventfd, and our own part of it.
pub fn record(description: &Description<'_>, own: &mut pb::PtyagentOfd) -> Result<pb::FileEntry> {
    let info = &description.descriptor.info;
    let counter = info.value("eventfd-count").and_then(|text| u64::from_str_radix(text, 16).ok());
    let counter = counter.ok_or_else(|| Error::unexpected("the fdinfo of an eventfd", format!("{:?}", info.extra)))?;
    let Some(semaphore) = info.value("eventfd-semaphore") else {
        let kind = "an eventfd of which this kernel does not tell whether it is a semaphore (Linux 6.5 does)";
        return Err(description.refuse(kind, "end the program that uses it, then dump again"));
    };
    own.eventfd_semaphore = Some(semaphore != "0");
    let efd = pb::EventfdFileEntry { id: description.id.0, flags: description.flags, fown: description.fown, counter };
    Ok(pb::FileEntry { efd: Some(efd), ..description.entry(pb::FdTypes::Eventfd) })
}

/// A new one with the recorded counter.
pub fn open(images: &Images, entry: &pb::EventfdFileEntry) -> Result<OwnedFd> {
    let semaphore = images.own_ofd(entry.id).and_then(|own| own.eventfd_semaphore).unwrap_or(false);
    let flags = libc::EFD_CLOEXEC | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    let fd = event::eventfd(0, flags).during("making an eventfd", Subject::None)?;
    if entry.counter != 0 {
        nix::unistd::write(&fd, &entry.counter.to_ne_bytes())
            .during("setting the counter of an eventfd", Subject::None)?;
    }
    set_status_flags(fd.as_fd(), entry.flags)?;
    Ok(fd)
}
