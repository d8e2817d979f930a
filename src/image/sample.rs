//! A filled [`Images`] for tests: a shell on a pty with a stopped job, its master held by a third process.

use super::pb;
use super::{GhostContent, GhostFile, Images, Pagemap, PipeData, SkPacket};

/// What a test puts in pages-1.img: five pages.
pub fn pages() -> Vec<u8> {
    (0..5 * 4096u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect()
}

pub fn images() -> Images {
    let mut images = Images {
        inventory: pb::InventoryEntry { img_version: 2, fdinfo_per_id: Some(true), ..Default::default() },
        pstree: vec![process(100, 0, &[100]), process(101, 100, &[101, 102]), process(103, 101, &[103])],
        fdinfo: [(1, vec![fd(0, 10, pb::FdTypes::Tty), fd(5, 12, pb::FdTypes::Pipe)]), (2, table())].into(),
        files: files(),
        tty_info: vec![slave(), master()],
        tty_data: vec![pb::TtyDataEntry { tty_id: 6, data: b"make\npart".to_vec() }],
        pipes_data: vec![PipeData {
            entry: pb::PipeDataEntry { pipe_id: 7, bytes: 6, size: Some(65536) },
            data: b"in \xff\0!".to_vec(),
        }],
        fifo_data: vec![PipeData { entry: pb::PipeDataEntry { pipe_id: 8, bytes: 0, size: None }, data: vec![] }],
        locks: vec![pb::FileLockEntry { flag: 2, r#type: 1, pid: 101, fd: 3, start: 0, len: 0 }],
        remaps: vec![pb::RemapFilePathEntry {
            orig_id: 14,
            remap_id: 26,
            remap_type: Some(pb::RemapType::Ghost as i32),
        }],
        sk_queues: vec![SkPacket {
            entry: pb::SkPacketEntry { id_for: 15, length: 3, scm: vec![] },
            data: b"abc".to_vec(),
        }],
        seccomp: Some(pb::SeccompEntry { seccomp_filters: vec![] }),
        memfds: vec![pb::MemfdInodeEntry {
            name: "memfd:x".into(),
            size: 4096,
            inode_id: 3,
            shmid: 9,
            ..Default::default()
        }],
        segments: vec![pb::IpcShmEntry {
            desc: pb::IpcDescEntry { key: 7, id: 11, mode: 0o640, ..Default::default() },
            size: 100,
            in_pagemaps: Some(true),
        }],
        timens: [(0, pb::TimensEntry::default())].into(),
        stats: Some(pb::StatsEntry {
            dump: Some(pb::DumpStatsEntry { frozen_time: 12, ..Default::default() }),
            restore: None,
        }),
        own: Some(own()),
        ..Default::default()
    };
    for (pid, files_id) in [(100, 1), (101, 2), (103, 2)] {
        images.ids.insert(
            pid,
            pb::TaskKobjIdsEntry { vm_id: pid, files_id, fs_id: 1, sighand_id: pid, ..Default::default() },
        );
        images.fs.insert(pid, pb::FsEntry { cwd_id: 13, root_id: 13, umask: Some(0o22) });
        images.mm.insert(pid, mm());
        images.cores.insert(pid, core(pid, if pid == 103 { 3 } else { 1 }));
    }
    images.cores.insert(102, pb::CoreEntry { tc: None, ..core(102, 1) });
    let run = |vaddr, pages| pb::PagemapEntry::run(vaddr, pages, super::pagemap::PE_PRESENT);
    let head = pb::PagemapHead { pages_id: 1 };
    images.pagemaps.insert(101, Pagemap { head, entries: vec![run(0x40_0000, 2), run(0x7fff_0000, 3)] });
    images.shmem_pagemaps.insert(9, Pagemap { head, entries: vec![run(0, 1)] });
    let entry = pb::GhostFileEntry { mode: 0o10_0600, ..Default::default() };
    images.ghosts.insert(26, GhostFile { entry: entry.clone(), content: GhostContent::Whole(b"gone".to_vec()) });
    let entry = pb::GhostFileEntry { chunks: Some(true), size: Some(9000), ..entry };
    let content = GhostContent::Chunks(vec![(0, b"a".to_vec()), (8192, b"bc".to_vec())]);
    images.ghosts.insert(27, GhostFile { entry, content });
    images.creds.insert(101, pb::CredsEntry { uid: 1000, groups: vec![4, 24], ..Default::default() });
    images
}

fn process(pid: u32, ppid: u32, threads: &[u32]) -> pb::PstreeEntry {
    let (pgid, sid) = if pid == 100 { (100, 100) } else { (pid, 101) };
    pb::PstreeEntry { pid, ppid, pgid, sid, threads: threads.to_vec() }
}

fn fd(fd: u32, id: u32, kind: pb::FdTypes) -> pb::FdinfoEntry {
    pb::FdinfoEntry { id, flags: u32::from(fd == 255), r#type: kind as i32, fd, xattr_security_selinux: None }
}

fn table() -> Vec<pb::FdinfoEntry> {
    use pb::FdTypes::*;
    vec![fd(0, 11, Tty), fd(1, 11, Tty), fd(3, 14, Reg), fd(4, 16, Inetsk), fd(255, 11, Tty)]
}

fn file(id: u32, kind: pb::FdTypes) -> pb::FileEntry {
    pb::FileEntry { id, r#type: kind as i32, ..Default::default() }
}

fn files() -> Vec<pb::FileEntry> {
    use pb::FdTypes::*;
    let tty = |id, tty_info_id| pb::TtyFileEntry { id, tty_info_id, flags: 2, ..Default::default() };
    let reg =
        |id, name: &[u8]| pb::RegFileEntry { id, name: name.to_vec(), pos: 42, flags: 0o2001, ..Default::default() };
    let pipe = pb::PipeEntry { id: 12, pipe_id: 7, flags: 0, ..Default::default() };
    vec![
        pb::FileEntry { tty: Some(tty(10, 7)), ..file(10, Tty) },
        pb::FileEntry { tty: Some(tty(11, 6)), ..file(11, Tty) },
        pb::FileEntry { pipe: Some(pipe), ..file(12, Pipe) },
        pb::FileEntry { reg: Some(reg(13, b"/home/u")), ..file(13, Reg) },
        pb::FileEntry { reg: Some(reg(14, b"/tmp/not \xff utf-8")), ..file(14, Reg) },
        file(16, Inetsk),
    ]
}

fn mm() -> pb::MmEntry {
    let vma = pb::VmaEntry {
        start: 0x40_0000,
        end: 0x40_2000,
        prot: 5,
        flags: 2,
        status: 0x41,
        fd: -1,
        ..Default::default()
    };
    pb::MmEntry {
        mm_brk: 0x1000,
        exe_file_id: 13,
        mm_saved_auxv: vec![6, 4096, 0, 0],
        vmas: vec![vma],
        ..Default::default()
    }
}

fn core(tid: u32, task_state: u32) -> pb::CoreEntry {
    let gpregs = pb::UserX86RegsEntry { ip: 0x40_1000, sp: u64::MAX, ..Default::default() };
    let fpregs = pb::UserX86FpregsEntry { mxcsr: 0x1f80, st_space: vec![0; 32], ..Default::default() };
    let signals = pb::SignalQueueEntry { signals: vec![pb::SiginfoEntry { siginfo: vec![17; 128] }] };
    pb::CoreEntry {
        mtype: pb::core_entry::March::X8664 as i32,
        thread_info: Some(pb::ThreadInfoX86 { clear_tid_addr: 1, gpregs, fpregs, tls: vec![] }),
        tc: Some(pb::TaskCoreEntry {
            task_state,
            comm: format!("t{tid}").into(),
            signals_s: Some(signals),
            ..Default::default()
        }),
        ids: None,
        thread_core: Some(pb::ThreadCoreEntry {
            sched_nice: Some(-5),
            comm: Some(b"na\xefme".to_vec()),
            ..Default::default()
        }),
    }
}

fn slave() -> pb::TtyInfoEntry {
    pb::TtyInfoEntry {
        id: 6,
        r#type: pb::TtyType::Pty as i32,
        sid: 101,
        pgrp: 101,
        rdev: 0x8803,
        winsize: Some(pb::WinsizeEntry { ws_row: 24, ws_col: 80, ..Default::default() }),
        pty: Some(pb::TtyPtyEntry { index: 3 }),
        ..Default::default()
    }
}

fn master() -> pb::TtyInfoEntry {
    let pty = Some(pb::TtyPtyEntry { index: 3 });
    pb::TtyInfoEntry {
        id: 7,
        r#type: pb::TtyType::Pty as i32,
        packet_mode: true,
        rdev: 0x502,
        pty,
        ..Default::default()
    }
}

/// The termios of a fresh pty, with IXANY and VEOL set besides.
fn termios() -> pb::PtyagentTermios {
    let c_cc = b"\x03\x1c\x7f\x15\x04\x00\x01\x00\x11\x13\x1a\x01\x12\x0f\x17\x16\x00\x00\x00";
    pb::PtyagentTermios {
        c_iflag: Some(0o6400),
        c_oflag: Some(0o5),
        c_cflag: Some(0o277),
        c_lflag: Some(0o105073),
        c_line: Some(0),
        c_cc: Some(c_cc.to_vec()),
        c_ispeed: Some(38400),
        c_ospeed: Some(12345),
    }
}

fn own() -> pb::PtyagentEntry {
    let line = |data: &[u8], end: pb::PtyagentTerminator| pb::PtyagentLine {
        data: Some(data.to_vec()),
        terminator: Some(end as i32),
    };
    let queue = pb::PtyagentQueue {
        lines: vec![line(b"make\n", pb::PtyagentTerminator::Newline), line(b"", pb::PtyagentTerminator::Eof)],
        partial: Some(b"par\x1bt".to_vec()),
        lnext: Some(true),
        canonical: Some(true),
        ..Default::default()
    };
    let slave = pb::PtyagentTty {
        tty_info_id: Some(6),
        termios: Some(termios()),
        termios_locked: Some(pb::PtyagentTermios { c_lflag: Some(0o10), ..Default::default() }),
        flow: Some(pb::PtyagentFlow::Tcooff as i32),
        exclusive: Some(true),
        path: Some(b"/dev/pts/3".to_vec()),
        queue: Some(queue),
        ..Default::default()
    };
    let output = pb::PtyagentQueue { output: Some(b"$ \x1b[0m".to_vec()), ..Default::default() };
    let master = pb::PtyagentTty {
        tty_info_id: Some(7),
        master: Some(true),
        packet: Some(true),
        packet_status: Some(1),
        queue: Some(output),
        ..Default::default()
    };
    pb::PtyagentEntry {
        writer: Some("ptyagent test".into()),
        ttys: vec![slave, master],
        tasks: vec![pb::PtyagentTask {
            pid: Some(103),
            stop_signal: Some(20),
            ctty_tty_id: Some(6),
            ..Default::default()
        }],
        threads: vec![pb::PtyagentThread { tid: Some(102), xstate: Some(vec![7; 40]), ..Default::default() }],
        ofds: vec![pb::PtyagentOfd { id: Some(11), path: Some(b"/dev/pts/3".to_vec()), ..Default::default() }],
        cttys: vec![pb::PtyagentCtty { id: Some(1000), sid: Some(101), tty_info_id: Some(6), ..Default::default() }],
        losses: vec![pb::PtyagentLoss { pid: Some(101), fd: Some(4), text: Some("an inet socket is closed".into()) }],
        ..Default::default()
    }
}
