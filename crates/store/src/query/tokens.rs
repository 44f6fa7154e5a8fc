//! Join tokens.

use async_trait::async_trait;
use spire_core::model::JoinToken;
use spire_core::time::Timestamp;
use spire_ports::datastore::{JoinTokens, Result};

use super::first_row;
use crate::convert::{now, number_or_zero};
use crate::sql::{Durable, Isolation, params};
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

    async fn join_token_consume(&self, token: &str) -> Result<Option<JoinToken>> {
        let token = token.to_owned();
        // The agent learns nothing before its node is stored, and that is on disk with this.
        self.write_durable(Durable::WithNext, Isolation::Statement, move |conn| {
            let expiry = "SELECT expiry FROM join_tokens WHERE token = ?1";
            let Some(expiry) = first_row(conn, expiry, params![&token], |row| number_or_zero(row, 0))? else {
                return Ok(None);
            };
            // Of two that found the row, one deletes it; the other waits for that, and touches none.
            let deleted = conn.execute("DELETE FROM join_tokens WHERE token = ?1", params![&token])?;
            let expires_at = Timestamp::from_unix(expiry);
            Ok((deleted == 1).then(|| JoinToken { token: token.clone(), expires_at }))
        })
        .await
    }

    async fn join_tokens_prune(&self, expired_before: Timestamp) -> Result<()> {
        self.write(Isolation::Statement, move |conn| {
            conn.execute("DELETE FROM join_tokens WHERE expiry < ?1", params![expired_before.unix()])?;
            Ok(())
        })
        .await
    }
}
