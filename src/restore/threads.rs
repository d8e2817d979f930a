//! The other threads of a task: made by its leader, each giving itself what is its own.

use crate::error::{Error, Result, Subject};
use crate::ids::{Pid, Tid};
use crate::image::Images;
use crate::inject::batch::{Ask, Batch};
use crate::inject::restart::Pending;
use crate::inject::{Visit, nothing_left};
use crate::sys::ptrace;
use crate::task::cpu::Processor;
use crate::task::{deadline, directories, modes, seccomp, signals, thread};
use crate::trace::Stopped;

use super::build;
use super::inherited::Inherited;
use super::stubs::{OPTIONS, Stub, cannot_create, clone_args};

/// What threads of one process share, but for one that has directories of its own. clone(2), CLONE_THREAD.
const FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Makes a thread of a task whose memory and descriptors are in place; it stays stopped, with its own registers.
///
/// The leader must not have given up the right to choose ids yet.
pub fn create(stub: &mut Stub, images: &Images, tid: u32, inherited: &Inherited, here: &Processor) -> Result<()> {
    let number = Tid(tid as i32);
    let missing = || Error::Gone(Pid(number.0));
    let core = images.cores.get(&tid).ok_or_else(missing)?;
    let own = images.own_thread(tid).cloned().unwrap_or_default();
    let flags = if own.cwd.is_some() { FLAGS & !libc::CLONE_FS } else { FLAGS };
    let mut batch = Batch::new();
    let args = clone_args(&mut batch, Pid(number.0), flags as u64, 0);
    let call = batch.call(libc::SYS_clone3, args);
    let (answers, thread) = stub.tracee.ask_for_child(batch)?;
    answers.result(call).map_err(|errno| cannot_create(Pid(number.0), errno))?;
    let thread = thread.ok_or_else(missing)?;
    let filters = seccomp::of_thread(images, stub.pid.0 as u32, tid)?;
    seccomp::suspend(&filters, &thread, OPTIONS)?;
    let mut guest = stub.tracee.visit(thread, &Visit { pending: Pending::Nothing, left: &nothing_left })?;
    seccomp::install(&mut guest, &filters)?;
    let mut batch = Batch::new();
    directories::restore(&mut batch, &own);
    thread::restore(&mut batch, core, &own, &inherited.affinity);
    modes::restore(&mut batch, &own);
    build::credentials(&mut batch, images, core, &own, inherited);
    let pid = stub.pid.0 as u32;
    let leader = images.cores.get(&pid).ok_or_else(missing)?;
    signals::with_room(&mut batch, leader, |batch| thread::restore_pending(batch, core, pid, tid));
    guest.ask(batch)?.all_done("setting up the thread", Subject::Tid(number))?;
    let last = build::last_state(images, core, tid, here, guest.original().xstate.len())?;
    stub.threads.push(guest.leave_as(&last, deadline::unfinished(core, Some(&own)).as_ref())?);
    Ok(())
}

/// Lets the threads of a task go.
pub fn release(threads: Vec<Stopped>) -> Result<()> {
    for thread in threads {
        thread.set_options(ptrace::OPTIONS)?;
        thread.release()?;
    }
    Ok(())
}
