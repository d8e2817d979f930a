//! Descriptor tables and open file descriptions: recognising, recording, opening again.

pub mod dump;
pub mod kind;
pub mod ofd;
pub mod restore;
