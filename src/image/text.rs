//! Bytes as text: printable ASCII as it is, the rest with the escapes of C. Enumerations by name.

use std::fmt::{Debug, Write};

use serde::{Serialize, Serializer};

/// `bytes` with C escapes: `\n`, `\033`, `\\`, `\"`. An octal escape always has three digits, so that the text is
/// unambiguous.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'\\' => text.push_str("\\\\"),
            b'"' => text.push_str("\\\""),
            0x20..=0x7e => text.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => _ = write!(text, "\\{byte:03o}"),
        }
    }
    text
}

/// A required bytes field, for serde.
pub fn required<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&escape(bytes))
}

/// An optional bytes field, for serde.
pub fn optional<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    bytes.as_deref().map(escape).serialize(serializer)
}

/// A repeated bytes field, for serde.
pub fn repeated<S: Serializer>(bytes: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(bytes.iter().map(|bytes| escape(bytes)))
}

/// A required enumeration, for serde: its name, or the number where it has none.
pub fn required_enum<E: TryFrom<i32> + Debug, S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    match E::try_from(*value) {
        Ok(known) => serializer.collect_str(&format_args!("{known:?}")),
        Err(_) => serializer.serialize_i32(*value),
    }
}

/// An optional enumeration, for serde.
pub fn optional_enum<E: TryFrom<i32> + Debug, S: Serializer>(
    value: &Option<i32>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => required_enum::<E, S>(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// Whether a part of the images is as it would be without its file.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_unambiguous() {
        assert_eq!(escape(b"a\x1b[1m\n\"\\\xff\x007"), "a\\033[1m\\n\\\"\\\\\\377\\0007");
    }
}
