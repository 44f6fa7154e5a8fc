//! Trust bundles. Each is one encoded message, so a change reads, alters and writes the whole.

use async_trait::async_trait;
use spire_core::model::{Page, Paging};
use spire_core::pki::Certificate;
use spire_core::spiffe::{Bundle, JwtAuthority, TrustDomain, X509Authority};
use spire_core::time::Timestamp;
use spire_ports::datastore::{BundleMask, Bundles, DeleteMode, Error, Result};
use tracing::{info, warn};

use super::entries::by_rows;
use super::entry_writes::delete_row;
use super::{count, each_row, entry_event, first_row, page, readable};
use crate::convert::{
    blob, bundle_from_blob, bundle_key, bundle_to_blob, integer, now, text_or_empty, trust_domain,
};
use crate::fault::{Fault, Sql};
use crate::sql::{Isolation, Row, Session, params};
use crate::store::SqlStore;

#[async_trait]
impl Bundles for SqlStore {
    async fn bundle_fetch(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>> {
        let domain = trust_domain.clone();
        self.read_row(move |conn| fetch(conn, &domain)).await
    }

    async fn bundle_list(&self, paging: Option<&Paging>) -> Result<Page<Bundle>> {
        let paging = paging.cloned();
        self.read(move |conn| {
            page(paging.as_ref(), |after, limit| {
                let mut rows = Vec::new();
                each_row(
                    conn,
                    "SELECT id, trust_domain, data FROM bundles WHERE id > ?1 ORDER BY id LIMIT ?2",
                    params![after, limit],
                    |row| {
                        let id: i64 = integer(row, 0)?;
                        let bundle = trust_domain_of(row, 1).and_then(|domain| decode(domain, row, 2));
                        rows.push((id, readable("bundles", id, bundle)));
                        Ok(())
                    },
                )?;
                Ok(rows)
            })
        })
        .await
    }

    async fn bundle_count(&self) -> Result<u32> {
        self.read(|conn| count(conn, "SELECT COUNT(*) FROM bundles", &[])).await
    }

    async fn bundle_create(&self, bundle: &Bundle) -> Result<Bundle> {
        let bundle = bundle.clone();
        self.write(Isolation::Rows, move |conn| {
            insert(conn, &bundle)?;
            Ok(bundle.clone())
        })
        .await
    }

    async fn bundle_set(&self, bundle: &Bundle) -> Result<Bundle> {
        let bundle = bundle.clone();
        self.write(Isolation::Rows, move |conn| {
            set(conn, &bundle)?;
            Ok(bundle.clone())
        })
        .await
    }

    async fn bundle_update(&self, bundle: &Bundle, mask: BundleMask) -> Result<Bundle> {
        let update = bundle.clone();
        self.write(Isolation::Rows, move |conn| {
            let mut bundle = existing(conn, &update.trust_domain)?;
            if mask.x509_authorities {
                bundle.x509_authorities = update.x509_authorities.clone();
            }
            if mask.jwt_authorities {
                bundle.jwt_authorities = update.jwt_authorities.clone();
            }
            if mask.wit_authorities {
                bundle.wit_authorities = update.wit_authorities.clone();
            }
            if mask.refresh_hint {
                bundle.refresh_hint = update.refresh_hint;
            }
            if mask.sequence_number {
                bundle.sequence_number = update.sequence_number;
            }
            replace(conn, &bundle)?;
            Ok(bundle)
        })
        .await
    }

    async fn bundle_append(&self, bundle: &Bundle) -> Result<Bundle> {
        let addition = bundle.clone();
        self.write(Isolation::Rows, move |conn| match fetch(conn, &addition.trust_domain)? {
            None => {
                insert(conn, &addition)?;
                Ok(addition.clone())
            }
            Some(mut bundle) => {
                if bundle.merge(&addition) {
                    replace_changed(conn, &mut bundle)?;
                }
                Ok(bundle)
            }
        })
        .await
    }

    async fn bundle_delete(&self, trust_domain: &TrustDomain, mode: DeleteMode) -> Result<()> {
        let domain = trust_domain.clone();
        self.write(Isolation::Absence, move |conn| delete(conn, &domain, mode)).await
    }

    async fn bundle_prune(&self, trust_domain: &TrustDomain, expired_before: Timestamp) -> Result<bool> {
        let domain = trust_domain.clone();
        self.write(Isolation::Rows, move |conn| {
            let Some(mut bundle) = fetch(conn, &domain)? else {
                return Ok(false);
            };
            let changed = prune(&mut bundle, expired_before)?;
            if changed {
                replace_changed(conn, &mut bundle)?;
            }
            Ok(changed)
        })
        .await
    }

    async fn x509_authority_taint(&self, trust_domain: &TrustDomain, subject_key_id: &str) -> Result<()> {
        let (domain, key) = (trust_domain.clone(), subject_key_id.to_owned());
        self.write(Isolation::Rows, move |conn| {
            let mut bundle = existing(conn, &domain)?;
            let mut found = false;
            for authority in &mut bundle.x509_authorities {
                if has_subject_key_id(authority, &key)? {
                    if authority.tainted {
                        return Err(Error::Invalid("root CA is already tainted".into()).into());
                    }
                    authority.tainted = true;
                    found = true;
                }
            }
            if !found {
                return Err(Error::Missing("no ca found with provided subject key ID".into()).into());
            }
            replace_changed(conn, &mut bundle)
        })
        .await
    }

    async fn x509_authority_revoke(&self, trust_domain: &TrustDomain, subject_key_id: &str) -> Result<()> {
        let (domain, key) = (trust_domain.clone(), subject_key_id.to_owned());
        self.write(Isolation::Rows, move |conn| {
            let mut bundle = existing(conn, &domain)?;
            let mut kept = Vec::with_capacity(bundle.x509_authorities.len());
            let before = bundle.x509_authorities.len();
            for authority in bundle.x509_authorities {
                if !has_subject_key_id(&authority, &key)? {
                    kept.push(authority);
                } else if !authority.tainted {
                    let text = "it is not possible to revoke an untainted root CA";
                    return Err(Error::Invalid(text.into()).into());
                }
            }
            if kept.len() == before {
                return Err(Error::Missing("no root CA found with provided subject key ID".into()).into());
            }
            bundle.x509_authorities = kept;
            replace_changed(conn, &mut bundle)
        })
        .await
    }

    async fn jwt_authority_taint(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        let (domain, kid) = (trust_domain.clone(), kid.to_owned());
        self.write(Isolation::Rows, move |conn| taint_key(conn, &domain, &kid, &JWT)).await
    }

    async fn jwt_authority_revoke(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        let (domain, kid) = (trust_domain.clone(), kid.to_owned());
        self.write(Isolation::Rows, move |conn| revoke_key(conn, &domain, &kid, &JWT)).await
    }

    async fn wit_authority_taint(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        let (domain, kid) = (trust_domain.clone(), kid.to_owned());
        self.write(Isolation::Rows, move |conn| taint_key(conn, &domain, &kid, &WIT)).await
    }

    async fn wit_authority_revoke(&self, trust_domain: &TrustDomain, kid: &str) -> Result<JwtAuthority> {
        let (domain, kid) = (trust_domain.clone(), kid.to_owned());
        self.write(Isolation::Rows, move |conn| revoke_key(conn, &domain, &kid, &WIT)).await
    }
}

/// One of the two kinds of keys that sign tokens.
struct KeyKind {
    keys: fn(&mut Bundle) -> &mut Vec<JwtAuthority>,
    missing: &'static str,
}

const JWT: KeyKind =
    KeyKind { keys: |bundle| &mut bundle.jwt_authorities, missing: "no JWT Key found with provided key ID" };
const WIT: KeyKind =
    KeyKind { keys: |bundle| &mut bundle.wit_authorities, missing: "no WIT Key found with provided key ID" };

fn taint_key(conn: &mut dyn Session, domain: &TrustDomain, kid: &str, kind: &KeyKind) -> Sql<JwtAuthority> {
    let mut bundle = existing(conn, domain)?;
    let authority = (kind.keys)(&mut bundle)
        .iter_mut()
        .find(|authority| authority.kid == kid)
        .ok_or_else(|| Error::Missing(kind.missing.into()))?;
    if authority.tainted {
        return Err(Error::Invalid("key is already tainted".into()).into());
    }
    authority.tainted = true;
    let tainted = authority.clone();
    replace_changed(conn, &mut bundle)?;
    Ok(tainted)
}

fn revoke_key(conn: &mut dyn Session, domain: &TrustDomain, kid: &str, kind: &KeyKind) -> Sql<JwtAuthority> {
    let mut bundle = existing(conn, domain)?;
    let keys = (kind.keys)(&mut bundle);
    let index = keys
        .iter()
        .position(|authority| authority.kid == kid)
        .ok_or_else(|| Error::Missing(kind.missing.into()))?;
    if !keys[index].tainted {
        let text = "it is not possible to revoke an untainted key";
        return Err(Error::Invalid(text.into()).into());
    }
    let revoked = keys.remove(index);
    replace_changed(conn, &mut bundle)?;
    Ok(revoked)
}

/// The bundle of a trust domain.
pub(super) fn fetch(conn: &mut dyn Session, domain: &TrustDomain) -> Sql<Option<Bundle>> {
    first_row(conn, "SELECT data FROM bundles WHERE trust_domain = ?1", params![&bundle_key(domain)], |row| {
        decode(domain.clone(), row, 0)
    })
}

/// Stores a bundle, new or not.
pub(super) fn set(conn: &mut dyn Session, bundle: &Bundle) -> Sql<()> {
    conn.execute(
        "INSERT INTO bundles (created_at, updated_at, trust_domain, data) VALUES (?1, ?1, ?2, ?3) \
         {upsert trust_domain} updated_at = ?1, data = ?3",
        params![now(), &bundle_key(&bundle.trust_domain), &*bundle_to_blob(bundle)],
    )?;
    Ok(())
}

fn existing(conn: &mut dyn Session, domain: &TrustDomain) -> Sql<Bundle> {
    Ok(fetch(conn, domain)?.ok_or(Error::NotFound)?)
}

fn insert(conn: &mut dyn Session, bundle: &Bundle) -> Sql<()> {
    conn.execute(
        "INSERT INTO bundles (created_at, updated_at, trust_domain, data) VALUES (?1, ?1, ?2, ?3)",
        params![now(), &bundle_key(&bundle.trust_domain), &*bundle_to_blob(bundle)],
    )?;
    Ok(())
}

fn replace(conn: &mut dyn Session, bundle: &Bundle) -> Sql<()> {
    conn.execute(
        "UPDATE bundles SET updated_at = ?1, data = ?2 WHERE trust_domain = ?3",
        params![now(), &*bundle_to_blob(bundle), &bundle_key(&bundle.trust_domain)],
    )?;
    Ok(())
}

fn replace_changed(conn: &mut dyn Session, bundle: &mut Bundle) -> Sql<()> {
    bundle.sequence_number = bundle.sequence_number.saturating_add(1);
    replace(conn, bundle)
}

fn trust_domain_of(row: &dyn Row, column: usize) -> Sql<TrustDomain> {
    trust_domain(&text_or_empty(row, column)?)
}

fn decode(domain: TrustDomain, row: &dyn Row, column: usize) -> Sql<Bundle> {
    bundle_from_blob(domain, blob(row, column)?.unwrap_or_default())
}

fn has_subject_key_id(authority: &X509Authority, key: &str) -> Sql<bool> {
    Ok(certificates(authority)?.first().is_some_and(|certificate| certificate.authority_id() == key))
}

/// The certificates of an authority: one, or in old databases several in a row.
fn certificates(authority: &X509Authority) -> Sql<Vec<Certificate>> {
    let parsed = Certificate::many_from_der(authority.der.clone(), X509Authority::CERTIFICATES_MAX);
    parsed.map_err(|error| Fault::unreadable(format!("cannot parse certificates: {error}")))
}

/// Removes a bundle. Entries that federate with it follow the mode; each of them gets an event, since what
/// its workloads receive changes.
fn delete(conn: &mut dyn Session, domain: &TrustDomain, mode: DeleteMode) -> Sql<()> {
    let key = bundle_key(domain);
    let row = first_row(conn, "SELECT id FROM bundles WHERE trust_domain = ?1", params![&key], |row| {
        integer(row, 0)
    })?
    .ok_or(Error::NotFound)?;
    let mut federated = Vec::new();
    each_row(
        conn,
        "SELECT registered_entry_id FROM federated_registration_entries WHERE bundle_id = ?1",
        params![row],
        |row| {
            federated.push(integer(row, 0)?);
            Ok(())
        },
    )?;
    if mode == DeleteMode::Restrict && !federated.is_empty() {
        let text = format!("cannot delete bundle; federated with {} registration entries", federated.len());
        return Err(Error::InUse(text).into());
    }
    let now = now();
    for (row, entry) in by_rows(conn, &federated)? {
        if mode == DeleteMode::Delete {
            delete_row(conn, row, entry)?;
        } else {
            // Nothing changes in the row, but it is locked: events of one entry come in the order of their commits.
            conn.execute(
                "UPDATE registered_entries SET updated_at = updated_at WHERE id = ?1",
                params![row],
            )?;
            entry_event(conn, entry.id.as_str(), now)?;
        }
    }
    conn.execute("DELETE FROM federated_registration_entries WHERE bundle_id = ?1", params![row])?;
    conn.execute("DELETE FROM bundles WHERE id = ?1", params![row])?;
    Ok(())
}

/// Drops what has expired by then. Refuses to leave a kind without any authority that had one
/// (pkg/common/bundleutil: PruneBundle).
fn prune(bundle: &mut Bundle, expired_before: Timestamp) -> Sql<bool> {
    let mut kept = Vec::with_capacity(bundle.x509_authorities.len());
    let mut changed = false;
    for authority in &bundle.x509_authorities {
        match certificates(authority)?.iter().find(|certificate| certificate.not_after() <= expired_before) {
            // An authority with one expired certificate is dropped as a whole.
            Some(expired) => {
                info!(
                    subsystem_name = "sql", serial_number = expired.serial(), expiration = %expired.not_after(),
                    "Pruning CA certificate due to expiration"
                );
                changed = true;
            }
            None => kept.push(authority.clone()),
        }
    }
    let jwt = unexpired(&bundle.jwt_authorities, expired_before, "Pruning JWT signing key due to expiration");
    let wit = unexpired(&bundle.wit_authorities, expired_before, "Pruning WIT signing key due to expiration");
    let refuse = |kind: &str, log: &str| {
        warn!(subsystem_name = "sql", "Pruning halted; all known {log} have expired");
        Err(Error::Invalid(format!("prune failed: would prune all {kind}")).into())
    };
    if kept.is_empty() {
        return refuse("certificates", "CA certificates");
    }
    if jwt.is_empty() && !bundle.jwt_authorities.is_empty() {
        return refuse("JWT signing keys", "JWT signing keys");
    }
    if wit.is_empty() && !bundle.wit_authorities.is_empty() {
        return refuse("WIT signing keys", "WIT signing keys");
    }
    changed |= jwt.len() != bundle.jwt_authorities.len() || wit.len() != bundle.wit_authorities.len();
    bundle.x509_authorities = kept;
    bundle.jwt_authorities = jwt;
    bundle.wit_authorities = wit;
    Ok(changed)
}

fn unexpired(keys: &[JwtAuthority], expired_before: Timestamp, log: &str) -> Vec<JwtAuthority> {
    let valid = |key: &&JwtAuthority| {
        let valid = key.not_after > expired_before;
        if !valid {
            info!(subsystem_name = "sql", kid = key.kid, expiration = %key.not_after, "{log}");
        }
        valid
    };
    keys.iter().filter(valid).cloned().collect()
}
