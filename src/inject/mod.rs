//! Running code in a tracee.

pub mod batch;
