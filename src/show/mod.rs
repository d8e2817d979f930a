//! Images for a person and for a program.
//!
//! [`View`] gathers what the files say about each task and each terminal; [`tree`] prints it and [`json`] serialises it, so
//! that both always tell the same. It is made from [`Images`] alone: of a directory, or of a live session that was never
//! written. Nothing is refused here: what does not fit together is shown as it is.

mod flags;
mod socket;
mod terminal;
mod tree;
mod view;

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::image::{Images, Kind, read};

pub use socket::Socket;
pub use terminal::Terminal;
pub use view::{Descriptor, Loss, Task, View};

/// The tasks as a tree with their descriptors, then each terminal once, then the sizes. Several lines, each ended.
pub fn tree(images: &Images) -> String {
    tree::print(&View::new(images))
}

/// The same facts under stable names: absent is null, a name is never used for something else.
pub fn json(images: &Images) -> Value {
    // Strings, numbers, lists and maps with string keys cannot fail.
    serde_json::to_value(View::new(images)).unwrap_or(Value::Null)
}

/// All that a single image file says: its name by kind, and its entries under CRIU's field names. Bytes are text with C
/// escapes. Of a file of raw pages, their number.
///
/// Fails as [`read::read_file`] does.
pub fn one_file(path: &Path) -> Result<Value> {
    if let Some(Kind::Pages(_)) = path.file_name().and_then(|name| Kind::parse(name.to_str()?)) {
        let metadata = std::fs::metadata(path);
        let size = metadata.map_err(|_| Error::image(path, "it cannot be looked at; name a file that is there"))?.len();
        return Ok(json!({ "kind": "pages", "bytes": size, "pages": size / 4096 }));
    }
    let (kind, images) = read::read_file(path)?;
    let mut value = serde_json::to_value(&images).map_err(|error| Error::unexpected("an image", error.to_string()))?;
    if let Some(map) = value.as_object_mut() {
        map.insert("kind".into(), kind.name().into());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Overwrite, Writer, sample};

    #[test]
    fn the_tree_is_as_recorded() {
        let expected = include_str!("sample.txt");
        let shown = tree(&sample::images());
        assert!(shown == expected, "{shown}");
    }

    #[test]
    fn json_has_the_same_facts() {
        let value = json(&sample::images());
        assert_eq!(value["tasks"][1]["pid"], 101);
        assert_eq!(value["tasks"][1]["threads"], serde_json::json!([101, 102]));
        assert_eq!(value["tasks"][2]["state"], "stopped by SIGTSTP");
        assert_eq!(value["terminals"][0]["session"], 101);
        assert_eq!(value["terminals"][0]["termios"]["c_cc"]["eof"], "^D");
        assert_eq!(value["terminals"][0]["queue"]["lines"][0]["data"], "make\\n");
        assert_eq!(value["losses"][0]["text"], "an inet socket is closed");
    }

    #[test]
    fn nothing_shown_of_nothing_panics() {
        tree(&Images::default());
        json(&Images::default());
        let mut images = sample::images();
        images.files.clear();
        images.tty_info.clear();
        images.own = None;
        images.pstree[0].ppid = 103;
        assert!(tree(&images).contains("103"), "a circle of parents is shown, and ends");
    }

    #[test]
    fn one_file_shows_its_entries() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("images");
        Writer::create(&dir, Overwrite::Refuse).unwrap().commit(&sample::images()).unwrap();
        let core = one_file(&dir.join("core-101.img")).unwrap();
        assert_eq!(core["kind"], "core-101.img");
        assert_eq!(core["cores"]["101"]["thread_core"]["comm"], "na\\357me");
        std::fs::rename(dir.join("fdinfo-2.img"), dir.join("x")).unwrap();
        assert_eq!(one_file(&dir.join("x")).unwrap()["fdinfo"]["0"][0]["type"], "Tty");
        assert_eq!(one_file(&dir.join("ptyagent.img")).unwrap()["own"]["ttys"][0]["flow"], "Tcooff");
        std::fs::write(dir.join("y"), "no image").unwrap();
        assert!(one_file(&dir.join("y")).is_err());
        assert!(one_file(&dir).is_err());
    }
}
