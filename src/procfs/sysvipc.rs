//! /proc/sysvipc/shm: the System V shared memory of this IPC namespace. ipc/shm.c, sysvipc_shm_proc_show().

use std::path::Path;

use super::{lines, lossy, number, words};
use crate::error::{Error, Result, Subject};
use crate::ids::Pid;

/// Bits of [`Segment::mode`]: it ends with its last attachment (IPC_RMID), and it stays in memory (SHM_LOCK).
pub const SHM_DEST: u32 = 0o1000;
pub const SHM_LOCKED: u32 = 0o2000;

/// One segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// IPC_PRIVATE, 0, where it has none (any more).
    pub key: i32,
    pub id: i32,
    /// Permission bits with SHM_DEST and SHM_LOCKED.
    pub mode: u32,
    /// In bytes, as it was asked for.
    pub size: u64,
    pub creator: Pid,
    /// How many mappings show it, in all processes.
    pub attached: u64,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
}

/// All segments. Empty where the kernel has no System V IPC.
pub fn segments() -> Result<Vec<Segment>> {
    let path = Path::new("/proc/sysvipc/shm");
    match super::whole(path) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("reading", Subject::Path(path.into()), &error)),
    }
}

/// Parses the table; its first line names the columns.
pub fn parse(text: &[u8]) -> Result<Vec<Segment>> {
    let segment = |line| parse_line(line).ok_or_else(|| Error::unexpected("the list of segments", lossy(line)));
    lines(text).skip(1).map(segment).collect()
}

fn parse_line(line: &[u8]) -> Option<Segment> {
    let fields: Vec<&[u8]> = words(line).collect();
    let [key, id, mode, size, creator, _last, attached, uid, gid, cuid, cgid, ..] = *fields else { return None };
    Some(Segment {
        key: number(key, 10)?,
        id: number(id, 10)?,
        mode: number(mode, 8)?,
        size: number(size, 10)?,
        creator: Pid(number(creator, 10)?),
        attached: number(attached, 10)?,
        uid: number(uid, 10)?,
        gid: number(gid, 10)?,
        cuid: number(cuid, 10)?,
        cgid: number(cgid, 10)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n\
        -559038737      32769  1640                 12388    77    78      3  1000   100     0     5 1700000000          0 1700000001                 16384                     0\n";

    #[test]
    fn a_segment_is_parsed() {
        let expected = Segment {
            key: 0xdead_beef_u32 as i32,
            id: 32769,
            mode: SHM_DEST | 0o640,
            size: 12388,
            creator: Pid(77),
            attached: 3,
            uid: 1000,
            gid: 100,
            cuid: 0,
            cgid: 5,
        };
        assert_eq!(parse(TEXT).unwrap(), [expected]);
        assert!(parse(b"key\n1 2 3\n").is_err());
        assert_eq!(parse(b"").unwrap(), []);
    }
}
