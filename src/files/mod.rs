//! (filled by a later commit)

pub mod kind;
pub mod ofd;
