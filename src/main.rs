//! The command `runspan`.

use std::process::ExitCode;

fn main() -> ExitCode {
    runspan::cli::main()
}
