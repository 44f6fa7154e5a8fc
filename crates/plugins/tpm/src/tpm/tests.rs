//! Tables and properties of the wire format, and a channel to peers that misbehave.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use proptest::collection::vec;
use proptest::prelude::*;
use spire_core::pki::{HashAlgorithm, KeyType, LocalKey, PublicKeyKind};

use super::attest::{Signature, certified_name};
use super::buffer::{DecodeError, Short, Writer};
use super::channel::{Channel, DetectError, MAX_MESSAGE_BYTES, TpmError, detect};
use super::commands::{Handle, Response, Tpm};
use super::credential::derive;
use super::public::{AK_RSA, ATTESTATION_KEY, Attributes, EK_RSA, Key, Public, SRK_ECC, SRK_RSA, Scheme};
use super::response_code::ResponseCode;
use super::{alg, curve, handle};

#[test]
fn templates_are_those_of_the_profiles() {
    let ek = EK_RSA.encode();
    assert_eq!(hex::encode(&ek[..10]), "0001000b000300b20020");
    assert_eq!(hex::encode(&ek[42..60]), "0006008000430010080000000000010000000000"[..36].to_owned());
    assert_eq!(ek.len(), 10 + 32 + 14 + 2 + 256);
    // SHA-256 of the policy before, then of command, entity and an empty reference (part 3, section 23.4).
    let mut extended = vec![0; 32];
    extended.extend_from_slice(&[0, 0, 1, 0x51]);
    extended.extend_from_slice(&handle::ENDORSEMENT.to_be_bytes());
    let policy = digest(&SHA256, digest(&SHA256, &extended).as_ref());
    assert_eq!(&ek[10..42], policy.as_ref());

    assert_eq!(
        hex::encode(SRK_RSA.encode()),
        "0001000b000304720000000600800043001008000000000000 00".replace(' ', "")
    );
    assert_eq!(
        hex::encode(SRK_ECC.encode()),
        "0023000b0003047200000006008000430010000300100000 0000".replace(' ', "")
    );
    assert_eq!(
        hex::encode(AK_RSA.encode()),
        "0001000b0005007200000010 0014000b0800000000000000".replace(' ', "")
    );
    let ak = AK_RSA.encode();
    let ak = Public::decode(&ak).unwrap();
    assert!(ak.attributes.contains(ATTESTATION_KEY) && !ak.attributes.intersects(Attributes::DECRYPT));
    assert_eq!(ak.scheme, Some(Scheme { algorithm: alg::RSASSA, hash: alg::SHA256 }));
}

#[test]
fn response_codes_read_as_in_the_reference() {
    let table = [
        (0x0902, "warning code 0x2 : out of memory for object contexts"),
        (0x09a2, "session 1, error code 0x22 : authorization failure without DA implications"),
        (
            0x098e,
            "session 1, error code 0xe : the authorization HMAC check failed and DA counter incremented",
        ),
        (0x01d5, "parameter 1, error code 0x15 : structure is the wrong size"),
        (0x02d5, "parameter 2, error code 0x15 : structure is the wrong size"),
        (0x018b, "handle 1, error code 0xb : the handle is not correct for the use"),
        (0x0101, "error code 0x1 : commands not being accepted because of a TPM failure"),
        (0x0500, "vendor error code 0x500"),
        (0x001e, "response status 0x1e"),
        (0x01ff, "parameter 1, error code 0x3f : unknown error code"),
    ];
    for (code, text) in table {
        assert_eq!(ResponseCode(code).to_string(), text);
    }
    assert!(ResponseCode(0x922).is_retry() && !ResponseCode(0x921).is_retry());
}

#[test]
fn keys_are_derived_as_the_library_specification_says() {
    // By hand: HMAC(seed, 1 ‖ "STORAGE" ‖ 0 ‖ context ‖ 128).
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"seed");
    let expected = aws_lc_rs::hmac::sign(&key, b"\0\0\0\x01STORAGE\0context\0\0\0\x80");
    assert_eq!(
        derive(HashAlgorithm::Sha256, b"seed", b"STORAGE", b"context", 16)[..],
        expected.as_ref()[..16]
    );
    let two = derive(HashAlgorithm::Sha256, b"seed", b"INTEGRITY", b"", 48);
    let second = aws_lc_rs::hmac::sign(&key, b"\0\0\0\x02INTEGRITY\0\0\0\x01\x80");
    assert_eq!((two.len(), &two[32..]), (48, &second.as_ref()[..16]));
}

/// A public area from its parts.
fn area(kind: u16, attributes: u32, policy: &[u8], parameters: Writer, unique: &[&[u8]]) -> Vec<u8> {
    let parameters = parameters.finish().unwrap();
    let head = Writer::default().u16(kind).u16(alg::SHA256).u32(attributes).sized(policy).raw(&parameters);
    unique.iter().fold(head, |writer, part| writer.sized(part)).finish().unwrap().to_vec()
}

fn rsa_parameters(exponent: u32) -> Writer {
    Writer::default().u16(alg::NULL).u16(alg::RSASSA).u16(alg::SHA256).u16(2048).u32(exponent)
}

#[test]
fn public_keys_are_those_of_certificates() {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let spki = key.public_key().spki();
    let point = &spki[spki.len() - 64..];
    let parameters =
        || Writer::default().u16(alg::NULL).u16(alg::ECDSA).u16(alg::SHA256).u16(curve::P256).u16(alg::NULL);
    let bytes = area(alg::ECC, 0, &[], parameters(), &[&point[..32], &point[32..]]);
    assert_eq!(Public::decode(&bytes).unwrap().public_key().unwrap(), *key.public_key());
    let bytes = area(alg::ECC, 0, &[], parameters(), &[&point[32..], &point[32..]]);
    assert!(Public::decode(&bytes).unwrap().public_key().is_err(), "not on the curve");
    let bytes = area(alg::ECC, 0, &[], parameters(), &[&[1; 33], &point[32..]]);
    assert!(Public::decode(&bytes).unwrap().public_key().is_err(), "too long");

    let modulus = [&[0xc1][..], &[7; 255]].concat();
    for exponent in [0, 65537] {
        let bytes = area(alg::RSA, 0, &[1; 32], rsa_parameters(exponent), &[&modulus]);
        let decoded = Public::decode(&bytes).unwrap();
        assert_eq!(decoded.public_key().unwrap().kind(), PublicKeyKind::Rsa { bits: 2048 });
        assert_eq!(decoded.name().unwrap(), [&[0, 0x0b][..], digest(&SHA256, &bytes).as_ref()].concat());
    }
    let small = area(alg::RSA, 0, &[], rsa_parameters(0), &[&modulus[..128]]);
    assert!(Public::decode(&small).unwrap().public_key().is_err(), "1024 bits");
    let mut unnamed = small;
    unnamed[2..4].copy_from_slice(&[0, 0x10]);
    let error = Public::decode(&unnamed).unwrap().name().unwrap_err();
    assert_eq!(error.to_string(), "hash algorithm not supported: 0x10");
}

#[test]
fn malformed_structures_are_told_as_in_the_reference() {
    let public = |bytes: &[u8]| Public::decode(bytes).unwrap_err().to_string();
    assert_eq!(public(b""), "decoding TPMT_PUBLIC: EOF");
    assert_eq!(public(b"not-a-tpm-public-blob"), "decoding TPMT_PUBLIC: unexpected EOF");
    assert_eq!(public(&[0, 8, 0, 0xb, 0, 0, 0, 0, 0, 0]), "unsupported type in TPMT_PUBLIC: 0x8");
    assert_eq!(public(&[0, 1, 0, 0xb, 0, 0, 0, 0, 0, 0]), "decoding Symmetric: decoding Alg: EOF");
    let mut trailing = AK_RSA.encode();
    trailing.push(0);
    assert_eq!(Public::decode(&trailing), Err(DecodeError::Trailing("TPMT_PUBLIC")));

    assert_eq!(Signature::decode(&[]), Err(DecodeError::Short("Alg", Short::Empty)));
    assert_eq!(Signature::decode(&[0, 5]), Err(DecodeError::SignatureAlgorithm(5)));
    assert_eq!(certified_name(b"\xff\x54\x43\x48\x80\x17"), Err(DecodeError::Magic(0xff54_4348)));
    assert_eq!(certified_name(b"\xff\x54\x43\x47"), Err(DecodeError::Short("Magic/Type", Short::Empty)));
}

#[test]
fn signatures_become_those_of_certificates() {
    let rsa = [&[0, 0x14, 0, 0x0b, 0, 3][..], b"sig"].concat();
    assert_eq!(Signature::decode(&rsa).unwrap().to_x509().unwrap(), b"sig");
    let ecdsa = |r: &[u8], s: &[u8]| Signature::Ecdsa { r, s }.to_x509().map(hex::encode);
    assert_eq!(ecdsa(&[0, 0, 1], &[0x80]).unwrap(), "300702010102020080");
    assert_eq!(ecdsa(&[], &[0]).unwrap(), "3006020100020100");
    assert_eq!(ecdsa(&[0xff; 66], &[0xff; 66]).unwrap()[..10], *"30818a0243");
    assert_eq!(ecdsa(&[1; 67], &[1]), None);
}

#[test]
fn devices_are_found_as_in_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert_eq!(detect(path), Err(DetectError::NotFound));
    std::fs::write(path.join("tpmx"), "").unwrap();
    std::fs::write(path.join("tpm0"), "").unwrap();
    assert_eq!(detect(path), Ok(path.join("tpm0")));
    std::fs::write(path.join("tpmrm0"), "").unwrap();
    assert_eq!(detect(path), Ok(path.join("tpmrm0")));
    std::fs::write(path.join("tpm1"), "").unwrap();
    assert_eq!(detect(path), Ok(path.join("tpmrm0")));
    std::fs::write(path.join("tpmrm1"), "").unwrap();
    assert_eq!(detect(path).unwrap_err().to_string(), "more than one possible TPM device was found");
    let error = detect(Path::new("/no/such/folder")).unwrap_err().to_string();
    assert_eq!(error, "open /no/such/folder: no such file or directory");
}

#[test]
fn only_devices_and_sockets_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tpm0");
    let error = Channel::open(&file).unwrap_err().to_string();
    assert_eq!(error, format!("stat {}: no such file or directory", file.display()));
    std::fs::write(&file, "").unwrap();
    let error = Channel::open(&file).unwrap_err().to_string();
    assert!(error.starts_with("unsupported TPM file mode -rw"), "{error}");
    let error = Channel::open(folder.path()).unwrap_err().to_string();
    assert!(error.starts_with("unsupported TPM file mode drwx"), "{error}");
}

/// Flushes a handle at a TPM that answers each command with the next of `answers`.
fn flush_at(answers: Vec<Vec<u8>>) -> (Result<(), TpmError>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tpm");
    let listener = UnixListener::bind(&path).unwrap();
    let count = answers.len();
    let serving = std::thread::spawn(move || {
        let mut served = 0;
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut command = [0; 14];
            stream.read_exact(&mut command).unwrap();
            assert_eq!(command, *b"\x80\x01\0\0\0\x0e\0\0\x01\x65\x80\0\0\x05");
            stream.write_all(&answer).unwrap();
            served += 1;
        }
        served
    });
    let result = Tpm::new(Channel::open(&path).unwrap()).flush(Handle(0x8000_0005));
    if result.is_ok() || count == 1 {
        return (result, serving.join().unwrap());
    }
    (result, 0)
}

#[test]
fn a_channel_takes_what_is_a_response_only() {
    let success = b"\x80\x01\0\0\0\x0a\0\0\0\0".to_vec();
    let retry = b"\x80\x01\0\0\0\x0a\0\0\x09\x22".to_vec();
    let (result, served) = flush_at(vec![retry.clone(), retry, success.clone()]);
    assert!(result.is_ok() && served == 3);

    let table: [(&[u8], &str); 6] = [
        (
            b"\x80\x01\0\0\0\x0a\0\0\x01\xcb",
            "parameter 1, error code 0xb : the handle is not correct for the use",
        ),
        (b"\x80\x02\0\0\0\x0a\0\0\0\0", "malformed TPM response"),
        (b"", "failed to fill whole buffer"),
        (b"\x80\x01\0\0\0\x0b\0\0\0\0", "failed to fill whole buffer"),
        (b"\x80\x01\0\0\0\x09\0\0\0\0", "a response of a size that none has"),
        (b"\x80\x01\xff\xff\xff\xff\0\0\0\0", "a response of a size that none has"),
    ];
    for (answer, text) in table {
        let (result, _) = flush_at(vec![answer.to_vec()]);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "{answer:?}: {error}");
    }
    let mut channel = Channel::Socket("/no/such/socket".into());
    let error = channel.exchange(&[0; MAX_MESSAGE_BYTES + 1]).unwrap_err();
    assert!(matches!(error, TpmError::TooLarge));
    let error = channel.exchange(&success).unwrap_err().to_string();
    assert_eq!(error, "unix socket /no/such/socket: no such file or directory");
}

/// A terminal is a character device too: what is written to one end is read at the other.
#[test]
fn character_devices_are_spoken_to() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

    let tpm = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&tpm).unwrap();
    unlockpt(&tpm).unwrap();
    let path = ptsname(&tpm, Vec::new()).unwrap().into_string().unwrap();
    let mut settings = tcgetattr(&tpm).unwrap();
    settings.make_raw();
    tcsetattr(&tpm, OptionalActions::Now, &settings).unwrap();
    let mut channel = Channel::open(Path::new(&path)).unwrap();
    assert!(matches!(channel, Channel::Device(..)));
    let serving = std::thread::spawn(move || {
        let mut tpm = std::fs::File::from(tpm);
        for code in [0x922_u32, 0] {
            let mut command = [0; 10];
            tpm.read_exact(&mut command).unwrap();
            assert_eq!(command, *b"\x80\x01\0\0\0\x0a\0\0\x01\x81");
            tpm.write_all(&[b"\x80\x01\0\0\0\x0a", &code.to_be_bytes()[..]].concat()).unwrap();
        }
        tpm
    });
    let response = channel.exchange(b"\x80\x01\0\0\0\x0a\0\0\x01\x81").unwrap();
    assert_eq!(response, b"\x80\x01\0\0\0\x0a\0\0\0\0");
    drop(serving.join().unwrap());
    // The other end is gone.
    let error = channel.exchange(&response).unwrap_err().to_string();
    assert_eq!(error, format!("write {path}: input/output error"));
}

#[test]
fn commands_that_no_tpm_takes_are_not_sent() {
    let mut tpm = Tpm::new(Channel::Socket("/no/such/socket".into()));
    for len in [MAX_MESSAGE_BYTES, usize::from(u16::MAX) + 1] {
        assert!(matches!(tpm.hash(alg::SHA256, &vec![0; len]), Err(TpmError::TooLarge)));
    }
}

proptest! {
    /// Nothing that a peer sends makes a parser panic, and what is taken is taken whole.
    #[test]
    fn parsers_bear_anything(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(public) = Public::decode(&bytes) {
            let _ = (public.public_key(), public.name());
        }
        let _ = certified_name(&bytes);
        if let Ok(signature) = Signature::decode(&bytes) {
            let _ = signature.to_x509();
        }
        for (sessions, has_handle) in [(false, false), (false, true), (true, false), (true, true)] {
            if let Ok(response) = Response::decode(&bytes, sessions, has_handle) {
                prop_assert!(response.parameters.len() <= bytes.len());
                prop_assert_eq!(response.handle.is_some(), has_handle);
            }
        }
    }

    /// What begins like a key of either kind is either that key or refused.
    #[test]
    fn almost_keys_are_borne(ecc in any::<bool>(), bytes in vec(any::<u8>(), 0..400)) {
        let kind = if ecc { alg::ECC } else { alg::RSA };
        let head = Writer::default().u16(kind).u16(alg::SHA256).u32(0).sized(&[]).u16(alg::NULL).u16(alg::NULL);
        let bytes = head.raw(&bytes).finish().unwrap();
        if let Ok(public) = Public::decode(&bytes) {
            prop_assert_eq!(matches!(public.key, Key::Ecc { .. }), ecc);
            let _ = public.public_key();
        }
    }

    /// Every part of a public area comes back, and neither less nor more of it is one.
    #[test]
    fn public_areas_round_trip(
        attributes in any::<u32>(),
        policy in vec(any::<u8>(), 0..64),
        exponent in any::<u32>(),
        modulus in vec(any::<u8>(), 0..300),
        cut in any::<proptest::sample::Index>(),
        more in vec(any::<u8>(), 1..9),
    ) {
        let bytes = area(alg::RSA, attributes, &policy, rsa_parameters(exponent), &[&modulus]);
        let decoded = Public::decode(&bytes).unwrap();
        prop_assert_eq!(decoded.attributes, Attributes(attributes));
        prop_assert_eq!(decoded.key, Key::Rsa { exponent, modulus: &modulus });
        prop_assert_eq!(decoded.scheme, Some(Scheme { algorithm: alg::RSASSA, hash: alg::SHA256 }));
        prop_assert_eq!(decoded.symmetric, None);
        prop_assert!(Public::decode(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(Public::decode(&[&bytes[..], &more].concat()).is_err());
    }

    /// Statements of a TPM likewise.
    #[test]
    fn certified_names_round_trip(
        name in vec(any::<u8>(), 0..70),
        extra in vec(any::<u8>(), 0..64),
        cut in any::<proptest::sample::Index>(),
    ) {
        let bytes = Writer::default().u32(0xff54_4347).u16(0x8017).sized(b"signer").sized(&extra).raw(&[7; 25])
            .sized(&name).sized(b"qualified").finish().unwrap();
        prop_assert_eq!(certified_name(&bytes), Ok(Some(&name[..])));
        prop_assert!(certified_name(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(certified_name(&[&bytes[..], &[0]].concat()).is_err());
    }

    /// Both numbers of an ECDSA signature survive the way to DER.
    #[test]
    fn ecdsa_numbers_survive(r in vec(any::<u8>(), 0..67), s in vec(any::<u8>(), 0..67)) {
        let der = Signature::Ecdsa { r: &r, s: &s }.to_x509().unwrap();
        let skip = if der[1] < 0x80 { 2 } else { 3 };
        let mut rest = &der[skip..];
        for number in [&r, &s] {
            let len = usize::from(rest[1]);
            let digits: Vec<u8> = rest[2..2 + len].iter().copied().skip_while(|byte| *byte == 0).collect();
            let expected: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
            prop_assert_eq!(digits, expected);
            prop_assert!(rest[0] == 2 && rest[2] < 0x80);
            rest = &rest[2 + len..];
        }
        prop_assert!(rest.is_empty());
    }
}
