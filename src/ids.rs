//! Distinct types for the numbers that must not be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $raw:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $raw);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A process: the id of its thread group leader.
    Pid, i32
);
number!(
    /// One thread of a process.
    Tid, i32
);
number!(
    /// A process group.
    Pgid, i32
);
number!(
    /// A session.
    Sid, i32
);
number!(
    /// A descriptor number in a tracee's table; the controller's own descriptors are `OwnedFd` and `BorrowedFd`.
    RemoteFd, i32
);
number!(
    /// The N of /dev/pts/N.
    PtyIndex, u32
);

/// An address in a tracee, which the controller cannot dereference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteAddr(pub u64);

impl fmt::Debug for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl From<Pid> for Tid {
    /// The thread group leader as a thread.
    fn from(pid: Pid) -> Tid {
        Tid(pid.0)
    }
}
