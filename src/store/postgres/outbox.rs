//! Writing to the outbox.

use sqlx::AssertSqlSafe;

use super::super::rows::stored;
use super::super::{NewRequest, Settlement, StoreError};
use super::pool::Session;
use crate::run::Timestamp;

/// Writes down what became of a request.
pub(super) async fn settle(tx: &mut Session, settlement: &Settlement) -> Result<(), StoreError> {
    match settlement {
        Settlement::Delivered { id } => {
            sqlx::query("DELETE FROM runspan.outbox WHERE id = $1").bind(id).execute(tx).await?;
        }
        Settlement::Dead { id, answer } => {
            let sql = "UPDATE runspan.outbox SET dead = $2 WHERE id = $1";
            sqlx::query(sql).bind(id).bind(answer).execute(tx).await?;
        }
        Settlement::Halved { id, place, created_at, halves } => {
            let gone =
                sqlx::query("DELETE FROM runspan.outbox WHERE id = $1").bind(id).execute(&mut *tx).await?;
            if gone.rows_affected() == 0 {
                // Trimmed away meanwhile.
                return Ok(());
            }
            for half in halves {
                insert(tx, half, Origin::Half(*place, *created_at)).await?;
            }
        }
    }
    Ok(())
}

/// The places of a commit's requests. Not by the sequence, which somebody may set back: what is new would be sent before
/// what waits. The number of the commit does not go back.
const PLACES_A_COMMIT: i64 = 1_000_000;

/// Where a request belongs.
pub(super) enum Origin {
    /// It is the projector's: so many of the same commit come before it.
    Commit(usize),
    /// It is a half of the one that had this place.
    Half(i64, Timestamp),
}

/// Inserts a request.
pub(super) async fn insert(tx: &mut Session, request: &NewRequest, origin: Origin) -> Result<(), StoreError> {
    let (place, created_at) = match origin {
        Origin::Commit(before) => (stored(before), None),
        Origin::Half(place, created_at) => (place, Some(created_at)),
    };
    // The second, if somebody has set the sequence back to where requests still wait.
    for next in [
        "SELECT nextval(pg_get_serial_sequence('runspan.outbox', 'id')) AS id",
        "SELECT max(id) + 1 AS id FROM runspan.outbox",
    ] {
        // Safe: this module's own text.
        let sql = AssertSqlSafe(format!(
            "WITH next AS ({next})
             INSERT INTO runspan.outbox (id, place, channel, created_at, items, runs, bytes, body)
             OVERRIDING SYSTEM VALUE
             SELECT id,
                 CASE WHEN $7 IS NOT NULL THEN $6
                      ELSE $6 + {PLACES_A_COMMIT} * (SELECT coalesce(max(c.id), 0) + 1 FROM runspan.commits c) END,
                 $1, coalesce($7, clock_timestamp()), $2, $3, $4, $5 FROM next
             ON CONFLICT (id) DO NOTHING"
        ));
        let inserted = sqlx::query(sql)
            .bind(request.channel.as_str())
            .bind(stored(request.items))
            .bind(stored(request.runs))
            .bind(stored(request.body.len()))
            .bind(request.body.as_ref())
            .bind(place)
            .bind(created_at.and_then(|at| chrono::DateTime::from_timestamp_micros(at.micros())))
            .execute(&mut *tx)
            .await?;
        if inserted.rows_affected() == 1 {
            break;
        }
    }
    Ok(())
}
