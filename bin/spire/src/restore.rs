//! `spire restore`: makes a database that was restored from a backup fit to be served (docs/backup.md).
//!
//! An old database does not know what came after it. Authorities that were made since have signed what agents and workloads
//! use now, so they have to be in the bundle before the server answers its first agent: an agent that hears of a bundle without
//! them stops trusting its peers. And join tokens in it may have been used since.

use anyhow::{Context, Result, bail, ensure};
use spire_compat::config::{PluginConfig, PluginData};
use spire_compat::flag::{FlagError, FlagSet, Parsed};
use spire_core::pki::bundle_doc::{self, Reading};
use spire_core::pki::{Certificate, pem};
use spire_core::spiffe::{Bundle, TrustDomain, X509Authority};
use spire_core::time::Timestamp;
use spire_ports::datastore::{BundleMask, Bundles, JoinTokens};
use spire_server::clock::{Clock, SystemClock};
use spire_server::config::{ServerConfig, ServerFlags};
use spire_store::{SqlConfig, SqlStore};

use crate::note;

const HELP: &str = "Usage: spire restore -config FILE -bundle FILE ...

Prepares a database that was restored from a backup, before the server is started on it:
adds the authorities of bundles that agents, endpoints or files still have, and removes join
tokens, which may have been used since the backup.

Flags:
";

fn flags() -> FlagSet {
    FlagSet::new("restore")
        .string("config", "", "The server's configuration `file`, which names the database")
        .bool("expandEnv", false, "Expand environment variables in the configuration file")
        .strings(
            "bundle",
            "A `file` with a bundle of this trust domain that is newer than the backup, as PEM or in SPIFFE's format. Can \
             be used more than once",
        )
        .bool("keepJoinTokens", false, "Leave join tokens that were not used when the backup was made")
}

/// Runs the command; returns the exit code.
pub(crate) fn main(arguments: &[String]) -> i32 {
    let parsed = match flags().parse(arguments) {
        Ok(parsed) => parsed,
        Err(FlagError::Help) => {
            note(&format!("{HELP}{}", flags().defaults()));
            return 0;
        }
        Err(FlagError::Refused(why)) => {
            note(&format!("{why}\n{HELP}{}", flags().defaults()));
            return 1;
        }
    };
    match restore(&parsed) {
        Ok(()) => 0,
        Err(error) => {
            note(&format!("Error: {error:#}"));
            1
        }
    }
}

fn restore(flags: &Parsed) -> Result<()> {
    ensure!(flags.is_given("config"), "-config is needed: it names the database");
    let config = ServerConfig::load(&ServerFlags {
        config: Some(flags.string("config").to_owned()),
        expand_env: flags.bool("expandEnv"),
        ..ServerFlags::default()
    })?;
    let now = SystemClock.now();
    let mut addition = Bundle::empty(config.trust_domain.clone());
    for path in flags.strings("bundle") {
        let text = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
        let read = bundle(&config.trust_domain, &text).with_context(|| path.clone())?;
        addition.sequence_number = addition.sequence_number.max(read.sequence_number);
        addition.x509_authorities.extend(read.x509_authorities);
        addition.jwt_authorities.extend(read.jwt_authorities);
        addition.wit_authorities.extend(read.wit_authorities);
    }
    checked(&mut addition, now)?;
    for key in addition.jwt_authorities.iter_mut().chain(&mut addition.wit_authorities) {
        // The format does not say it. No key signs for longer than this, and unknown would be never pruned.
        if key.not_after == Timestamp::EPOCH {
            key.not_after = now + config.ca_ttl;
        }
    }
    let plugin = config.plugins.iter().find(|plugin| plugin.kind == "DataStore");
    let store = store_config(plugin.context("the configuration has no DataStore")?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let store = tokio::task::spawn_blocking(move || SqlStore::open(&store)).await??;
        let done = merge(&store, &addition).await;
        let done = match done {
            Ok(()) if !flags.bool("keepJoinTokens") => forget_tokens(&store).await,
            done => done,
        };
        store.close().await;
        done
    })
}

/// As PEM, or in SPIFFE's format.
fn bundle(trust_domain: &TrustDomain, text: &[u8]) -> Result<Bundle> {
    if text.trim_ascii_start().starts_with(b"{") {
        return Ok(bundle_doc::parse(trust_domain, text, Reading::GoSpiffe)?);
    }
    let mut bundle = Bundle::empty(trust_domain.clone());
    for certificate in pem::certificates(text)? {
        bundle.x509_authorities.push(X509Authority { der: certificate.der().clone(), tainted: false });
    }
    ensure!(!bundle.x509_authorities.is_empty(), "there is no certificate in it");
    Ok(bundle)
}

/// Leaves out what expired; refuses what is no authority, such as an SVID with its chain.
fn checked(bundle: &mut Bundle, now: Timestamp) -> Result<()> {
    let mut valid = Vec::new();
    for authority in bundle.x509_authorities.drain(..) {
        let certificate = Certificate::from_der(authority.der.clone())?;
        let id = certificate.authority_id();
        if !certificate.is_ca() {
            bail!("the certificate with the subject key ID {id:?} is no authority");
        }
        if certificate.not_after() > now {
            valid.push(authority);
        } else {
            note(&format!("Left out, since it expired: X.509 authority {id}"));
        }
    }
    bundle.x509_authorities = valid;
    Ok(())
}

/// Adds what is missing, and lets the sequence number go on from the greatest that anybody saw.
async fn merge(store: &SqlStore, addition: &Bundle) -> Result<()> {
    let before = store.bundle_fetch(&addition.trust_domain).await?;
    let Some(before) = before else {
        bail!("the database has no bundle of {}: is it the right one?", addition.trust_domain.name());
    };
    let mut after = store.bundle_append(addition).await?;
    let added = |new: usize, old: usize| new.saturating_sub(old);
    let x509 = added(after.x509_authorities.len(), before.x509_authorities.len());
    let keys = added(after.jwt_authorities.len(), before.jwt_authorities.len())
        + added(after.wit_authorities.len(), before.wit_authorities.len());
    if after.sequence_number <= addition.sequence_number {
        after.sequence_number = addition.sequence_number.saturating_add(1);
        let mask = BundleMask {
            x509_authorities: false,
            jwt_authorities: false,
            wit_authorities: false,
            refresh_hint: false,
            sequence_number: true,
        };
        after = store.bundle_update(&after, mask).await?;
    }
    for authority in after.x509_authorities.iter().filter(|a| !before.x509_authorities.contains(a)) {
        let id = Certificate::from_der(authority.der.clone()).map(|c| c.authority_id()).unwrap_or_default();
        note(&format!("Added X.509 authority {id}"));
    }
    note(&format!(
        "The bundle has {x509} more X.509 authorities and {keys} more keys; its sequence number is {}",
        after.sequence_number
    ));
    Ok(())
}

async fn forget_tokens(store: &SqlStore) -> Result<()> {
    store.join_tokens_prune(Timestamp::from_unix(i64::MAX)).await?;
    note("Join tokens are removed: they may have been used since the backup");
    Ok(())
}

/// The settings of a `DataStore "sql"` block.
fn store_config(plugin: &PluginConfig) -> Result<SqlConfig> {
    let data = match &plugin.data {
        PluginData::None => None,
        PluginData::Fixed(fragment) => Some(fragment.clone()),
        PluginData::File(path) => {
            let text = plugin.data.load_text().with_context(|| path.clone())?;
            let parsed = spire_compat::hcl::parse_config(text).with_context(|| path.clone())?;
            Some(parsed.into())
        }
    };
    Ok(SqlConfig::from_plugin_data(data.as_ref())?)
}
