//! X509-SVIDs from the Workload API: checked and printed (cmd/spire-agent/cli/api: fetch_x509.go, printer.go).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use spire_compat::duration::GoDuration;
use spire_compat::gotime;
use spire_compat::quote::quote;
use spire_core::pki::chain::verify_svid;
use spire_core::pki::{Certificate, LocalKey};
use spire_core::spiffe::SpiffeId;
use spire_core::time::Timestamp;
use spire_wire::workload::{X509svid, X509svidResponse};

use crate::failure::{Doing, Failure, plain};

/// Certificates in one field of a message.
const CERTIFICATES_MAX: usize = 1024;

/// One SVID whose chain leads to its bundle.
pub(super) struct Svid {
    pub(super) id: SpiffeId,
    pub(super) hint: String,
    pub(super) chain: Vec<Certificate>,
    /// PKCS#8, DER, as the agent sent it.
    pub(super) key: Bytes,
    pub(super) bundle: Vec<Certificate>,
}

/// Federated bundles by SPIFFE ID of their trust domains.
pub(super) type Federated = BTreeMap<String, Vec<Certificate>>;

/// Parses a response, and verifies each SVID.
pub(super) fn read(response: &X509svidResponse, now: Timestamp) -> Result<(Vec<Svid>, Federated), Failure> {
    if response.svids.is_empty() {
        return Err(Failure::new("workload response contains no svids"));
    }
    let mut federated = Federated::new();
    for (domain, der) in &response.federated_bundles {
        let shown = quote(domain);
        let bundle = Certificate::many_from_der(der.clone(), CERTIFICATES_MAX)
            .map_err(plain)
            .doing(format_args!("failed to parse bundle for federated domain {shown}"))?;
        if bundle.is_empty() {
            return Err(Failure::new(format!("no certificates in bundle for federated domain {shown}")));
        }
        federated.insert(domain.clone(), bundle);
    }
    let parsed = response.svids.iter().enumerate().map(|(i, svid)| {
        parse(svid)
            .doing(format_args!("failed to parse svid entry {i} for spiffe id {}", quote(&svid.spiffe_id)))
    });
    let parsed: Vec<Parsed> = parsed.collect::<Result<_, _>>()?;
    let svids = parsed.into_iter().zip(&response.svids).map(|(parsed, svid)| verify(parsed, svid, now));
    Ok((svids.collect::<Result<_, _>>()?, federated))
}

/// The parts of an SVID before anything is known to be true.
struct Parsed {
    chain: Vec<Certificate>,
    bundle: Vec<Certificate>,
}

fn parse(svid: &X509svid) -> Result<Parsed, Failure> {
    let many = |der: &Bytes| Certificate::many_from_der(der.clone(), CERTIFICATES_MAX).map_err(plain);
    let chain = many(&svid.x509_svid)?;
    if chain.is_empty() {
        return Err(Failure::new("no certificates found"));
    }
    LocalKey::from_pkcs8(&svid.x509_svid_key).map_err(plain).doing("failed to parse private key")?;
    let bundle = many(&svid.bundle).doing("failed to parse trust bundle")?;
    if bundle.is_empty() {
        return Err(Failure::new("no certificates in trust bundle"));
    }
    Ok(Parsed { chain, bundle })
}

fn verify(Parsed { chain, bundle }: Parsed, svid: &X509svid, now: Timestamp) -> Result<Svid, Failure> {
    let id = SpiffeId::parse(&svid.spiffe_id).map_err(plain)?;
    let trust_domain = id.trust_domain();
    verify_svid(&chain, |asked| (*asked == trust_domain).then_some(&bundle[..]), now)
        .map_err(plain)
        .doing(format_args!("{} SVID failed verification against bundle", quote(&svid.spiffe_id)))?;
    Ok(Svid { id, hint: svid.hint.clone(), chain, key: svid.x509_svid_key.clone(), bundle })
}

/// The text that describes SVIDs, received after `took`.
pub(super) fn described(svids: &[Svid], federated: &Federated, took: Duration) -> String {
    let nanos = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX);
    let plural = if svids.len() == 1 { "" } else { "s" };
    let mut text = format!("Received {} svid{plural} after {}\n", svids.len(), GoDuration::from_nanos(nanos));
    for svid in svids {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nSPIFFE ID:\t\t{}\n", svid.id);
        if !svid.hint.is_empty() {
            let _ = writeln!(text, "Hint:\t\t\t{}", svid.hint);
        }
        for (i, certificate) in svid.chain.iter().enumerate() {
            let label = if i == 0 { "SVID".to_owned() } else { format!("Intermediate #{i}") };
            validity(&mut text, &label, certificate);
        }
        for (i, authority) in svid.bundle.iter().enumerate() {
            validity(&mut text, &format!("CA #{}", i + 1), authority);
        }
        for (domain, bundle) in federated {
            for (i, authority) in bundle.iter().enumerate() {
                validity(&mut text, &format!("[{domain}] CA #{}", i + 1), authority);
            }
        }
    }
    text.push('\n');
    text
}

fn validity(text: &mut String, label: &str, certificate: &Certificate) {
    let time = |at: Timestamp| gotime::string(at.unix());
    let _ = writeln!(text, "{label} Valid After:\t{}", time(certificate.not_before()));
    let _ = writeln!(text, "{label} Valid Until:\t{}", time(certificate.not_after()));
}
