//! The kinds of file locks: the kernel's FL_ flags, as CRIU keeps them.

pub const POSIX: u32 = 1;
pub const FLOCK: u32 = 2;
pub const LEASE: u32 = 32;
pub const OFD: u32 = 1024;

/// What a kind of lock is called; none where there is no such kind.
pub fn name(flag: u32) -> Option<&'static str> {
    match flag {
        POSIX => Some("a POSIX lock"),
        FLOCK => Some("a lock of flock(2)"),
        LEASE => Some("a lease"),
        OFD => Some("a lock of an open file description"),
        _ => None,
    }
}
