//! Builds what the crate embeds: the parasite's blob, and the image types from proto/.

#[path = "build/images.rs"]
mod images;
#[path = "build/parasite.rs"]
mod parasite;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    parasite::build();
    images::build()
}
