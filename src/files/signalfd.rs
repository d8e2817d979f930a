//! signalfd(2): which signals can be read from it. Whose signals these are depends on who reads.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Context, Error, Result, Subject};
use crate::files::dump::Description;
use crate::files::restore::set_status_flags;
use crate::image::pb;
use crate::sys::event;

/// The entry of a signalfd, from fdinfo.
pub fn record(description: &Description<'_>) -> Result<pb::FileEntry> {
    let info = &description.descriptor.info;
    let sigmask = info.value("sigmask").and_then(|text| u64::from_str_radix(text, 16).ok());
    let sigmask = sigmask.ok_or_else(|| Error::unexpected("the fdinfo of a signalfd", format!("{:?}", info.extra)))?;
    let sgfd = pb::SignalfdEntry { id: description.id.0, flags: description.flags, fown: description.fown, sigmask };
    Ok(pb::FileEntry { sgfd: Some(sgfd), ..description.entry(pb::FdTypes::Signalfd) })
}

/// A new one with the recorded mask.
pub fn open(entry: &pb::SignalfdEntry) -> Result<OwnedFd> {
    let fd = event::signalfd(entry.sigmask, libc::SFD_CLOEXEC).during("making a signalfd", Subject::None)?;
    set_status_flags(fd.as_fd(), entry.flags)?;
    Ok(fd)
}
