//! Terminals: which device a descriptor is, and the three levels (terminal, open file description, descriptor).

pub mod device;
pub mod drain;
pub mod index;
pub mod queue;
pub mod reader;
pub mod record;
pub mod restore;
pub mod state;
pub mod termios;
