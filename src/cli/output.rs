//! Writing to standard output and standard error, which may be closed or full at any time.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use indicatif::HumanBytes;
use serde::Serialize;

/// Prints the answer of a command that does nothing else. A reader that went away (`| head`) has what it wanted: status 0.
pub fn answer(text: &str) -> ExitCode {
    match write(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("writing the answer failed: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints what a command has done, which is done whether it can be told or not.
pub fn report(text: &str) {
    if let Err(error) = write(text) {
        complain(format_args!("the work is done, but writing the report failed: {error}"));
    }
}

/// One sentence on standard error.
pub fn complain(message: impl Display) {
    // Where standard error fails too there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "ptyagent: {message}");
}

/// Several lines of JSON, ended.
pub fn json(value: &impl Serialize) -> String {
    // Reports are maps with names as keys, which cannot fail.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Standard output is flushed; a closed pipe is no error.
fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A number and its noun: "1 process", "2 processes".
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A size for people: "5.6 MiB".
pub fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Microseconds for people: "800 us", "12.3 ms", "1.50 s".
pub fn time(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// A word as a shell has to be given it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_read_more() {
        assert_eq!(quoted("/tmp/a-b.1"), "/tmp/a-b.1");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn times_have_three_digits_at_most_before_the_unit() {
        assert_eq!(time(999), "999 us");
        assert_eq!(time(12_345), "12.3 ms");
        assert_eq!(time(1_500_000), "1.50 s");
    }
}
