//! The other threads of a task: made by its leader, each giving itself what is its own.

use std::os::fd::AsFd;

use crate::error::{Error, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::image::{Images, pb};
use crate::inject::batch::{Ask, Batch};
use crate::inject::restart::Pending;
use crate::inject::{Visit, nothing_left};
use crate::sys::process::{pidfd_open_thread, pidfd_send_signal};
use crate::sys::ptrace;
use crate::task::cpu::Processor;
use crate::task::{deadline, directories, leader, modes, seccomp, signals, thread};
use crate::trace::Stopped;

use super::build;
use super::inherited::Inherited;
use super::stubs::{OPTIONS, Stub, cannot_create, clone_args, infect};

/// What threads of one process share, but for one that has directories of its own. clone(2), CLONE_THREAD.
const FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Makes a thread of a task, which is stopped before it runs an instruction.
fn clone(stub: &mut Stub, number: Tid, flags: i32) -> Result<Stopped> {
    let mut batch = Batch::new();
    let args = clone_args(&mut batch, Pid(number.0), flags as u64, 0);
    let call = batch.call(libc::SYS_clone3, args);
    let (answers, thread) = stub.tracee.ask_for_child(batch)?;
    answers.result(call).map_err(|errno| cannot_create(Pid(number.0), errno))?;
    thread.ok_or(Error::Gone(Pid(number.0)))
}

/// Adds the calls by which a thread gives itself what is its own, but for its credentials.
fn restore(batch: &mut Batch, core: &pb::CoreEntry, own: &pb::PtyagentThread, inherited: &Inherited) {
    directories::restore(batch, own);
    thread::restore(batch, core, own, &inherited.affinity);
    modes::restore(batch, own);
}

/// Makes a thread of a task whose memory and descriptors are in place; it stays stopped, with its own registers.
///
/// The leader must not have given up the right to choose ids yet.
pub fn create(stub: &mut Stub, images: &Images, tid: u32, inherited: &Inherited, here: &Processor) -> Result<()> {
    let number = Tid(tid as i32);
    let missing = || Error::Gone(Pid(number.0));
    let core = images.cores.get(&tid).ok_or_else(missing)?;
    let own = images.own_thread(tid).cloned().unwrap_or_default();
    let flags = if own.cwd.is_some() { FLAGS & !libc::CLONE_FS } else { FLAGS };
    let thread = clone(stub, number, flags)?;
    let filters = seccomp::of_thread(images, stub.pid.0 as u32, tid)?;
    seccomp::suspend(&filters, &thread, OPTIONS)?;
    let mut guest = stub.tracee.visit(thread, &Visit { pending: Pending::Nothing, left: &nothing_left })?;
    seccomp::install(&mut guest, &filters)?;
    let mut batch = Batch::new();
    restore(&mut batch, core, &own, inherited);
    build::credentials(&mut batch, images, core, &own, inherited);
    let pid = stub.pid.0 as u32;
    let leader = images.cores.get(&pid).ok_or_else(missing)?;
    signals::with_room(&mut batch, leader, |batch| thread::restore_pending(batch, core, pid, tid));
    guest.ask(batch)?.all_done("setting up the thread", Subject::Tid(number))?;
    let last = build::last_state(images, core, tid, here, guest.original().xstate.len())?;
    stub.threads.push(guest.leave_as(&last, deadline::unfinished(core, Some(&own)).as_ref())?);
    Ok(())
}

/// Lets the main thread of a built task end the way it had ended, and puts thread `host`, made anew, into its place.
pub fn end_main(stub: Stub, images: &Images, host: u32, inherited: &Inherited) -> Result<Stub> {
    let handle = stub.pidfd.try_clone().map_err(|error| Error::io("copying", Subject::Pid(stub.pid), &error))?;
    let host = Tid(host as i32);
    change_host(stub, images, host, inherited).inspect_err(|_| {
        // Its process ends when it has.
        let _ = pidfd_send_signal(handle.as_fd(), libc::SIGKILL);
        let _ = ptrace::wait(host, ptrace::WaitMode::Block);
    })
}

fn change_host(mut stub: Stub, images: &Images, host: Tid, inherited: &Inherited) -> Result<Stub> {
    let pid = stub.pid.0 as u32;
    let parts = |tid: u32| images.cores.get(&tid).zip(images.own_thread(tid)).ok_or(Error::Gone(Pid(tid as i32)));
    let (core, own) = parts(pid)?;
    let thread = clone(&mut stub, host, FLAGS)?;
    let mut batch = Batch::new();
    modes::restore(&mut batch, own);
    build::credentials(&mut batch, images, core, own, inherited);
    signals::with_room(&mut batch, core, |batch| thread::restore_pending(batch, core, pid, pid));
    stub.run(batch, "setting up the main thread")?;
    let handle = pidfd_open_thread(host).map_err(|errno| Error::of_tid("pinning", host, errno))?;
    let main = stub.tracee.cure()?;
    let mut tracee = infect(stub.pid, &handle, thread, images.mm.get(&pid))?;
    let blocked = core.thread_core.as_ref().and_then(|thread| thread.blk_sigset).unwrap_or(0);
    leader::end(&mut tracee, main, own.exit_status.unwrap_or(0), blocked)?;
    stub = Stub { tracee, host, ..stub };
    let (core, own) = parts(host.0 as u32)?;
    let mut batch = Batch::new();
    restore(&mut batch, core, own, inherited);
    stub.run(batch, "setting up the thread")?;
    Ok(stub)
}

/// Lets the threads of a task go.
pub fn release(threads: Vec<Stopped>) -> Result<()> {
    for thread in threads {
        thread.set_options(ptrace::OPTIONS)?;
        thread.release()?;
    }
    Ok(())
}
