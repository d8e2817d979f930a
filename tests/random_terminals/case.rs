//! One case: its processes and sessions, drawn from a seed and made below an actor of its own.

use std::collections::BTreeSet;

use ptyagent::sys::tty;

use crate::random::Random;
use crate::settings::{self, Echo, End};
use crate::support::{PATIENCE, RDWR, Stage, stat, until};
use crate::traffic::{self, Fill, Late};
use crate::waits::{self, Wait};

/// A terminal, and who uses its ends.
#[derive(Clone)]
pub struct Terminal {
    pub index: u32,
    pub holder: String,
    pub master: i32,
    /// In the foreground, or not of the session.
    pub user: String,
    pub slave: i32,
}

/// What was made, and what is to be done with it.
pub struct Case {
    pub root: String,
    actors: BTreeSet<String>,
    pub late: Vec<Late>,
    pub waits: Vec<Wait>,
    /// Terminals whose output may be stopped.
    pub stopped_flows: Vec<Terminal>,
    stopped_jobs: Vec<String>,
    pub sets: Vec<(String, i32)>,
    pub messages: Vec<(String, i32)>,
    /// Words of the facts about a terminal that may change. Behind full output how much room is left depends on the sizes of the writes; what of
    /// a full line buffer is in complete lines is not known where EOF marks hide behind quoted terminators.
    pub free: Vec<(u32, &'static str)>,
}

impl Case {
    pub fn make(seed: u64, stage: &mut Stage) -> Case {
        let random = &mut Random::new(seed);
        let root = format!("{seed}");
        let mut case = Case {
            root: root.clone(),
            actors: BTreeSet::new(),
            late: Vec::new(),
            waits: Vec::new(),
            stopped_flows: Vec::new(),
            stopped_jobs: Vec::new(),
            sets: Vec::new(),
            messages: Vec::new(),
            free: Vec::new(),
        };
        case.fork(stage, "root", &root);
        for n in 0..1 + random.below(3) as i32 {
            case.terminal(random, stage, n);
        }
        case
    }

    pub fn fork(&mut self, stage: &mut Stage, parent: &str, name: &str) -> i32 {
        self.actors.insert(name.to_owned());
        stage.fork(parent, name)
    }

    fn terminal(&mut self, random: &mut Random, stage: &mut Stage, n: i32) {
        let (holder, master, slave) = (self.root.clone(), 10 + n, 20 + 10 * n);
        let index = stage.pair(&holder, master, slave);
        let mut at = Terminal { index, holder, master, user: self.root.clone(), slave };
        if random.one_in(2) {
            self.session(random, stage, &mut at, n);
        }
        // A job that is stopped would keep the master.
        if random.one_in(10) && self.stopped_jobs.is_empty() {
            self.hung_up(random, stage, &at);
            return;
        }
        if at.user != self.root && random.one_in(3) {
            let flags = random.bits((libc::O_NONBLOCK | libc::O_CLOEXEC) as u32) as i32;
            stage.open(&at.user, slave + 8, "/dev/tty", RDWR | flags);
        }
        if random.one_in(6) {
            waits::wait(random, stage, self, &at);
        } else {
            self.drawn(random, stage, &at);
        }
        if random.one_in(5) {
            waits::set(random, stage, self, &at);
        }
        if random.one_in(8) {
            waits::message(random, stage, self, &at);
        }
    }

    fn drawn(&mut self, random: &mut Random, stage: &mut Stage, at: &Terminal) {
        let fill = Fill::draw(random);
        settings::opens(random, stage, &at.user, at.index, at.slave + 1, End::Alive);
        settings::settings(random, stage, &at.user, at.slave, fill.echo());
        settings::node(random, stage, &at.user, at.slave);
        match fill {
            Fill::Output => self.free.push((at.index, "poll=")),
            Fill::Input => self.free.push((at.index, "unread=")),
            Fill::Little => {}
        }
        traffic::traffic(random, stage, at, fill);
        traffic::late(random, self, at);
    }

    /// Used for a while before its master is closed wherever it is open.
    fn hung_up(&self, random: &mut Random, stage: &mut Stage, at: &Terminal) {
        settings::opens(random, stage, &at.user, at.index, at.slave + 1, End::HungUp);
        settings::settings(random, stage, &at.user, at.slave, Echo::Drawn);
        traffic::traffic(random, stage, at, Fill::Little);
        let running = stage.running();
        for name in running.iter().filter(|name| self.actors.contains(*name)) {
            stage.sys(name, libc::SYS_close, &[at.master.into()]);
        }
    }

    /// A session on the terminal, with members and jobs; one of the foreground group uses it.
    fn session(&mut self, random: &mut Random, stage: &mut Stage, at: &mut Terminal, n: i32) {
        let (root, leader) = (self.root.clone(), format!("{}.leader{n}", self.root));
        self.fork(stage, &root, &leader);
        stage.close(&root, at.slave);
        stage.must(&leader, libc::SYS_setsid, &[]);
        if random.one_in(5) {
            self.fork(stage, &leader, &format!("{root}.without{n}"));
        }
        stage.ioctl(&leader, at.slave, tty::TIOCSCTTY, 0);
        at.user = leader.clone();
        let front = random.below(4);
        for k in 0..random.below(4) {
            let name = format!("{root}.job{n}{k}");
            let job = self.fork(stage, &leader, &name);
            stage.must(&leader, libc::SYS_setpgid, &[job.into(), job.into()]);
            if random.one_in(3) {
                self.fork(stage, &name, &format!("{root}.part{n}{k}"));
            }
            if k == front {
                stage.ioctl_in(&leader, at.slave, tty::TIOCSPGRP, &job.to_ne_bytes());
                // Only the foreground may change settings from here on without being asked to stop.
                at.user = name;
            } else if random.one_in(3) {
                self.stop(random, stage, &name);
            }
        }
    }

    fn stop(&mut self, random: &mut Random, stage: &mut Stage, name: &str) {
        let signal = random.of(&[libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU]);
        if signal != libc::SIGSTOP {
            stage.tell(name, &format!("default {signal}"));
        }
        let pid = stage.pid(name);
        stage.must("root", libc::SYS_kill, &[pid.into(), signal.into()]);
        stage.stopped.insert(name.to_owned());
        self.stopped_jobs.push(name.to_owned());
        let stopped = || stat(pid).is_some_and(|stat| stat.state == 'T').then_some(());
        until("stopped job", PATIENCE, stopped, String::new);
    }

    /// Lets flows and jobs that were stopped go on.
    pub fn release(&self, stage: &mut Stage) {
        self.stopped_flows.iter().for_each(|at| waits::release(stage, at));
        for name in &self.stopped_jobs {
            let pid = stage.pid(name);
            stage.must("root", libc::SYS_kill, &[pid.into(), libc::SIGCONT.into()]);
            stage.stopped.remove(name);
        }
    }
}
