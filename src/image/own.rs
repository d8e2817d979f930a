//! The framing of ptyagent.img: one entry as in all files, then eight bytes: the xxh3-64 value of all that precedes them.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::frame::{Decoder, Encoder};
use super::kind::Kind;
use super::pb::PtyagentEntry;
use crate::error::{Error, Result};

/// Of [`PtyagentEntry`]: raised when a reader that does not know a new field would restore something wrong.
pub const FORMAT_VERSION: u32 = 1;

/// The whole file.
pub fn encode(own: &PtyagentEntry) -> Result<Vec<u8>> {
    let mut encoder = Encoder::new(Kind::Own);
    encoder.entry(own)?;
    let mut bytes = encoder.finish();
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    Ok(bytes)
}

/// The entry of a whole file.
///
/// Fails where any byte is not as it was written, or the version is one that we do not know.
pub fn decode(path: &Path, bytes: &[u8]) -> Result<PtyagentEntry> {
    let Some((covered, digest)) = bytes.split_last_chunk() else {
        return Err(Error::image(path, "it is cut off; dump again"));
    };
    if xxh3_64(covered) != u64::from_le_bytes(*digest) {
        return Err(Error::image(path, "it is damaged: its digest does not match; dump again"));
    }
    let own: PtyagentEntry = Decoder::new(path, Kind::Own, covered)?.only()?;
    match own.format_version {
        Some(FORMAT_VERSION) => Ok(own),
        Some(version) => {
            let reason = format!(
                "its format version is {version}, and this program knows version {FORMAT_VERSION}; use the program that wrote it"
            );
            Err(Error::image(path, reason))
        }
        None => Err(Error::image(path, "it has no format version; dump again")),
    }
}
