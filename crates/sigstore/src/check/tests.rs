//! A certificate of the public Fulcio, with its timestamps, against the public keys: an attestation of sigstore-js 2.0.0 of
//! August 2023, as the public log has it.

use serde_json::Value;
use spire_core::pki::PublicKey;

use super::*;

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn fixture() -> (Certificate, Trust, Value) {
    let fixture: Value = serde_json::from_str(include_str!("../testdata/public_good.json")).unwrap();
    let mut trust = Trust::default();
    for authority in fixture["authorities"].as_array().unwrap() {
        let authority = Certificate::from_der(bytes(authority)).unwrap();
        let is_root = authority.subject_der() == authority.issuer_der();
        if is_root { &mut trust.roots } else { &mut trust.intermediates }.push(authority);
    }
    trust.rekor.add(PublicKey::from_spki(bytes(&fixture["rekor"])).unwrap());
    for key in fixture["ct"].as_array().unwrap() {
        trust.ct.add(PublicKey::from_spki(bytes(key)).unwrap());
    }
    (Certificate::from_der(bytes(&fixture["certificate"])).unwrap(), trust, fixture)
}

#[test]
fn a_certificate_of_the_public_fulcio_is_verified() {
    let (certificate, trust, fixture) = fixture();
    let chain = authorized(&certificate, &[], &trust).unwrap();
    assert_eq!(chain.len(), 3);
    check_timestamps(&certificate, &chain, &trust).unwrap();
    let integrated = fixture["bundle"]["Payload"]["integratedTime"].as_i64().unwrap();
    check_validity(&chain, Timestamp::from_unix(integrated)).unwrap();
    assert!(check_validity(&chain, Timestamp::from_unix(integrated + 3600)).is_err());
    let signer = Signer::of(&certificate);
    assert_eq!(signer.issuer, "https://token.actions.githubusercontent.com");
    assert_eq!(
        signer.subjects,
        ["https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main"]
    );
    // Its entry is about it, and about a payload that is not here.
    let entry = LogEntry::from_bundle(&fixture["bundle"].to_string()).unwrap();
    let about = About { signature: "", certificate: &certificate, payload: b"" };
    assert_eq!(entry.verify(&about, &trust.rekor), Err(EntryError::OtherPayload));
}

#[test]
fn a_timestamp_of_the_public_log_holds_for_its_certificate_alone() {
    let (certificate, trust, _) = fixture();
    let chain = authorized(&certificate, &[], &trust).unwrap();
    let unknown = Trust { ct: trust.rekor.clone(), ..trust.clone() };
    assert_eq!(check_timestamps(&certificate, &chain, &unknown), Err(CheckError::UnknownCtLog));
    assert_eq!(check_timestamps(&certificate, &chain[..1], &trust), Err(CheckError::NoIssuer));
    let wrong_issuer = [chain[0].clone(), chain[2].clone()];
    let bad = Err(CheckError::Timestamp(transparency::TimestampError::BadSignature("ECDSA")));
    assert_eq!(check_timestamps(&certificate, &wrong_issuer, &trust), bad);
    // Any change of the signed part is noticed, or makes it no certificate or no timestamp.
    let der = certificate.der().to_vec();
    let mut noticed = 0;
    for at in (0..certificate.tbs_der().len()).step_by(7) {
        let mut changed = der.clone();
        changed[at + 4] ^= 1;
        let Ok(changed) = Certificate::from_der(changed) else { continue };
        assert!(check_timestamps(&changed, &chain, &trust).is_err(), "{at}");
        noticed += 1;
    }
    assert!(noticed > 50, "{noticed}");
}
