//! Names, labels and filters of metrics, as armon's go-metrics has them under the reference's settings
//! (`pkg/common/telemetry/metrics.go`, `sanitize.go`; go-metrics `metrics.go`).

use std::borrow::Cow;
use std::collections::HashSet;

use spire_compat::config::TelemetryConfig;
use spire_ports::observe::{Label, names};

/// A label after sanitising.
pub(crate) type CleanLabel<'a> = (Cow<'a, str>, Cow<'a, str>);

/// What a metric is called and whether it is let through. Replaced as a whole by a reload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Naming {
    /// The first part of each name.
    pub(crate) prefix: String,
    host: Option<String>,
    trust_domain: Option<String>,
    /// Prefixes and whether they are let through, longest first.
    rules: Vec<(String, bool)>,
    allowed_labels: Option<HashSet<String>>,
    blocked_labels: HashSet<String>,
}

impl Naming {
    /// `service` is the default prefix, `host` what the machine is called.
    pub(crate) fn new(config: &TelemetryConfig, service: &str, trust_domain: &str, host: &str) -> Self {
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        // Of one text that is in both lists the blocked one counts: go-metrics inserts it last.
        let blocked = list(&config.blocked_prefixes);
        let mut rules: Vec<(String, bool)> = list(&config.allowed_prefixes)
            .into_iter()
            .filter(|prefix| !blocked.contains(prefix))
            .map(|prefix| (prefix, true))
            .collect();
        rules.extend(blocked.into_iter().map(|prefix| (prefix, false)));
        rules.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Self {
            prefix: config.metric_prefix.clone().unwrap_or_else(|| service.to_owned()),
            host: (config.enable_hostname_label.unwrap_or(true) && !host.is_empty()).then(|| host.to_owned()),
            trust_domain: config
                .enable_trust_domain_label
                .unwrap_or_default()
                .then(|| sanitize(trust_domain).into_owned()),
            rules,
            allowed_labels: config.allowed_labels.as_ref().map(|list| list.iter().cloned().collect()),
            blocked_labels: list(&config.blocked_labels).into_iter().collect(),
        }
    }

    /// Whether a name with its prefix, joined by dots, is let through. Without a rule for it, it is.
    pub(crate) fn allows(&self, name: &str) -> bool {
        self.rules.iter().find(|(prefix, _)| name.starts_with(prefix.as_str())).is_none_or(|rule| rule.1)
    }

    /// The labels of a metric: its own and the trust domain sanitised, the host as it is, those that are let through.
    pub(crate) fn labels<'a>(&'a self, own: &[Label<'a>]) -> Vec<CleanLabel<'a>> {
        let mut labels: Vec<CleanLabel<'a>> = Vec::with_capacity(own.len() + 2);
        labels.extend(own.iter().map(|label| (sanitize(label.name), sanitize(label.value))));
        if let Some(trust_domain) = &self.trust_domain {
            labels.push((names::label::TRUST_DOMAIN.into(), trust_domain.as_str().into()));
        }
        if let Some(host) = &self.host {
            labels.push((names::label::HOST.into(), host.as_str().into()));
        }
        labels.retain(|(name, _)| self.allows_label(name));
        labels
    }

    fn allows_label(&self, name: &str) -> bool {
        !self.blocked_labels.contains(name)
            && self.allowed_labels.as_ref().is_none_or(|allowed| allowed.contains(name))
    }
}

/// Replaces each run of characters that are not letters, digits or `_`, with an underscore that follows it, by one
/// underscore (`\W+_?` of the reference).
pub(crate) fn sanitize(text: &str) -> Cow<'_, str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.chars().all(is_word) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c| !is_word(c)) {
        let (word, invalid) = rest.split_at(start);
        clean.push_str(word);
        clean.push('_');
        let after = invalid.trim_start_matches(|c| !is_word(c));
        rest = after.strip_prefix('_').unwrap_or(after);
    }
    clean.push_str(rest);
    Cow::Owned(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitised_as_the_reference() {
        for (text, expected) in [
            ("plain_1", "plain_1"),
            ("spiffe://example.org/a-b", "spiffe_example_org_a_b"),
            ("a-_b", "a_b"),
            ("a_-b", "a__b"),
            ("a--_-b", "a__b"),
            ("--", "_"),
            ("é", "_"),
            ("", ""),
        ] {
            assert_eq!(sanitize(text), expected, "{text}");
        }
    }

    fn config(change: impl FnOnce(&mut TelemetryConfig)) -> Naming {
        let mut config = TelemetryConfig::default();
        change(&mut config);
        Naming::new(&config, "spire_server", "example.org", "ho-st")
    }

    #[test]
    fn the_longest_prefix_decides() {
        let naming = config(|c| {
            c.blocked_prefixes = Some(vec!["spire_server.rpc".into(), "spire_server.rpc.a.b".into()]);
            c.allowed_prefixes = Some(vec!["spire_server.rpc.a".into(), "spire_server.rpc".into()]);
        });
        for (name, expected) in [
            ("spire_server.svid", true),
            ("spire_server.rpc.z", false),
            ("spire_server.rpcs", false),
            ("spire_server.rpc.a.c", true),
            ("spire_server.rpc.a.b", false),
        ] {
            assert_eq!(naming.allows(name), expected, "{name}");
        }
    }

    #[test]
    fn labels_come_in_order_and_are_filtered() {
        let text = |naming: &Naming| -> String {
            let labels = naming.labels(&[Label::new("a.b", "x/y"), Label::new("status", "OK")]);
            labels.iter().map(|(name, value)| format!("{name}={value} ")).collect()
        };
        assert_eq!(text(&config(|_| {})), "a_b=x_y status=OK host=ho-st ");
        let with_domain = |c: &mut TelemetryConfig| {
            c.enable_trust_domain_label = Some(true);
            c.enable_hostname_label = Some(false);
        };
        assert_eq!(text(&config(with_domain)), "a_b=x_y status=OK trust_domain=example_org ");
        assert_eq!(text(&config(|c| c.blocked_labels = Some(vec!["host".into()]))), "a_b=x_y status=OK ");
        assert_eq!(text(&config(|c| c.allowed_labels = Some(vec!["status".into()]))), "status=OK ");
        assert_eq!(text(&config(|c| c.allowed_labels = Some(vec![]))), "");
    }
}
