//! Path building and validation with the semantics of Go's crypto/x509 Verify, as go-spiffe uses it.
//!
//! Own code because the common verifier refuses every chain with a URI name constraint, and because any
//! key usage, SPIFFE's own leaf rules and Go's error texts are wanted. No revocation, no policies.

use crate::spiffe::{SpiffeId, TrustDomain};
use crate::time::Timestamp;

use super::certificate::{Certificate, CertificateError, SvidIdError};
use super::extensions::KeyUsage;

/// The longest chain that is looked at, the leaf included.
pub const MAX_CHAIN_LEN: usize = 16;
/// How many signatures one verification may check (Go's maxChainSignatureChecks).
const MAX_SIGNATURE_CHECKS: usize = 100;

/// Why no chain leads from a certificate to a root. Texts are Go's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No issuer is known; the hint tells of a candidate that failed.
    #[error("x509: certificate signed by unknown authority{}", hint(.0))]
    UnknownAuthority(Option<Hint>),
    /// Outside the validity of a certificate.
    #[error("x509: certificate has expired or is not yet valid: current time {now} is {relation} {limit}")]
    Expired {
        /// The time that was asked for, RFC 3339.
        now: String,
        /// `before` or `after`.
        relation: &'static str,
        /// The limit that was passed, RFC 3339.
        limit: String,
    },
    /// A name constraint forbids a name.
    #[error("x509: a root or intermediate certificate is not authorized to sign for this name: {0}")]
    Constrained(String),
    /// An intermediate is not an authority.
    #[error("x509: certificate is not authorized to sign other certificates")]
    NotAuthorizedToSign,
    /// A path length is exceeded.
    #[error("x509: too many intermediates for path length constraint")]
    TooManyIntermediates,
    /// A critical extension that we do not know.
    #[error("x509: unhandled critical extension")]
    UnhandledCriticalExtension,
    /// The extended key usages of the chain do not allow the purpose.
    #[error("x509: certificate specifies an incompatible key usage")]
    IncompatibleUsage,
    /// Too many candidates with the same name.
    #[error("x509: signature check attempts limit reached while verifying certificate chain")]
    SignatureLimit,
    /// More certificates than [`MAX_CHAIN_LEN`].
    #[error("certificate chain is too long")]
    TooLong,
    /// No certificate at all.
    #[error("empty certificates chain")]
    Empty,
}

impl VerifyError {
    /// Whether it failed for want of a known authority, which the reference tells apart
    /// (x509util.IsUnknownAuthorityError).
    pub fn is_unknown_authority(&self) -> bool {
        matches!(self, Self::UnknownAuthority(_))
    }
}

/// A candidate issuer that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// What was wrong.
    pub reason: String,
    /// Common name, organization or serial of the candidate.
    pub authority: String,
}

fn hint(hint: &Option<Hint>) -> String {
    hint.as_ref().map_or_else(String::new, |h| {
        format!(
            " (possibly because of {:?} while trying to verify candidate authority certificate {:?})",
            h.reason, h.authority
        )
    })
}

/// What a chain must be good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Anything: how SVIDs are verified.
    #[default]
    Any,
    /// TLS servers: Go's default.
    ServerAuth,
    /// TLS clients.
    ClientAuth,
    /// Anything, of a TPM's endorsement certificate: its critical subjectAltName holds a directoryName with the
    /// TPM's manufacturer, model and version, which is read by nobody here and no reason to refuse the leaf
    /// (TCG EK Credential Profile 2.3, section 3.2.9; pkg/server/plugin/nodeattestor/tpmdevid).
    Endorsement,
    /// Signing of software. A critical subjectAltName without a form that is read is no reason to refuse the leaf:
    /// Fulcio issues certificates with an otherName alone, which the verifier of signatures reads itself.
    CodeSigning,
}

/// Builds and validates a chain from the first of `chain` to one of `roots`, with the rest of `chain` as
/// intermediates in any order. Returns the first chain found: leaf first, root last.
///
/// # Errors
/// [`VerifyError::Empty`] and [`VerifyError::TooLong`] for what is not looked at; otherwise what Go's
/// Verify reports (crypto/x509/verify.go): [`VerifyError::UnknownAuthority`] when there is no issuer, or
/// the variant of the check that failed.
pub fn verify(
    chain: &[Certificate],
    roots: &[Certificate],
    purpose: Purpose,
    now: Timestamp,
) -> Result<Vec<Certificate>, VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::Empty)?;
    if chain.len() > MAX_CHAIN_LEN {
        return Err(VerifyError::TooLong);
    }
    if leaf.has_unread_critical_names() && !matches!(purpose, Purpose::Endorsement | Purpose::CodeSigning) {
        return Err(VerifyError::UnhandledCriticalExtension);
    }
    check_candidate(leaf, Role::Leaf, &[], now)?;
    let mut search = Search { roots, intermediates, purpose, now, checks: 0, rejected: None, all: None };
    let path = vec![leaf];
    if roots.contains(leaf) {
        search.accept(&path)?;
        return Ok(path.into_iter().cloned().collect());
    }
    match search.extend(&path) {
        Ok(Some(found)) => Ok(found.into_iter().cloned().collect()),
        Ok(None) => Err(search.rejected.unwrap_or(VerifyError::UnknownAuthority(None))),
        Err(error) => Err(search.rejected.unwrap_or(error)),
    }
}

/// The authorities above the first of `chain`, of every chain from it to one of `roots` rather than of one,
/// each once: what the selectors of certificate-based node attestors are made from.
///
/// # Errors
/// As [`verify`], when there is not even one chain.
pub fn authorities(
    chain: &[Certificate],
    roots: &[Certificate],
    now: Timestamp,
) -> Result<Vec<Certificate>, VerifyError> {
    let mut found = verify(chain, roots, Purpose::Any, now)?;
    found.remove(0);
    if found.is_empty() {
        return Ok(found);
    }
    let Some((leaf, intermediates)) = chain.split_first() else { return Ok(found) };
    let (checks, rejected, all) = (0, None, Some(Vec::new()));
    let mut search = Search { roots, intermediates, purpose: Purpose::Any, now, checks, rejected, all };
    // That the search ends without a chain, or at its bound, is no news: there is one, and Go takes what it found until then.
    let _ = search.extend(&[leaf]);
    for certificate in search.all.iter().flatten().flat_map(|chain| &chain[1..]) {
        if !found.contains(certificate) {
            found.push(Certificate::clone(certificate));
        }
    }
    Ok(found)
}

/// Whether a chain was signed by one of these roots (x509util.IsSignedByRoot). `Ok(false)` when their keys
/// did not, and for an empty chain.
///
/// # Errors
/// As [`verify`] when the chain is bad otherwise: any but [`VerifyError::UnknownAuthority`].
pub fn is_signed_by_root(
    chain: &[Certificate],
    roots: &[Certificate],
    now: Timestamp,
) -> Result<bool, VerifyError> {
    if chain.is_empty() {
        return Ok(false);
    }
    match verify(chain, roots, Purpose::ServerAuth, now) {
        Ok(_) => Ok(true),
        Err(error) if error.is_unknown_authority() => Ok(false),
        Err(error) => Err(error),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Leaf,
    Intermediate,
    Root,
}

struct Search<'a> {
    roots: &'a [Certificate],
    intermediates: &'a [Certificate],
    purpose: Purpose,
    now: Timestamp,
    checks: usize,
    /// Why a complete chain was not acceptable.
    rejected: Option<VerifyError>,
    /// The chains, where all are looked for and not one.
    all: Option<Vec<Vec<&'a Certificate>>>,
}

impl<'a> Search<'a> {
    /// Finds the rest of a chain whose last member has no issuer yet. Depth is bounded since no
    /// certificate occurs twice in a path.
    fn extend(&mut self, path: &[&'a Certificate]) -> Result<Option<Vec<&'a Certificate>>, VerifyError> {
        let Some(child) = path.last() else { return Ok(None) };
        let mut failure: Option<Hint> = None;
        // Go reports what the last candidate with a good signature failed of, else an unknown authority.
        let mut last: Option<VerifyError> = None;
        for (role, pool) in [(Role::Root, self.roots), (Role::Intermediate, self.intermediates)] {
            for candidate in candidates(pool, child) {
                self.checks += 1;
                if self.checks > MAX_SIGNATURE_CHECKS {
                    return Err(VerifyError::SignatureLimit);
                }
                if candidate.public_key().is_err() || already_in(path, candidate) {
                    continue;
                }
                let hint = |reason: String| Hint { reason, authority: display_name(candidate) };
                if let Err(reason) = check_issued(child, candidate) {
                    failure.get_or_insert_with(|| hint(reason.to_owned()));
                    continue;
                }
                last = check_candidate(candidate, role, path, self.now).err();
                if let Some(error) = &last {
                    failure.get_or_insert_with(|| hint(error.to_string()));
                    continue;
                }
                let mut longer = path.to_vec();
                longer.push(candidate);
                if role == Role::Root {
                    if self.accept(&longer).is_ok() {
                        let Some(all) = &mut self.all else { return Ok(Some(longer)) };
                        all.push(longer);
                    }
                    continue;
                }
                match self.extend(&longer) {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Err(VerifyError::SignatureLimit) => return Err(VerifyError::SignatureLimit),
                    Err(error) => last = Some(error),
                    Ok(None) => {}
                }
            }
        }
        Err(last.unwrap_or(VerifyError::UnknownAuthority(failure)))
    }

    /// The checks of a complete chain; what fails first is remembered.
    fn accept(&mut self, chain: &[&Certificate]) -> Result<(), VerifyError> {
        let result = if allows(chain, self.purpose) {
            check_constraints(chain).map_err(VerifyError::Constrained)
        } else {
            Err(VerifyError::IncompatibleUsage)
        };
        if let Err(error) = &result {
            self.rejected.get_or_insert_with(|| error.clone());
        }
        result
    }
}

/// Certificates of a pool that may have issued `child`: the same name, those whose key ID matches first,
/// those whose key ID contradicts last.
fn candidates<'a>(pool: &'a [Certificate], child: &Certificate) -> Vec<&'a Certificate> {
    let rank = |c: &Certificate| match (c.subject_key_id(), child.authority_key_id()) {
        (Some(a), Some(b)) if a == b => 0,
        (Some(_), Some(_)) => 2,
        _ => 1,
    };
    let mut found: Vec<&Certificate> =
        pool.iter().filter(|c| c.subject_der() == child.issuer_der()).collect();
    found.sort_by_key(|c| rank(c));
    found
}

/// Loops by cross-signing are cut by name, key and SAN, not by bytes (Go's alreadyInChain).
fn already_in(path: &[&Certificate], candidate: &Certificate) -> bool {
    path.iter().any(|c| {
        c.subject_der() == candidate.subject_der()
            && c.spki_der() == candidate.spki_der()
            && c.san() == candidate.san()
    })
}

/// Whether `issuer` was allowed to issue `child` and did (Go's CheckSignatureFrom).
fn check_issued(child: &Certificate, issuer: &Certificate) -> Result<(), &'static str> {
    let forbidden = match issuer.basic_constraints() {
        None => issuer.version() == 3,
        Some(constraints) => !constraints.is_ca,
    };
    let usage = issuer.key_usage();
    if forbidden || (usage != KeyUsage::default() && !usage.contains(KeyUsage::CERT_SIGN)) {
        return Err("x509: invalid signature: parent certificate cannot sign this kind of certificate");
    }
    child.check_signature(issuer)
}

/// The checks of one certificate in its place above `path` (Go's isValid).
fn check_candidate(
    candidate: &Certificate,
    role: Role,
    path: &[&Certificate],
    now: Timestamp,
) -> Result<(), VerifyError> {
    let unread_names = role != Role::Leaf && candidate.has_unread_critical_names();
    if unread_names || candidate.has_unhandled_critical_extension() {
        return Err(VerifyError::UnhandledCriticalExtension);
    }
    let expired = |relation, limit: Timestamp| VerifyError::Expired {
        now: rfc3339(now),
        relation,
        limit: rfc3339(limit),
    };
    if now < candidate.not_before() {
        return Err(expired("before", candidate.not_before()));
    }
    if now > candidate.not_after() {
        return Err(expired("after", candidate.not_after()));
    }
    if role == Role::Intermediate && !candidate.is_ca() {
        return Err(VerifyError::NotAuthorizedToSign);
    }
    let limit = candidate.basic_constraints().filter(|b| b.is_ca).and_then(|b| b.path_len);
    if let Some(limit) = limit
        && path.len().saturating_sub(1) > limit as usize
    {
        return Err(VerifyError::TooManyIntermediates);
    }
    Ok(())
}

/// Usages nest: an authority that lists some allows no other below it (Go's checkChainForKeyUsage).
fn allows(chain: &[&Certificate], purpose: Purpose) -> bool {
    chain.iter().all(|certificate| {
        let usage = certificate.extended_key_usage();
        match purpose {
            Purpose::Any | Purpose::Endorsement => true,
            _ if usage.is_empty() || usage.any => true,
            Purpose::ServerAuth => usage.server_auth,
            Purpose::ClientAuth => usage.client_auth,
            Purpose::CodeSigning => usage.code_signing,
        }
    })
}

/// Each authority's constraints hold for every certificate below it.
fn check_constraints(chain: &[&Certificate]) -> Result<(), String> {
    for (i, authority) in chain.iter().enumerate() {
        let Some(constraints) = authority.name_constraints() else { continue };
        for below in &chain[..i] {
            constraints.check(below.alt_names())?;
        }
    }
    Ok(())
}

fn display_name(certificate: &Certificate) -> String {
    let subject = certificate.subject();
    if !subject.common_name.is_empty() {
        return subject.common_name;
    }
    subject.organization.into_iter().next().unwrap_or_else(|| format!("serial:{}", certificate.serial()))
}

pub(crate) fn rfc3339(at: Timestamp) -> String {
    let t = at.to_utc();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

/// Why a chain is not a valid X509-SVID. Texts are go-spiffe's (svid/x509svid/verify.go).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum X509SvidError {
    /// No certificates.
    #[error("x509svid: empty certificates chain")]
    Empty,
    /// More than [`MAX_CHAIN_LEN`] certificates.
    #[error("x509svid: certificate chain is too long")]
    TooLong,
    /// Bytes that are not a certificate.
    #[error("x509svid: unable to parse certificate: {0}")]
    Parse(#[from] CertificateError),
    /// No SPIFFE ID, or several.
    #[error("x509svid: could not get leaf SPIFFE ID: {0}")]
    Id(SvidIdError),
    /// An authority is not an SVID of a workload.
    #[error("x509svid: leaf certificate with CA flag set to true")]
    LeafIsCa,
    /// keyCertSign on a leaf.
    #[error("x509svid: leaf certificate with KeyCertSign key usage")]
    LeafSignsCertificates,
    /// cRLSign on a leaf.
    #[error("x509svid: leaf certificate with KeyCrlSign key usage")]
    LeafSignsCrls,
    /// There are no authorities for the trust domain of the leaf.
    #[error("x509svid: could not get X509 bundle: x509bundle: no X.509 bundle for trust domain {0:?}")]
    NoBundle(String),
    /// No chain to an authority.
    #[error("x509svid: could not verify leaf certificate: {0}")]
    Chain(#[from] VerifyError),
}

/// An X509-SVID whose chain was verified. Only [`verify_svid`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedX509Svid {
    id: SpiffeId,
    chain: Vec<Certificate>,
}

impl VerifiedX509Svid {
    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The SVID itself.
    pub fn leaf(&self) -> &Certificate {
        &self.chain[0]
    }

    /// The authority of the bundle that the chain ends in.
    pub fn authority(&self) -> &Certificate {
        &self.chain[self.chain.len() - 1]
    }

    /// The verified chain: leaf first, the bundle's authority last.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }
}

/// Verifies an X509-SVID (leaf first) with the authorities that `authorities` gives for the trust domain
/// of its SPIFFE ID (X509-SVID specification, section 5).
///
/// # Errors
/// Any [`X509SvidError`] but [`X509SvidError::Parse`], checked in the order in which they are declared;
/// [`X509SvidError::Chain`] has what [`verify`] said.
pub fn verify_svid<'a>(
    chain: &[Certificate],
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a [Certificate]>,
    now: Timestamp,
) -> Result<VerifiedX509Svid, X509SvidError> {
    let leaf = chain.first().ok_or(X509SvidError::Empty)?;
    if chain.len() > MAX_CHAIN_LEN {
        return Err(X509SvidError::TooLong);
    }
    let id = leaf.spiffe_id().map_err(X509SvidError::Id)?;
    if leaf.is_ca() {
        return Err(X509SvidError::LeafIsCa);
    }
    if leaf.key_usage().contains(KeyUsage::CERT_SIGN) {
        return Err(X509SvidError::LeafSignsCertificates);
    }
    if leaf.key_usage().contains(KeyUsage::CRL_SIGN) {
        return Err(X509SvidError::LeafSignsCrls);
    }
    let roots = authorities(&id.trust_domain())
        .ok_or_else(|| X509SvidError::NoBundle(id.trust_domain_name().to_owned()))?;
    let chain = verify(chain, roots, Purpose::Any, now)?;
    Ok(VerifiedX509Svid { id, chain })
}

/// Parses and verifies, as TLS hands certificates over. The length is checked before anything is parsed.
///
/// # Errors
/// [`X509SvidError::TooLong`] before anything is parsed, [`X509SvidError::Parse`] for the first certificate
/// that is none, otherwise as [`verify_svid`].
pub fn parse_and_verify_svid<'a, 'd>(
    ders: impl ExactSizeIterator<Item = &'d [u8]>,
    authorities: impl FnOnce(&TrustDomain) -> Option<&'a [Certificate]>,
    now: Timestamp,
) -> Result<VerifiedX509Svid, X509SvidError> {
    if ders.len() > MAX_CHAIN_LEN {
        return Err(X509SvidError::TooLong);
    }
    let mut chain = Vec::with_capacity(ders.len());
    for der in ders {
        if der.len() > super::certificate::MAX_CERTIFICATE_BYTES {
            return Err(CertificateError::TooLarge.into());
        }
        chain.push(Certificate::from_der(der.to_vec())?);
    }
    verify_svid(&chain, authorities, now)
}
