//! Join tokens.

use async_trait::async_trait;
use rusqlite::params;
use spire_core::model::JoinToken;
use spire_core::time::Timestamp;
use spire_ports::datastore::{JoinTokens, Result};

use super::{execute, first_row};
use crate::convert::{now_text, number_or_zero};
use crate::store::SqlStore;

#[async_trait]
impl JoinTokens for SqlStore {
    async fn join_token_create(&self, token: &JoinToken) -> Result<()> {
        let token = token.clone();
        self.write(move |conn| {
            execute(
                conn,
                "INSERT INTO join_tokens (created_at, updated_at, token, expiry) VALUES (?1, ?1, ?2, ?3)",
                params![now_text(), token.token, token.expires_at.unix()],
            )?;
            Ok(())
        })
        .await
    }

    async fn join_token_consume(&self, token: &str) -> Result<Option<JoinToken>> {
        let token = token.to_owned();
        self.write(move |conn| {
            first_row(
                conn,
                "DELETE FROM join_tokens WHERE token = ?1 RETURNING expiry",
                params![token],
                |row| {
                    let expires_at = Timestamp::from_unix(number_or_zero(row, 0)?);
                    Ok(JoinToken { token: token.clone(), expires_at })
                },
            )
        })
        .await
    }

    async fn join_tokens_prune(&self, expired_before: Timestamp) -> Result<()> {
        self.write(move |conn| {
            execute(conn, "DELETE FROM join_tokens WHERE expiry < ?1", params![expired_before.unix()])?;
            Ok(())
        })
        .await
    }
}
