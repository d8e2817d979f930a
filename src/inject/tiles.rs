//! AMX tiles in a task that has never used them.
//!
//! The kernel gives a task room for its tiles at their first use (the #NM of an XFD-gated feature, arch/x86/kernel/fpu/xstate.c), and refuses
//! them in a regset before that (EINVAL). So the task uses one: it configures a tile, clears it and releases it. It needs the permission for them.

/// In XSTATE_BV: AMX tiles.
const TILES: u64 = 1 << 18;
/// Where XSTATE_BV lies in an XSAVE image.
const XSTATE_BV: usize = 512;

/// A tile configuration: palette 1, tile 0 with one row of 64 bytes (Intel SDM, LDTILECFG).
pub const CONFIGURATION: [u8; 64] = {
    let mut bytes = [0; 64];
    (bytes[0], bytes[16], bytes[48]) = (1, 64, 1);
    bytes
};

/// rdi is the address of [`CONFIGURATION`]; ends with a system call.
#[rustfmt::skip]
pub const CODE: [u8; 17] = [
    0xc4, 0xe2, 0x78, 0x49, 0x07, // ldtilecfg [rdi]
    0xc4, 0xe2, 0x7b, 0x49, 0xc0, // tilezero tmm0
    0xc4, 0xe2, 0x78, 0x49, 0xc0, // tilerelease
    0x0f, 0x05,                   // syscall
];

/// Whether a thread's tiles are not in their initial state.
pub fn in_use(xstate: &[u8]) -> bool {
    let word = xstate.get(XSTATE_BV..XSTATE_BV + 8).and_then(|bytes| bytes.try_into().ok());
    word.is_some_and(|word| u64::from_le_bytes(word) & TILES != 0)
}
