//! Why a role may not use the schema `runspan`: the code of its owner would run with more rights than the owner has.

/// The remedy where runspan is not installed.
pub(super) const NOT_ATTACHED: &str =
    "runspan is not attached to this database: run `runspan attach --database-url …` first";

/// Why nothing of the schema's is used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// The session's role can do more than the owner of what it would use.
    #[error(
        "role {me:?} {excess}, and the schema runspan belongs to {owner}, whose code would run with these rights: connect as {owner}, or as a role with the grants of docs/table.md (Roles)"
    )]
    ExcessiveRights {
        /// The session's role.
        me: String,
        /// What it can do.
        excess: String,
        /// The schema's owner.
        owner: String,
    },
    /// There is no schema `runspan`.
    #[error("{NOT_ATTACHED}")]
    NoSchema,
}
