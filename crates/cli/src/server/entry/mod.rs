//! `entry …` (cmd/spire-server/cli/entry).

mod create;
mod data;
mod delete;
pub(crate) mod filter;
mod show;
mod update;

use spire_compat::gotime;
use spire_compat::quote::quote;
use spire_wire::api::types;

use crate::dispatch::Command;
use crate::env::Env;
use crate::failure::{Failure, code_name};
use crate::pretty::id_text;

pub(super) fn commands<H: 'static>() -> [Command<H>; 5] {
    [
        create::CREATE.server(),
        update::UPDATE.server(),
        delete::DELETE.server(),
        show::SHOW.server(),
        show::COUNT.server(),
    ]
}

/// The block that describes an entry. Labels are padded to 24 columns; most fields appear only if set.
pub(crate) fn block(entry: &types::Entry) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text.push_str(&format!("{label:24}: {value}\n"));
    let ttl = |ttl: i32| if ttl == 0 { "default".to_owned() } else { ttl.to_string() };
    line("Entry ID", if entry.id.is_empty() { "(none)" } else { &entry.id });
    line("SPIFFE ID", &id_text(entry.spiffe_id.as_ref()));
    line("Parent ID", &id_text(entry.parent_id.as_ref()));
    line("Revision", &entry.revision_number.to_string());
    if entry.downstream {
        line("Downstream", "true");
    }
    line("X509-SVID TTL", &ttl(entry.x509_svid_ttl));
    line("JWT-SVID TTL", &ttl(entry.jwt_svid_ttl));
    if entry.expires_at != 0 {
        line("Expiration time", &gotime::string(entry.expires_at));
    }
    for selector in &entry.selectors {
        line("Selector", &format!("{}:{}", selector.r#type, selector.value));
    }
    for trust_domain in &entry.federates_with {
        line("FederatesWith", trust_domain);
    }
    for name in &entry.dns_names {
        line("DNS name", name);
    }
    if entry.admin {
        line("Admin", "true");
    }
    if entry.store_svid {
        line("StoreSvid", "true");
    }
    if !entry.hint.is_empty() {
        line("Hint", &entry.hint);
    }
    let attributes = entry.additional_attributes.unwrap_or_default();
    if attributes.disable_x509_svid_prefetch {
        line("DisableX509SvidPrefetch", "true");
    }
    if attributes.jwt_svid_include_jti {
        line("JwtSvidIncludeJti", "true");
    }
    text.push('\n');
    text
}

/// Prints what was done, then what was not and why. `verb` is `create` or `update`.
fn print_results<'a>(
    env: &mut Env,
    verb: &str,
    results: impl Iterator<Item = (Option<&'a types::Status>, Option<&'a types::Entry>)> + Clone,
) -> Result<(), Failure> {
    let code = |status: Option<&types::Status>| status.map_or(0, |s| s.code);
    let shown = |entry: Option<&types::Entry>| entry.map(block).unwrap_or_default();
    for (_, entry) in results.clone().filter(|(status, _)| code(*status) == 0) {
        env.out(shown(entry));
    }
    let mut failed = false;
    for (status, entry) in results.filter(|(status, _)| code(*status) != 0) {
        failed = true;
        let message = status.map_or("", |s| s.message.as_str());
        let (code, message) = (code_name(code(status)), quote(message));
        env.err(format_args!("Failed to {verb} the following entry (code: {code}, msg: {message}):\n"));
        env.err(shown(entry));
    }
    if failed { Err(Failure::new(format!("failed to {verb} one or more entries"))) } else { Ok(()) }
}
