//! The framing of an image file: magic numbers, then entries, each a 32-bit little-endian length and a message; the bytes
//! that belong to an entry (of a pipe, of an unlinked file) follow it without a length of their own.

use std::path::Path;

use prost::Message;

use super::kind::Kind;
use crate::error::{Error, Result};

/// Writes one file.
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    pub fn new(kind: Kind) -> Self {
        Encoder { bytes: kind.magics().into_iter().flat_map(u32::to_le_bytes).collect() }
    }

    /// Appends an entry.
    ///
    /// Fails if it is longer than the 4 GiB that its length field can say.
    pub fn entry(&mut self, message: &impl Message) -> Result<()> {
        let len = u32::try_from(message.encoded_len())
            .map_err(|_| Error::failed("an image entry is over 4 GiB; dump a smaller session"))?;
        self.bytes.extend_from_slice(&len.to_le_bytes());
        message.encode(&mut self.bytes).map_err(|error| Error::unexpected("encoding an image entry", error.to_string()))
    }

    /// Appends bytes that belong to the entry before them.
    pub fn payload(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads one file that is wholly in memory; copies nothing but what is asked for.
pub struct Decoder<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// Begins behind the magic numbers.
    ///
    /// Fails if the file is empty, too short, or of another kind.
    pub fn new(path: &'a Path, kind: Kind, bytes: &'a [u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::image(path, "it is empty; dump again"));
        }
        let mut decoder = Decoder { path, bytes, at: 0 };
        for magic in kind.magics() {
            if decoder.word()? != magic {
                return Err(Error::image(path, "its first bytes are not those of this kind of image; dump again"));
            }
        }
        Ok(decoder)
    }

    /// The next entry, or None at the end of the file.
    pub fn entry<M: Message + Default>(&mut self) -> Result<Option<M>> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let start = self.at;
        let len = self.word()?;
        let body = self.payload(u64::from(len))?;
        let message = M::decode(body);
        message.map(Some).map_err(|error| {
            Error::image(self.path, format!("the entry at byte {start} is damaged ({error}); dump again"))
        })
    }

    /// The only entry of a file that has one.
    pub fn only<M: Message + Default>(&mut self) -> Result<M> {
        let message = self.first()?;
        match self.at == self.bytes.len() {
            true => Ok(message),
            false => Err(Error::image(self.path, "it has more than the one entry it should have; dump again")),
        }
    }

    /// The first entry of a file that has at least one.
    pub fn first<M: Message + Default>(&mut self) -> Result<M> {
        self.entry()?.ok_or_else(|| Error::image(self.path, "it ends before its first entry; dump again"))
    }

    /// All entries that are left.
    pub fn all<M: Message + Default>(&mut self) -> Result<Vec<M>> {
        let mut messages = Vec::new();
        while let Some(message) = self.entry()? {
            messages.push(message);
        }
        Ok(messages)
    }

    /// The next `len` bytes.
    pub fn payload(&mut self, len: u64) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(body) => {
                self.at += body.len();
                Ok(body)
            }
            None => Err(self.cut_off()),
        }
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    fn word(&mut self) -> Result<u32> {
        match self.bytes[self.at..].first_chunk() {
            Some(word) => {
                self.at += word.len();
                Ok(u32::from_le_bytes(*word))
            }
            None => Err(self.cut_off()),
        }
    }

    fn cut_off(&self) -> Error {
        let (len, at) = (self.bytes.len(), self.at);
        Error::image(
            self.path,
            format!("it is cut off: its {len} bytes end in the middle of what begins at byte {at}; dump again"),
        )
    }
}
