//! The directory as a whole: round trip, damage, commit. The rest is tested beside its code.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::error::Error;

/// A private directory with the sample written below it.
fn written() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("images");
    let report = write(&dir, Overwrite::Refuse).unwrap();
    let files: Vec<u64> = fs::read_dir(&dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).collect();
    assert_eq!((report.files, report.bytes), (files.len(), files.iter().sum()));
    (place, dir)
}

fn write(dir: &Path, overwrite: Overwrite) -> crate::error::Result<CommitReport> {
    let mut writer = Writer::create(dir, overwrite)?;
    let mut stream = DigestStream::default();
    let mut file = writer.pages_file(1)?;
    for piece in sample::pages().chunks(4096) {
        file.write_all(piece).unwrap();
        stream.update(piece);
    }
    writer.set_pages(1, stream.finish());
    writer.pages_file(2)?;
    writer.set_pages(2, DigestStream::default().finish());
    writer.commit(&sample::images())
}

/// What the writer adds, taken out again.
fn bare(mut images: Images) -> Images {
    images.inventory.ptyagent_format = None;
    let own = images.own.as_mut().unwrap();
    own.format_version = None;
    own.files.clear();
    images
}

fn refused(dir: &Path) -> String {
    match Images::read(dir) {
        Err(Error::Image { path, reason }) => format!("{}: {reason}", path.file_name().unwrap().to_str().unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read_back() {
    let (_place, dir) = written();
    assert_eq!(bare(Images::read(&dir).unwrap()), sample::images());
    assert_eq!(bare(Images::read_with(&dir, PageCheck::Sizes).unwrap()), sample::images());
}

#[test]
fn modes_are_private() {
    let (_place, dir) = written();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    fs::read_dir(&dir).unwrap().for_each(|file| assert_eq!(mode(&file.unwrap().path()), 0o600));
}

#[test]
fn every_cut_and_every_flipped_byte_is_noticed() {
    let (_place, dir) = written();
    for file in fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let whole = fs::read(&path).unwrap();
        // Raw pages have no structure: a sample of their lengths and bytes is enough.
        let step = if whole.len() > 10_000 { 509 } else { 1 };
        for len in (0..whole.len()).step_by(step) {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(matches!(Images::read(&dir), Err(Error::Image { .. })), "{} cut to {len}", path.display());
        }
        for at in (0..whole.len()).step_by(step) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            assert!(matches!(Images::read(&dir), Err(Error::Image { .. })), "{} flipped at {at}", path.display());
        }
        fs::write(&path, [&whole[..], b"\0"].concat()).unwrap();
        assert!(matches!(Images::read(&dir), Err(Error::Image { .. })), "{} with a byte more", path.display());
        fs::remove_file(&path).unwrap();
        assert!(matches!(Images::read(&dir), Err(Error::Image { .. })), "{} removed", path.display());
        fs::write(&path, &whole).unwrap();
    }
    Images::read(&dir).unwrap();
}

#[test]
fn a_directory_of_criu_is_read_and_its_damage_never_panics() {
    let (_place, dir) = written();
    fs::remove_file(dir.join("ptyagent.img")).unwrap();
    assert_eq!(refused(&dir), "images: its ptyagent.img is missing; dump again");
    let inventory = codec::encode_inventory(&sample::images().inventory).unwrap();
    fs::write(dir.join("inventory.img"), inventory).unwrap();
    fs::write(dir.join("cgroup.img"), b"?").unwrap();
    fs::write(dir.join("dump.log"), b"?").unwrap();
    let expected = Images { own: None, unknown: vec!["cgroup.img".into()], ..sample::images() };
    assert_eq!(Images::read(&dir).unwrap(), expected);
    for file in fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let whole = fs::read(&path).unwrap();
        let step = if whole.len() > 10_000 { 509 } else { 1 };
        for at in (0..whole.len()).step_by(step) {
            fs::write(&path, &whole[..at]).unwrap();
            _ = Images::read(&dir);
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            _ = Images::read(&dir);
        }
        fs::write(&path, &whole).unwrap();
    }
    fs::write(dir.join("pages-1.img"), &sample::pages()[..5 * 4096 - 1]).unwrap();
    assert_eq!(refused(&dir), "pages-1.img: it is cut off: it has 20479 bytes of 20480; dump again");
}

#[test]
fn what_is_no_image_directory_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let missing = place.path().join("missing");
    assert_eq!(refused(&missing), "missing: there is no such directory; name the one that was dumped to");
    fs::write(&missing, "").unwrap();
    assert_eq!(refused(&missing), "missing: it is no directory; name the one that was dumped to");
    let (_place, dir) = written();
    for mode in [0o720, 0o702] {
        fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
        assert!(refused(&dir).contains("others may write it"));
    }
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir.join("mm-101.img"), Permissions::from_mode(0o620)).unwrap();
    assert!(refused(&dir).contains("others may write it"));
    fs::remove_file(dir.join("inventory.img")).unwrap();
    assert!(refused(&dir).contains("did not finish"));
}

#[test]
fn a_target_is_made_filled_or_replaced() {
    let place = tempfile::tempdir().unwrap();
    let entries = |dir: &Path| fs::read_dir(dir).unwrap().count();
    let dir = place.path().join("images");
    drop(Writer::create(&dir, Overwrite::Refuse).unwrap());
    assert_eq!(entries(place.path()), 0, "a dropped writer leaves nothing");

    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    let here = fs::File::open(&dir).unwrap();
    write(&dir, Overwrite::Refuse).unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(here.metadata().unwrap().permissions().mode() & 0o777, 0o700, "an empty directory stays the same one");
    Images::read(&dir).unwrap();

    let error = write(&dir, Overwrite::Refuse).unwrap_err().to_string();
    assert!(error.contains("already holds images"), "{error}");
    fs::write(dir.join("stats-restore"), "").unwrap();
    write(&dir, Overwrite::Replace).unwrap();
    Images::read(&dir).unwrap();
    assert!(!dir.join("stats-restore").exists());
    assert_eq!(entries(place.path()), 1, "the old images are gone");

    fs::write(dir.join("notes.txt"), "mine").unwrap();
    let error = write(&dir, Overwrite::Replace).unwrap_err().to_string();
    assert!(error.contains("other files"), "{error}");
    Images::read(&dir).unwrap();
    assert!(write(Path::new("/"), Overwrite::Replace).is_err());
    assert!(write(&place.path().join("a/b"), Overwrite::Refuse).is_err());
}

#[test]
fn pages_without_their_digest_are_no_directory() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("images");
    let mut writer = Writer::create(&dir, Overwrite::Refuse).unwrap();
    writer.pages_file(1).unwrap();
    writer.commit(&sample::images()).unwrap_err();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn big_pages_are_hashed_by_threads() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("images");
    let mut writer = Writer::create(&dir, Overwrite::Refuse).unwrap();
    let bytes: Vec<u8> = (0..(11 << 20) + 4096).map(|n: u32| (n.wrapping_mul(n) >> 7) as u8).collect();
    writer.pages_file(1).unwrap().write_all(&bytes).unwrap();
    writer.set_pages(1, Digest::of(&bytes));
    writer.commit(&sample::images()).unwrap();
    Images::read(&dir).unwrap();
    let mut damaged = bytes;
    damaged[9_000_000] ^= 4;
    fs::write(dir.join("pages-1.img"), damaged).unwrap();
    assert_eq!(refused(&dir), "pages-1.img: it is damaged: its digest does not match; dump again");
}

/// CRIU's own viewer reads every file of ours that is one of its kinds.
#[test]
fn crit_reads_what_is_written() {
    if Command::new("crit").arg("--version").output().is_err() {
        println!("SKIP: crit is not installed");
        return;
    }
    let (_place, dir) = written();
    let mut read = 0;
    for file in fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if matches!(Kind::parse(&name), Some(Kind::Own | Kind::Pages(_))) {
            continue;
        }
        let output = Command::new("crit").arg("show").arg(&path).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(shown["entries"].is_array(), "{name}");
        if name == "tty-info.img" {
            assert_eq!(shown["entries"][0]["winsize"]["ws_col"], 80);
            assert_eq!(shown["entries"][1]["packet_mode"], true);
        }
        read += 1;
    }
    assert!(read > 20, "{read} files");
}

fn kinds() -> Vec<Kind> {
    codec::encode(&sample::images())
        .unwrap()
        .into_iter()
        .map(|(kind, _)| kind)
        .chain([Kind::Inventory, Kind::Own])
        .collect()
}

proptest! {
    /// Random bytes behind the right magic numbers are an error or entries, never a panic.
    #[test]
    fn random_bytes_never_panic(index in 0usize..64, entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6), tail in prop::collection::vec(any::<u8>(), 0..12)) {
        let kinds = kinds();
        let kind = kinds[index % kinds.len()];
        let mut bytes: Vec<u8> = kind.magics().into_iter().flat_map(u32::to_le_bytes).collect();
        for entry in entries {
            bytes.extend((entry.len() as u32).to_le_bytes());
            bytes.extend(entry);
        }
        bytes.extend(tail);
        let mut images = Images::default();
        _ = codec::decode(&mut images, kind, Path::new("x.img"), &bytes);
    }
}
