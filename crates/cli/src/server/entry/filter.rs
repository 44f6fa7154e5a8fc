//! The filters of `entry show` and `entry count`.

use spire_compat::flag::{FlagSet, Parsed};
use spire_compat::quote::quote;
use spire_wire::api::types;
use spire_wire::api::types::{federates_with_match, selector_match};

use crate::failure::{Doing, Failure};
use crate::pretty::{parse_id, parse_selector};

/// Usage texts that differ between the two commands.
pub(crate) struct Words {
    pub(crate) parent_id: &'static str,
    pub(crate) spiffe_id: &'static str,
    pub(crate) hint: &'static str,
}

/// Adds the flags.
pub(crate) fn flags(flags: FlagSet, words: &Words) -> FlagSet {
    flags
        .string("parentID", "", words.parent_id)
        .string("spiffeID", "", words.spiffe_id)
        .bool(
            "downstream",
            false,
            "A boolean value that, when set, indicates that the entry describes a downstream SPIRE server",
        )
        .strings("selector", "A colon-delimited type:value selector. Can be used more than once")
        .strings(
            "federatesWith",
            "SPIFFE ID of a trust domain an entry is federate with. Can be used more than once",
        )
        .string(
            "matchFederatesWithOn",
            "superset",
            "The match mode used when filtering by federates with. Options: exact, any, superset and subset",
        )
        .string(
            "matchSelectorsOn",
            "superset",
            "The match mode used when filtering by selectors. Options: exact, any, superset and subset",
        )
        .string("hint", "", words.hint)
}

/// What the flags say.
pub(crate) struct Filter {
    pub(crate) by_parent_id: Option<types::Spiffeid>,
    pub(crate) by_spiffe_id: Option<types::Spiffeid>,
    pub(crate) by_selectors: Option<types::SelectorMatch>,
    pub(crate) by_federates_with: Option<types::FederatesWithMatch>,
    pub(crate) by_hint: Option<String>,
    /// Always sent, as by the reference: without `-downstream`, entries of downstream servers are left out.
    pub(crate) by_downstream: Option<bool>,
}

impl Filter {
    pub(crate) fn from_flags(flags: &Parsed) -> Result<Self, Failure> {
        let id = |flag: &str, what: &str| match flags.string(flag) {
            "" => Ok(None),
            text => parse_id(text).map(Some).doing(format_args!("error parsing {what} {}", quote(text))),
        };
        let by_parent_id = id("parentID", "parent ID")?;
        let by_spiffe_id = id("spiffeID", "SPIFFE ID")?;
        let selectors = flags.strings("selector");
        let by_selectors = if selectors.is_empty() {
            None
        } else {
            let r#match = selector_behavior(flags.string("matchSelectorsOn"))? as i32;
            let selectors = selectors.iter().map(|s| parse_selector(s)).collect::<Result<_, _>>();
            Some(types::SelectorMatch { selectors: selectors.doing("error parsing selectors")?, r#match })
        };
        let trust_domains = flags.strings("federatesWith").to_vec();
        let by_federates_with = if trust_domains.is_empty() {
            None
        } else {
            let r#match = federates_with_behavior(flags.string("matchFederatesWithOn"))? as i32;
            Some(types::FederatesWithMatch { trust_domains, r#match })
        };
        let hint = flags.string("hint");
        Ok(Self {
            by_parent_id,
            by_spiffe_id,
            by_selectors,
            by_federates_with,
            by_hint: (!hint.is_empty()).then(|| hint.to_owned()),
            by_downstream: Some(flags.bool("downstream")),
        })
    }
}

fn unknown(text: &str) -> Failure {
    Failure::new(format!("match behavior {} unknown", quote(text)))
}

fn selector_behavior(text: &str) -> Result<selector_match::MatchBehavior, Failure> {
    use selector_match::MatchBehavior;
    crate::server::agents::match_behavior(text).ok_or_else(|| unknown(text)).map(|b: MatchBehavior| b)
}

fn federates_with_behavior(text: &str) -> Result<federates_with_match::MatchBehavior, Failure> {
    use federates_with_match::MatchBehavior;
    Ok(match text {
        "exact" => MatchBehavior::MatchExact,
        "any" => MatchBehavior::MatchAny,
        "superset" => MatchBehavior::MatchSuperset,
        "subset" => MatchBehavior::MatchSubset,
        _ => return Err(unknown(text)),
    })
}
