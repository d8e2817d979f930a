//! The one error type: an operation, its subject, its cause, and where there is one the remedy.
//!
//! Above `sys` every function returns [`Result`]; `sys` itself returns a bare [`Errno`]. A message is one sentence that
//! ends with the remedy. [`Error::exit_status`] is the only table of exit statuses.

use std::fmt;
use std::path::PathBuf;

pub use nix::errno::Errno;

use crate::ids::{Pid, Tid};

pub type Result<T> = std::result::Result<T, Error>;

/// What an operation was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    None,
    Pid(Pid),
    Tid(Tid),
    /// A descriptor number in the table of a process.
    Fd(Pid, i32),
    Path(PathBuf),
    Image(PathBuf),
    Step(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::None => Ok(()),
            Subject::Pid(pid) => write!(f, " of process {pid}"),
            Subject::Tid(tid) => write!(f, " of thread {tid}"),
            Subject::Fd(pid, fd) => write!(f, " of descriptor {fd} of process {pid}"),
            Subject::Path(path) => write!(f, " of {}", path.display()),
            Subject::Image(path) => write!(f, " of image {}", path.display()),
            Subject::Step(step) => write!(f, " in step \"{step}\""),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed: `operation` is a noun phrase such as "opening" or "reading the maps".
    #[error("{operation}{subject} failed: {errno}", errno = .errno.desc())]
    Sys { operation: &'static str, subject: Subject, errno: Errno },
    /// The process or thread vanished while it was being worked on.
    #[error("process {0} is gone; nothing was changed")]
    Gone(Pid),
    /// The parasite of a controller that died has not yet left the process, which takes it a few seconds at most.
    #[error("process {0} still has the parasite of a killed ptyagent in it; try again in a few seconds")]
    Leaving(Pid),
    /// State that cannot be carried exactly: the session runs on. Exit status 3.
    #[error("{0}")]
    Refused(Refusal),
    /// What the images hold and this machine has not, with the remedy; nothing was created. Exit status 3.
    #[error("refused: {0}")]
    Lacking(String),
    /// A refusal that a moment usually settles: the process waits in vfork for its child to start a program. Exit status 3.
    #[error("{0}")]
    InVfork(Refusal),
    /// An image that is missing, incomplete, damaged or inconsistent.
    #[error("image {}: {reason}", path.display())]
    Image { path: PathBuf, reason: String },
    /// What the user asked for cannot be done; the sentence says why and ends with the remedy.
    #[error("{0}")]
    Failed(String),
    /// A kernel answer, a parasite answer or a /proc text that does not have the expected shape.
    #[error("{what}: unexpected content: {detail}")]
    Unexpected { what: String, detail: String },
}

/// One state that cannot be carried, named so that the user finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub pid: Pid,
    pub comm: String,
    /// The descriptor number, where the state is a descriptor's.
    pub fd: Option<i32>,
    /// What it is, as a noun phrase: "an epoll instance".
    pub kind: String,
    /// What the user can do about it, as an imperative: "close it, then dump again".
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: process {} ({})", self.pid, self.comm)?;
        if let Some(fd) = self.fd {
            write!(f, ", descriptor {fd}")?;
        }
        write!(f, ": {}; {}", self.kind, self.remedy)
    }
}

impl Error {
    /// A failed system call: `operation` is a noun phrase ("opening", "reading the maps").
    pub fn sys(operation: &'static str, subject: Subject, errno: Errno) -> Self {
        Error::Sys { operation, subject, errno }
    }

    /// A failed call on a process, where ESRCH means that the process is gone.
    pub fn of_pid(operation: &'static str, pid: Pid, errno: Errno) -> Self {
        match errno {
            Errno::ESRCH => Error::Gone(pid),
            _ => Error::Sys { operation, subject: Subject::Pid(pid), errno },
        }
    }

    /// The same for a call on a thread.
    pub fn of_tid(operation: &'static str, tid: Tid, errno: Errno) -> Self {
        match errno {
            Errno::ESRCH => Error::Gone(Pid(tid.0)),
            _ => Error::Sys { operation, subject: Subject::Tid(tid), errno },
        }
    }

    pub fn io(operation: &'static str, subject: Subject, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Error::Sys { operation, subject, errno }
    }

    pub fn failed(sentence: impl Into<String>) -> Self {
        Error::Failed(sentence.into())
    }

    pub fn unexpected(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Unexpected { what: what.into(), detail: detail.into() }
    }

    pub fn image(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Image { path: path.into(), reason: reason.into() }
    }

    /// 0 done, 1 failed and nothing changed, 2 usage (clap), 3 refused.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Refused(_) | Error::InVfork(_) | Error::Lacking(_) => 3,
            _ => 1,
        }
    }
}

/// Attaches an operation and a subject to a bare [`Errno`] or I/O error.
pub trait Context<T> {
    fn during(self, operation: &'static str, subject: Subject) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn during(self, operation: &'static str, subject: Subject) -> Result<T> {
        self.map_err(|errno| Error::Sys { operation, subject, errno })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn during(self, operation: &'static str, subject: Subject) -> Result<T> {
        self.map_err(|error| Error::io(operation, subject, &error))
    }
}
