//! (filled by a later commit)

pub mod survey;
