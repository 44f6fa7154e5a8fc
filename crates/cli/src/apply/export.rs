//! `spire export`: what the server has, page by page, in the shape that `spire apply` takes back.

use std::io::{self, Write};

use serde_json::{Map, Value, json};
use spire_compat::flag::{FlagSet, Parsed};
use spire_wire::api::server::entry::v1::list_entries_request;
use spire_wire::api::types;
use spire_wire::api::types::FederationRelationship;

use super::content::{entry_fields, normalize, relationship_fields};
use super::owner::Owner;
use super::registry::{Registry, Server};
use crate::env::Env;
use crate::failure::Failure;
use crate::server::entry::filter::{self, Filter, Words};

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Yaml,
    /// In the shape of `entry create -data` and `federation create -data`.
    Json,
}

impl Form {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "yaml" => Ok(Self::Yaml),
            "json" => Ok(Self::Json),
            _ => Err("the output is yaml or json".to_owned()),
        }
    }
}

/// Adds the filters of `entry show`.
pub(super) fn filters(flags: FlagSet) -> FlagSet {
    let words = Words {
        parent_id: "The Parent ID of the records to export",
        spiffe_id: "The SPIFFE ID of the records to export",
        hint: "The Hint of the records to export (optional)",
    };
    filter::flags(flags, &words)
}

/// The filter that the flags describe; `None` for everything.
pub(super) fn filter_of(flags: &Parsed) -> Result<Option<list_entries_request::Filter>, Failure> {
    let Filter { by_parent_id, by_spiffe_id, by_selectors, by_federates_with, by_hint, by_downstream } =
        Filter::from_flags(flags)?;
    let filter = list_entries_request::Filter {
        by_parent_id,
        by_spiffe_id,
        by_selectors,
        by_federates_with,
        by_hint,
        by_downstream: by_downstream.filter(|only| *only),
    };
    Ok((filter != list_entries_request::Filter::default()).then_some(filter))
}

/// Writes entries in the order in which they were created, then relationships unless something was filtered.
pub(super) async fn export(
    env: &mut Env,
    server: &mut Server,
    form: Form,
    owner: Option<&Owner>,
) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(format!("cannot write: {error}"));
    let whole = server.filter.is_none() && owner.is_none();
    let mut writer = Writer { out: &mut env.stdout, form, count: 0 };
    writer.begin("entries").map_err(failed)?;
    let mut token = String::new();
    loop {
        let (page, next) = server.page(token).await?;
        for mut entry in page {
            if owner.is_none_or(|owner| owner.owns(&entry.id)) {
                normalize(&mut entry);
                writer.item(entry_item(&entry, form)).map_err(failed)?;
            }
        }
        if next.is_empty() {
            break;
        }
        token = next;
    }
    writer.end().map_err(failed)?;
    if whole {
        let relationships = server.relationships().await?;
        let mut writer = Writer { out: &mut env.stdout, form, count: 0 };
        if form == Form::Json {
            writer.out.write_all(b",").map_err(failed)?;
        }
        // Each reader knows both names; this is the one of `federation create -data`.
        let name = if form == Form::Json { "federationRelationships" } else { "federation_relationships" };
        writer.begin(name).map_err(failed)?;
        for relationship in &relationships {
            writer.item(relationship_item(relationship, form)).map_err(failed)?;
        }
        writer.end().map_err(failed)?;
    }
    if form == Form::Json {
        env.stdout.write_all(b"}\n").map_err(failed)?;
    }
    env.stdout.flush().map_err(failed)
}

/// A member of the document, which is a list.
struct Writer<'w> {
    out: &'w mut Box<dyn Write>,
    form: Form,
    count: u64,
}

impl Writer<'_> {
    fn begin(&mut self, name: &str) -> io::Result<()> {
        match self.form {
            Form::Yaml => write!(self.out, "{name}:"),
            // Only the first one opens the document.
            Form::Json if name == "entries" => write!(self.out, "{{\"{name}\":["),
            Form::Json => write!(self.out, "\"{name}\":["),
        }
    }

    fn item(&mut self, members: Vec<(&'static str, Value)>) -> io::Result<()> {
        self.count += 1;
        match self.form {
            Form::Json => {
                let comma = if self.count == 1 { "" } else { "," };
                let members: Map<String, Value> =
                    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                write!(self.out, "{comma}\n{}", Value::Object(members))
            }
            Form::Yaml => self.out.write_all(yaml_item(&members, self.count == 1).as_bytes()),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match (self.form, self.count) {
            (Form::Yaml, 0) => self.out.write_all(b" []\n"),
            (Form::Yaml, _) => Ok(()),
            (Form::Json, _) => self.out.write_all(b"\n]"),
        }
    }
}

/// What of an entry is not as it is by default.
pub(super) fn entry_item(entry: &types::Entry, form: Form) -> Vec<(&'static str, Value)> {
    let nothing = entry_fields(&types::Entry::default());
    let mut members = vec![("entry_id", json!(entry.id))];
    let mut attributes = Map::new();
    for ((name, value), (_, default)) in entry_fields(entry).into_iter().zip(nothing) {
        match name {
            _ if value == default => {}
            "disable_x509_svid_prefetch" | "jwt_svid_include_jti" => {
                attributes.insert(name.to_owned(), value);
            }
            "selectors" if form == Form::Json => {
                let selectors = entry.selectors.iter().map(|s| json!({ "type": s.r#type, "value": s.value }));
                members.push((name, selectors.collect()));
            }
            "expires_at" if form == Form::Json => members.push(("entryExpiry", value)),
            _ => members.push((name, value)),
        }
    }
    if !attributes.is_empty() {
        members.push(("additional_attributes", Value::Object(attributes)));
    }
    members
}

fn relationship_item(relationship: &FederationRelationship, form: Form) -> Vec<(&'static str, Value)> {
    let fields = relationship_fields(relationship);
    let of = |name: &str| fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.clone());
    let [url, profile, id] = ["bundle_endpoint_url", "bundle_endpoint_profile", "endpoint_spiffe_id"]
        .map(|name| of(name).unwrap_or_default());
    let name = json!(relationship.trust_domain);
    let is_web = profile == "https_web";
    match form {
        Form::Yaml => {
            let endpoint = match is_web {
                true => ("https_web", json!({})),
                false => ("https_spiffe", json!({ "endpoint_spiffe_id": id })),
            };
            vec![("trust_domain", name), ("bundle_endpoint_url", url), endpoint]
        }
        Form::Json => {
            let mut members =
                vec![("trustDomain", name), ("bundleEndpointURL", url), ("bundleEndpointProfile", profile)];
            if !is_web {
                members.push(("endpointSPIFFEID", id));
            }
            members
        }
    }
}

/// An item of a list at the left edge, in block style.
pub(super) fn yaml_item(members: &[(&'static str, Value)], is_first: bool) -> String {
    let mut text = String::new();
    if is_first {
        text.push('\n');
    }
    for (n, (name, value)) in members.iter().enumerate() {
        text.push_str(if n == 0 { "- " } else { "  " });
        text.push_str(name);
        text.push(':');
        match value {
            Value::Array(items) if !items.is_empty() => {
                text.push('\n');
                for item in items {
                    text.push_str(&format!("  - {}\n", yaml_scalar(item)));
                }
            }
            Value::Object(members) if !members.is_empty() => {
                text.push('\n');
                for (name, value) in members {
                    text.push_str(&format!("    {name}: {}\n", yaml_scalar(value)));
                }
            }
            other => text.push_str(&format!(" {}\n", yaml_scalar(other))),
        }
    }
    text
}

/// Plain where nobody could read it as something else, otherwise as JSON has it, which is YAML too but for the
/// characters that YAML wants escaped.
fn yaml_scalar(value: &Value) -> String {
    let Value::String(text) = value else { return value.to_string() };
    let mut chars = text.chars();
    // What starts with a letter is no number; a word without a slash or colon may be a boolean somewhere.
    let plain = chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && text.contains(['/', ':', '.', '-'])
        && !text.ends_with(':')
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | ':' | '.' | '_' | '-'));
    if plain {
        return text.clone();
    }
    let mut quoted = String::new();
    for c in value.to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted
}
