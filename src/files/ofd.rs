//! Which descriptors share one open file description.
//!
//! Two descriptors are one OFD when kcmp(2) says so; its order lets us sort and search. Only descriptors of one inode, mount and
//! access mode are compared: what an OFD cannot change in its life (F_SETFL and lseek can change the rest).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Subject};
use crate::files::kind::Descriptor;
use crate::ids::{Pid, RemoteFd, Tid};
use crate::procfs::Device;
use crate::sys::process::{KcmpType, kcmp};

/// An open file description, numbered from 1 in the order of first appearance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OfdId(pub u32);

/// The OFD of each descriptor of a set of processes.
pub type OfdTable = BTreeMap<(Pid, RemoteFd), OfdId>;

/// One known OFD and a descriptor that has it.
struct Known {
    id: OfdId,
    thread: Tid,
    fd: RemoteFd,
}

/// Gives every descriptor its OFD: those of processes, each with a living thread. Exact when all are stopped.
///
/// EBADF: a descriptor was closed meanwhile; EPERM: no ptrace access; ENOSYS: the kernel has no kcmp.
pub fn group<'a>(descriptors: impl IntoIterator<Item = (Pid, Tid, &'a Descriptor)>) -> Result<OfdTable> {
    let mut alike: BTreeMap<(Device, u64, i32, u32), Vec<Known>> = BTreeMap::new();
    let mut table = OfdTable::new();
    let mut next = 1;
    for (pid, thread, descriptor) in descriptors {
        let (stat, info, fd) = (&descriptor.stat, &descriptor.info, descriptor.fd);
        let key = (stat.device, stat.inode, info.mnt_id, info.flags & (libc::O_ACCMODE | libc::O_PATH) as u32);
        let known = match alike.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Vec::new()),
        };
        let id = match search(known, thread, fd)? {
            Ok(id) => id,
            Err(at) => {
                let id = OfdId(next);
                next += 1;
                known.insert(at, Known { id, thread, fd });
                id
            }
        };
        table.insert((pid, fd), id);
    }
    Ok(table)
}

/// The OFD of a descriptor among those of `known`, which is sorted by kcmp, or where it belongs.
fn search(known: &[Known], thread: Tid, fd: RemoteFd) -> Result<std::result::Result<OfdId, usize>> {
    let (mut low, mut high) = (0, known.len());
    while let Some(middle) = known.get((low + high) / 2).filter(|_| low < high) {
        let at = (low + high) / 2;
        match compare((middle.thread, middle.fd), (thread, fd))? {
            Ordering::Equal => return Ok(Ok(middle.id)),
            Ordering::Less => low = at + 1,
            Ordering::Greater => high = at,
        }
    }
    Ok(Err(low))
}

fn compare(a: (Tid, RemoteFd), b: (Tid, RemoteFd)) -> Result<Ordering> {
    let index = |fd: RemoteFd| fd.0 as u64;
    kcmp(a.0, b.0, KcmpType::File, index(a.1), index(b.1))
        .map_err(|errno| Error::sys("comparing an open file", Subject::Fd(Pid(b.0.0), b.1.0), errno))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn duplicates_are_one_and_other_opens_are_not() {
        let pid = Pid(std::process::id() as i32);
        let first = File::open("/dev/null").unwrap();
        let files = [first.try_clone().unwrap(), File::open("/dev/null").unwrap(), first.try_clone().unwrap(), first];
        let read = |file: &File| Descriptor::read(pid, RemoteFd(file.as_raw_fd())).unwrap().unwrap();
        let descriptors: Vec<Descriptor> = files.iter().map(read).collect();
        let table = group(descriptors.iter().map(|descriptor| (pid, pid.into(), descriptor))).unwrap();
        let ids: Vec<u32> = descriptors.iter().map(|descriptor| table[&(pid, descriptor.fd)].0).collect();
        assert_eq!(ids, [1, 2, 1, 1]);
    }

    #[test]
    fn a_child_shares_what_it_inherited() {
        use std::process::{Command, Stdio};
        let (me, (reader, writer)) =
            (Pid(std::process::id() as i32), nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap());
        let mut child = Command::new("cat").stdin(reader.try_clone().unwrap()).stdout(Stdio::null()).spawn().unwrap();
        let pid = Pid(child.id() as i32);
        let mine = Descriptor::read(me, RemoteFd(reader.as_raw_fd())).unwrap().unwrap();
        let theirs = Descriptor::read(pid, RemoteFd(0)).unwrap().unwrap();
        let table = group([(me, me.into(), &mine), (pid, pid.into(), &theirs)]).unwrap();
        assert_eq!(table[&(me, mine.fd)], table[&(pid, RemoteFd(0))]);
        drop(writer);
        child.wait().unwrap();
    }

    #[test]
    fn a_closed_descriptor_is_an_error_with_its_number() {
        let pid = Pid(std::process::id() as i32);
        let file = File::open("/dev/null").unwrap();
        let descriptor = Descriptor::read(pid, RemoteFd(file.as_raw_fd())).unwrap().unwrap();
        let closed = Descriptor { fd: RemoteFd(99_999), ..descriptor.clone() };
        let error = group([(pid, pid.into(), &descriptor), (pid, pid.into(), &closed)]).unwrap_err();
        assert!(error.to_string().contains("descriptor 99999"), "{error}");
    }
}
