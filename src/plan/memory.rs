//! Whose memory has to be there before whose birth, so that parent and child share their common pages again.

use std::collections::BTreeMap;

use crate::image::Images;
use crate::mem::inherit;

use super::{Birth, Step};

/// The tasks that keep pages which they are born with, and from whom.
pub(super) fn heirs(images: &Images, steps: &[Step]) -> BTreeMap<u32, u32> {
    let program = |pid: u32| images.mm.get(&pid).map(|mm| mm.exe_file_id);
    let heir = |step: &Step| match step {
        Step::Create { pid, birth: Birth::Child { maker } } => {
            let inherits = inherit::pages_of(images, *pid) == Some(*maker) && program(*pid) == program(*maker);
            inherits.then_some((*pid, *maker))
        }
        _ => None,
    };
    steps.iter().filter_map(heir).collect()
}

/// Puts the step that builds a maker's memory before its first heir is made.
pub(super) fn map_before_births(heirs: &BTreeMap<u32, u32>, steps: &mut Vec<Step>) {
    let mut mapped = std::collections::BTreeSet::new();
    for step in std::mem::take(steps) {
        if let Step::Create { pid, birth: Birth::Child { maker } } = &step {
            if heirs.contains_key(pid) && mapped.insert(*maker) {
                steps.push(Step::Map { pid: *maker, from: heirs.get(maker).copied() });
            }
        }
        steps.push(step);
    }
}
