//! One function per system call or ioctl request; decides nothing.
//!
//! The only host module with `unsafe`. Every function returns a bare [`Errno`](crate::error::Errno) and retries nothing but EINTR.

#![allow(unsafe_code)]

pub mod cpu;
pub mod event;
pub mod file;
pub mod pagemap;
pub mod pass;
pub mod process;
pub mod ptrace;
pub mod region;
pub mod shm;
pub mod socket;
pub mod tty;
