//! The command `runspan`. It uses the library as any other program does.

mod cli;
mod demo;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
