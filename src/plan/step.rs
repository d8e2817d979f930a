//! The steps of a plan, and their words.

use std::fmt;

use serde::Serialize;

use super::sockets::SocketStep;

/// How a task gets its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Birth {
    /// Made by the restore itself: the root.
    Root,
    /// A child of the task that makes it.
    Child { maker: u32 },
    /// Made by a helper that leads its session, with the helper's parent as its own.
    Sibling { maker: u32 },
}

/// One step. Numbers are process ids, file ids (`slot` tells where they are open) and terminal ids of the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    OpenTerminal {
        index: u32,
    },
    /// Memory that tasks share is made by the restore, and they inherit it.
    MakeShared {
        id: u32,
    },
    MakeMemoryFile {
        id: u64,
    },
    OpenPipe {
        pipe: u32,
    },
    OpenFile {
        id: u32,
    },
    Socket(SocketStep),
    Create {
        pid: u32,
        birth: Birth,
    },
    /// A task that only stands for a number: it never runs.
    CreateHelper {
        pid: u32,
        maker: u32,
    },
    StartSession {
        pid: u32,
    },
    TakeTerminal {
        leader: u32,
        tty: u32,
    },
    /// Opened in the task, so that it is the task's controlling terminal.
    OpenDevTty {
        pid: u32,
        id: u32,
    },
    JoinGroup {
        pid: u32,
        pgid: u32,
    },
    EndHelper {
        pid: u32,
        maker: u32,
    },
    SetForeground {
        leader: u32,
        tty: u32,
        pgid: u32,
    },
    /// The memory of a task with its pages; where `from` made the task, what the two have in common stays as it was born with it.
    Map {
        pid: u32,
        from: Option<u32>,
    },
    Build {
        pid: u32,
    },
    /// Of a built process, which still may choose numbers.
    CreateThread {
        pid: u32,
        tid: u32,
    },
    /// The main thread of a built process makes another one, which has the parasite from here on, and ends.
    EndMainThread {
        pid: u32,
        host: u32,
    },
    /// Its credentials, after which a process may do less.
    Identify {
        pid: u32,
    },
    Die {
        pid: u32,
        status: u32,
    },
    /// The terminal's master, which was closed before the dump, is closed again.
    HangUp {
        index: u32,
    },
    FillQueues {
        index: u32,
    },
    ArmTerminal {
        index: u32,
    },
    /// What its epoll instances watch, when all that is in its final state.
    FillEpoll {
        pid: u32,
    },
    /// Of files that it has open: a process loses its locks on a file with the first descriptor that it closes.
    TakeLocks {
        pid: u32,
    },
    /// Owners of O_ASYNC, and nothing stays open in the restore itself but what it relays.
    HandOver,
    /// Its own pending signals, instead of those that its making and its children's stops have left.
    QueueSignals {
        pid: u32,
    },
    Release {
        pid: u32,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::OpenTerminal { index } => write!(f, "open terminal {index}"),
            Step::MakeShared { id } => write!(f, "make shared memory {id}"),
            Step::MakeMemoryFile { id } => write!(f, "make memory file {id}"),
            Step::OpenPipe { pipe } => write!(f, "open pipe {pipe}"),
            Step::OpenFile { id } => write!(f, "open file {id}"),
            Step::Socket(step) => step.fmt(f),
            Step::Create { pid, birth: Birth::Root } => write!(f, "create process {pid}"),
            Step::Create { pid, birth: Birth::Child { maker } } => write!(f, "create process {pid} in {maker}"),
            Step::Create { pid, birth: Birth::Sibling { maker } } => write!(f, "create process {pid} beside {maker}"),
            Step::CreateHelper { pid, maker } => write!(f, "create helper {pid} in {maker}"),
            Step::StartSession { pid } => write!(f, "start session {pid}"),
            Step::TakeTerminal { leader, tty } => write!(f, "give session {leader} its controlling terminal {tty}"),
            Step::OpenDevTty { pid, id } => write!(f, "open /dev/tty as file {id} in process {pid}"),
            Step::JoinGroup { pid, pgid } => write!(f, "put process {pid} into group {pgid}"),
            Step::EndHelper { pid, .. } => write!(f, "end helper {pid}"),
            Step::SetForeground { tty, pgid, .. } => {
                write!(f, "make group {pgid} the foreground group of terminal {tty}")
            }
            Step::Map { pid, from: None } => write!(f, "build the memory of process {pid}"),
            Step::Map { pid, from: Some(from) } => {
                write!(f, "build the memory of process {pid}, in part as born from {from}")
            }
            Step::Build { pid } => write!(f, "build process {pid}: descriptors, signals"),
            Step::CreateThread { pid, tid } => write!(f, "create thread {tid} of process {pid}"),
            Step::EndMainThread { pid, host } => write!(f, "end the main thread of process {pid}, and go on in {host}"),
            Step::Identify { pid } => write!(f, "give process {pid} its credentials"),
            Step::Die { pid, status } => write!(f, "end process {pid} with status {status:#x}"),
            Step::HangUp { index } => write!(f, "hang up pseudoterminal {index}"),
            Step::FillEpoll { pid } => write!(f, "fill the epoll instances of process {pid}"),
            Step::TakeLocks { pid } => write!(f, "take the file locks of process {pid}"),
            Step::HandOver => write!(f, "set the owners of files and let go of them"),
            Step::FillQueues { index } => write!(f, "put back what is unread in terminal {index}"),
            Step::ArmTerminal { index } => write!(f, "lock terminal {index} as it was"),
            Step::QueueSignals { pid } => write!(f, "queue the pending signals of process {pid}"),
            Step::Release { pid } => write!(f, "let process {pid} go on"),
        }
    }
}
