//! Name constraints (RFC 5280, 4.2.1.10) as Go's crypto/x509 applies them. Certificate authorities of
//! SPIFFE deployments may carry them for URIs, which common Rust verifiers refuse outright.

use std::net::IpAddr;

use super::der::{DerError, Reader, tag};
use super::extensions::AltNames;

/// More constraints than this are refused: with 1024 names in a leaf they would cost too much.
const MAX_CONSTRAINTS: usize = 256;

/// The name constraints of one authority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NameConstraints {
    permitted: Subtrees,
    excluded: Subtrees,
    unknown_form: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Subtrees {
    dns: Vec<String>,
    uris: Vec<String>,
    emails: bool,
    ips: Vec<(IpAddr, u32)>,
}

impl NameConstraints {
    pub(crate) fn from_der(value: &[u8]) -> Result<Self, DerError> {
        let mut outer = Reader::new(value);
        let mut both = outer.sequence()?;
        outer.finish()?;
        let permitted = both.optional(tag::constructed(0))?.unwrap_or_default();
        let excluded = both.optional(tag::constructed(1))?.unwrap_or_default();
        both.finish()?;
        if permitted.is_empty() && excluded.is_empty() {
            return Err(DerError);
        }
        let mut constraints = Self::default();
        constraints.permitted = constraints.subtrees(permitted)?;
        constraints.excluded = constraints.subtrees(excluded)?;
        Ok(constraints)
    }

    fn subtrees(&mut self, list: &[u8]) -> Result<Subtrees, DerError> {
        let mut list = Reader::new(list);
        let mut subtrees = Subtrees::default();
        let mut count = 0;
        while !list.is_empty() {
            count += 1;
            if count > MAX_CONSTRAINTS {
                return Err(DerError);
            }
            let (kind, content, _) = list.sequence()?.any()?;
            let text = || match std::str::from_utf8(content) {
                Ok(text) if text.is_ascii() => Ok(text.to_owned()),
                _ => Err(DerError),
            };
            match kind {
                k if k == tag::context(2) => subtrees.dns.push(domain(text()?, true)?),
                k if k == tag::context(6) => {
                    let host = domain(text()?, true)?;
                    if host.parse::<IpAddr>().is_ok() {
                        return Err(DerError);
                    }
                    subtrees.uris.push(host);
                }
                k if k == tag::context(1) => subtrees.emails = true,
                k if k == tag::context(7) => subtrees.ips.push(network(content)?),
                _ => self.unknown_form = true,
            }
        }
        Ok(subtrees)
    }

    /// Whether a kind of name is constrained that we do not check: a reason to refuse when critical.
    pub(crate) fn has_unknown_form(&self) -> bool {
        self.unknown_form
    }

    /// Checks all names of a certificate below this authority. The texts of errors are Go's.
    pub(crate) fn check(&self, names: &AltNames) -> Result<(), String> {
        for ip in &names.ips {
            let within = |list: &[(IpAddr, u32)]| list.iter().any(|net| contains(*net, *ip));
            if !self.permitted.ips.is_empty() && !within(&self.permitted.ips) {
                return Err(format!("IP address \"{ip}\" is not permitted by any constraint"));
            }
            if within(&self.excluded.ips) {
                return Err(format!("IP address \"{ip}\" is excluded by constraint"));
            }
        }
        for name in &names.dns {
            let host =
                domain(name.clone(), false).map_err(|_| format!("x509: cannot parse dnsName {name:?}"))?;
            check_domain("DNS name", &self.permitted.dns, &self.excluded.dns, &host, name)?;
        }
        for uri in &names.uris {
            let host = uri_host(uri)?;
            check_domain("URI", &self.permitted.uris, &self.excluded.uris, &host, uri)?;
        }
        // SVIDs carry no email addresses; refusing is safe and spares an RFC 2821 parser.
        if let Some(email) = names.emails.first()
            && (self.permitted.emails || self.excluded.emails)
        {
            return Err(format!("email address {email:?} is not permitted by any constraint"));
        }
        Ok(())
    }
}

fn check_domain(
    kind: &str,
    permitted: &[String],
    excluded: &[String],
    host: &str,
    shown: &str,
) -> Result<(), String> {
    if !permitted.is_empty() && !permitted.iter().any(|c| covers(c, host)) {
        return Err(format!("{kind} {shown:?} is not permitted by any constraint"));
    }
    let excluding = excluded.iter().find(|c| covers(c, host) || wildcard_touches(c, host));
    if let Some(constraint) = excluding {
        return Err(format!("{kind} {shown:?} is excluded by constraint {constraint:?}"));
    }
    Ok(())
}

/// Whether a constraint covers a host. With a leading period it covers proper subdomains only; without,
/// the domain itself as well. Both are lower case.
fn covers(constraint: &str, host: &str) -> bool {
    if constraint.is_empty() {
        return true;
    }
    match host.strip_suffix(constraint) {
        Some(before) if constraint.starts_with('.') => !before.is_empty(),
        Some(before) => before.is_empty() || before.ends_with('.'),
        None => false,
    }
}

/// An excluded `a.example.com` also excludes the name `*.example.com`, which could stand for it.
fn wildcard_touches(constraint: &str, host: &str) -> bool {
    host.strip_prefix('*').is_some_and(|suffix| {
        constraint
            .split_once('.')
            .is_some_and(|(_, rest)| !rest.is_empty() && suffix.strip_prefix('.') == Some(rest))
    })
}

/// A domain in lower case; a constraint may start with a period.
fn domain(mut name: String, constraint: bool) -> Result<String, DerError> {
    name.make_ascii_lowercase();
    let labels = if constraint { name.strip_prefix('.').unwrap_or(&name) } else { &name };
    let valid = |label: &str| !label.is_empty() && label.bytes().all(|b| (33..=126).contains(&b));
    if name.is_empty() || labels.split('.').all(valid) { Ok(name) } else { Err(DerError) }
}

/// The host of a URI, lower case; one without a host, or with an address, cannot be checked.
fn uri_host(uri: &str) -> Result<String, String> {
    let without = || format!("URI with empty host ({uri:?}) cannot be matched against constraints");
    let rest = uri.split_once("://").map(|(_, rest)| rest).ok_or_else(without)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') {
        return Err(format!("URI with IP ({uri:?}) cannot be matched against constraints"));
    }
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    if host.is_empty() {
        return Err(without());
    }
    if host.parse::<IpAddr>().is_ok() {
        return Err(format!("URI with IP ({uri:?}) cannot be matched against constraints"));
    }
    domain(host.to_owned(), false)
        .map_err(|_| format!("x509: internal error: URI SAN {uri:?} failed to parse"))
}

/// An address and how many bits of it count.
fn network(content: &[u8]) -> Result<(IpAddr, u32), DerError> {
    let (address, mask) = content.split_at(content.len() / 2);
    let ip = match (address.len(), mask.len()) {
        (4, 4) => <[u8; 4]>::try_from(address).map(IpAddr::from).map_err(|_| DerError)?,
        (16, 16) => <[u8; 16]>::try_from(address).map(IpAddr::from).map_err(|_| DerError)?,
        _ => return Err(DerError),
    };
    let bits: u32 = mask.iter().map(|b| b.count_ones()).sum();
    let leading = mask.iter().map(|b| b.leading_ones()).take_while(|n| *n == 8).count() as u32 * 8
        + mask.iter().find(|b| **b != 0xff).map_or(0, |b| b.leading_ones());
    if bits == leading { Ok((ip, bits)) } else { Err(DerError) }
}

fn contains((net, bits): (IpAddr, u32), ip: IpAddr) -> bool {
    let same = |a: u128, b: u128, width: u32| bits == 0 || (a ^ b) >> (width - bits) == 0;
    match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => same(u32::from(net).into(), u32::from(ip).into(), 32),
        (IpAddr::V6(net), IpAddr::V6(ip)) => same(net.into(), ip.into(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_covered_by_whole_labels() {
        for (constraint, host, covered) in [
            ("example.com", "example.com", true),
            ("example.com", "a.example.com", true),
            ("example.com", "testexample.com", false),
            (".example.com", "example.com", false),
            (".example.com", "a.example.com", true),
            ("", "anything", true),
            ("a.example.com", "example.com", false),
        ] {
            assert_eq!(covers(constraint, host), covered, "{constraint} {host}");
        }
        assert!(wildcard_touches("a.example.com", "*.example.com"));
        assert!(!wildcard_touches("a.example.com", "*.example.org"));
    }

    #[test]
    fn hosts_of_uris() {
        assert_eq!(uri_host("spiffe://TD.example/a/b").as_deref(), Ok("td.example"));
        assert_eq!(uri_host("https://u@h:80?x").as_deref(), Ok("h"));
        for bad in ["urn:x", "spiffe:///x", "https://127.0.0.1/", "https://[::1]/"] {
            assert!(uri_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks() {
        let net = network(&[10, 1, 0, 0, 255, 255, 0, 0]).unwrap();
        assert!(contains(net, "10.1.2.3".parse().unwrap()));
        assert!(!contains(net, "10.2.2.3".parse().unwrap()));
        assert!(contains(network(&[0; 8]).unwrap(), "1.2.3.4".parse().unwrap()));
        assert!(network(&[10, 1, 0, 0, 255, 0, 255, 0]).is_err());
        assert!(network(&[]).is_err());
    }
}
