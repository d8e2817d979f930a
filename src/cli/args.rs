//! What may be typed. The help texts are the manual: man pages and completions are made from them.

use std::path::PathBuf;

use clap::{ArgAction, Args, ColorChoice, Parser, Subcommand, ValueEnum};
use ptyagent::files::outside::Chosen;
use ptyagent::ids::{Pid, RemoteFd};

const STATUS: &str = "\
Exit status:
  0  done
  1  failed, and nothing was changed
  2  wrong usage
  3  refused: the session has state that cannot be carried, and runs on; or this machine lacks what the images need, and nothing was created
  A restore in the foreground ends with the exit status of the session (128 and the signal where one killed it).";

const EXAMPLES: &str = "\
Examples:
  ptyagent dump --inject 4711 -D work     save the session of process 4711 in work/, and end it
  ptyagent restore -D work                bring it back
  ptyagent inspect $$                     what there is to save in this shell
  ptyagent demo                           see it happen";

const DUMP_EXAMPLES: &str = "\
Examples:
  ptyagent dump --inject 4711
  ptyagent dump --inject 4711 -D work --leave-running
  ptyagent dump --inject \"$(pidof -s vim)\" -D draft --force --json
  ptyagent dump --inject 4711 --ext-unix=4712:9,4712:10    let go of these two, and of no other";

const RESTORE_EXAMPLES: &str = "\
A session whose terminal was outside (a terminal emulator, ssh, tmux) continues in this terminal. Any other session goes on where it was, \
and this command waits for it; SIGINT and SIGTERM then end this command and not the session.

Examples:
  ptyagent restore -D work
  ptyagent restore -D work --detach --pidfile work.pid
  ptyagent restore -D work --pidns --pts-index private    while its ids and terminals are taken
  ptyagent restore -D work --dry-run";

const INSPECT_EXAMPLES: &str = "\
Examples:
  ptyagent inspect $$
  ptyagent inspect 4711 --json";

const SHOW_EXAMPLES: &str = "\
Examples:
  ptyagent show -D work
  ptyagent show -D work --json
  ptyagent show work/tty-info.img";

const CHECK_EXAMPLES: &str = "\
Examples:
  ptyagent check
  sudo ptyagent check --json";

const ATTACH_EXAMPLES: &str = "\
Examples:
  ptyagent attach            the only session, or a list of several
  ptyagent attach 4711

The exit status is that of the session, or 0 after Ctrl-\\ d. Sessions are found in $PTYAGENT_RUNTIME_DIR, else in /run/ptyagent for root, else in \
$XDG_RUNTIME_DIR/ptyagent.";

const DEMO_EXAMPLES: &str = "\
Examples:
  sudo ptyagent demo";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  ptyagent completions bash > /etc/bash_completion.d/ptyagent
  ptyagent completions zsh > ~/.zfunc/_ptyagent";

const MAN_EXAMPLES: &str = "\
Examples:
  ptyagent man > ptyagent.1
  ptyagent man dump > ptyagent-dump.1";

/// Checkpoint a terminal session, and bring it back exactly
#[derive(Debug, Parser)]
#[command(name = "ptyagent", version, color = ColorChoice::Never, max_term_width = 100)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{STATUS}"))]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// Say more on standard error: -v the steps, -vv everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Save a process and all below it, with their terminals
    ///
    /// The session is frozen, written, and ended once its images are complete and on disk.
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(DumpArgs),
    /// Bring a saved session back
    ///
    /// Processes get their old ids, sessions, groups and terminals. All images are checked before anything is created.
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
    /// Show what a dump would save of a live session
    ///
    /// The session is looked at from the inside for a moment, and nothing in it is changed.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Show what is in saved images
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
    /// Say what this kernel and these privileges allow
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Take over the terminal of a session restored with --detach
    ///
    /// What the session wrote last is shown, and its program draws its screen again. Ctrl-\ and then d leaves the session running and comes
    /// back here (Ctrl-\ twice types one Ctrl-\). One terminal at a time.
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(AttachArgs),
    /// Save, end and restore a real shell, and check it
    ///
    /// Starts a bash on a terminal, leaves a job and a half-typed line in it, and checks that all is there after the restore. It leaves no process
    /// and no file behind.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo,
    /// Print the completions of a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell that is to complete
        shell: clap_complete::Shell,
    },
    /// Print a manual page
    #[command(after_help = MAN_EXAMPLES)]
    Man {
        /// The command whose page it is; without it, that of ptyagent
        command: Option<String>,
    },
    /// The part of the demo that holds its terminal
    #[command(hide = true)]
    DemoHolder { dir: PathBuf },
    /// The part of the demo that becomes its shell
    #[command(hide = true)]
    DemoShell { terminal: PathBuf },
}

#[derive(Debug, Args)]
pub struct DumpArgs {
    /// Process to save, with all that descend from it
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub inject: i32,
    /// Directory for the images, made if it is not there [default: ptyagent-PID]
    #[arg(short = 'D', value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Let the session run on
    #[arg(long, conflicts_with = "leave_stopped")]
    pub leave_running: bool,
    /// Leave the session stopped, as by SIGSTOP
    #[arg(long)]
    pub leave_stopped: bool,
    /// Let go of Unix sockets whose peer is outside the session, all or these (INODE or PID:FD): they come back closed
    #[arg(long, value_name = "SOCKET", num_args = 0.., require_equals = true, value_delimiter = ',', value_parser = chosen)]
    pub ext_unix: Option<Vec<Chosen>>,
    /// Let go of TCP connections, all or these (INODE or PID:FD): they come back closed
    #[arg(long, value_name = "SOCKET", num_args = 0.., require_equals = true, value_delimiter = ',', value_parser = chosen)]
    pub tcp_close: Option<Vec<Chosen>>,
    /// Let go of pipes that a process outside the session has open, all or these (INODE or PID:FD): that end comes back closed
    #[arg(long, value_name = "PIPE", num_args = 0.., require_equals = true, value_delimiter = ',', value_parser = chosen)]
    pub ext_pipe: Option<Vec<Chosen>>,
    /// Keep removed files that are still in use up to this size each, in bytes or with K, M or G
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1M")]
    pub ghost_limit: u64,
    /// Replace images that are in the directory already
    #[arg(long, visible_alias = "overwrite")]
    pub force: bool,
    /// Report in JSON
    #[arg(long)]
    pub json: bool,
}

/// A socket or pipe: INODE or PID:FD.
fn chosen(text: &str) -> Result<Chosen, String> {
    let number = |text: &str| text.parse::<i32>().ok().filter(|number| *number >= 0);
    let chosen = match text.split_once(':') {
        Some((pid, fd)) => number(pid).zip(number(fd)).map(|(pid, fd)| Chosen::Descriptor(Pid(pid), RemoteFd(fd))),
        None => text.parse().ok().map(Chosen::Inode),
    };
    chosen.ok_or_else(|| "it is neither an inode number nor PID:FD".to_owned())
}

/// A number of bytes.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 10),
        Some(digits) if text.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (text, 0),
    };
    let number = digits.parse::<u64>().map_err(|error| error.to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "it is too large".to_owned())
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Directory of the images
    #[arg(short = 'D', value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Return as soon as the session runs; attach gets its terminal
    #[arg(long)]
    pub detach: bool,
    /// Write the id of the session's first process to this file
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Which number in /dev/pts each terminal gets
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = PtsIndex::Exact)]
    pub pts_index: PtsIndex,
    /// Restore into a pid namespace of its own, where all process ids are free (needs CAP_SYS_ADMIN)
    #[arg(long)]
    pub pidns: bool,
    /// Restore although this processor lacks instruction sets that the session's had; programs that use them crash
    #[arg(long)]
    pub allow_cpu_mismatch: bool,
    /// Restore although files that the session has open are longer or shorter than they were; they are named
    #[arg(long)]
    pub allow_changed_files: bool,
    /// Check the images and print the steps; create nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Report in JSON; on standard error where standard output is the session's screen
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PtsIndex {
    /// The old one, or fail
    Exact,
    /// The old one where it is free, else another
    Any,
    /// The old one, in a devpts of its own, in a mount namespace (needs CAP_SYS_ADMIN)
    Private,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Process to look at, with all that descend from it
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// Report in JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Directory of the images
    #[arg(short = 'D', value_name = "DIR", default_value = ".", conflicts_with = "file")]
    pub dir: PathBuf,
    /// One image file, shown in JSON; or a directory
    pub file: Option<PathBuf>,
    /// Report in JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Report in JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The session: the process id of its root, as restore --detach told; not needed where there is only one
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub id: Option<i32>,
}
