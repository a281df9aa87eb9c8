//! The command `runspan schema`.

use clap::Args;

use super::{Failure, print_line};
use runspan::DatabaseUrl;
use runspan::semconv;

const EXAMPLES: &str = "\
Examples:
  runspan schema > events.schema.json
  runspan schema | jq '.\"$defs\" | keys'                               # every event and field
  runspan schema | jq '.\"$defs\".\"workflow.run.failed\".required'     # what each such line has
  runspan schema | jq '.\"$defs\".\"error.type\".enum'                  # its values

What the events mean to an operator, and the queries for them: docs/operate/observability.md.";

/// Print the JSON Schema of the event lines
///
/// Draft 2020-12, for the lines that `runspan relay --logs stdout` prints. Each line is one of the workflow.run.*
/// events; the schema says which keys each event always has and which it may have, of what type, and allows no
/// others. Needs no database.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct SchemaArgs {}

impl SchemaArgs {
    #[expect(clippy::unused_self, reason = "as the other commands")]
    pub(super) fn database_url(&self) -> Option<DatabaseUrl> {
        None
    }

    #[expect(clippy::unused_async, reason = "as the other commands")]
    pub(super) async fn run(self) -> Result<(), Failure> {
        print_line(format_args!("{:#}", semconv::json_schema()))
    }
}
