//! What the images hold that not every kernel has: looked for before anything is created, so that a restore on an older kernel says what is
//! missing instead of failing at a step.

use crate::error::{Error, Result};
use crate::image::{Images, pb};
use crate::sys::process::probe;

/// One thing that an older kernel lacks.
struct Need {
    /// As in "its memory has guard pages".
    what: &'static str,
    /// The first version that has it.
    since: &'static str,
    /// Whether a process has it.
    of: fn(&Images, &pb::PtyagentTask) -> bool,
    /// Whether this kernel does.
    is_here: fn() -> bool,
}

const NEEDS: [Need; 7] = [
    Need {
        what: "memory with guard pages (MADV_GUARD_INSTALL)",
        since: "6.13",
        of: |_, task| !task.guards.is_empty(),
        is_here: probe::has_guard_pages,
    },
    Need {
        what: "memory that the kernel may drop (MAP_DROPPABLE)",
        since: "6.11",
        of: |_, task| task.vmas.iter().any(|vma| vma.droppable == Some(true)),
        is_here: probe::has_droppable_memory,
    },
    Need {
        what: "sealed memory (mseal)",
        since: "6.10",
        of: |_, task| task.vmas.iter().any(|vma| vma.sealed == Some(true)),
        is_here: probe::has_seals,
    },
    Need {
        what: "anonymous memory that has names (CONFIG_ANON_VMA_NAME)",
        since: "5.17",
        of: |_, task| task.vmas.iter().any(|vma| vma.anon_name.is_some()),
        is_here: probe::has_names,
    },
    Need {
        what: "memory that may not be made executable (PR_SET_MDWE)",
        since: "6.3",
        of: |_, task| task.mdwe.is_some_and(|bits| bits != 0),
        is_here: probe::has_mdwe,
    },
    Need {
        what: "memory that is merged with other processes' (PR_SET_MEMORY_MERGE)",
        since: "6.4",
        of: |_, task| task.memory_merge == Some(true),
        is_here: probe::has_memory_merge,
    },
    Need {
        what: "a longer restartable sequence area (rseq)",
        since: "6.3",
        of: |images, task| threads(images, task).any(|thread| thread.rseq_len.is_some_and(|len| len > 32)),
        is_here: probe::has_long_rseq,
    },
];

fn threads<'a>(images: &'a Images, task: &pb::PtyagentTask) -> impl Iterator<Item = &'a pb::PtyagentThread> {
    let pid = task.pid;
    images.own.iter().flat_map(|own| &own.threads).filter(move |thread| thread.pid == pid)
}

/// Fails where this kernel lacks what a process has.
pub fn check(images: &Images) -> Result<()> {
    for need in NEEDS {
        let mut tasks = images.own.iter().flat_map(|own| &own.tasks);
        let Some(task) = tasks.find(|task| (need.of)(images, task)) else { continue };
        if (need.is_here)() {
            continue;
        }
        let pid = task.pid.unwrap_or(0);
        let comm = images.comm(pid);
        let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        return Err(Error::Lacking(format!(
            "process {pid} ({comm}) has {}, which this kernel ({}) has not; restore it on Linux {} or newer",
            need.what,
            release.unwrap_or_default(),
            need.since
        )));
    }
    Ok(())
}
