//! What stands in the way, each with one sentence that names it and says what to do.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Alive, Life, Survey, TaskFacts};
use crate::error::{Errno, Error, Refusal, Result};
use crate::ids::{Pgid, Pid, Sid, Tid};
use crate::mem::segment;
use crate::procfs::{self, Mapping, Namespaces, Sharing, Stat, State, Status, attributes, tree};
use crate::sys::process::{KcmpType, kcmp};
use crate::task::{freeze, leader, sharing};

pub(super) fn refuse<T>(pid: Pid, comm: String, kind: impl Into<String>, remedy: impl Into<String>) -> Result<T> {
    Err(Error::Refused(Refusal { pid, comm, fd: None, kind: kind.into(), remedy: remedy.into() }))
}

/// The comm of a process for a message.
fn name_of(pid: Pid) -> String {
    Stat::read(pid).map_or_else(|_| "unknown".to_owned(), |stat| stat.comm_text())
}

/// What is wrong with the process that the user named, before anything below it is looked at.
pub(super) fn refuse_root(root: Pid) -> Result<()> {
    let missing = |error: Error| match error {
        Error::Gone(_) => Error::failed(format!("there is no process {root}; list the candidates with ps")),
        other => other,
    };
    if root.0 <= 0 {
        return Err(missing(Error::Gone(root)));
    }
    let (stat, status) = (Stat::read(root).map_err(missing)?, Status::read(root).map_err(missing)?);
    let comm = stat.comm_text();
    if status.tgid != root {
        return Err(Error::failed(format!("{root} is a thread of process {0}; name {0} instead", status.tgid)));
    }
    if root == Pid(1) {
        return refuse(root, comm, "the init process of this system or container", "name a session leader instead");
    }
    if stat.is_kernel_thread() {
        return refuse(root, comm, "a kernel thread, which has no session", "name a session leader instead");
    }
    if stat.state.is_dead() && stat.num_threads <= 1 {
        return refuse(root, comm, "a zombie, which has nothing left to save", "name a living process instead");
    }
    match ancestors()?.contains(&root) {
        true => refuse(root, comm, "the tree that this very command runs in", "run it from another terminal"),
        false => refuse_yama(&stat),
    }
}

/// Ourselves and who we descend from.
fn ancestors() -> Result<Vec<Pid>> {
    let mut line = vec![Pid(nix::unistd::getpid().as_raw())];
    while let Some(parent) = line.last().copied().map(Stat::read).transpose()?.map(|stat| stat.ppid) {
        if parent.0 <= 0 || line.contains(&parent) {
            break;
        }
        line.push(parent);
    }
    Ok(line)
}

/// The Yama module may forbid attaching to processes that are not ours by birth. Documentation/admin-guide/LSM/Yama.rst.
fn refuse_yama(stat: &Stat) -> Result<()> {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let ours = Status::read(Pid(nix::unistd::getpid().as_raw()))?;
    let privileged = ours.capabilities.effective & CAP_SYS_PTRACE != 0;
    match scope.trim() {
        "3" => Err(Error::failed("kernel.yama.ptrace_scope is 3: nothing can be attached to until the next boot")),
        "1" | "2" if !privileged => Err(Error::failed(format!(
            "kernel.yama.ptrace_scope does not let this user attach to process {} ({}); run it as root, or set it to 0",
            stat.pid,
            stat.comm_text()
        ))),
        _ => Ok(()),
    }
}

/// Turns a plain denial into whose process it is and who may look.
pub(super) fn explain_denial(pid: Pid, error: Error) -> Error {
    let Error::Sys { errno: Errno::EACCES | Errno::EPERM, .. } = error else { return error };
    let Ok(status) = Status::read(pid) else { return error };
    let uid = nix::unistd::Uid::from_raw(status.uid.effective);
    let user = nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| format!("user {uid}"), |user| user.name);
    let comm = name_of(pid);
    Error::failed(match uid == nix::unistd::geteuid() {
        true => format!(
            "process {pid} ({comm}) hides itself from its own user (it was set-uid or asked for it); run this as root"
        ),
        false => format!("process {pid} ({comm}) belongs to {user}; run this as {user} or as root"),
    })
}

/// What makes running code in the process impossible.
pub(super) fn refuse_uninjectable(survey: &Survey, task: &TaskFacts) -> Result<()> {
    let (pid, comm) = (task.pid, task.comm());
    if task.status.tracer.0 != 0 {
        let tracer = task.status.tracer;
        let kind = format!("already traced by process {tracer} ({})", name_of(Pid(tracer.0)));
        return refuse(pid, comm, kind, "detach that debugger, then try again");
    }
    if task.status.core_dumping == Some(1) {
        return refuse(pid, comm, "it is writing a core dump", "wait until it has ended, then try again");
    }
    if matches!(task.life, Life::Zombie { .. }) {
        return Ok(());
    }
    if task.has_lost_leader() {
        leader::refuse_unseen(task)?;
    }
    refuse_strict_seccomp(task)?;
    if task.threads.iter().any(|tid| waits_in_vfork(pid, *tid)) {
        let children = survey.tasks.iter().filter(|child| child.stat.ppid == pid).map(|child| child.pid);
        return Err(in_vfork(pid, task.body, children));
    }
    match still_in_disk_sleep(task)? {
        true => refuse(
            pid,
            comm,
            "it sleeps uninterruptibly in the kernel",
            "wait until the device answers, then try again",
        ),
        false => Ok(()),
    }
}

/// Strict mode admits no call of ours; filters are evaluated later.
fn refuse_strict_seccomp(task: &TaskFacts) -> Result<()> {
    const STRICT: Option<u32> = Some(1);
    let (pid, comm, remedy) = (task.pid, task.comm(), "end that program, then try again");
    if task.status.seccomp == STRICT {
        return refuse(pid, comm, "it runs in strict seccomp mode", remedy);
    }
    for tid in task.threads.iter().filter(|_| task.threads.len() > 1) {
        match Status::read_thread(pid, *tid) {
            Ok(status) if status.seccomp == STRICT => {
                return refuse(pid, comm, format!("its thread {tid} runs in strict seccomp mode"), remedy);
            }
            Ok(_) | Err(Error::Gone(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a thread waits for the child that it made with vfork. The kernel's function that waits may be part of its caller, where nothing
/// else waits.
pub fn waits_in_vfork(pid: Pid, tid: Tid) -> bool {
    attributes::wchan(pid, tid).is_ok_and(|wchan| wchan.contains("vfork") || wchan == "kernel_clone")
        && Stat::read_thread(pid, tid).is_ok_and(|stat| stat.state == State::DiskSleep)
}

/// The refusal of a process of which a thread waits in vfork for one of these children; `body` is any living thread of it.
///
/// Such a thread comes to no stop before its child has started a program or ended, so that nobody is told its registers, and no call can be
/// made in it to ask for its signal handlers: the two could be copied only in part.
pub fn in_vfork(pid: Pid, body: Tid, children: impl IntoIterator<Item = Pid>) -> Error {
    const START: &str = "try again when the child has started its program";
    let shares = |child: &Pid| kcmp(body, (*child).into(), KcmpType::Vm, 0, 0).is_ok_and(|order| order.is_eq());
    let (child, remedy) = match children.into_iter().find(shares) {
        Some(child) => (format!(" {child} ({})", name_of(child)), format!("{START}, or end it (kill {child})")),
        None => (String::new(), START.to_owned()),
    };
    let kind = format!("it waits in vfork for its child{child}");
    Error::InVfork(Refusal { pid, comm: name_of(pid), fd: None, kind, remedy })
}

/// Page faults and disk reads show this state for moments: it counts only when it lasts as long as a stop may.
fn still_in_disk_sleep(task: &TaskFacts) -> Result<bool> {
    let mut state = task.stat.state;
    for _ in 0..freeze::LOOKS {
        if state != State::DiskSleep {
            return Ok(false);
        }
        std::thread::sleep(freeze::LOOK);
        state = match Stat::read(task.pid) {
            Ok(stat) => stat.state,
            Err(Error::Gone(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
    }
    Ok(state == State::DiskSleep)
}

/// Refuses the first thing in the tree that a dump cannot carry, threads and outsiders apart.
pub fn refuse_unsupported(survey: &Survey) -> Result<()> {
    let ours = Namespaces::read(Pid(nix::unistd::getpid().as_raw()))?;
    for task in &survey.tasks {
        refuse_leaders(survey, task)?;
    }
    for (task, alive) in survey.living() {
        if task.has_lost_leader() {
            leader::refuse_unsupported(task)?;
        }
        refuse_surroundings(task, alive, &ours)?;
        for mapping in &alive.maps {
            refuse_mapping(task, mapping)?;
        }
        for descriptor in &alive.descriptors {
            descriptor.refuse_unsupported(task.pid, &task.comm())?;
        }
    }
    refuse_sharing(survey)
}

/// A session or group whose leader lives outside the tree cannot be made again. One whose leader is dead can.
fn refuse_leaders(survey: &Survey, task: &TaskFacts) -> Result<()> {
    let (session, group) = (Pid(task.stat.session.0), Pid(task.stat.pgrp.0));
    let (pid, comm) = (task.pid, task.comm());
    if session.0 == 0 || group.0 == 0 {
        let remedy = "start the session inside this container, or dump it from outside";
        return refuse(pid, comm, "its session was begun in an outer pid namespace", remedy);
    }
    let lives_outside = |leader: Pid| !survey.contains(leader) && procfs::path(leader, "stat").exists();
    if lives_outside(session) {
        let kind = format!("its session leader {session} ({}) is not part of the tree", name_of(session));
        return refuse(pid, comm, kind, format!("dump the leader instead: ptyagent dump --inject {session}"));
    }
    if lives_outside(group) {
        let kind = format!("its process group leader {group} ({}) is not part of the tree", name_of(group));
        return refuse(pid, comm, kind, format!("dump the common parent of {pid} and {group} instead"));
    }
    Ok(())
}

fn refuse_surroundings(task: &TaskFacts, alive: &Alive, namespaces: &Namespaces) -> Result<()> {
    let (pid, comm) = (task.pid, task.comm());
    let differences = alive.namespaces.differences(namespaces);
    if !differences.is_empty() {
        let kind = format!("it is in another namespace than ptyagent ({})", differences.join(", "));
        let remedy = format!("run ptyagent inside its container (nsenter -t {pid} -m -p ptyagent dump ...)");
        return refuse(pid, comm, kind, remedy);
    }
    if procfs::is_memfd(&alive.exe) {
        return refuse(pid, comm, "its program is a memory file (memfd)", "end that program, then dump again");
    }
    if task.status.untag_mask.is_some_and(|mask| mask != u64::MAX) {
        let kind = "it keeps tags in its addresses (ARCH_ENABLE_TAGGED_ADDR)";
        return refuse(pid, comm, kind, "end that program, then dump again");
    }
    if procfs::is_of_process(&alive.cwd) {
        let kind = format!("its working directory is that of a process ({})", Path::new(&alive.cwd).display());
        return refuse(pid, comm, kind, "change to another directory, then dump again");
    }
    let identity = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    // A process that has just ended has neither directory; the look at the frozen tree decides about it.
    let ours = identity(Path::new("/"));
    let seen = Pid(task.body.0);
    if identity(&procfs::path(seen, "root")).is_some_and(|root| Some(root) != ours) {
        let kind = format!("it has a root directory of its own ({})", Path::new(&alive.root).display());
        return refuse(pid, comm, kind, "run ptyagent under the same root (chroot)");
    }
    let (cwd, by_path) = (identity(&procfs::path(seen, "cwd")), identity(Path::new(&alive.cwd)));
    if cwd.is_some() && cwd != by_path && (by_path.is_some() || is_deleted(&alive.cwd)) {
        return refuse(
            pid,
            comm,
            "its working directory was removed or replaced",
            "change to another directory, then dump again",
        );
    }
    Ok(())
}

fn is_deleted(link: &std::ffi::OsStr) -> bool {
    link.as_bytes().ends_with(b" (deleted)")
}

/// Mappings of things that are neither memory, nor plain files, nor the kernel's own pages.
fn refuse_mapping(task: &TaskFacts, mapping: &Mapping) -> Result<()> {
    match mapping_kind(mapping) {
        Some((kind, remedy)) => {
            refuse(task.pid, task.comm(), format!("its mapping at {} is {kind}", mapping.start), remedy)
        }
        None => refuse_removed(task, mapping),
    }
}

/// A removed file is kept if it can be read, and has no other name.
fn refuse_removed(task: &TaskFacts, mapping: &Mapping) -> Result<()> {
    let has_name = mapping.name.as_bytes().starts_with(b"/") && mapping.name != "/dev/zero";
    if !mapping.deleted || !has_name || segment::is_view(mapping) {
        return Ok(());
    }
    let refuse = |remedy: &str| {
        let kind =
            format!("its mapping at {} is the removed file {}", mapping.start, Path::new(&mapping.name).display());
        refuse(task.pid, task.comm(), kind, remedy)
    };
    match std::fs::metadata(mapping.link(Pid(task.body.0))) {
        Ok(file) if file.nlink() == 0 => Ok(()),
        Ok(_) => refuse("restart that program (its file was replaced and has another name now), then dump again"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => refuse("run as root (reading it needs CAP_CHECKPOINT_RESTORE), or restart that program"),
    }
}

pub(super) fn mapping_kind(mapping: &Mapping) -> Option<(String, &'static str)> {
    const END: &str = "end the program that uses it, then dump again";
    let name = mapping.name.as_bytes();
    let flag = |flag: &[u8; 2]| mapping.flags.as_ref().is_some_and(|flags| flags.has(flag));
    let special = name.starts_with(b"[v");
    let display = Path::new(&mapping.name).display();
    let kind = match name {
        b"[uprobes]" => {
            return Some(("a page of uprobes".to_owned(), "remove the probes on its program, then dump again"));
        }
        _ if flag(b"ht") || name.starts_with(b"/anon_hugepage") => "memory of explicit huge pages (hugetlb)".to_owned(),
        _ if name.starts_with(b"anon_inode:[io_uring]") => "the ring of an io_uring instance".to_owned(),
        _ if flag(b"um") || flag(b"uw") || flag(b"ui") => "watched by a userfaultfd".to_owned(),
        _ if flag(b"ss") => "a shadow stack".to_owned(),
        _ if mapping.protection_key.is_some() => "protected by a memory protection key (pkeys)".to_owned(),
        b"/dev/zero" if mapping.sharing == Sharing::Private || mapping.deleted => return None,
        _ if segment::is_view(mapping) => return None,
        _ if name.starts_with(b"/secretmem") => "secret memory (memfd_secret)".to_owned(),
        _ if name.starts_with(b"/[aio]") => "the ring of asynchronous I/O (io_setup)".to_owned(),
        _ if is_device(mapping) || (!special && (flag(b"io") || flag(b"pf"))) => format!("a device ({display})"),
        _ if mapping.inode != 0 && !name.starts_with(b"/") && !name.starts_with(b"[") => {
            format!("an object ({display})")
        }
        _ => return None,
    };
    Some((kind, END))
}

fn is_device(mapping: &Mapping) -> bool {
    mapping.name.as_bytes().starts_with(b"/dev/")
        && std::fs::metadata(&mapping.name).is_ok_and(|file| {
            let kind = file.file_type();
            (kind.is_char_device() || kind.is_block_device()) && mapping.name != "/dev/zero"
        })
}

/// Processes that share memory with each other, and a root that shares anything with its parent (clone without fork's copies).
fn refuse_sharing(survey: &Survey) -> Result<()> {
    let remedy = "try again in a moment, or end one of the two";
    let bodies: Vec<Tid> = survey.living().map(|(task, _)| task.body).collect();
    let sharers = sharing::groups(&bodies, KcmpType::Vm)?.into_iter().find(|(tid, first)| tid != first);
    if let Some((Tid(b), Tid(a))) = sharers {
        let (a, b) = (Pid(a), Pid(b));
        let kind = format!("it shares its memory with process {b} ({})", name_of(b));
        return refuse(a, name_of(a), kind, remedy);
    }
    let Some(root) = survey.task(survey.root) else { return Ok(()) };
    let parent = root.stat.ppid;
    for (kind, what) in
        [(KcmpType::Vm, "memory"), (KcmpType::Files, "descriptor table"), (KcmpType::Fs, "working directory and umask")]
    {
        // Of a parent that we may not look at nothing is known; it is another user's, who is no maker of such children.
        if kcmp(root.body, parent.into(), kind, 0, 0).is_ok_and(|order| order.is_eq()) {
            let kind = format!("it shares its {what} with its parent {parent} ({}), outside the tree", name_of(parent));
            return refuse(root.pid, root.comm(), kind, remedy);
        }
    }
    Ok(())
}

/// Refuses a process outside the tree that is a member of one of its sessions or groups: the number would stay taken when the tree is
/// killed, and no restore could have it.
pub fn refuse_outsiders(survey: &Survey) -> Result<()> {
    let sessions: BTreeMap<Sid, Pid> = survey.tasks.iter().map(|task| (task.stat.session, task.pid)).collect();
    let groups: BTreeMap<Pgid, Pid> = survey.tasks.iter().map(|task| (task.stat.pgrp, task.pid)).collect();
    for pid in tree::all()?.into_iter().filter(|pid| !survey.contains(*pid)) {
        let Ok(stat) = Stat::read(pid) else { continue };
        let is_member = sessions.contains_key(&stat.session) || groups.contains_key(&stat.pgrp);
        // What is in the tree by birth is only younger than the survey.
        if is_member && !survey.contains(stat.ppid) {
            let kind = "a member of the session that is not below its leader";
            let remedy = format!("end it (kill {pid}) or start it with setsid, then dump again");
            return refuse(pid, stat.comm_text(), kind, remedy);
        }
    }
    Ok(())
}
