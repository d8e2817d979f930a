//! Who is whose child and who has which threads.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Stat, failure, lossy, number, path, thread_path, words};
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};

/// The threads of a process, ascending; a zombie leader counts as one.
pub fn threads(pid: Pid) -> Result<Vec<Tid>> {
    let directory = std::fs::read_dir(path(pid, "task"));
    let directory = directory.map_err(|error| failure("listing the threads", pid, &error))?;
    let mut threads = Vec::new();
    for entry in directory {
        let entry = entry.map_err(|error| failure("listing the threads", pid, &error))?;
        threads.extend(number(entry.file_name().as_bytes(), 10).map(Tid));
    }
    threads.sort_unstable();
    Ok(threads)
}

/// The first of these threads of a process that has not ended.
pub fn first_living(pid: Pid, threads: &[Tid]) -> Option<Tid> {
    threads.iter().copied().find(|tid| Stat::read_thread(pid, *tid).is_ok_and(|stat| !stat.state.is_dead()))
}

/// The thread whose directory shows a process: another one where its main thread has ended before it.
pub fn seen(pid: Pid) -> Pid {
    let ended = Stat::read(pid).is_ok_and(|stat| stat.state.is_dead() && stat.num_threads > 1);
    let other = || first_living(pid, &threads(pid).ok()?);
    ended.then(other).flatten().map_or(pid, |tid| Pid(tid.0))
}

/// The children of all threads of a process, ascending, zombies included.
///
/// Exact only while the tree is frozen: the kernel may skip a child when another one ends meanwhile. Where the kernel has no
/// `children` file (CONFIG_PROC_CHILDREN, 4.2) every process of /proc is asked for its parent.
pub fn children(pid: Pid) -> Result<Vec<Pid>> {
    let mut children = Vec::new();
    for tid in threads(pid)? {
        match super::whole(&thread_path(pid, tid, "children")) {
            Ok(text) => children.extend(parse_children(&text)?),
            // The thread has ended, or there is no such file at all.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                if thread_path(pid, tid, "stat").exists() {
                    return children_by_parent(pid);
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(failure("listing the children", pid, &error)),
        }
    }
    children.sort_unstable();
    children.dedup();
    Ok(children)
}

/// Parses a `children` file.
pub fn parse_children(text: &[u8]) -> Result<Vec<Pid>> {
    words(text)
        .map(|word| number(word, 10).map(Pid))
        .collect::<Option<_>>()
        .ok_or_else(|| Error::unexpected("the children of a process", lossy(text)))
}

/// All processes that /proc shows us, ascending.
pub fn all() -> Result<Vec<Pid>> {
    let proc = Path::new("/proc");
    let failed = |error: &std::io::Error| Error::io("listing", crate::error::Subject::Path(proc.into()), error);
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(proc).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        pids.extend(number(entry.file_name().as_bytes(), 10).map(Pid));
    }
    pids.sort_unstable();
    Ok(pids)
}

/// The children of a process, found by asking every process for its parent.
pub fn children_by_parent(parent: Pid) -> Result<Vec<Pid>> {
    let mut children = Vec::new();
    for pid in all()? {
        match Stat::read(pid) {
            Ok(stat) if stat.ppid == parent => children.push(pid),
            Ok(_) | Err(Error::Gone(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_is_found_both_ways() {
        let me = Pid(std::process::id() as i32);
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = Pid(child.id() as i32);
        assert!(children(me).unwrap().contains(&pid));
        assert!(children_by_parent(me).unwrap().contains(&pid));
        assert_eq!(threads(pid).unwrap(), [Tid::from(pid)]);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!children(me).unwrap().contains(&pid));
    }

    #[test]
    fn children_are_numbers() {
        assert_eq!(parse_children(b"1 22 333 ").unwrap(), [Pid(1), Pid(22), Pid(333)]);
        assert!(parse_children(b"1 x").is_err());
    }
}
