//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ptyagent::dump::{After, Request};
use ptyagent::ids::Pid;
use ptyagent::image::Overwrite;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dump {
        #[arg(long)]
        inject: i32,
        #[arg(short = 'D')]
        dir: PathBuf,
        #[arg(long)]
        leave_running: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Dump { inject, dir, leave_running } => {
            let after = if leave_running { After::LeaveRunning } else { After::Kill };
            ptyagent::dump::dump(&Request { root: Pid(inject), dir, after, overwrite: Overwrite::Refuse })
        }
    };
    match result {
        Ok(report) => {
            println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ptyagent: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
