//! A directory that CRIU wrote: our own records are made from what its images say.
//!
//! CRIU notes of a terminal which session it controls, not which members of that have it: all are taken to have it, as it is where a session
//! has always had its terminal. It keeps no read boundaries, no speeds but those that the settings name, and no time that was left of a call.
//!
//! Refused by name: what CRIU's images say too little of for an exact restore, and what they hold that is not looked at. A directory without
//! digests is not known to be undamaged, beyond that its structure is whole.

use std::path::Path;

use crate::error::{Error, Result};
use crate::image::{Images, pb};
use crate::mem::status;

/// Mappings that CRIU and we describe alike.
const MAPPINGS: u32 = status::REGULAR
    | status::STACK
    | status::VSYSCALL
    | status::VDSO
    | status::HEAP
    | status::FILE_PRIVATE
    | status::FILE_SHARED
    | status::ANON_SHARED
    | status::ANON_PRIVATE
    | status::VVAR;
/// What a restore leaves as it is wherever a session is restored: the control groups of processes.
const IGNORED: [&str; 1] = ["cgroup.img"];

/// Adds our own records. `dir` is for messages.
pub fn complete(images: &mut Images, dir: &Path) -> Result<()> {
    refuse_unknown(images, dir)?;
    refuse_memory(images, dir)?;
    refuse_files(images, dir)?;
    let mut own = pb::PtyagentEntry {
        root_pid: images.pstree.first().map(|entry| entry.pid),
        tasks: images.pstree.iter().map(|entry| task(images, entry.pid)).collect(),
        ofds: images.files.iter().filter_map(description).collect(),
        ..Default::default()
    };
    for entry in &images.pstree {
        own.threads.extend(entry.threads.iter().map(|tid| thread(images, entry.pid, *tid)));
    }
    terminals(images, &mut own, dir)?;
    images.own = Some(own);
    Ok(())
}

fn refused(dir: &Path, what: impl AsRef<str>) -> Error {
    Error::image(dir, format!("it is CRIU's, and {}; restore it with criu, or dump with ptyagent", what.as_ref()))
}

fn refuse_unknown(images: &Images, dir: &Path) -> Result<()> {
    if let Some(name) = images.unknown.iter().find(|name| !IGNORED.contains(&name.as_str())) {
        return Err(refused(dir, format!("nothing is known of its {name}")));
    }
    let namespaces = |ids: &pb::TaskKobjIdsEntry| {
        [
            ids.pid_ns_id,
            ids.net_ns_id,
            ids.ipc_ns_id,
            ids.uts_ns_id,
            ids.mnt_ns_id,
            ids.user_ns_id,
            ids.cgroup_ns_id,
            ids.time_ns_id,
        ]
    };
    let outside = images.inventory.root_ids.as_ref().map(namespaces);
    match images.ids.iter().find(|(_, ids)| outside.is_some_and(|outside| outside != namespaces(ids))) {
        Some((pid, _)) => Err(refused(dir, format!("process {pid} has namespaces of its own"))),
        None => Ok(()),
    }
}

fn refuse_memory(images: &Images, dir: &Path) -> Result<()> {
    for (pid, mm) in &images.mm {
        if let Some(vma) = mm.vmas.iter().find(|vma| vma.status & !MAPPINGS != 0) {
            let (start, status) = (vma.start, vma.status);
            return Err(refused(dir, format!("process {pid} has memory of another kind ({status:#x}) at {start:#x}")));
        }
        if !mm.aios.is_empty() {
            return Err(refused(dir, format!("process {pid} has asynchronous I/O (io_setup)")));
        }
    }
    Ok(())
}

fn refuse_files(images: &Images, dir: &Path) -> Result<()> {
    use pb::FdTypes::{Fifo, Pipe, Reg, Tty};
    if let Some(file) = images.files.iter().find(|file| ![Reg, Pipe, Fifo, Tty].contains(&file.r#type())) {
        return Err(refused(dir, format!("its file {} is of the kind {}", file.id, file.r#type().as_str_name())));
    }
    if let Some(remap) = images.remaps.first() {
        return Err(refused(dir, format!("its file {} was removed", remap.orig_id)));
    }
    if let Some(data) = images.tty_data.iter().find(|data| !data.data.is_empty()) {
        let (id, len) = (data.tty_id, data.data.len());
        return Err(refused(dir, format!("{len} unread bytes of its terminal {id} have lost their read boundaries")));
    }
    Ok(())
}

fn task(images: &Images, pid: u32) -> pb::PtyagentTask {
    let core = images.cores.get(&pid).and_then(|core| core.tc.as_ref());
    pb::PtyagentTask {
        pid: Some(pid),
        oom_score_adj: core.and_then(|core| core.oom_score_adj),
        dumpable: images.mm.get(&pid).and_then(|mm| mm.dumpable).map(|dumpable| dumpable as u32),
        child_subreaper: core.and_then(|core| core.child_subreaper),
        stop_signal: core.and_then(|core| core.stop_signo).filter(|signal| *signal != 0),
        ..Default::default()
    }
}

fn thread(images: &Images, pid: u32, tid: u32) -> pb::PtyagentThread {
    let creds = images.cores.get(&tid).and_then(|core| core.thread_core.as_ref()?.creds.as_ref());
    let creds = creds.or(images.creds.get(&pid));
    let words = |creds: &pb::CredsEntry| {
        let word = |at: usize| u64::from(creds.cap_amb.get(at).copied().unwrap_or(0));
        word(0) | word(1) << 32
    };
    pb::PtyagentThread {
        tid: Some(tid),
        pid: Some(pid),
        cap_ambient: creds.map(words),
        no_new_privs: creds.and_then(|creds| creds.no_new_privs).map(|flag| flag != 0),
        ..Default::default()
    }
}

/// An open file description of a kind that is not refused.
fn description(file: &pb::FileEntry) -> Option<pb::PtyagentOfd> {
    let reg = file.reg.as_ref().map(|reg| (reg.flags, reg.fown));
    let pipe = file.pipe.as_ref().map(|pipe| (pipe.flags, pipe.fown));
    let tty = file.tty.as_ref().map(|tty| (tty.flags, tty.fown));
    let (flags, fown) = reg.or(pipe).or(tty)?;
    let owner = (fown.pid != 0).then_some(fown);
    Some(pb::PtyagentOfd {
        id: Some(file.id),
        flags: Some(flags),
        owner_type: owner.map(|owner| owner.pid_type),
        owner_pid: owner.map(|owner| owner.pid as i32),
        owner_uid: owner.map(|owner| owner.uid),
        owner_euid: owner.map(|owner| owner.euid),
        owner_signal: Some(fown.signum),
        ..Default::default()
    })
}

fn terminals(images: &mut Images, own: &mut pb::PtyagentEntry, dir: &Path) -> Result<()> {
    for info in &images.tty_info {
        own.ttys.push(terminal(info, dir)?);
    }
    let is_there = |id: u32| images.tty_info.iter().any(|info| info.id == id);
    let lonely: Vec<u32> = images.tty_info.iter().map(|info| info.id).filter(|id| !is_there(id | 1)).collect();
    for id in lonely {
        // Its master was outside the tree: the restore stands in for it.
        let master = images.tty(id).map(|slave| pb::TtyInfoEntry { id: id | 1, ..slave.clone() });
        images.tty_info.extend(master);
        let (tty_info_id, yes) = (Some(id | 1), Some(true));
        own.ttys.push(pb::PtyagentTty { tty_info_id, master: yes, external: yes, ..Default::default() });
    }
    for info in images.tty_info.iter().filter(|info| info.id % 2 == 0 && info.sid != 0) {
        let members = images.pstree.iter().filter(|entry| entry.sid == info.sid).map(|entry| entry.pid);
        let members: Vec<u32> = members.collect();
        for task in own.tasks.iter_mut().filter(|task| members.contains(&task.pid.unwrap_or(0))) {
            task.ctty_tty_id = Some(info.id);
        }
        if members.contains(&info.sid) {
            own.cttys.push(pb::PtyagentCtty {
                sid: Some(info.sid),
                tty_info_id: Some(info.id),
                members,
                foreground_pgrp: Some(info.pgrp),
                ..Default::default()
            });
        }
    }
    Ok(())
}

/// The state of one peer.
fn terminal(info: &pb::TtyInfoEntry, dir: &Path) -> Result<pb::PtyagentTty> {
    let of_kind = |what: &str| Err(refused(dir, format!("its terminal {} {what}", info.id)));
    let index = info.pty.as_ref().map(|pty| pty.index);
    if info.r#type() != pb::TtyType::Pty || index != Some(info.id / 2) {
        return of_kind("is no pseudoterminal that its processes opened by its own name");
    }
    let Some(termios) = &info.termios else { return of_kind("was hung up") };
    if termios.c_cflag & libc::CBAUD == libc::BOTHER {
        return of_kind("has a speed of its own, which CRIU does not record");
    }
    let winsize = info.winsize.as_ref();
    Ok(pb::PtyagentTty {
        tty_info_id: Some(info.id),
        master: Some(info.id % 2 == 1),
        termios: Some(settings(termios)),
        termios_locked: info.termios_locked.as_ref().map(settings),
        uid: info.uid,
        gid: info.gid,
        locked: Some(info.locked),
        packet: Some(info.packet_mode),
        exclusive: Some(info.exclusive),
        hung_up: Some(false),
        session: Some(info.sid).filter(|sid| *sid != 0),
        foreground_pgrp: Some(info.pgrp),
        ws_row: winsize.map(|size| size.ws_row),
        ws_col: winsize.map(|size| size.ws_col),
        ws_xpixel: winsize.map(|size| size.ws_xpixel),
        ws_ypixel: winsize.map(|size| size.ws_ypixel),
        ..Default::default()
    })
}

/// The kernel works out the speeds from c_cflag.
fn settings(entry: &pb::TermiosEntry) -> pb::PtyagentTermios {
    pb::PtyagentTermios {
        c_iflag: Some(entry.c_iflag),
        c_oflag: Some(entry.c_oflag),
        c_cflag: Some(entry.c_cflag),
        c_lflag: Some(entry.c_lflag),
        c_line: Some(entry.c_line),
        c_cc: Some(entry.control_characters().to_vec()),
        c_ispeed: Some(entry.c_ispeed),
        c_ospeed: Some(entry.c_ospeed),
    }
}
