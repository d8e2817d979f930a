//! File locks: of flock(2), POSIX and open file description locks of fcntl(2), and leases.
//!
//! fdinfo shows a lock at the descriptor through which it was set, in each process that owns it: a POSIX lock belongs to a process, all others
//! to the description. On the way back a task that has the description sets it through that descriptor, when no descriptor of the task is
//! closed any more. What waits for a lock waits for it again, by itself.
//!
//! Refused: a lease that somebody is breaking, a lease to write on a mapped file, locks of other kinds, a lock on a file that only a message has, and a
//! lock that a process outside the tree waits for: it would have it as soon as the session is gone. A restore fails where somebody has a lock by then that excludes one of ours.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use crate::error::{Errno, Error, Refusal, Result, Subject};
use crate::files::dump::Table;
use crate::files::kind::Descriptor;
use crate::files::ofd::{OfdId, OfdTable};
use crate::files::outside::{Mapped, called};
use crate::ids::Pid;
use crate::image::lock::{self, FLOCK, LEASE, OFD, POSIX};
use crate::image::{Images, pb};
use crate::inject::Infected;
use crate::inject::batch::{Ask, Batch, CallId};
use crate::procfs::{Device, Mapping};

const F_OFD_SETLK: i32 = 37;
const F_SETLEASE: i32 = 1024;

/// One line of /proc/locks or fdinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock<'a> {
    /// Whether it is not held but waited for. Only /proc/locks shows that.
    waits: bool,
    flag: u32,
    kind: u32,
    /// Who set it; -1 for a lock of a description.
    pid: i32,
    /// Device and inode.
    file: &'a str,
    start: i64,
    len: i64,
}

impl<'a> Lock<'a> {
    /// "NUMBER: KIND MODE TYPE PID DEVICE:INODE START END", with an arrow before the kind where it is waited for. `lock_get_status` in
    /// fs/locks.c.
    pub fn parse(line: &'a str) -> Option<Lock<'a>> {
        let mut words = line.split_whitespace().skip(1).peekable();
        let waits = words.next_if_eq(&"->").is_some();
        let flag = match (words.next()?, words.next()?) {
            ("POSIX", "ADVISORY") => POSIX,
            ("FLOCK", "ADVISORY") => FLOCK,
            ("OFDLCK", "ADVISORY") => OFD,
            ("LEASE", "ACTIVE") => LEASE,
            _ => return None,
        };
        let kind = match words.next()? {
            "READ" => libc::F_RDLCK,
            "WRITE" => libc::F_WRLCK,
            _ => return None,
        };
        let (pid, file) = (words.next()?.parse().ok()?, words.next()?);
        let start = words.next()?.parse().ok()?;
        let len = match words.next()? {
            "EOF" => 0,
            end => end.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)?,
        };
        Some(Lock { waits, flag, kind: kind as u32, pid, file, start, len })
    }
}

/// The locks on a descriptor.
fn of(descriptor: &Descriptor) -> impl Iterator<Item = Lock<'_>> {
    descriptor.info.locks.iter().filter_map(|line| Lock::parse(line))
}

/// Whether a lease is on a descriptor.
pub fn is_leased(descriptor: &Descriptor) -> bool {
    of(descriptor).any(|lock| lock.flag == LEASE)
}

/// Whom a lock belongs to: a process, or with 0 whoever has the description; and the lock itself.
type Owned = (OfdId, i32, u32, u32, i64, i64);

/// All locks of a tree, each once, by a task that can set it: who did where that one has the file open.
pub fn record(tables: &[Table<'_>], ofds: &OfdTable) -> Result<Vec<pb::FileLockEntry>> {
    let mut found: BTreeMap<Owned, (Pid, RawFd)> = BTreeMap::new();
    for table in tables {
        for descriptor in table.descriptors {
            let id = *ofds.get(&(table.pid, descriptor.fd)).ok_or(Error::Gone(table.pid))?;
            for lock in of(descriptor) {
                let owner = if lock.flag == POSIX { table.pid.0 } else { 0 };
                let key = (id, owner, lock.flag, lock.kind, lock.start, lock.len);
                let ours = (table.pid, descriptor.fd.0);
                match found.get(&key) {
                    None if table.is_in_flight() => return Err(refuse_in_flight(tables, descriptor)),
                    Some((pid, _)) if pid.0 == lock.pid || table.pid.0 != lock.pid => {}
                    _ => _ = found.insert(key, ours),
                }
            }
        }
    }
    let entry = |((_, _, flag, kind, start, len), (pid, fd)): (Owned, (Pid, RawFd))| pb::FileLockEntry {
        flag,
        r#type: kind,
        pid: pid.0,
        fd,
        start,
        len,
    };
    Ok(found.into_iter().map(entry).collect())
}

/// A lock that no task could set. The message may be in any of the tree's sockets: the root stands for it.
fn refuse_in_flight(tables: &[Table<'_>], descriptor: &Descriptor) -> Error {
    let Some(root) = tables.first() else { return Error::Gone(Pid(0)) };
    Error::Refused(Refusal {
        pid: root.pid,
        comm: root.comm.to_owned(),
        fd: None,
        kind: format!("a message that waits in a socket holds {descriptor} with a lock on it"),
        remedy: "let the program receive it, then dump again".into(),
    })
}

/// Refuses a lock that a process outside the tree waits for. In a frozen tree nobody waits: a stop interrupts the call.
pub fn refuse_waiters(tables: &[Table<'_>]) -> Result<()> {
    if tables.iter().flat_map(|table| table.descriptors).all(|descriptor| descriptor.info.locks.is_empty()) {
        return Ok(());
    }
    let inside: Vec<Pid> = tables.iter().map(|table| table.pid).collect();
    let text = all()?;
    let waiters: Vec<Lock<'_>> = text.lines().filter_map(Lock::parse).filter(|lock| lock.waits).collect();
    for table in tables {
        for descriptor in table.descriptors {
            let waited = |lock: &Lock<'_>| {
                let waiter = waiters.iter().find(|waiter| waiter.file == lock.file && waiter.flag == lock.flag);
                waiter.map(|waiter| waiter.pid).filter(|pid| !inside.contains(&Pid(*pid)))
            };
            let Some(waiter) = of(descriptor).find_map(|lock| waited(&lock)) else { continue };
            // No process is told for the lock of a description, nor one of another pid namespace.
            let (who, whom) = match waiter {
                pid @ 1.. => (format!("{}, outside the tree,", called(Pid(pid))), format!("process {pid}")),
                _ => ("a process outside the tree".to_owned(), "that process (lslocks and lsof show it)".to_owned()),
            };
            let kind = format!("a lock on {descriptor} that {who} waits for");
            return Err(refuse(table, descriptor, kind, format!("end {whom} or dump a tree that has it in it")));
        }
    }
    Ok(())
}

/// Refuses a lease to write on a file that the tree has mapped, too: the mapping made anew has the file open beside the one that has the lease, which is
/// for the only one.
pub fn refuse_mapped_leases(tables: &[Table<'_>], mappings: &[Mapped<'_>]) -> Result<()> {
    for (table, descriptor) in tables.iter().flat_map(|table| table.descriptors.iter().map(move |one| (table, one))) {
        let leased = |lock: &Lock<'_>| lock.flag == LEASE && lock.kind == libc::F_WRLCK as u32;
        let Some(lease) = of(descriptor).find(leased) else { continue };
        let of_file = |mapping: &Mapping| {
            let Device { major, minor } = mapping.device;
            lease.file == format!("{major:02x}:{minor:02x}:{}", mapping.inode)
        };
        if mappings.iter().flat_map(|(_, _, mappings)| *mappings).any(of_file) {
            let kind = format!("a lease to write on {descriptor}, which is mapped into memory");
            return Err(refuse(table, descriptor, kind, "let the program release it, then dump again".into()));
        }
    }
    Ok(())
}

fn refuse(table: &Table<'_>, descriptor: &Descriptor, kind: String, remedy: String) -> Error {
    let (pid, comm, fd) = (table.pid, table.comm.to_owned(), Some(descriptor.fd.0));
    Error::Refused(Refusal { pid, comm, fd, kind, remedy })
}

fn all() -> Result<String> {
    let path = "/proc/locks";
    std::fs::read_to_string(path).map_err(|error| Error::io("reading", Subject::Path(path.into()), &error))
}

/// Sets the locks that a task is to set.
pub fn take(tracee: &mut Infected, images: &Images, pid: u32) -> Result<()> {
    let mut batch = Batch::new();
    let locks = images.locks.iter().filter(|lock| lock.pid as u32 == pid);
    let calls: Vec<(&pb::FileLockEntry, CallId)> = locks.map(|lock| (lock, set(&mut batch, lock))).collect();
    let answers = tracee.ask(batch)?;
    for (lock, call) in calls {
        answers.result(call).map_err(|errno| cannot_take(images, lock, errno))?;
    }
    Ok(())
}

/// Adds the call that sets a lock or fails at once.
fn set(batch: &mut Batch, lock: &pb::FileLockEntry) -> CallId {
    let write = lock.r#type == libc::F_WRLCK as u32;
    match lock.flag {
        FLOCK => {
            let operation = libc::LOCK_NB | if write { libc::LOCK_EX } else { libc::LOCK_SH };
            batch.call(libc::SYS_flock, [lock.fd.into(), operation.into()])
        }
        LEASE => {
            let kind = u64::from(lock.r#type);
            batch.call(libc::SYS_fcntl, [lock.fd.into(), F_SETLEASE.into(), kind.into()])
        }
        flag => {
            let command = if flag == OFD { F_OFD_SETLK } else { libc::F_SETLK };
            // struct flock: type and origin as 16-bit numbers, then, each aligned to 8 bytes, start, length and process.
            let mut flock = [0u8; 32];
            flock[..2].copy_from_slice(&(lock.r#type as u16).to_ne_bytes());
            flock[8..16].copy_from_slice(&lock.start.to_ne_bytes());
            flock[16..24].copy_from_slice(&lock.len.to_ne_bytes());
            let flock = batch.input(&flock);
            batch.call(libc::SYS_fcntl, [lock.fd.into(), command.into(), flock.into()])
        }
    }
}

fn cannot_take(images: &Images, lock: &pb::FileLockEntry, errno: Errno) -> Error {
    let table = crate::plan::descriptors::table(images, lock.pid as u32);
    let id = table.iter().find(|entry| entry.fd == lock.fd as u32).map(|entry| entry.id);
    let path = id.and_then(|id| images.reg(id)).map_or_else(String::new, |reg| crate::image::text::escape(&reg.name));
    let name = lock::name(lock.flag).unwrap_or("a lock");
    match errno {
        Errno::EAGAIN | Errno::EACCES => Error::failed(format!(
            "process {} had {name} on {path}, which somebody else uses now; end that program (lslocks and lsof show who it is), then restore again",
            lock.pid
        )),
        errno => Error::failed(format!("process {} cannot have {name} on {path}: {}", lock.pid, errno.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let lock = Lock::parse("1: POSIX  ADVISORY  WRITE 16576 fe:00:10634854 5 14").unwrap();
        let file = "fe:00:10634854";
        assert_eq!(lock, Lock { waits: false, flag: POSIX, kind: 1, pid: 16576, file, start: 5, len: 10 });
        let lock = Lock::parse("7: -> OFDLCK ADVISORY  READ  -1 00:1a:7 0 EOF").unwrap();
        assert_eq!(lock, Lock { waits: true, flag: OFD, kind: 0, pid: -1, file: "00:1a:7", start: 0, len: 0 });
        assert_eq!(Lock::parse("1: FLOCK  ADVISORY  READ 7 00:13:12 0 EOF").unwrap().flag, FLOCK);
        assert_eq!(Lock::parse("1: LEASE  ACTIVE    WRITE 7 00:13:12 0 EOF").unwrap().flag, LEASE);
        for line in ["1: LEASE  BREAKING  READ 7 00:13:12 0 EOF", "1: DELEG  ACTIVE    READ 7 00:13:12 0 EOF", ""] {
            assert_eq!(Lock::parse(line), None);
        }
        assert_eq!(Lock::parse("1: POSIX  ADVISORY  READ 7 00:13:12 0 9223372036854775807").map(|lock| lock.len), None);
    }
}
