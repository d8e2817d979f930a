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
    Restore {
        #[arg(short = 'D')]
        dir: PathBuf,
        #[arg(long)]
        detach: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    let result = match cli.command {
        Command::Dump { inject, dir, leave_running } => {
            let after = if leave_running { After::LeaveRunning } else { After::Kill };
            ptyagent::dump::dump(&Request { root: Pid(inject), dir, after, overwrite: Overwrite::Refuse })
                .map(|report| serde_json::to_string_pretty(&report).unwrap_or_default())
        }
        Command::Restore { dir, .. } => {
            let request = ptyagent::restore::Request { dir, index: ptyagent::tty::restore::IndexPolicy::Exact };
            ptyagent::restore::load(&request)
                .and_then(|(images, plan)| ptyagent::restore::restore(&request, &images, &plan))
                .map(|restored| serde_json::to_string_pretty(&restored.report).unwrap_or_default())
        }
    };
    match result {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ptyagent: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
