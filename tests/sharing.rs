//! Processes that have a descriptor table or directories in common, checked by the processes that have them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use support::{check_images, refused, same_images};

#[test]
fn children_share_tables_with_their_parent() {
    check_images("shared", "tables", 3, same_images);
}

#[test]
fn a_grandchild_shares_tables_with_its_parent_alone() {
    check_images("shared", "grandchild", 3, same_images);
}

#[test]
fn threads_with_directories_of_their_own() {
    check_images("shared", "thread_with_directories", 2, same_images);
}

#[test]
fn threads_with_directories_that_cannot_be_given_again_are_refused() {
    refused("shared", "threads_with_common_directories", "has its working directory and umask in common with");
    refused("shared", "thread_in_removed_directory", "has a working directory that was removed or replaced");
}

#[test]
fn threads_with_tables_of_their_own_are_refused() {
    refused("shared", "thread_with_table", "has a descriptor table of its own");
}

#[test]
fn shared_memory_of_two_processes_is_refused() {
    refused("shared", "memory", "shares its memory with process");
}
