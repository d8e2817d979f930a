//! The order in which tasks come to be, so that each has its parent, session, controlling terminal and group.
//!
//! A task is born into its maker's session. So a leader makes the children that stayed in the session it came from before it starts its own, and
//! takes its terminal before it makes those that have it and after those that have not (TIOCSCTTY reaches who is born later,
//! and no other member). A session whose leader has died is started by a helper with the leader's number, which makes the
//! members as its own siblings and ends. A group whose leader has died is held open by a helper while its members join.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::Result;
use crate::image::Images;

use super::descriptors::is_dev_tty;
use super::{Birth, Step, Task, Tasks, inconsistent};

/// Adds the steps that create all tasks.
pub(super) fn creation(images: &Images, tasks: &Tasks, dir: &Path, steps: &mut Vec<Step>) -> Result<()> {
    let root = tasks.get(tasks.root).ok_or_else(|| inconsistent(dir, "it has no root"))?;
    steps.push(Step::Create { pid: root.pid, birth: Birth::Root });
    if root.sid != root.pid {
        return Err(inconsistent(dir, format!("its root {} does not lead its session {}", root.pid, root.sid)));
    }
    let mut order = Order { images, tasks, dir, steps, revived: BTreeSet::new() };
    order.grow(root, None)
}

struct Order<'a> {
    images: &'a Images,
    tasks: &'a Tasks,
    dir: &'a Path,
    steps: &'a mut Vec<Step>,
    /// Sessions whose dead leader was stood in for.
    revived: BTreeSet<u32>,
}

impl Order<'_> {
    /// Makes everything below a task that was born into session `born_in`.
    fn grow(&mut self, task: &Task, born_in: Option<u32>) -> Result<()> {
        let children: Vec<&Task> = self.tasks.children(task.pid).collect();
        let leads = task.sid == task.pid;
        let (before, after): (Vec<&Task>, Vec<&Task>) =
            children.into_iter().partition(|child| leads && Some(child.sid) == born_in);
        for child in before {
            self.create(child, task.pid)?;
            self.grow(child, born_in)?;
        }
        if leads {
            self.steps.push(Step::StartSession { pid: task.pid });
        }
        let without = |child: &&Task| leads && task.ctty.is_some() && child.sid == task.sid && child.ctty.is_none();
        let (early, late): (Vec<&Task>, Vec<&Task>) = after.into_iter().partition(without);
        for child in early {
            self.create(child, task.pid)?;
            self.grow(child, Some(task.sid))?;
        }
        if let (true, Some(tty)) = (leads, task.ctty) {
            self.steps.push(Step::TakeTerminal { leader: task.pid, tty });
            self.open_dev_tty(task.pid, tty);
        }
        let (own, adopted): (Vec<&Task>, Vec<&Task>) =
            late.into_iter().partition(|child| child.sid == task.sid || child.sid == child.pid);
        for child in own {
            self.create(child, task.pid)?;
            self.grow(child, Some(task.sid))?;
        }
        self.adopted(&adopted, task)
    }

    /// Children of other sessions, which came here when their parents died.
    fn adopted(&mut self, children: &[&Task], parent: &Task) -> Result<()> {
        for child in children {
            match self.tasks.get(child.sid) {
                Some(leader) if leader.parent == Some(parent.pid) && leader.ctty == child.ctty => {
                    // Born beside the leader of its session, which has been made by now.
                    self.steps.push(Step::Create { pid: child.pid, birth: Birth::Sibling { maker: leader.pid } });
                    self.grow(child, Some(child.sid))?;
                }
                Some(_) => {
                    let reason = format!(
                        "process {} came to {} from session {} when its parent died",
                        child.pid, parent.pid, child.sid
                    );
                    return Err(inconsistent(self.dir, reason));
                }
                None if self.revived.contains(&child.sid) => {}
                None => self.revive(child.sid, children, parent)?,
            }
        }
        Ok(())
    }

    /// The leader has died: its number starts the session once more, and is gone again before anybody sees it.
    fn revive(&mut self, sid: u32, children: &[&Task], parent: &Task) -> Result<()> {
        if !self.revived.insert(sid) {
            return Err(inconsistent(
                self.dir,
                format!("session {sid} without leader has members with several parents"),
            ));
        }
        let members: Vec<&&Task> = children.iter().filter(|child| child.sid == sid).collect();
        self.steps.push(Step::CreateHelper { pid: sid, maker: parent.pid });
        self.steps.push(Step::StartSession { pid: sid });
        for child in &members {
            self.steps.push(Step::Create { pid: child.pid, birth: Birth::Sibling { maker: sid } });
        }
        self.steps.push(Step::EndHelper { pid: sid, maker: parent.pid });
        for child in members {
            self.grow(child, Some(sid))?;
        }
        Ok(())
    }

    fn create(&mut self, child: &Task, maker: u32) -> Result<()> {
        self.steps.push(Step::Create { pid: child.pid, birth: Birth::Child { maker } });
        Ok(())
    }

    /// The leader opens what anybody in its session has open as /dev/tty; those born later inherit it.
    fn open_dev_tty(&mut self, leader: u32, tty: u32) {
        for file in self.images.files.iter().filter(|file| is_dev_tty(self.images, file)) {
            if file.tty.as_ref().is_some_and(|entry| entry.tty_info_id == tty) {
                self.steps.push(Step::OpenDevTty { pid: leader, id: file.id });
            }
        }
    }
}

/// Adds the steps that put every task into its process group.
pub(super) fn groups(tasks: &Tasks, dir: &Path, steps: &mut Vec<Step>) -> Result<()> {
    // Leaders first. A session leader leads its group already.
    for task in tasks.in_order().filter(|task| task.pgid == task.pid && task.sid != task.pid) {
        steps.push(Step::JoinGroup { pid: task.pid, pgid: task.pid });
    }
    let mut orphaned = BTreeSet::new();
    for task in tasks.in_order().filter(|task| task.pgid != task.pid) {
        if task.sid == task.pid {
            return Err(inconsistent(dir, format!("session leader {} is in the group of {}", task.pid, task.pgid)));
        }
        match tasks.get(task.pgid) {
            Some(leader) if leader.sid == task.sid && leader.pgid == leader.pid => {
                steps.push(Step::JoinGroup { pid: task.pid, pgid: task.pgid });
            }
            Some(_) => {
                return Err(inconsistent(dir, format!("process {} is in a group of another session", task.pid)));
            }
            // Born into the group of its session's dead leader.
            None if task.pgid == task.sid => {}
            None => {
                orphaned.insert(task.pgid);
            }
        }
    }
    for pgid in orphaned {
        let members: Vec<&Task> = tasks.in_order().filter(|task| task.pgid == pgid).collect();
        let Some(first) = members.first() else { continue };
        steps.push(Step::CreateHelper { pid: pgid, maker: first.pid });
        steps.push(Step::JoinGroup { pid: pgid, pgid });
        for member in &members {
            steps.push(Step::JoinGroup { pid: member.pid, pgid });
        }
        steps.push(Step::EndHelper { pid: pgid, maker: first.pid });
    }
    Ok(())
}

/// Adds the steps that make a group the foreground group. A group whose last member has just been reaped may still be it: its number is held
/// by the terminal, so that a helper has to form it once more.
pub(super) fn foreground(tasks: &Tasks, leader: u32, tty: u32, pgid: u32, steps: &mut Vec<Step>) {
    let exists = tasks.in_order().any(|task| task.pgid == pgid);
    if !exists {
        steps.push(Step::CreateHelper { pid: pgid, maker: leader });
        steps.push(Step::JoinGroup { pid: pgid, pgid });
    }
    steps.push(Step::SetForeground { leader, tty, pgid });
    if !exists {
        steps.push(Step::EndHelper { pid: pgid, maker: leader });
    }
}
