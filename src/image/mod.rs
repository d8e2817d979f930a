//! The image directory: CRIU's files, and `ptyagent.img` for what they have no field for.

pub mod digest;
pub mod pb;
pub mod text;
