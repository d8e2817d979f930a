//! Builds what the crate embeds: the parasite's blob, and the image types from proto/.

#[path = "build/parasite.rs"]
mod parasite;

fn main() {
    parasite::build();
}
