//! No input makes a parser panic, and no change of signed bytes keeps a signature valid.

use proptest::prelude::*;

use super::*;

/// Flips, cuts and repeats bytes of a valid input.
fn mutate(mut bytes: Vec<u8>, changes: &[(usize, u8)], cut: usize) -> Vec<u8> {
    for (at, value) in changes {
        let at = at % bytes.len();
        bytes[at] = *value;
    }
    bytes.truncate(bytes.len() - cut % bytes.len());
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((any::<usize>(), any::<u8>()), 0..4)
}

/// Everything that reads DER, on the same bytes.
fn read_der(bytes: &[u8]) {
    if let Ok(certificate) = Certificate::from_der(bytes.to_vec()) {
        let _ = (certificate.serial(), certificate.subject().to_string(), certificate.spiffe_id());
        let chain = [certificate.clone(), certificate.clone()];
        let _ = chain::verify_svid(&chain, |_| Some(&chain), now());
        let _ = chain::verify(&chain, &chain[..1], Purpose::ServerAuth, now());
        let _ = Issuer::new(&certificate);
    }
    let _ = VerifiedCsr::from_der(bytes.to_vec());
    let _ = PublicKey::from_spki(bytes.to_vec());
    let _ = LocalKey::from_der(bytes);
    let _ = DistinguishedName::from_der(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_der(&bytes);
        let _ = pem::blocks(&bytes).count();
        let _ = Jwk::from_slice(&bytes);
        let _ = bundle_doc::parse_jwks(&bytes);
    }

    #[test]
    fn changed_certificates(which in 0usize..12, changes in changes(), cut in 0usize..20) {
        let v = vectors();
        let all = v["certificates"].as_array().unwrap();
        read_der(&mutate(unhex(&all[which % all.len()]["der"]), &changes, cut));
        let chains = v["chains"].as_array().unwrap();
        read_der(&mutate(unhex(&chains[which % chains.len()]["intermediate"]), &changes, cut));
    }

    #[test]
    fn changed_requests_and_keys(which in 0usize..4, changes in changes(), cut in 0usize..4) {
        let v = vectors();
        let csrs = v["csrs"].as_array().unwrap();
        let der = unhex(&csrs[which]["der"]);
        let changed = mutate(der.clone(), &changes, cut);
        read_der(&changed);
        let signed = unhex(&csrs[which]["tbs"]);
        if let Ok(csr) = VerifiedCsr::from_der(changed) {
            // What verifies says what was signed; only the signature's own bytes may differ.
            let start = der.windows(signed.len()).position(|w| w == signed).unwrap();
            prop_assert_eq!(&csr.der()[start..start + signed.len()], &signed[..]);
        }
        let name = ["p256", "p384", "rsa", "workload"][which];
        read_der(&mutate(unhex(&v["keys"][name]["pkcs8"]), &changes, cut));
        read_der(&mutate(unhex(&v["keys"][name]["legacy"]), &changes, cut));
    }

    #[test]
    fn changed_tokens(which in 0usize..3, changes in changes(), cut in 0usize..4) {
        let v = vectors();
        let token = v["tokens"][which]["token"].as_str().unwrap();
        let key = key(&v, v["tokens"][which]["key"].as_str().unwrap());
        let changed = mutate(token.as_bytes().to_vec(), &changes, cut);
        if let Ok(text) = std::str::from_utf8(&changed)
            && let Ok(verified) = jwt::verify_svid(text, &[], now(), |_, _| Ok(key.public_key().clone()))
        {
            prop_assert_eq!(verified.id().as_str(), ID);
            prop_assert_eq!(text.rsplit_once('.').unwrap().0, token.rsplit_once('.').unwrap().0);
        }
    }

    #[test]
    fn any_text_is_quoted_to_json_that_reads_back(text in ".*") {
        let mut out = String::new();
        json::push_string(&mut out, &text);
        prop_assert_eq!(json::parse(out.as_bytes()).unwrap(), Value::String(text));
    }

    #[test]
    fn any_name_reads_back(values in prop::collection::vec(".{1,20}", 1..4)) {
        let name = DistinguishedName {
            organization: values.clone(),
            common_name: values[0].clone(),
            ..Default::default()
        };
        let read = DistinguishedName::from_der(name.encode().unwrap().as_der()).unwrap();
        let mut organization = read.organization.clone();
        organization.sort();
        let mut values = values;
        values.sort();
        prop_assert_eq!(organization, values);
        prop_assert_eq!(read.common_name, name.common_name);
    }

    #[test]
    fn serials_print_as_decimals(serial in 1u128..) {
        prop_assert_eq!(SerialNumber::from_random(serial.to_be_bytes()).to_string(), serial.to_string());
    }
}
