//! A batch of system calls as the kinds compose it, and its answers.
//!
//! A [`Batch`] is placed at an offset of a region (see `wire`): first the calls, behind them the input and output buffers.
//! Buffers are addressed by their offset in the region, so the same batch runs in a tracee and, in tests, in this process.

use crate::error::{Errno, Error, Result};
use crate::wire::{self, Call};

/// One argument of a call.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Value(u64),
    /// The address of a buffer of the same batch, plus an offset in it.
    Buffer(Buffer, u64),
    /// The address of an offset of the region.
    Region(u64),
    /// The result of an earlier call of the same batch.
    ResultOf(CallId),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Arg {
        Arg::Value(value)
    }
}

impl From<i32> for Arg {
    /// Sign-extended, as the kernel's `long` arguments are.
    fn from(value: i32) -> Arg {
        Arg::Value(value as i64 as u64)
    }
}

impl From<usize> for Arg {
    fn from(value: usize) -> Arg {
        Arg::Value(value as u64)
    }
}

impl From<Buffer> for Arg {
    fn from(buffer: Buffer) -> Arg {
        Arg::Buffer(buffer, 0)
    }
}

impl From<CallId> for Arg {
    fn from(call: CallId) -> Arg {
        Arg::ResultOf(call)
    }
}

/// Bytes in the region that a call reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    at: usize,
    len: usize,
}

/// Names a call of a batch, for its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(usize);

/// Whether the rest of the batch runs after this call has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    Continue,
    Stop,
    /// It runs, and the failure is none.
    Ignore,
}

/// System calls in order, with their buffers.
#[derive(Debug, Default)]
pub struct Batch {
    calls: Vec<(i64, [Arg; 6], OnError)>,
    data: Vec<u8>,
    /// Where in the data the address of which buffer is stored.
    addresses: Vec<(usize, Buffer)>,
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Adds a system call; a failure does not keep later calls from running.
    pub fn call<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> CallId {
        self.push(nr, args, OnError::Continue)
    }

    /// Adds a system call without which the rest of the batch makes no sense.
    pub fn must<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> CallId {
        self.push(nr, args, OnError::Stop)
    }

    /// Adds a system call that not every kernel or processor has, where nothing is lost without it.
    pub fn may<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> CallId {
        self.push(nr, args, OnError::Ignore)
    }

    /// Adds one of `wire`'s operations on something that lies at an offset of the region, outside the batch.
    pub fn operate(&mut self, operation: u64, offset: u64) -> CallId {
        self.push(operation as i64, [Arg::Region(offset)], OnError::Continue)
    }

    fn push<const N: usize>(&mut self, nr: i64, args: [Arg; N], on_error: OnError) -> CallId {
        let mut all = [Arg::Value(0); 6];
        for (slot, arg) in all.iter_mut().zip(args) {
            *slot = arg;
        }
        self.calls.push((nr, all, on_error));
        CallId(self.calls.len() - 1)
    }

    /// Places bytes for a call to read, 16-byte aligned.
    pub fn input(&mut self, bytes: &[u8]) -> Buffer {
        let buffer = self.output(bytes.len());
        self.data[buffer.at..buffer.at + buffer.len].copy_from_slice(bytes);
        buffer
    }

    /// Reserves zeroed bytes for a call to write, 16-byte aligned.
    pub fn output(&mut self, len: usize) -> Buffer {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at + len, 0);
        Buffer { at, len }
    }

    /// Stores the address of `target` at byte `at` of `buffer`, for structures that hold pointers.
    pub fn store_address(&mut self, buffer: Buffer, at: usize, target: Buffer) {
        self.addresses.push((buffer.at + at, target));
    }

    /// Bytes that the batch takes in a region.
    pub fn size(&self) -> usize {
        self.data_offset() + self.data.len()
    }

    fn data_offset(&self) -> usize {
        (self.calls.len() * size_of::<Call>()).next_multiple_of(16)
    }

    /// The batch as it lies at `offset` in a region whose address is `base`: calls, then buffers.
    pub fn encode(&self, base: u64, offset: u64) -> Vec<u8> {
        let data_at = offset + self.data_offset() as u64;
        let mut bytes = Vec::with_capacity(self.size());
        for (nr, args, on_error) in &self.calls {
            let mut raw = [0u64; 6];
            let mut kinds = 0u32;
            for (i, arg) in args.iter().enumerate() {
                let (value, kind) = match *arg {
                    Arg::Value(value) => (value, wire::ARG_VALUE),
                    Arg::Buffer(buffer, plus) => (data_at + buffer.at as u64 + plus, wire::ARG_REGION),
                    Arg::Region(offset) => (offset, wire::ARG_REGION),
                    Arg::ResultOf(CallId(n)) => {
                        (offset + (n * size_of::<Call>()) as u64 + RESULT_AT as u64, wire::ARG_LOAD)
                    }
                };
                raw[i] = value;
                kinds |= kind << (2 * i);
            }
            let flags = if *on_error == OnError::Stop { wire::STOP_ON_ERROR } else { 0 };
            bytes.extend_from_slice(&(*nr as u64).to_ne_bytes());
            raw.iter().for_each(|arg| bytes.extend_from_slice(&arg.to_ne_bytes()));
            bytes.extend_from_slice(&kinds.to_ne_bytes());
            bytes.extend_from_slice(&flags.to_ne_bytes());
            bytes.extend_from_slice(&wire::NOT_RUN.to_ne_bytes());
        }
        bytes.resize(self.data_offset(), 0);
        bytes.extend_from_slice(&self.data);
        for (at, target) in &self.addresses {
            let at = self.data_offset() + at;
            bytes[at..at + 8].copy_from_slice(&(base + data_at + target.at as u64).to_ne_bytes());
        }
        bytes
    }

    /// A call by its place in the batch, as whoever runs it by itself needs it: its number and its arguments, where the batch lies at `offset`
    /// of a region whose address is `base`. `results` are those of the calls before it.
    pub fn resolved(&self, n: usize, base: u64, offset: u64, results: &[i64]) -> Option<(i64, [u64; 6], OnError)> {
        let (nr, args, on_error) = self.calls.get(n)?;
        let data_at = base + offset + self.data_offset() as u64;
        let args = args.map(|arg| match arg {
            Arg::Value(value) => value,
            Arg::Buffer(buffer, plus) => data_at + buffer.at as u64 + plus,
            Arg::Region(offset) => base + offset,
            Arg::ResultOf(CallId(n)) => results.get(n).copied().unwrap_or(wire::NOT_RUN) as u64,
        });
        Some((*nr, args, *on_error))
    }

    /// Where in the batch the result of a call lies, in bytes.
    pub fn result_at(n: usize) -> usize {
        n * size_of::<Call>() + RESULT_AT
    }

    /// The calls with those arguments that are plain values; addresses are 0.
    pub fn plain_calls(&self) -> impl Iterator<Item = (i64, [u64; 6])> + '_ {
        let plain = |arg: &Arg| if let Arg::Value(value) = arg { *value } else { 0 };
        self.calls.iter().map(move |(nr, args, _)| (*nr, std::array::from_fn(|n| plain(&args[n]))))
    }

    /// How many calls the batch holds.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// The answers, from the bytes of the region that [`encode`](Batch::encode) filled and the calls changed.
    pub fn answers(self, bytes: Vec<u8>) -> Answers {
        Answers {
            data_offset: self.data_offset(),
            calls: self.calls.iter().map(|call| (call.0, call.2)).collect(),
            bytes,
        }
    }
}

const RESULT_AT: usize = std::mem::offset_of!(Call, result);

/// What a batch gave: each call's result and the buffers' bytes.
#[derive(Debug)]
pub struct Answers {
    data_offset: usize,
    calls: Vec<(i64, OnError)>,
    bytes: Vec<u8>,
}

impl Answers {
    /// The result of a call, as the kernel gave it. A call that was not run because an earlier one failed gives ECANCELED.
    pub fn result(&self, call: CallId) -> std::result::Result<i64, Errno> {
        let at = call.0 * size_of::<Call>() + RESULT_AT;
        let raw = i64::from_ne_bytes(self.bytes[at..at + 8].try_into().unwrap_or_default());
        match raw {
            wire::NOT_RUN => Err(Errno::ECANCELED),
            -4095..=-1 => Err(Errno::from_raw(-raw as i32)),
            _ => Ok(raw),
        }
    }

    /// The bytes of a buffer after the batch.
    pub fn bytes(&self, buffer: Buffer) -> &[u8] {
        let at = self.data_offset + buffer.at;
        &self.bytes[at..at + buffer.len]
    }

    /// The little-endian u32 at byte `at` of a buffer.
    pub fn u32(&self, buffer: Buffer, at: usize) -> u32 {
        self.bytes(buffer).get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    /// The little-endian u64 at byte `at` of a buffer.
    pub fn u64(&self, buffer: Buffer, at: usize) -> u64 {
        self.bytes(buffer).get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    /// Fails with the first failed call that is not one which [`may`](Batch::may) fail.
    pub fn all_done(&self, operation: &'static str, subject: crate::error::Subject) -> Result<()> {
        for (n, (nr, _)) in self.calls.iter().enumerate().filter(|(_, (_, on_error))| *on_error != OnError::Ignore) {
            if let Err(errno) = self.result(CallId(n)) {
                tracing::debug!(call = n, nr, %errno, operation, "batch call failed");
                return Err(Error::Sys { operation, subject, errno });
            }
        }
        Ok(())
    }
}

/// Runs batches: in a tracee through its parasite, or in this process.
pub trait Ask {
    /// Runs the calls in order and yields their answers. Fails only where the process itself is lost.
    fn ask(&mut self, batch: Batch) -> Result<Answers>;
}
