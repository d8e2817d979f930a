//! The command line: arguments to requests, reports to text, errors to exit statuses. It sees only the library's front.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
