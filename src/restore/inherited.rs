//! What the restore has by itself.

use crate::error::Result;
use crate::ids::Pid;
use crate::image::pb;
use crate::procfs::Status;
use crate::task::thread::Affinity;

use super::pin;

/// What the restore has by itself, which stubs inherit.
#[derive(Debug)]
pub struct Inherited {
    pub limits: [(u64, u64); 16],
    pub last_cap: u32,
    pub credentials: pb::CredsEntry,
    pub affinity: Affinity,
}

impl Inherited {
    /// Asks for it.
    pub fn here() -> Result<Inherited> {
        let us = Pid(std::process::id() as i32);
        let status = Status::read(us)?;
        let rlimits = crate::procfs::attributes::limits(us)?;
        let last_cap = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(40);
        // The secure bits of this very process: 0 is what everybody starts with.
        let credentials = crate::task::identity::credentials(&status, 0);
        let affinity = pin::affinity()?;
        let limits = rlimits.map(|limit| (limit.soft, limit.hard));
        Ok(Inherited { limits, last_cap, credentials, affinity })
    }
}
