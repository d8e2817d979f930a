//! The steps of a plan, each as it is done.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use crate::error::{Context, Error, Result, Subject};
use crate::files::restore::Opened;
use crate::files::socket::make::{self, Records};
use crate::files::{epoll, inotify, locks, owner};
use crate::ids::{Pid, PtyIndex, Tid};
use crate::image::{Images, Kind, pb};
use crate::inject::batch::{Ask, Batch};
use crate::mem::shared::Made;
use crate::mem::vdso::Vdsos;
use crate::plan::{Birth, Plan, Step};
use crate::sys::tty;
use crate::task::cgroup::Mover;
use crate::task::cpu::Processor;
use crate::task::record::STOPPED;
use crate::task::{deadline, seccomp, thread};
use crate::trace::Stopped;
use crate::tty::restore::Pairs;

use super::build::{self, Means};
use super::inherited::Inherited;
use super::stop::{await_stop, stop_action};
use super::stubs::{self, Stub, Stubs};
use super::{Report, Request, Restored, memory, threads};

/// What has been made of a session so far.
pub struct Execution<'a> {
    request: &'a Request,
    images: &'a Images,
    plan: &'a Plan,
    pairs: Pairs,
    opened: Opened,
    notes: Vec<String>,
    shared: Made,
    cgroups: Mover,
    vdsos: Vdsos,
    processor: Processor,
    stubs: Stubs,
    pub inherited: Inherited,
}

impl Execution<'_> {
    /// Nothing is created yet; the page files are opened.
    pub fn begin<'a>(
        request: &'a Request,
        images: &'a Images,
        plan: &'a Plan,
        processor: Processor,
    ) -> Result<Execution<'a>> {
        let mut opened = Opened::new(request.changed);
        for (pid, slot) in &plan.slots.pages {
            let id = images.pagemaps.get(pid).map_or(*pid, |pagemap| pagemap.head.pages_id);
            opened.open_pages(&request.dir.join(Kind::Pages(id).name()), *slot)?;
        }
        Ok(Execution {
            request,
            images,
            plan,
            pairs: Pairs::default(),
            opened,
            notes: Vec::new(),
            shared: Made::default(),
            cgroups: Mover::default(),
            vdsos: Vdsos::read(images, &request.dir)?,
            processor,
            stubs: Stubs::default(),
            inherited: Inherited::here()?,
        })
    }

    pub fn run(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::OpenTerminal { index } => self.pairs.open(self.images, *index, self.request.index),
            Step::MakeShared { id } => self.shared.make(self.images, &self.request.dir, *id),
            Step::MakeMemoryFile { id } => {
                let inode = self.images.memfds.iter().find(|inode| inode.inode_id == *id);
                let inode = inode.ok_or_else(|| Error::failed("a memory file that is not in the images"))?;
                self.opened.memfds.make(self.images, &self.request.dir, inode)
            }
            Step::OpenPipe { pipe } => self.opened.pipes.make(self.images, *pipe),
            Step::OpenFile { id } => self.open_file(*id),
            Step::Socket(step) => {
                let records = Records { images: self.images, slots: &self.plan.slots.files };
                make::run(&mut self.opened, records, step)
            }
            Step::Create { pid, birth } => self.create(*pid, *birth),
            Step::CreateHelper { pid, maker } => {
                self.stubs.create(self.images, *pid, Birth::Child { maker: *maker }, libc::SIGCHLD)
            }
            Step::StartSession { pid } => self.one_call(*pid, libc::SYS_setsid, [0, 0], "starting a session"),
            Step::JoinGroup { pid, pgid } => {
                self.one_call(*pid, libc::SYS_setpgid, [0, u64::from(*pgid)], "joining a process group")
            }
            Step::TakeTerminal { leader, tty } => self.take_terminal(*leader, *tty),
            Step::OpenDevTty { pid, id } => self.open_dev_tty(*pid, *id),
            Step::EndHelper { pid, maker } => self.end_helper(*pid, *maker),
            Step::SetForeground { leader, tty, pgid } => self.set_foreground(*leader, *tty, *pgid),
            Step::Map { pid, from } => {
                let (stub, means) = self.site(*pid)?;
                memory::build(stub, &means, *from)
            }
            Step::Build { pid } => {
                let (stub, means) = self.site(*pid)?;
                build::build(stub, &means)?;
                // Filters are suspended until the task is let go; before the credentials there is the right to install them.
                seccomp::restore_common(&mut stub.tracee, means.images, *pid, stubs::OPTIONS)
            }
            Step::CreateThread { pid, tid } => {
                threads::create(self.stubs.get(*pid)?, self.images, *tid, &self.inherited, &self.processor)
            }
            Step::EndMainThread { pid, host } => {
                let stub = threads::end_main(self.stubs.take(*pid)?, self.images, *host, &self.inherited)?;
                self.stubs.put(stub);
                Ok(())
            }
            Step::Identify { pid } => {
                let stub = self.stubs.get(*pid)?;
                seccomp::restore_host(&mut stub.tracee, self.images, *pid, stubs::OPTIONS)?;
                build::identify(stub, self.images, &self.inherited)
            }
            Step::Die { pid, status } => self.die(*pid, *status),
            Step::HangUp { index } => {
                self.pairs.hang_up(*index);
                Ok(())
            }
            Step::FillEpoll { pid } => {
                epoll::fill(&mut self.stubs.get(*pid)?.tracee, self.images, &self.plan.slots, *pid)
            }
            Step::TakeLocks { pid } => locks::take(&mut self.stubs.get(*pid)?.tracee, self.images, *pid),
            Step::HandOver => self.hand_over(),
            Step::FillQueues { index } => self.fill_queues(*index),
            Step::ArmTerminal { index } => self.pairs.arm(self.images, *index),
            Step::QueueSignals { pid } => self.queue_signals(*pid),
            Step::Release { pid } => self.release(*pid),
        }
    }

    fn slot(&self, id: u32) -> Result<i32> {
        self.plan
            .slots
            .files
            .get(&id)
            .copied()
            .ok_or_else(|| Error::failed(format!("file {id} has no place in the plan")))
    }

    fn open_file(&mut self, id: u32) -> Result<()> {
        let slot = self.slot(id)?;
        let file = self.images.file(id).ok_or_else(|| Error::failed(format!("file {id} is not in the images")))?;
        match &file.tty {
            Some(tty) => self.opened.place(slot, self.pairs.describe(tty)?),
            None => self.opened.open_file(self.images, file, slot),
        }
    }

    fn create(&mut self, pid: u32, birth: Birth) -> Result<()> {
        let exit_signal = self.images.own_task(pid).and_then(|own| own.exit_signal).unwrap_or(libc::SIGCHLD as u32);
        self.stubs.create(self.images, pid, birth, exit_signal as i32)
    }

    fn one_call(&mut self, pid: u32, nr: i64, args: [u64; 2], operation: &'static str) -> Result<()> {
        let stub = self.stubs.get(pid)?;
        let mut batch = Batch::new();
        batch.must(nr, args.map(Into::into));
        stub.run(batch, operation)
    }

    /// The leader runs TIOCSCTTY on the service descriptor, which only the restore and its stubs have.
    fn take_terminal(&mut self, leader: u32, tty: u32) -> Result<()> {
        let service = self.pairs.service(tty)?.as_raw_fd();
        let stub = self.stubs.get(leader)?;
        let mut batch = Batch::new();
        batch.must(libc::SYS_ioctl, [service.into(), tty::TIOCSCTTY.into(), 0u64.into()]);
        stub.run(batch, "taking the controlling terminal")
    }

    fn open_dev_tty(&mut self, pid: u32, id: u32) -> Result<()> {
        let slot = self.slot(id)?;
        let flags = self.images.own_ofd(id).and_then(|own| own.flags).unwrap_or(libc::O_RDWR as u32) as i32;
        let stub = self.stubs.get(pid)?;
        let mut batch = Batch::new();
        let path = batch.input(b"/dev/tty\0");
        let flags = (flags & !(libc::O_ASYNC | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC)) | libc::O_NOCTTY;
        let opened = batch.must(libc::SYS_openat, [libc::AT_FDCWD.into(), path.into(), flags.into(), 0u64.into()]);
        batch.must(libc::SYS_dup3, [opened.into(), slot.into(), libc::O_CLOEXEC.into()]);
        batch.must(libc::SYS_close, [opened.into()]);
        stub.run(batch, "opening /dev/tty")
    }

    fn end_helper(&mut self, pid: u32, maker: u32) -> Result<()> {
        let helper = self.stubs.take(pid)?;
        crate::sys::process::pidfd_send_signal(helper.pidfd.as_fd(), libc::SIGKILL)
            .map_err(|errno| Error::of_pid("ending a helper", helper.pid, errno))?;
        helper.tracee.forget_killed();
        crate::sys::ptrace::wait(helper.pid.into(), crate::sys::ptrace::WaitMode::Block)
            .during("ending a helper", Subject::Pid(helper.pid))?;
        self.reap_in(maker, pid)
    }

    /// The maker reaps its child.
    fn reap_in(&mut self, maker: u32, pid: u32) -> Result<()> {
        let stub = self.stubs.get(maker)?;
        let mut batch = Batch::new();
        let status = batch.output(8);
        batch.must(libc::SYS_wait4, [u64::from(pid).into(), status.into(), libc::__WALL.into(), 0u64.into()]);
        stub.run(batch, "reaping a helper")
    }

    fn set_foreground(&mut self, leader: u32, tty: u32, pgid: u32) -> Result<()> {
        let service = self.pairs.service(tty)?.as_raw_fd();
        let stub = self.stubs.get(leader)?;
        let mut batch = Batch::new();
        let group = batch.input(&pgid.to_ne_bytes());
        batch.must(libc::SYS_ioctl, [service.into(), tty::TIOCSPGRP.into(), group.into()]);
        stub.run(batch, "setting the foreground group")
    }

    /// A task, and what it is built from.
    fn site(&mut self, pid: u32) -> Result<(&mut Stub, Means<'_>)> {
        let Execution { images, plan, opened, shared, vdsos, inherited, stubs, .. } = self;
        Ok((stubs.get(pid)?, Means { images, plan, opened, shared, vdsos, inherited }))
    }

    /// Ends a task the way it had ended.
    fn die(&mut self, pid: u32, status: u32) -> Result<()> {
        let stub = self.stubs.take(pid)?;
        let signal = (status & 0x7f) as i32;
        let mut tracee = stub.tracee;
        let mut batch = Batch::new();
        if let Some(core) = self.images.cores.get(&pid) {
            thread::restore_name(&mut batch, core.tc.as_ref().map_or(&[], |task| &task.comm));
            build::credentials(&mut batch, self.images, core, &pb::PtyagentThread::default(), &self.inherited);
        }
        tracee.ask(batch)?.all_done("naming", Subject::Pid(stub.pid))?;
        let mut batch = Batch::new();
        if signal == 0 {
            batch.call(libc::SYS_exit_group, [u64::from(status >> 8 & 0xff).into()]);
        } else {
            let open = batch.input(&0u64.to_ne_bytes());
            let none = batch.input(&[0u8; 16]);
            batch.call(libc::SYS_prlimit64, [0u64.into(), 4u64.into(), none.into(), 0u64.into()]);
            batch.call(libc::SYS_kill, [stub.pid.0.into(), signal.into()]);
            batch.call(libc::SYS_rt_sigprocmask, [2u64.into(), open.into(), 0u64.into(), 8u64.into()]);
        }
        tracee.run_to_end(&batch)
    }

    fn fill_queues(&mut self, index: u32) -> Result<()> {
        let pair = self.pairs.get(index)?;
        let Some(slave) = &pair.slave else { return Ok(()) };
        let master = pair.master.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        crate::tty::drain::fill(self.images, PtyIndex(index), slave.as_raw_fd(), master)
    }

    /// A program that closes its last descriptor of a file must not find it held open by us.
    fn hand_over(&mut self) -> Result<()> {
        for own in self.images.own.iter().flat_map(|own| &own.ofds) {
            let slot = own.id.and_then(|id| self.plan.slots.files.get(&id));
            if let Some(fd) = slot.and_then(|slot| self.opened.get(*slot)) {
                owner::restore(fd, own)?;
            }
        }
        make::publish(&mut self.opened, self.images)?;
        self.notes.append(&mut self.opened.sockets.notes);
        self.opened.removed.finish(self.images)?;
        self.opened.memfds.seal(self.images)?;
        self.notes.append(&mut self.opened.removed.notes);
        self.notes.append(&mut self.opened.notes);
        let mut watching = Vec::new();
        let images = self.images;
        for entry in images.files.iter().filter_map(|file| file.ify.as_ref()) {
            let Some(fd) = self.opened.get(self.slot(entry.id)?) else { continue };
            watching.push((fd.try_clone_to_owned().during("copying a descriptor", Subject::None)?, entry));
        }
        self.opened = Opened::default();
        self.pairs.let_go(self.plan.outside);
        // What we have closed is nothing that they should hear of.
        for (fd, entry) in watching {
            inotify::watch(fd.as_fd(), entry)?;
        }
        Ok(())
    }

    fn queue_signals(&mut self, pid: u32) -> Result<()> {
        let entries = self.images.pstree.iter().filter(|entry| entry.ppid == pid && entry.pid != self.plan.root);
        let stopped: Vec<u32> =
            entries.map(|entry| entry.pid).filter(|child| state(self.images, *child) == STOPPED).collect();
        build::queue_signals(self.stubs.get(pid)?, self.images, &stopped)
    }

    /// Lets a task go. A stopped one is stopped again.
    fn release(&mut self, pid: u32) -> Result<()> {
        let mut stub = self.stubs.take(pid)?;
        let (images, host) = (self.images, stub.host.0 as u32);
        let core = |tid: u32| images.cores.get(&tid).ok_or(Error::Gone(Pid(tid as i32)));
        build::start_timers(&mut stub, core(pid)?)?;
        let (core, xstate_len) = (core(host)?, stub.tracee.original().xstate.len());
        let last = build::last_state(images, core, host, &self.processor, xstate_len)?;
        let stopped = stub.tracee.leave_as(&last, deadline::unfinished(core, images.own_thread(host)).as_ref())?;
        // A group may be a frozen one, in which it would do nothing more for us.
        let groups = images.own_task(pid).map_or(&[][..], |own| &own.cgroups);
        self.cgroups.put(stub.pid, groups)?;
        stopped.set_options(crate::sys::ptrace::OPTIONS)?;
        if state(self.images, pid) != STOPPED {
            threads::release(stub.threads)?;
            return stopped.release();
        }
        let recorded = self.images.own_task(pid).and_then(|own| own.stop_signal).unwrap_or(libc::SIGSTOP as u32) as i32;
        let send = |signal: i32| {
            crate::sys::process::pidfd_send_signal(stub.pidfd.as_fd(), signal)
                .map_err(|errno| Error::of_pid("stopping", stub.pid, errno))
        };
        // The program may handle the recorded signal by now, or be in a group that the kernel does not stop by it.
        let action = stop_action(core, recorded);
        send(if action { recorded } else { libc::SIGSTOP })?;
        stopped.release()?;
        await_stop(stub.pid.into(), send)?;
        // The leader has begun the stop of the whole process, so that the others take part in it before they run an instruction.
        let tids: Vec<Tid> = stub.threads.iter().map(Stopped::tid).collect();
        threads::release(stub.threads)?;
        tids.into_iter().try_for_each(|tid| await_stop(tid, send))
    }

    pub fn succeed(self, start: Instant, created: Instant) -> Restored {
        let Execution { images, plan, mut pairs, stubs, mut notes, shared, cgroups, .. } = self;
        stubs.succeed();
        notes.extend(cgroups.notes());
        shared.keep();
        let pages = images.stored_pages();
        let report = Report {
            root: Pid(plan.root as i32),
            host_root: None,
            tasks: images.pstree.len(),
            terminals: images.tty_info.len(),
            frozen_us: micros(created),
            total_us: micros(start),
            pages,
            bytes: pages * crate::mem::pages::PAGE,
            controller_peak_kib: crate::dump::peak_memory_kib(),
            moved: pairs.moved().collect(),
            notes,
        };
        let master = plan.outside.and_then(|index| pairs.take_master(index));
        Restored { report, master }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn state(images: &Images, pid: u32) -> u32 {
    images.cores.get(&pid).and_then(|core| core.tc.as_ref()).map_or(0, |task| task.task_state)
}
