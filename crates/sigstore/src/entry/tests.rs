//! Proofs that an entry is in a log, of trees of all sizes.

use super::*;

fn hash(bytes: &[&[u8]]) -> Vec<u8> {
    HashAlgorithm::Sha256.digest(&bytes.concat()).as_ref().to_vec()
}

/// The root of a tree and the path of a leaf, as RFC 6962 defines them: from the top.
fn tree(leaves: &[Vec<u8>], leaf: usize) -> (Vec<u8>, Vec<String>) {
    if let [one] = leaves {
        return (hash(&[&[0], one]), Vec::new());
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    let (inner, outer, at) =
        if leaf < left.len() { (left, right, leaf) } else { (right, left, leaf - left.len()) };
    let (inner, mut path) = tree(inner, at);
    let (outer, _) = tree(outer, 0);
    path.push(hex::encode(&outer));
    let root = if leaf < left.len() { hash(&[&[1], &inner, &outer]) } else { hash(&[&[1], &outer, &inner]) };
    (root, path)
}

#[test]
fn proofs_hold_for_their_leaf_alone() {
    for size in 1..=20_usize {
        let leaves: Vec<Vec<u8>> = (0..size).map(|number| vec![number as u8]).collect();
        for leaf in 0..size {
            let (root, hashes) = tree(&leaves, leaf);
            let proof = InclusionProof {
                hashes,
                log_index: leaf as u64,
                root_hash: hex::encode(root),
                tree_size: size as u64,
            };
            assert_eq!(proof.verify(&leaves[leaf]), Ok(()), "{leaf} of {size}");
            assert!(proof.verify(b"other").is_err());
            let elsewhere = InclusionProof { log_index: (leaf as u64 + 1) % size as u64, ..proof.clone() };
            assert!(size == 1 || elsewhere.verify(&leaves[leaf]).is_err(), "{leaf} of {size}");
            let mut longer = proof.clone();
            longer.hashes.push(hex::encode([0; 32]));
            assert!(longer.verify(&leaves[leaf]).is_err());
            let mut shorter = proof.clone();
            if shorter.hashes.pop().is_some() {
                assert!(shorter.verify(&leaves[leaf]).is_err());
            }
        }
    }
    let proof = |log_index, tree_size| InclusionProof {
        hashes: vec![String::new(); 65],
        log_index,
        root_hash: String::new(),
        tree_size,
    };
    assert_eq!(proof(1, 0).verify(b""), Err(EntryError::Proof("index is beyond size")));
    assert_eq!(proof(0, u64::MAX).verify(b""), Err(EntryError::Proof("too many hashes")));
}

/// An entry of the public log: its promise and its proof.
#[test]
fn an_entry_of_the_public_log_is_verified() {
    use spire_core::pki::PublicKey;

    let fixture: Value = serde_json::from_str(include_str!("../testdata/public_good.json")).unwrap();
    let key = STANDARD.decode(fixture["rekor"].as_str().unwrap()).unwrap();
    let key = PublicKey::from_spki(key).unwrap();
    let mut logs = LogKeys::default();
    logs.add(key.clone());
    let entry = LogEntry::from_bundle(&fixture["bundle"].to_string()).unwrap();
    assert!(logs.find(&entry.log_id).is_some());
    let holds = |entry: &LogEntry| {
        let signature = &entry.signed_entry_timestamp;
        key.verify(SignatureAlgorithm::EcdsaSha256, &entry.signed_bytes(), signature).is_ok()
    };
    assert!(holds(&entry));
    assert!(!holds(&LogEntry { integrated_time: entry.integrated_time + 1, ..entry.clone() }));
    assert!(!holds(&LogEntry { log_index: entry.log_index + 1, ..entry.clone() }));
    let proof: InclusionProof = serde_json::from_value(fixture["proof"].clone()).unwrap();
    let body = STANDARD.decode(&entry.body).unwrap();
    assert_eq!(proof.verify(&body), Ok(()));
    assert!(proof.verify(&body[1..]).is_err());
}
