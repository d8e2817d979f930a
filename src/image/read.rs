//! Reading a directory: owner and mode first, then every byte against its digest, then the entries.
//!
//! A directory of ours is read by the list in ptyagent.img: files that it does not name are ignored, since CRIU leaves logs
//! and statistics behind. A directory of CRIU's is read by name. Memory taken is bounded by the size of the files: no length
//! field is believed before as many bytes are there. Pages are hashed through a small buffer per thread, not mapped, so that
//! neither the size of the victim nor a file that shrinks meanwhile can hurt.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::digest::{self, BLOCK, Digest};
use super::kind::Kind;
use super::{Images, Pagemap, codec, own, pb};
use crate::error::{Context, Error, Result, Subject};

/// In bytes, on x86-64.
const PAGE_SIZE: u64 = 4096;
/// Files other than pages are read whole: none over 1 GiB is one that a dump wrote.
const LARGEST: u64 = 1 << 30;
/// Bytes that are read and hashed at a time: they stay in the cache.
const PIECE: usize = 64 << 10;
/// A file of pages of fewer blocks is hashed by one thread: 8 MiB take less time than starting another.
const BLOCKS_FOR_THREADS: usize = 8;

/// What is done about the files of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageCheck {
    /// Every byte is read and compared with the digest.
    Digests,
    /// Only the sizes are compared.
    Sizes,
}

impl Images {
    /// A whole directory, every byte of it checked.
    ///
    /// Fails with [`Error::Image`] where it is missing, incomplete, cut off, damaged, or could have been written by others.
    pub fn read(dir: &Path) -> Result<Images> {
        Images::read_with(dir, PageCheck::Digests)
    }

    /// As [`Images::read`], with a choice about pages.
    pub fn read_with(dir: &Path, pages: PageCheck) -> Result<Images> {
        let dir = Directory::open(dir)?;
        let Some(inventory) = dir.content(&Kind::Inventory.name())? else {
            let reason = "it has no inventory.img: it holds no images, or a dump into it did not finish; dump again";
            return Err(Error::image(&dir.path, reason));
        };
        let mut images = Images::default();
        codec::decode(&mut images, Kind::Inventory, &dir.path.join(Kind::Inventory.name()), &inventory)?;
        match dir.content(&Kind::Own.name())? {
            Some(bytes) => dir.read_ours(&mut images, &inventory, &bytes, pages)?,
            None if images.inventory.ptyagent_format.is_some() => {
                return Err(Error::image(&dir.path, "its ptyagent.img is missing; dump again"));
            }
            None => dir.read_foreign(&mut images)?,
        }
        dir.check_consistency(&images)?;
        Ok(images)
    }
}

/// One file on its own, whichever directory it is in and whoever wrote it, as the only part of an otherwise empty
/// [`Images`]. The kind is told by its first bytes, the number by its name where that fits.
///
/// Fails where it is no image, or as [`Images::read`] does; a digest is looked at in ptyagent.img alone.
pub fn read_file(path: &Path) -> Result<(Kind, Images)> {
    let subject = || Subject::Image(path.into());
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).during("opening", subject())?;
    let metadata = file.metadata().during("looking at", subject())?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(Error::image(path, "it is no regular file of at most 1 GiB; name an image file or a directory"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).during("reading", subject())?;
    let named = path.file_name().and_then(|name| Kind::parse(name.to_str()?));
    let words: Vec<u32> =
        bytes.chunks_exact(4).take(2).filter_map(<[u8]>::first_chunk).map(|word| u32::from_le_bytes(*word)).collect();
    let kind = match named {
        Some(kind) if words.starts_with(&kind.magics()) => Some(kind),
        _ => words.first().and_then(|&first| Kind::by_magic(first, words.get(1).copied())),
    };
    let Some(kind) = kind else {
        return Err(Error::image(
            path,
            "its first bytes are those of no known image; name an image file or a directory",
        ));
    };
    let mut images = Images::default();
    codec::decode(&mut images, kind, path, &bytes)?;
    Ok((kind, images))
}

struct Directory {
    path: PathBuf,
    file: File,
}

impl Directory {
    fn open(path: &Path) -> Result<Directory> {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path);
        let file = opened.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::image(path, "there is no such directory; name the one that was dumped to"),
            ErrorKind::NotADirectory => Error::image(path, "it is no directory; name the one that was dumped to"),
            _ => Error::io("opening", Subject::Image(path.into()), &error),
        })?;
        let metadata = file.metadata().during("looking at", Subject::Image(path.into()))?;
        check_owner(path, &metadata)?;
        Ok(Directory { path: path.into(), file })
    }

    /// An open regular file that nobody else could have written, or None where there is none of this name.
    fn file(&self, name: &str) -> Result<Option<(File, Metadata)>> {
        let path = self.path.join(name);
        // A fifo would block the open without O_NONBLOCK.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.file, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(nix::errno::Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::sys("opening", Subject::Image(path), errno)),
        };
        let metadata = file.metadata().during("looking at", Subject::Image(path.clone()))?;
        if !metadata.is_file() {
            return Err(Error::image(path, "it is no regular file; dump again"));
        }
        check_owner(&path, &metadata)?;
        Ok(Some((file, metadata)))
    }

    /// All bytes of a file, or None where there is none of this name.
    fn content(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((file, metadata)) = self.file(name)? else { return Ok(None) };
        let path = self.path.join(name);
        if metadata.len() > LARGEST {
            return Err(Error::image(
                path,
                format!("its {} bytes are more than a dump writes; dump again", metadata.len()),
            ));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        file.take(LARGEST).read_to_end(&mut bytes).during("reading", Subject::Image(path))?;
        Ok(Some(bytes))
    }

    /// Reads the files that ptyagent.img names, each against its digest.
    fn read_ours(&self, images: &mut Images, inventory: &[u8], own: &[u8], pages: PageCheck) -> Result<()> {
        let path = self.path.join(Kind::Own.name());
        let own = own::decode(&path, own)?;
        let mut seen = BTreeSet::new();
        for listed in &own.files {
            let (Some(name), Some(size), Some(value)) = (&listed.name, listed.size, listed.digest) else {
                return Err(Error::image(path, "an entry of its list of files is incomplete; dump again"));
            };
            let expected = Digest { size, value };
            match Kind::parse(name) {
                Some(Kind::Own) | None => {
                    return Err(Error::image(
                        path,
                        format!("it lists a file {name:?} that no dump writes; dump again"),
                    ));
                }
                Some(_) if !seen.insert(name) => {
                    return Err(Error::image(path, format!("it lists {name} twice; dump again")));
                }
                Some(Kind::Inventory) => self.check_digest(name, Digest::of(inventory), expected)?,
                Some(Kind::Pages(_)) => self.check_pages(name, expected, pages)?,
                Some(kind) => {
                    let bytes = self.content(name)?.ok_or_else(|| self.missing(name))?;
                    self.check_digest(name, Digest::of(&bytes), expected)?;
                    codec::decode(images, kind, &self.path.join(name), &bytes)?;
                }
            }
        }
        for name in [Kind::Inventory, Kind::Pstree, Kind::Files].map(Kind::name) {
            if !seen.contains(&name) {
                return Err(Error::image(path, format!("it does not list {name}; dump again")));
            }
        }
        images.own = Some(own);
        Ok(())
    }

    /// Reads every file whose name is known.
    fn read_foreign(&self, images: &mut Images) -> Result<()> {
        let subject = || Subject::Image(self.path.clone());
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path).during("listing", subject())? {
            // A name that is not UTF-8 is none of CRIU's.
            if let Ok(name) = entry.during("listing", subject())?.file_name().into_string() {
                names.insert(name);
            }
        }
        for name in names {
            match Kind::parse(&name) {
                Some(Kind::Inventory | Kind::Own | Kind::Pages(_) | Kind::StatsRestore) => {}
                Some(kind) => {
                    let bytes = self.content(&name)?.ok_or_else(|| self.missing(&name))?;
                    codec::decode(images, kind, &self.path.join(&name), &bytes)?;
                }
                None if name.ends_with(".img") => images.unknown.push(name),
                None => {}
            }
        }
        Ok(())
    }

    fn check_digest(&self, name: &str, found: Digest, expected: Digest) -> Result<()> {
        let path = self.path.join(name);
        match found {
            found if found == expected => Ok(()),
            Digest { size, .. } if size != expected.size => Err(self.wrong_size(name, size, expected.size)),
            _ => Err(Error::image(path, "it is damaged: its digest does not match; dump again")),
        }
    }

    fn check_pages(&self, name: &str, expected: Digest, check: PageCheck) -> Result<()> {
        let (file, metadata) = self.file(name)?.ok_or_else(|| self.missing(name))?;
        if metadata.len() != expected.size {
            return Err(self.wrong_size(name, metadata.len(), expected.size));
        }
        if check == PageCheck::Sizes {
            return Ok(());
        }
        let found = digest_of(&file, expected.size).during("reading", Subject::Image(self.path.join(name)))?;
        self.check_digest(name, found, expected)
    }

    /// What a single file cannot say: its version, and whether the pages that a pagemap names are all there.
    fn check_consistency(&self, images: &Images) -> Result<()> {
        let version = images.inventory.img_version;
        if version != 2 {
            let reason = format!("its image version is {version} and only version 2 is known; dump again");
            return Err(Error::image(self.path.join(Kind::Inventory.name()), reason));
        }
        let processes = images.pagemaps.iter().map(|(&id, map)| (Kind::Pagemap(id), map));
        let shared = images.shmem_pagemaps.iter().map(|(&id, map)| (Kind::PagemapShmem(id), map));
        processes.chain(shared).try_for_each(|(kind, map)| self.check_pagemap(images, kind, map))
    }

    fn check_pagemap(&self, images: &Images, kind: Kind, map: &Pagemap) -> Result<()> {
        let wrong = |reason: &str| Err(Error::image(self.path.join(kind.name()), reason));
        let mut needed = 0u64;
        for entry in &map.entries {
            let of_another =
                matches!(kind, Kind::Pagemap(pid) if images.own_task(pid).is_some_and(|own| own.pages_of.is_some()));
            if entry.is_in_parent() && !of_another {
                return wrong("some of its pages are in the directory of an earlier dump; dump again without a parent");
            }
            let end = entry.pages().checked_mul(PAGE_SIZE).filter(|len| entry.vaddr.checked_add(*len).is_some());
            let total = end.and_then(|len| needed.checked_add(if entry.is_stored() { len } else { 0 }));
            let Some(total) = total else {
                return wrong("it counts more pages than an address space has; dump again");
            };
            needed = total;
        }
        let name = Kind::Pages(map.head.pages_id).name();
        let size = self.size_of_pages(images, &name)?;
        if size < needed {
            return Err(self.wrong_size(&name, size, needed));
        }
        Ok(())
    }

    /// The size in bytes of a file of pages, which for a directory of ours is the checked one; 0 where there is none.
    fn size_of_pages(&self, images: &Images, name: &str) -> Result<u64> {
        match &images.own {
            Some(pb::PtyagentEntry { files, .. }) => {
                Ok(files.iter().find(|file| file.name() == name).map_or(0, |file| file.size()))
            }
            None => Ok(self.file(name)?.map_or(0, |(_, metadata)| metadata.len())),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::image(self.path.join(name), "it is missing; dump again")
    }

    fn wrong_size(&self, name: &str, found: u64, expected: u64) -> Error {
        let what = if found < expected { "cut off" } else { "damaged" };
        Error::image(self.path.join(name), format!("it is {what}: it has {found} bytes of {expected}; dump again"))
    }
}

/// Fails where anybody but the user and root could have written it.
pub(super) fn check_owner(path: &Path, metadata: &Metadata) -> Result<()> {
    let (uid, us) = (metadata.uid(), nix::unistd::geteuid().as_raw());
    if uid != us && uid != 0 {
        let reason =
            format!("it belongs to user {uid}, who could have changed it; run as that user, or give it to user {us}");
        return Err(Error::image(path, reason));
    }
    if metadata.mode() & 0o022 != 0 {
        let reason =
            format!("others may write it (mode {:o}); check who did, then chmod go-w it", metadata.mode() & 0o7777);
        return Err(Error::image(path, reason));
    }
    Ok(())
}

/// The digest of the first `size` bytes of a file, by as many threads as it is worth, at most four.
fn digest_of(file: &File, size: u64) -> io::Result<Digest> {
    let count = usize::try_from(size.div_ceil(BLOCK as u64)).map_err(|_| ErrorKind::FileTooLarge)?;
    let mut values = vec![0u64; count];
    let threads = match count {
        0..BLOCKS_FOR_THREADS => 1,
        _ => std::thread::available_parallelism().map_or(1, |threads| threads.get().min(4)),
    };
    let share = count.div_ceil(threads).max(1);
    if threads == 1 {
        hash_blocks(file, size, 0, &mut values)?;
        return Ok(Digest::from_blocks(size, &values));
    }
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for (part, values) in values.chunks_mut(share).enumerate() {
            let worker = move || hash_blocks(file, size, part * share, values);
            workers.push(std::thread::Builder::new().spawn_scoped(scope, worker)?);
        }
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Err(ErrorKind::Other.into())))
    })?;
    Ok(Digest::from_blocks(size, &values))
}

/// Fills `values` with those of the file's blocks from `first` on.
fn hash_blocks(file: &File, size: u64, first: usize, values: &mut [u64]) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    for (index, value) in values.iter_mut().enumerate() {
        let mut offset = ((first + index) * BLOCK) as u64;
        let end = size.min(offset + BLOCK as u64);
        let mut hasher = digest::Hasher::default();
        while offset < end {
            let piece = &mut buffer[..(end - offset).min(PIECE as u64) as usize];
            file.read_exact_at(piece, offset)?;
            hasher.update(piece);
            offset += piece.len() as u64;
        }
        *value = hasher.value();
    }
    Ok(())
}
