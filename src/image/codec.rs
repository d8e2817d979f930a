//! Which part of [`Images`] is in which file, for both directions.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;

use super::frame::{Decoder, Encoder};
use super::kind::Kind;
use super::{GhostContent, GhostFile, Images, Pagemap, PipeData, SkPacket, own, pb};
use crate::error::{Error, Result};

/// The number of the IPC namespace in our directories: there is one only.
const OUR_NAMESPACE: u32 = 1;

/// The name and content of every small file except inventory.img and ptyagent.img, which the writer makes last. Files
/// without entries are left out; a reader takes a missing one for an empty one.
pub fn encode(images: &Images) -> Result<Vec<(Kind, Vec<u8>)>> {
    let mut files = vec![entries(Kind::Pstree, &images.pstree)?, entries(Kind::Files, &images.files)?];
    keyed(&mut files, Kind::Core, &images.cores)?;
    keyed(&mut files, Kind::Ids, &images.ids)?;
    keyed(&mut files, Kind::Mm, &images.mm)?;
    keyed(&mut files, Kind::Fs, &images.fs)?;
    keyed(&mut files, Kind::Creds, &images.creds)?;
    keyed(&mut files, Kind::Timens, &images.timens)?;
    for (&id, table) in &images.fdinfo {
        files.push(entries(Kind::Fdinfo(id), table)?);
    }
    for (&id, pagemap) in &images.pagemaps {
        files.push(encode_pagemap(Kind::Pagemap(id), pagemap)?);
    }
    for (&id, pagemap) in &images.shmem_pagemaps {
        files.push(encode_pagemap(Kind::PagemapShmem(id), pagemap)?);
    }
    for (&id, ghost) in &images.ghosts {
        files.push(encode_ghost(Kind::GhostFile(id), ghost)?);
    }
    unless_empty(&mut files, Kind::TtyInfo, &images.tty_info)?;
    unless_empty(&mut files, Kind::TtyData, &images.tty_data)?;
    unless_empty(&mut files, Kind::RemapFpath, &images.remaps)?;
    unless_empty(&mut files, Kind::FileLocks, &images.locks)?;
    unless_empty(&mut files, Kind::Memfd, &images.memfds)?;
    unless_empty(&mut files, Kind::IpcShm(OUR_NAMESPACE), &images.segments)?;
    unless_empty(&mut files, Kind::Seccomp, images.seccomp.as_slice())?;
    unless_empty(&mut files, Kind::StatsDump, images.stats.as_slice())?;
    encode_pipes(&mut files, Kind::PipesData, &images.pipes_data)?;
    encode_pipes(&mut files, Kind::FifoData, &images.fifo_data)?;
    encode_packets(&mut files, &images.sk_queues)?;
    Ok(files)
}

/// The content of inventory.img.
pub fn encode_inventory(inventory: &pb::InventoryEntry) -> Result<Vec<u8>> {
    Ok(entries(Kind::Inventory, std::slice::from_ref(inventory))?.1)
}

/// Adds what one file holds to `images`. `path` is for messages only.
///
/// Fails where the file is empty, of another kind, cut off inside an entry, or an entry cannot be decoded.
pub fn decode(images: &mut Images, kind: Kind, path: &Path, bytes: &[u8]) -> Result<()> {
    if kind == Kind::Own {
        images.own = Some(own::decode(path, bytes)?);
        return Ok(());
    }
    let mut file = Decoder::new(path, kind, bytes)?;
    match kind {
        Kind::Inventory => images.inventory = file.only()?,
        Kind::Pstree => images.pstree = file.all()?,
        Kind::Core(id) => _ = images.cores.insert(id, file.only()?),
        Kind::Ids(id) => _ = images.ids.insert(id, file.only()?),
        Kind::Mm(id) => _ = images.mm.insert(id, file.only()?),
        Kind::Fs(id) => _ = images.fs.insert(id, file.only()?),
        Kind::Creds(id) => _ = images.creds.insert(id, file.only()?),
        Kind::Timens(id) => _ = images.timens.insert(id, file.only()?),
        Kind::Pagemap(id) => _ = images.pagemaps.insert(id, decode_pagemap(&mut file)?),
        Kind::PagemapShmem(id) => _ = images.shmem_pagemaps.insert(id, decode_pagemap(&mut file)?),
        Kind::Fdinfo(id) => _ = images.fdinfo.insert(id, file.all()?),
        Kind::Files => images.files = file.all()?,
        Kind::TtyInfo => images.tty_info = file.all()?,
        Kind::TtyData => images.tty_data = file.all()?,
        Kind::PipesData => images.pipes_data = decode_pipes(&mut file)?,
        Kind::FifoData => images.fifo_data = decode_pipes(&mut file)?,
        Kind::RemapFpath => images.remaps = file.all()?,
        Kind::FileLocks => images.locks = file.all()?,
        Kind::GhostFile(id) => _ = images.ghosts.insert(id, decode_ghost(&mut file)?),
        Kind::SkQueues => images.sk_queues = decode_packets(&mut file)?,
        // CRIU 4 writes an empty list as a file without any entry.
        Kind::Seccomp => images.seccomp = file.all()?.pop(),
        Kind::Memfd => images.memfds = file.all()?,
        Kind::IpcShm(_) => images.segments.extend(decode_segments(&mut file)?),
        Kind::StatsDump => images.stats = Some(file.only()?),
        // What a restore wrote behind the dump says nothing about the session.
        Kind::StatsRestore | Kind::Pages(_) | Kind::Own => {}
    }
    Ok(())
}

fn entries<M: Message>(kind: Kind, messages: &[M]) -> Result<(Kind, Vec<u8>)> {
    let mut encoder = Encoder::new(kind);
    messages.iter().try_for_each(|message| encoder.entry(message))?;
    Ok((kind, encoder.finish()))
}

fn unless_empty<M: Message>(files: &mut Vec<(Kind, Vec<u8>)>, kind: Kind, messages: &[M]) -> Result<()> {
    if !messages.is_empty() {
        files.push(entries(kind, messages)?);
    }
    Ok(())
}

fn keyed<M: Message>(files: &mut Vec<(Kind, Vec<u8>)>, kind: fn(u32) -> Kind, map: &BTreeMap<u32, M>) -> Result<()> {
    for (&id, message) in map {
        files.push(entries(kind(id), std::slice::from_ref(message))?);
    }
    Ok(())
}

fn encode_pagemap(kind: Kind, pagemap: &Pagemap) -> Result<(Kind, Vec<u8>)> {
    let mut encoder = Encoder::new(kind);
    encoder.entry(&pagemap.head)?;
    pagemap.entries.iter().try_for_each(|entry| encoder.entry(entry))?;
    Ok((kind, encoder.finish()))
}

fn decode_pagemap(file: &mut Decoder) -> Result<Pagemap> {
    Ok(Pagemap { head: file.first()?, entries: file.all()? })
}

/// The length field for data that follows an entry.
fn length(data: &[u8]) -> Result<u32> {
    u32::try_from(data.len())
        .map_err(|_| Error::failed("a pipe or socket holds over 4 GiB; let it be read, then dump again"))
}

fn encode_pipes(files: &mut Vec<(Kind, Vec<u8>)>, kind: Kind, pipes: &[PipeData]) -> Result<()> {
    if pipes.is_empty() {
        return Ok(());
    }
    let mut encoder = Encoder::new(kind);
    for pipe in pipes {
        encoder.entry(&pb::PipeDataEntry { bytes: length(&pipe.data)?, ..pipe.entry })?;
        encoder.payload(&pipe.data);
    }
    files.push((kind, encoder.finish()));
    Ok(())
}

fn decode_pipes(file: &mut Decoder) -> Result<Vec<PipeData>> {
    let mut pipes = Vec::new();
    while let Some(entry) = file.entry::<pb::PipeDataEntry>()? {
        let data = file.payload(u64::from(entry.bytes))?.to_vec();
        pipes.push(PipeData { entry, data });
    }
    Ok(pipes)
}

fn encode_packets(files: &mut Vec<(Kind, Vec<u8>)>, packets: &[SkPacket]) -> Result<()> {
    if packets.is_empty() {
        return Ok(());
    }
    let mut encoder = Encoder::new(Kind::SkQueues);
    for packet in packets {
        encoder.entry(&pb::SkPacketEntry { length: length(&packet.data)?, ..packet.entry.clone() })?;
        encoder.payload(&packet.data);
    }
    files.push((Kind::SkQueues, encoder.finish()));
    Ok(())
}

fn decode_packets(file: &mut Decoder) -> Result<Vec<SkPacket>> {
    let mut packets = Vec::new();
    while let Some(entry) = file.entry::<pb::SkPacketEntry>()? {
        let data = file.payload(u64::from(entry.length))?.to_vec();
        packets.push(SkPacket { entry, data });
    }
    Ok(packets)
}

/// Segments whose pages are not in a page map have them behind their entry, in whole words.
fn decode_segments(file: &mut Decoder) -> Result<Vec<pb::IpcShmEntry>> {
    let mut segments = Vec::new();
    while let Some(entry) = file.entry::<pb::IpcShmEntry>()? {
        if entry.in_pagemaps != Some(true) {
            file.payload(entry.size.next_multiple_of(4))?;
        }
        segments.push(entry);
    }
    Ok(segments)
}

fn encode_ghost(kind: Kind, ghost: &GhostFile) -> Result<(Kind, Vec<u8>)> {
    let mut encoder = Encoder::new(kind);
    match &ghost.content {
        GhostContent::Whole(data) => {
            encoder.entry(&pb::GhostFileEntry { chunks: None, ..ghost.entry.clone() })?;
            encoder.payload(data);
        }
        GhostContent::Chunks(chunks) => {
            encoder.entry(&pb::GhostFileEntry { chunks: Some(true), ..ghost.entry.clone() })?;
            for (off, data) in chunks {
                encoder.entry(&pb::GhostChunkEntry { len: data.len() as u64, off: *off })?;
                encoder.payload(data);
            }
        }
    }
    Ok((kind, encoder.finish()))
}

fn decode_ghost(file: &mut Decoder) -> Result<GhostFile> {
    let entry: pb::GhostFileEntry = file.first()?;
    if entry.chunks != Some(true) {
        return Ok(GhostFile { entry, content: GhostContent::Whole(file.rest().to_vec()) });
    }
    let mut chunks = Vec::new();
    while let Some(chunk) = file.entry::<pb::GhostChunkEntry>()? {
        chunks.push((chunk.off, file.payload(chunk.len)?.to_vec()));
    }
    Ok(GhostFile { entry, content: GhostContent::Chunks(chunks) })
}
