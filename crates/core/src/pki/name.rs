//! Distinguished names as Go's crypto/x509/pkix models, writes and prints them.

use std::fmt;

use super::der::{self, DerError, Reader, Writer, tag};
use super::oid;

/// An attribute of a name: its type in dotted form and its text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NameAttribute {
    /// The object identifier, `2.5.4.45` for example.
    pub oid: String,
    /// The value.
    pub value: String,
}

/// A distinguished name. Fields of one kind are written as one set; `names` holds everything that was
/// read and is not written again; `extra_names` is written after the rest and replaces fields of the same
/// kind (Go's pkix.Name).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DistinguishedName {
    /// `C`
    pub country: Vec<String>,
    /// `O`
    pub organization: Vec<String>,
    /// `OU`
    pub organizational_unit: Vec<String>,
    /// `L`
    pub locality: Vec<String>,
    /// `ST`
    pub province: Vec<String>,
    /// `STREET`
    pub street_address: Vec<String>,
    /// `POSTALCODE`
    pub postal_code: Vec<String>,
    /// `SERIALNUMBER`
    pub serial_number: String,
    /// `CN`
    pub common_name: String,
    /// Every attribute that was read, in order.
    pub names: Vec<NameAttribute>,
    /// Attributes to write as they are, each in a set of its own.
    pub extra_names: Vec<NameAttribute>,
}

/// A name that cannot be written: an attribute type that is not an object identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid object identifier {0:?} in distinguished name")]
pub struct NameError(pub String);

/// A name as DER, made once and written into many certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EncodedName(Box<[u8]>);

impl EncodedName {
    /// A name that was read from a certificate or request, byte for byte.
    ///
    /// # Errors
    /// [`DerError`] when it is not one sequence and nothing else. What is in it is not looked at.
    pub fn from_der(der: &[u8]) -> Result<Self, DerError> {
        let mut reader = Reader::new(der);
        reader.sequence()?;
        reader.finish()?;
        Ok(Self(der.into()))
    }

    /// A name that a parser has checked to be one element.
    pub(crate) fn from_element(der: &[u8]) -> Self {
        Self(der.into())
    }

    /// The DER.
    pub fn as_der(&self) -> &[u8] {
        &self.0
    }

    /// Whether the name has no attributes.
    pub fn is_empty(&self) -> bool {
        *self.0 == [0x30, 0]
    }
}

impl DistinguishedName {
    /// `C=US, O=SPIFFE`: the reference's default for certificate authorities.
    pub fn default_ca() -> Self {
        Self { country: vec!["US".into()], organization: vec!["SPIFFE".into()], ..Self::default() }
    }

    /// `C=US, O=SPIRE`: the reference's default for SVIDs and for agents' requests.
    pub fn default_svid() -> Self {
        Self { country: vec!["US".into()], organization: vec!["SPIRE".into()], ..Self::default() }
    }

    /// Whether it prints as nothing, which is when the reference takes its default.
    pub fn is_empty(&self) -> bool {
        self.to_string().is_empty()
    }

    /// Adds the x500UniqueIdentifier of a SPIFFE ID (the reference's `uniqueid` credential composer,
    /// pkg/common/x509svid/uniqueid.go): the hex of the first 16 bytes of the ID's SHA-256.
    pub fn push_unique_id(&mut self, spiffe_id: &str) {
        let hash = super::algorithm::HashAlgorithm::Sha256.digest(spiffe_id.as_bytes());
        self.extra_names.push(NameAttribute {
            oid: oid::X500_UNIQUE_IDENTIFIER.to_owned(),
            value: hex::encode(&hash.as_ref()[..16]),
        });
    }

    /// As DER.
    ///
    /// # Errors
    /// [`NameError`] with the first type among `extra_names` that is not an object identifier.
    pub fn encode(&self) -> Result<EncodedName, NameError> {
        let mut extra = Vec::with_capacity(self.extra_names.len());
        for attribute in &self.extra_names {
            let id = der::oid_from_dotted(&attribute.oid).ok_or_else(|| NameError(attribute.oid.clone()))?;
            extra.push((id, attribute.value.as_str()));
        }
        let mut w = Writer::with_capacity(64);
        w.sequence(|w| {
            for (id, _, values) in self.fields() {
                if values.is_empty() || extra.iter().any(|(e, _)| e == id) {
                    continue;
                }
                write_set(w, id, values);
            }
            for (id, value) in &extra {
                write_set(w, id, &[(*value).to_owned()]);
            }
        });
        Ok(EncodedName(w.into_bytes().into_boxed_slice()))
    }

    /// From DER, with values of the string types that Go knows.
    ///
    /// # Errors
    /// [`DerError`] when it is malformed, or has a value of another type.
    pub fn from_der(der: &[u8]) -> Result<Self, DerError> {
        let mut outer = Reader::new(der);
        let mut sets = outer.sequence()?;
        outer.finish()?;
        let mut name = Self::default();
        while !sets.is_empty() {
            let mut set = sets.nested(tag::SET)?;
            while !set.is_empty() {
                let mut attribute = set.sequence()?;
                let id = attribute.read(tag::OID)?;
                let (tag, content, _) = attribute.any()?;
                name.push(id, text(tag, content)?)?;
            }
        }
        Ok(name)
    }

    fn push(&mut self, id: &[u8], value: String) -> Result<(), DerError> {
        let attribute = NameAttribute { oid: der::dotted(id).ok_or(DerError)?, value: value.clone() };
        self.names.push(attribute);
        match id {
            i if i == oid::COMMON_NAME => self.common_name = value,
            i if i == oid::SERIAL_NUMBER => self.serial_number = value,
            i if i == oid::COUNTRY => self.country.push(value),
            i if i == oid::LOCALITY => self.locality.push(value),
            i if i == oid::PROVINCE => self.province.push(value),
            i if i == oid::STREET_ADDRESS => self.street_address.push(value),
            i if i == oid::ORGANIZATION => self.organization.push(value),
            i if i == oid::ORGANIZATIONAL_UNIT => self.organizational_unit.push(value),
            i if i == oid::POSTAL_CODE => self.postal_code.push(value),
            _ => {}
        }
        Ok(())
    }

    /// The fields in the order in which Go writes them.
    fn fields(&self) -> [(&'static [u8], &'static str, &[String]); 9] {
        let one = |s: &'_ String| if s.is_empty() { 0 } else { 1 };
        [
            (oid::COUNTRY, "C", self.country.as_slice()),
            (oid::PROVINCE, "ST", self.province.as_slice()),
            (oid::LOCALITY, "L", self.locality.as_slice()),
            (oid::STREET_ADDRESS, "STREET", self.street_address.as_slice()),
            (oid::POSTAL_CODE, "POSTALCODE", self.postal_code.as_slice()),
            (oid::ORGANIZATION, "O", self.organization.as_slice()),
            (oid::ORGANIZATIONAL_UNIT, "OU", self.organizational_unit.as_slice()),
            (oid::COMMON_NAME, "CN", &std::slice::from_ref(&self.common_name)[..one(&self.common_name)]),
            (
                oid::SERIAL_NUMBER,
                "SERIALNUMBER",
                &std::slice::from_ref(&self.serial_number)[..one(&self.serial_number)],
            ),
        ]
    }
}

/// As Go's pkix.Name.String: RFC 2253, last set first; attributes that have no field come at the end.
impl fmt::Display for DistinguishedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        let fields = self.fields();
        let dotted_of = |id: &[u8]| der::dotted(id).unwrap_or_default();
        let mut sets: Vec<String> = Vec::new();
        if self.extra_names.is_empty() {
            for attribute in &self.names {
                if !fields.iter().any(|(id, ..)| dotted_of(id) == attribute.oid) {
                    sets.push(shown(&attribute.oid, &attribute.value));
                }
            }
        }
        for (id, label, values) in fields {
            if values.is_empty() || self.extra_names.iter().any(|e| e.oid == dotted_of(id)) {
                continue;
            }
            let parts: Vec<String> = values.iter().map(|v| format!("{label}={}", escaped(v))).collect();
            sets.push(parts.join("+"));
        }
        for extra in &self.extra_names {
            match fields.iter().find(|(id, ..)| dotted_of(id) == extra.oid) {
                Some((_, label, _)) => sets.push(format!("{label}={}", escaped(&extra.value))),
                None => sets.push(shown(&extra.oid, &extra.value)),
            }
        }
        for (i, set) in sets.iter().rev().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str(set);
        }
        f.write_str(&out)
    }
}

/// An attribute without a short name: `oid=#<hex of the DER string>`.
fn shown(oid: &str, value: &str) -> String {
    let mut w = Writer::with_capacity(value.len() + 4);
    w.primitive(string_tag(value), value.as_bytes());
    format!("{oid}=#{}", hex::encode(w.into_bytes()))
}

fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, c) in value.char_indices() {
        let escape = match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            ' ' => at == 0 || at == last,
            '#' => at == 0,
            _ => false,
        };
        if escape {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// One RelativeDistinguishedName; DER sorts the members of a set.
fn write_set(w: &mut Writer, id: &[u8], values: &[String]) {
    let attribute = |w: &mut Writer, value: &str| {
        w.sequence(|w| {
            w.primitive(tag::OID, id);
            w.primitive(string_tag(value), value.as_bytes());
        });
    };
    w.nested(tag::SET, |w| {
        if let [value] = values {
            attribute(w, value);
            return;
        }
        let mut members: Vec<Vec<u8>> = values
            .iter()
            .map(|value| {
                let mut member = Writer::with_capacity(value.len() + 16);
                attribute(&mut member, value);
                member.into_bytes()
            })
            .collect();
        members.sort();
        for member in members {
            w.raw(&member);
        }
    });
}

/// PrintableString where every character allows it, UTF8String otherwise; `*` and `&` do not, as in
/// Go's encoding/asn1.
fn string_tag(value: &str) -> u8 {
    let printable = |b: u8| {
        b.is_ascii_alphanumeric()
            || matches!(b, b'\'' | b'(' | b')' | b'+' | b',' | b'-' | b'.' | b'/' | b' ' | b':' | b'=' | b'?')
    };
    if value.bytes().all(printable) { tag::PRINTABLE_STRING } else { tag::UTF8_STRING }
}

fn text(tag: u8, content: &[u8]) -> Result<String, DerError> {
    match tag {
        tag::UTF8_STRING => String::from_utf8(content.to_vec()).map_err(|_| DerError),
        tag::PRINTABLE_STRING | tag::IA5_STRING | tag::NUMERIC_STRING if content.is_ascii() => {
            String::from_utf8(content.to_vec()).map_err(|_| DerError)
        }
        // Read as Latin-1, which is what everybody does.
        tag::T61_STRING => Ok(content.iter().map(|b| char::from(*b)).collect()),
        tag::BMP_STRING if content.len().is_multiple_of(2) => {
            let units: Vec<u16> = content.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
            String::from_utf16(&units).map_err(|_| DerError)
        }
        _ => Err(DerError),
    }
}
