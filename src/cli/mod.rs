//! One function for each command.

mod args;
mod dump;
mod output;
mod progress;
mod restore;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use ptyagent::error::{Error, Result};
use ptyagent::ids::Pid;
use ptyagent::image::Images;

use args::{Cli, Command, InspectArgs, ShowArgs};
use output::{answer, complain, json};

/// Does what the command line says; yields the exit status.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    trace(cli.verbose);
    perform(cli.command).unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(error.exit_status())
    })
}

/// Warnings on standard error; more of it where asked for.
fn trace(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    builder.with_ansi(false).log_internal_errors(false).init();
}

fn perform(command: Command) -> Result<ExitCode> {
    match command {
        Command::Dump(args) => dump::dump(&args),
        Command::Restore(args) => restore::restore(&args),
        Command::Inspect(args) => inspect(&args),
        Command::Show(args) => show(&args),
        Command::Check(args) => {
            let report = ptyagent::check::check();
            Ok(answer(&if args.json { json(&report) } else { report.to_string() }))
        }
        Command::Attach(args) => restore::attach(&args),
        Command::Demo => demo(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ptyagent", &mut script);
            Ok(answer(&String::from_utf8_lossy(&script)))
        }
        Command::Man { command } => man(command.as_deref()),
        Command::DemoHolder { dir } => ptyagent::demo::holder::hold(&dir).map(ExitCode::from),
        Command::DemoShell { terminal } => Err(ptyagent::demo::holder::become_shell(&terminal)),
    }
}

fn inspect(args: &InspectArgs) -> Result<ExitCode> {
    let images = ptyagent::inspect::inspect(Pid(args.pid))?;
    Ok(answer(&if args.json { json(&ptyagent::show::json(&images)) } else { ptyagent::show::tree(&images) }))
}

fn show(args: &ShowArgs) -> Result<ExitCode> {
    let place = args.file.as_ref().unwrap_or(&args.dir);
    if args.file.is_some() && !place.is_dir() {
        return Ok(answer(&json(&ptyagent::show::one_file(place)?)));
    }
    let images = Images::read(place)?;
    Ok(answer(&if args.json { json(&ptyagent::show::json(&images)) } else { ptyagent::show::tree(&images) }))
}

fn demo() -> Result<ExitCode> {
    let program = std::env::current_exe().map_err(|error| {
        Error::failed(format!("the path of this program is not known: {error}; run it by its path"))
    })?;
    ptyagent::demo::run(&program, &mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// The manual page of the program, or of one of its commands.
fn man(command: Option<&str>) -> Result<ExitCode> {
    let mut cli = Cli::command();
    cli.build();
    let page = match command {
        None => cli,
        Some(name) => {
            let found = cli.get_subcommands().find(|one| one.get_name() == name && !one.is_hide_set()).cloned();
            found.ok_or_else(|| Error::failed(format!("there is no command {name}; see ptyagent --help")))?
        }
    };
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(page).render(&mut text);
    rendered.map_err(|error| Error::failed(format!("the page cannot be made: {error}")))?;
    Ok(answer(&String::from_utf8_lossy(&text)))
}
