//! What parents and children tell each other, and signals that wait, checked by the processes themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{check_images, same_images};

#[test]
fn children_end_with_their_own_signals() {
    check_images("kin", "exit_signals", 3, same_images);
}

#[test]
fn orphans_and_signals_at_the_death_of_a_parent() {
    check_images("kin", "orphans", 3, same_images);
}

#[test]
fn waiting_signals_keep_their_information() {
    check_images("kin", "siginfos", 3, same_images);
}
