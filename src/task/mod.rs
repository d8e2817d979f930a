//! Tasks: identity, registers, signals, and the tree that they form.

pub mod cgroup;
pub mod cpu;
pub mod deadline;
pub mod directories;
pub mod freeze;
pub mod identity;
pub mod leader;
pub mod modes;
pub mod record;
pub mod regs;
pub mod rseq;
pub mod scheduling;
pub mod seccomp;
pub mod semaphores;
pub mod sharing;
pub mod signals;
pub mod survey;
pub mod thread;
pub mod timers;
