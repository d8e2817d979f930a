//! /proc/PID/status.

use std::collections::HashMap;

use super::{failure, key_value, lines, lossy, number, read, thread_path, words};
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};

/// Real, effective, saved and file system id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    pub real: u32,
    pub effective: u32,
    pub saved: u32,
    pub fs: u32,
}

/// The five capability sets, one bit for each capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
}

/// Signal sets; bit N-1 is signal N.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalSets {
    /// Pending for this thread.
    pub pending: u64,
    /// Pending for the whole process.
    pub shared_pending: u64,
    pub blocked: u64,
    pub ignored: u64,
    pub caught: u64,
}

/// What the status of a process or thread says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub tgid: Pid,
    /// The thread that traces it; 0 for none.
    pub tracer: Tid,
    pub uid: Ids,
    pub gid: Ids,
    pub groups: Vec<u32>,
    pub capabilities: Capabilities,
    pub signals: SignalSets,
    /// Absent for a zombie.
    pub umask: Option<u32>,
    /// Since Linux 4.10.
    pub no_new_privs: Option<u32>,
    /// 0 off, 1 strict, 2 filters; absent without CONFIG_SECCOMP.
    pub seccomp: Option<u32>,
    /// The number of filters, since 5.9.
    pub seccomp_filters: Option<u32>,
    /// Its numbers from our pid namespace inwards.
    pub ns_pids: Vec<i32>,
    /// Since 6.10 or so.
    pub kernel_thread: Option<u32>,
    /// Absent for a zombie; 1 while a core is being written. Since 4.15.
    pub core_dumping: Option<u32>,
    pub threads: u32,
    /// 1 where transparent huge pages are not switched off by prctl. Since 5.0.
    pub thp_enabled: Option<u32>,
    /// KiB that mlock(2) and mlockall(2) hold in memory; absent for a zombie.
    pub locked_kib: Option<u64>,
    /// The bits of an address that count, where linear address masking exists. Since 6.4.
    pub untag_mask: Option<u64>,
}

impl Status {
    pub fn read(pid: Pid) -> Result<Status> {
        Status::parse(&read("reading the status", pid, "status")?)
    }

    pub fn read_thread(pid: Pid, tid: Tid) -> Result<Status> {
        let bytes = super::whole(&thread_path(pid, tid, "status"));
        Status::parse(&bytes.map_err(|error| failure("reading the status of a thread", pid, &error))?)
    }

    pub fn parse(text: &[u8]) -> Result<Status> {
        // The name comes first, with newlines escaped; the first line of each key counts.
        let mut table = HashMap::new();
        for (key, value) in lines(text).filter_map(key_value) {
            table.entry(key).or_insert(value);
        }
        Table(table).status().ok_or_else(|| Error::unexpected("the status of a process", lossy(text)))
    }
}

struct Table<'a>(HashMap<&'a [u8], &'a [u8]>);

impl Table<'_> {
    fn list<T: TryFrom<i128>>(&self, key: &str, base: u32) -> Option<Vec<T>> {
        words(self.0.get(key.as_bytes())?).map(|word| number(word, base)).collect()
    }

    fn one<T: TryFrom<i128>>(&self, key: &str, base: u32) -> Option<T> {
        number(self.0.get(key.as_bytes())?, base)
    }

    fn kib(&self, key: &str) -> Option<u64> {
        number(self.0.get(key.as_bytes())?.strip_suffix(b" kB")?, 10)
    }

    fn ids(&self, key: &str) -> Option<Ids> {
        let [real, effective, saved, fs] = self.list::<u32>(key, 10)?.try_into().ok()?;
        Some(Ids { real, effective, saved, fs })
    }

    fn status(&self) -> Option<Status> {
        Some(Status {
            tgid: Pid(self.one("Tgid", 10)?),
            tracer: Tid(self.one("TracerPid", 10)?),
            uid: self.ids("Uid")?,
            gid: self.ids("Gid")?,
            groups: self.list("Groups", 10)?,
            capabilities: Capabilities {
                inheritable: self.one("CapInh", 16)?,
                permitted: self.one("CapPrm", 16)?,
                effective: self.one("CapEff", 16)?,
                bounding: self.one("CapBnd", 16)?,
                ambient: self.one("CapAmb", 16)?,
            },
            signals: SignalSets {
                pending: self.one("SigPnd", 16)?,
                shared_pending: self.one("ShdPnd", 16)?,
                blocked: self.one("SigBlk", 16)?,
                ignored: self.one("SigIgn", 16)?,
                caught: self.one("SigCgt", 16)?,
            },
            umask: self.one("Umask", 8),
            no_new_privs: self.one("NoNewPrivs", 10),
            seccomp: self.one("Seccomp", 10),
            seccomp_filters: self.one("Seccomp_filters", 10),
            ns_pids: self.list("NSpid", 10)?,
            kernel_thread: self.one("Kthread", 10),
            core_dumping: self.one("CoreDumping", 10),
            threads: self.one("Threads", 10)?,
            thp_enabled: self.one("THP_enabled", 10),
            locked_kib: self.kib("VmLck"),
            untag_mask: self.0.get(&b"untag_mask"[..]).and_then(|mask| number(mask.strip_prefix(b"0x")?, 16)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "Name:\ta\\nUid:\t9\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nNgid:\t0\nPid:\t7\nPPid:\t1\n\
        TracerPid:\t12\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t5\t5\t5\nFDSize:\t256\nGroups:\t4 24 1000 \nNSpid:\t7\t1\n\
        Threads:\t3\nSigQ:\t0/96343\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\nSigBlk:\t8000000000000000\n\
        SigIgn:\t0000000000001000\nSigCgt:\t0000000000000004\nCapInh:\t0000000000000000\nCapPrm:\t000001fffeffffff\n\
        CapEff:\t000001fffeffffff\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
        Seccomp_filters:\t3\nVmLck:\t      12 kB\nuntag_mask:\t0xffffffffffffff00\n";

    #[test]
    fn every_field_is_found() {
        let status = Status::parse(TEXT.as_bytes()).unwrap();
        assert_eq!((status.tgid, status.tracer, status.threads), (Pid(7), Tid(12), 3));
        assert_eq!(status.uid, Ids { real: 1000, effective: 1001, saved: 1002, fs: 1003 });
        assert_eq!(
            (status.groups.as_slice(), status.ns_pids.as_slice()),
            ([4, 24, 1000].as_slice(), [7, 1].as_slice())
        );
        assert_eq!((status.signals.pending, status.signals.shared_pending), (1, 2));
        assert_eq!(status.signals.blocked, 1 << 63);
        assert_eq!((status.umask, status.no_new_privs, status.seccomp), (Some(0o22), Some(1), Some(2)));
        assert_eq!((status.seccomp_filters, status.kernel_thread, status.core_dumping), (Some(3), None, None));
        assert_eq!(status.capabilities.bounding, 0x1ff_ffff_ffff);
        assert_eq!((status.locked_kib, status.untag_mask), (Some(12), Some(!0xff)));
    }

    #[test]
    fn this_process_is_readable() {
        let pid = Pid(std::process::id() as i32);
        let status = Status::read(pid).unwrap();
        assert_eq!(status.tgid, pid);
        assert_eq!(status.uid.effective, nix::unistd::geteuid().as_raw());
        assert!(status.umask.is_some() && !status.ns_pids.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, at in 0..TEXT.len(), with: u8) {
            let _ = Status::parse(&bytes);
            let mut text = TEXT.as_bytes().to_vec();
            text[at] = with;
            let _ = Status::parse(&text);
        }
    }
}
