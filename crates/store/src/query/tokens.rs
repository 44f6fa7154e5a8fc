//! Join tokens.

use async_trait::async_trait;
use spire_core::model::JoinToken;
use spire_core::time::Timestamp;
use spire_ports::datastore::{JoinTokens, Result};

use super::first_row;
use crate::convert::{now, number_or_zero};
use crate::fault::Sql;
use crate::sql::{Isolation, Session, params};
use crate::store::SqlStore;

#[async_trait]
impl JoinTokens for SqlStore {
    async fn join_token_create(&self, token: &JoinToken) -> Result<()> {
        let token = token.clone();
        self.write(Isolation::Statement, move |conn| {
            conn.execute(
                "INSERT INTO join_tokens (created_at, updated_at, token, expiry) VALUES (?1, ?1, ?2, ?3)",
                params![now(), &token.token, token.expires_at.unix()],
            )?;
            Ok(())
        })
        .await
    }

    async fn join_token_fetch(&self, token: &str) -> Result<Option<JoinToken>> {
        let token = token.to_owned();
        self.read_row(move |conn| {
            let expiry = "SELECT expiry FROM join_tokens WHERE token = ?1";
            let expiry = first_row(conn, expiry, params![&token], |row| number_or_zero(row, 0))?;
            let found = |expiry| JoinToken { token: token.clone(), expires_at: Timestamp::from_unix(expiry) };
            Ok(expiry.map(found))
        })
        .await
    }

    async fn join_token_delete(&self, token: &str) -> Result<bool> {
        let token = token.to_owned();
        self.write(Isolation::Statement, move |conn| delete(conn, &token)).await
    }

    async fn join_tokens_prune(&self, expired_before: Timestamp) -> Result<()> {
        self.write(Isolation::Statement, move |conn| {
            conn.execute("DELETE FROM join_tokens WHERE expiry < ?1", params![expired_before.unix()])?;
            Ok(())
        })
        .await
    }
}

/// Whether there was one: of two who want it, one deletes it; the other waits for that, and touches no row.
pub(super) fn delete(conn: &mut dyn Session, token: &str) -> Sql<bool> {
    Ok(conn.execute("DELETE FROM join_tokens WHERE token = ?1", params![token])? == 1)
}
