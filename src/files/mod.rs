//! Descriptor tables and open file descriptions: recognising, recording, opening again.
//!
//! Each kind of description has a file of its own with its two halves. To add one: its name in [`kind`], a line in the dispatch of [`dump`]
//! (the type, the entry) and one in that of [`restore`].

pub mod dump;
pub mod epoll;
pub mod eventfd;
pub mod inotify;
pub mod kind;
pub mod locks;
pub mod memfd;
pub mod ofd;
pub mod outside;
pub mod owner;
pub mod pidfd;
pub mod pipe;
pub mod regular;
pub mod removed;
pub mod restore;
pub mod signalfd;
pub mod socket;
pub mod timerfd;
pub mod transfer;
