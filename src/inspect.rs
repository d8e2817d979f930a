//! The live report of a session: what a dump would record, without the memory, and nothing is changed.

use crate::capture::{self, Allowed};
use crate::error::Result;
use crate::ids::Pid;
use crate::image::Images;
use crate::task::survey::SurveyMode;

/// Reads the tree rooted at a process into images in memory, and lets it run on.
///
/// What a dump would refuse is reported like everything else; only what cannot be entered at all is an error.
pub fn inspect(root: Pid) -> Result<Images> {
    let tree = capture::take(root, SurveyMode::Inspect, &Allowed::default(), || ())?;
    let images = tree.images.clone();
    tree.release()?;
    Ok(images)
}
