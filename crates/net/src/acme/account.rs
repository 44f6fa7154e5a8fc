//! The account with the authority.

use instant_acme::{Account, AccountCredentials, Error, NewAccount};

use super::http::Http;
use super::{Acme, AcmeError};

/// The file of the cache that has the account's key.
const FILE: &str = "acme_account.json";

impl Acme {
    /// The account that was made before, or a new one where the terms allow it.
    pub(super) async fn account(&self) -> Result<Account, AcmeError> {
        let terms = self.terms().await?;
        self.ask_for_terms(terms.as_deref())?;
        if let Some(account) = self.known_account().await? {
            return Ok(account);
        }
        let contact = format!("mailto:{}", self.config.email);
        let contacts = [contact.as_str()];
        let account = NewAccount {
            contact: if self.config.email.is_empty() { &[] } else { &contacts },
            terms_of_service_agreed: self.config.tos_accepted,
            only_return_existing: false,
        };
        let builder = Account::builder_with_http(Box::new(Http(self.http.clone())));
        let (account, credentials) =
            builder.create(&account, self.config.directory_url.clone(), None).await?;
        let text = serde_json::to_vec(&credentials).map_err(Error::from)?;
        self.cache.put(FILE, text).await?;
        Ok(account)
    }

    fn ask_for_terms(&self, terms: Option<&str>) -> Result<(), AcmeError> {
        let Some(tos_url) = terms else { return Ok(()) };
        let (subsystem_name, directory_url) = (self.config.subsystem, self.config.directory_url.as_str());
        let email = self.config.email.as_str();
        if self.config.tos_accepted && subsystem_name.is_empty() {
            // What the reference's OIDC discovery provider says, which is its autocert's only line.
            tracing::info!(url = tos_url, "ACME Terms Of Service accepted");
            return Ok(());
        }
        if self.config.tos_accepted {
            tracing::info!(subsystem_name, directory_url, tos_url, email, "ACME Terms of Service accepted");
            return Ok(());
        }
        tracing::warn!(
            subsystem_name,
            directory_url,
            tos_url,
            email,
            "ACME Terms of Service have not been accepted. See the `tos_accepted` configurable"
        );
        Err(AcmeError::Terms)
    }

    /// The account in the cache, if this authority knows it.
    async fn known_account(&self) -> Result<Option<Account>, AcmeError> {
        let Some(text) = self.cache.read(FILE).await else { return Ok(None) };
        let of_this_authority = serde_json::from_slice::<serde_json::Value>(&text)
            .is_ok_and(|account| account["directory"] == self.config.directory_url.as_str());
        if !of_this_authority {
            return Ok(None);
        }
        let Ok(credentials) = serde_json::from_slice::<AccountCredentials>(&text) else { return Ok(None) };
        let builder = Account::builder_with_http(Box::new(Http(self.http.clone())));
        let account = builder.from_credentials(credentials).await?;
        // A harmless update says whether the authority still has it.
        let contact = format!("mailto:{}", self.config.email);
        let contacts = [contact.as_str()];
        let contacts: &[&str] = if self.config.email.is_empty() { &[] } else { &contacts };
        match account.update_contacts(contacts).await {
            Ok(()) => Ok(Some(account)),
            Err(Error::Api(problem)) if is_unknown(problem.r#type.as_deref()) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Problems for which a new account is the remedy (RFC 8555, section 6.7).
fn is_unknown(kind: Option<&str>) -> bool {
    matches!(
        kind,
        Some("urn:ietf:params:acme:error:accountDoesNotExist" | "urn:ietf:params:acme:error:unauthorized")
    )
}
