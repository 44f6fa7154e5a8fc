//! Encodings of stored values: times as text, bundles and journals as protobuf, SPIFFE IDs with scheme.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use spire_core::model::{Attributes, AuthorityStatus, CaJournal, EntryId, KeyRecord, SlotName, X509CaRecord};
use spire_core::spiffe::{Bundle, JwtAuthority, Selector, SpiffeId, TrustDomain, X509Authority};
use spire_core::time::Timestamp;
use spire_ports::datastore::Error;
use spire_wire::stored::{common, journal};
use time::{Date, Month, OffsetDateTime, Time, UtcOffset};

use crate::fault::{Fault, Sql};
use crate::sql::{Cell, Row};

/// The time now, for `created_at` and `updated_at`.
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// A time as the reference's SQLite driver writes it: `2006-01-02 15:04:05.999999999-07:00`, where trailing zeros
/// of the fraction, and a fraction of zero, are left out. Always UTC.
pub(crate) fn time_text(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    let mut text = String::with_capacity(35);
    digits(&mut text, at.year().unsigned_abs(), 4);
    for (before, number) in [
        ('-', u8::from(at.month())),
        ('-', at.day()),
        (' ', at.hour()),
        (':', at.minute()),
        (':', at.second()),
    ] {
        text.push(before);
        digits(&mut text, number.into(), 2);
    }
    if at.nanosecond() != 0 {
        text.push('.');
        digits(&mut text, at.nanosecond(), 9);
        text.truncate(text.trim_end_matches('0').len());
    }
    text.push_str("+00:00");
    text
}

/// Appends a number with leading zeros. Every row that is written has times, and `format!` shows there.
fn digits(text: &mut String, number: u32, width: u32) {
    for place in (0..width).rev() {
        let digit = number / 10_u32.pow(place) % 10;
        text.push(char::from_digit(digit, 10).unwrap_or('0'));
    }
}

/// Reads a time that any version wrote: date and time with `T` or space, optional fraction and offset;
/// without an offset it is UTC.
pub(crate) fn parse_time(text: &str) -> Option<OffsetDateTime> {
    fn number<T: std::str::FromStr>(text: &str, from: usize, to: usize) -> Option<T> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|c| c.is_ascii_digit()).then(|| digits.parse().ok())?
    }
    let month = Month::try_from(number::<u8>(text, 5, 7)?).ok()?;
    let date = Date::from_calendar_date(number(text, 0, 4)?, month, number(text, 8, 10)?).ok()?;
    let Some(clock) = text.get(11..) else {
        return Some(date.midnight().assume_utc());
    };
    let seconds = clock.as_bytes().get(5) == Some(&b':');
    let (second, rest): (u8, _) =
        if seconds { (number(clock, 6, 8)?, clock.get(8..)?) } else { (0, clock.get(5..)?) };
    let (nanos, offset) = match rest.strip_prefix('.') {
        Some(fraction) => {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            let digits = digits.min(9);
            let scale = 10_u32.pow(9 - u32::try_from(digits).ok()?);
            (number::<u32>(fraction, 0, digits)? * scale, fraction.get(digits..)?)
        }
        None => (0, rest),
    };
    let offset = match offset.as_bytes().first() {
        None | Some(b'Z') => UtcOffset::UTC,
        Some(sign @ (b'+' | b'-')) => {
            let (hours, minutes): (i8, i8) = (number(offset, 1, 3)?, number(offset, 4, 6)?);
            let sign = if *sign == b'-' { -1 } else { 1 };
            UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()?
        }
        Some(_) => return None,
    };
    let clock = Time::from_hms_nano(number(clock, 0, 2)?, number(clock, 3, 5)?, second, nanos).ok()?;
    Some(date.with_time(clock).assume_offset(offset))
}

/// A creation time as the API shows it: rounded to the nearest second, since some databases keep no more.
pub(crate) fn rounded(at: OffsetDateTime) -> Timestamp {
    let up = i64::from(at.nanosecond() >= 500_000_000);
    Timestamp::from_unix(at.unix_timestamp() + up)
}

/// The stored form of a trust domain in `bundles`.
pub(crate) fn bundle_key(trust_domain: &TrustDomain) -> String {
    trust_domain.id_string()
}

/// A bundle as `bundles.data` has it.
pub(crate) fn bundle_to_blob(bundle: &Bundle) -> Vec<u8> {
    common::Bundle {
        trust_domain_id: bundle_key(&bundle.trust_domain),
        root_cas: bundle
            .x509_authorities
            .iter()
            .map(|a| common::Certificate { der_bytes: a.der.clone(), tainted_key: a.tainted })
            .collect(),
        jwt_signing_keys: bundle.jwt_authorities.iter().map(key_to_stored).collect(),
        refresh_hint: i64::try_from(bundle.refresh_hint.as_secs()).unwrap_or(i64::MAX),
        sequence_number: bundle.sequence_number,
        wit_signing_keys: bundle.wit_authorities.iter().map(key_to_stored).collect(),
    }
    .encode_to_vec()
}

/// Reads `bundles.data`. The authorities share one buffer.
pub(crate) fn bundle_from_blob(trust_domain: TrustDomain, blob: &[u8]) -> Sql<Bundle> {
    let stored = common::Bundle::decode(Bytes::copy_from_slice(blob)).map_err(Fault::unreadable)?;
    Ok(Bundle {
        trust_domain,
        x509_authorities: stored
            .root_cas
            .into_iter()
            .map(|ca| X509Authority { der: ca.der_bytes, tainted: ca.tainted_key })
            .collect(),
        jwt_authorities: stored.jwt_signing_keys.into_iter().map(key_from_stored).collect(),
        wit_authorities: stored.wit_signing_keys.into_iter().map(key_from_stored).collect(),
        refresh_hint: Duration::from_secs(u64::try_from(stored.refresh_hint).unwrap_or(0)),
        sequence_number: stored.sequence_number,
    })
}

fn key_to_stored(key: &JwtAuthority) -> common::PublicKey {
    common::PublicKey {
        pkix_bytes: key.public_key.clone(),
        kid: key.kid.clone(),
        not_after: key.not_after.unix(),
        tainted_key: key.tainted,
    }
}

fn key_from_stored(key: common::PublicKey) -> JwtAuthority {
    JwtAuthority {
        kid: key.kid,
        public_key: key.pkix_bytes,
        not_after: Timestamp::from_unix(key.not_after),
        tainted: key.tainted_key,
    }
}

/// Attributes as `registered_entries.additional_attributes` has them; `None` is NULL. Attributes that are
/// all off encode to nothing, which the reference reads as unset.
pub(crate) fn attributes_to_blob(attributes: Option<Attributes>) -> Option<Vec<u8>> {
    attributes.map(|a| {
        common::registration_entry::AdditionalAttributes {
            disable_x509_svid_prefetch: a.disable_x509_svid_prefetch,
            jwt_svid_include_jti: a.jwt_svid_include_jti,
        }
        .encode_to_vec()
    })
}

/// Reads `registered_entries.additional_attributes`.
pub(crate) fn attributes_from_blob(blob: Option<&[u8]>) -> Sql<Option<Attributes>> {
    let Some(blob) = blob.filter(|blob| !blob.is_empty()) else {
        return Ok(None);
    };
    let stored = common::registration_entry::AdditionalAttributes::decode(blob).map_err(Fault::unreadable)?;
    Ok(Some(Attributes {
        disable_x509_svid_prefetch: stored.disable_x509_svid_prefetch,
        jwt_svid_include_jti: stored.jwt_svid_include_jti,
    }))
}

/// A journal as `ca_journals.data` has it.
pub(crate) fn journal_to_blob(journal: &CaJournal) -> Vec<u8> {
    let slot = |slot: SlotName| slot.as_str().to_owned();
    journal::Entries {
        x509_cas: journal
            .x509
            .iter()
            .map(|ca| journal::X509caEntry {
                slot_id: slot(ca.slot),
                issued_at: ca.issued_at.unix(),
                certificate: ca.certificate.clone(),
                upstream_chain: ca.upstream_chain.clone(),
                status: status_to_stored(ca.status),
                authority_id: ca.authority_id.clone(),
                not_after: ca.not_after.unix(),
                upstream_authority_id: ca.upstream_authority_id.clone(),
            })
            .collect(),
        jwt_keys: journal
            .jwt
            .iter()
            .map(|key| journal::JwtKeyEntry {
                slot_id: slot(key.slot),
                issued_at: key.issued_at.unix(),
                not_after: key.not_after.unix(),
                kid: key.kid.clone(),
                public_key: key.public_key.clone(),
                status: status_to_stored(key.status),
                authority_id: key.authority_id.clone(),
            })
            .collect(),
        wit_keys: journal
            .wit
            .iter()
            .map(|key| journal::WitKeyEntry {
                slot_id: slot(key.slot),
                issued_at: key.issued_at.unix(),
                not_after: key.not_after.unix(),
                kid: key.kid.clone(),
                public_key: key.public_key.clone(),
                status: status_to_stored(key.status),
                authority_id: key.authority_id.clone(),
            })
            .collect(),
    }
    .encode_to_vec()
}

/// Reads `ca_journals.data`.
pub(crate) fn journal_from_blob(blob: &[u8]) -> Sql<CaJournal> {
    let stored = journal::Entries::decode(Bytes::copy_from_slice(blob)).map_err(Fault::unreadable)?;
    let x509 = stored.x509_cas.into_iter().map(|ca| {
        Ok(X509CaRecord {
            slot: slot_from_stored(&ca.slot_id)?,
            issued_at: Timestamp::from_unix(ca.issued_at),
            not_after: Timestamp::from_unix(ca.not_after),
            certificate: ca.certificate,
            upstream_chain: ca.upstream_chain,
            status: status_from_stored(ca.status),
            authority_id: ca.authority_id,
            upstream_authority_id: ca.upstream_authority_id,
        })
    });
    let jwt = stored.jwt_keys.into_iter().map(|key| {
        Ok(KeyRecord {
            slot: slot_from_stored(&key.slot_id)?,
            issued_at: Timestamp::from_unix(key.issued_at),
            not_after: Timestamp::from_unix(key.not_after),
            kid: key.kid,
            public_key: key.public_key,
            status: status_from_stored(key.status),
            authority_id: key.authority_id,
        })
    });
    let wit = stored.wit_keys.into_iter().map(|key| {
        Ok(KeyRecord {
            slot: slot_from_stored(&key.slot_id)?,
            issued_at: Timestamp::from_unix(key.issued_at),
            not_after: Timestamp::from_unix(key.not_after),
            kid: key.kid,
            public_key: key.public_key,
            status: status_from_stored(key.status),
            authority_id: key.authority_id,
        })
    });
    Ok(CaJournal {
        x509: x509.collect::<Sql<_>>()?,
        jwt: jwt.collect::<Sql<_>>()?,
        wit: wit.collect::<Sql<_>>()?,
    })
}

fn slot_from_stored(slot: &str) -> Sql<SlotName> {
    match slot {
        "A" => Ok(SlotName::A),
        "B" => Ok(SlotName::B),
        other => Err(Fault::unreadable(format!("CA journal has an unknown slot {other:?}"))),
    }
}

fn status_to_stored(status: AuthorityStatus) -> i32 {
    let stored = match status {
        AuthorityStatus::Unknown => journal::Status::Unknown,
        AuthorityStatus::Prepared => journal::Status::Prepared,
        AuthorityStatus::Active => journal::Status::Active,
        AuthorityStatus::Old => journal::Status::Old,
    };
    stored.into()
}

fn status_from_stored(status: i32) -> AuthorityStatus {
    match journal::Status::try_from(status) {
        Ok(journal::Status::Prepared) => AuthorityStatus::Prepared,
        Ok(journal::Status::Active) => AuthorityStatus::Active,
        Ok(journal::Status::Old) => AuthorityStatus::Old,
        Ok(journal::Status::Unknown) | Err(_) => AuthorityStatus::Unknown,
    }
}

/// Strings that many rows of one listing share: each is allocated once. It lives as long as the listing.
#[derive(Default)]
pub(crate) struct Interner {
    texts: HashSet<Arc<str>>,
    last_id: Option<SpiffeId>,
}

impl Interner {
    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }

    /// A stored selector.
    pub(crate) fn selector(&mut self, kind: &str, value: &str) -> Selector {
        Selector::from_stored(self.text(kind), self.text(value))
    }

    /// A stored parent ID: neighbours often have the same one.
    pub(crate) fn parent(&mut self, id: &str) -> Sql<SpiffeId> {
        match &self.last_id {
            Some(last) if last.as_str() == id => Ok(last.clone()),
            _ => {
                let parsed = spiffe_id(id)?;
                self.last_id = Some(parsed.clone());
                Ok(parsed)
            }
        }
    }
}

/// A stored SPIFFE ID.
pub(crate) fn spiffe_id(id: &str) -> Sql<SpiffeId> {
    SpiffeId::parse(id)
        .map_err(|error| Fault::unreadable(format!("stored SPIFFE ID {id:?} is invalid: {error}")))
}

/// A trust domain stored with or without scheme.
pub(crate) fn trust_domain(text: &str) -> Sql<TrustDomain> {
    TrustDomain::parse(text)
        .map_err(|error| Fault::unreadable(format!("stored trust domain {text:?} is invalid: {error}")))
}

/// Row id in a page token. Empty is the start.
pub(crate) fn row_of_token(token: &str) -> Sql<i64> {
    if token.is_empty() {
        return Ok(0);
    }
    // As the reference, which takes 32 bits and no sign.
    match token.parse::<u32>() {
        Ok(row) if !token.starts_with('+') => Ok(row.into()),
        _ => Err(Error::Invalid(format!("could not parse token '{token}'")).into()),
    }
}

/// Texts as a JSON array, which a statement unpacks with `json_each`: one statement for any number.
pub(crate) fn json_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    serde_json::Value::from_iter(texts).to_string()
}

/// Row ids as a JSON array.
pub(crate) fn json_rows(rows: &[i64]) -> String {
    let mut json = String::with_capacity(rows.len() * 8 + 2);
    json.push('[');
    for (i, row) in rows.iter().enumerate() {
        if i > 0 {
            json.push(',');
        }
        json.push_str(&row.to_string());
    }
    json.push(']');
    json
}

/// Selectors as a JSON array of pairs.
pub(crate) fn json_selectors<'a>(selectors: impl IntoIterator<Item = &'a Selector>) -> String {
    selectors
        .into_iter()
        .map(|s| serde_json::json!([s.kind(), s.value()]))
        .collect::<serde_json::Value>()
        .to_string()
}

/// Checks an id that is about to be stored (pkg/server/datastore/sqlstore: validateRegistrationEntry).
pub(crate) fn check_entry_id(id: &EntryId) -> Sql<()> {
    EntryId::parse(id.as_str())
        .map(drop)
        .map_err(|error| Error::validation(format!("invalid registration entry: {error}")).into())
}

/// Number of a column that is never NULL.
pub(crate) fn integer(row: &dyn Row, column: usize) -> Sql<i64> {
    number(row, column)?.ok_or_else(|| Fault::unreadable(format!("column {column} is not a number")))
}

/// Text of a nullable column, NULL as empty.
pub(crate) fn text_or_empty(row: &dyn Row, column: usize) -> Sql<Cow<'_, str>> {
    match row.cell(column)? {
        Cell::Null => Ok(Cow::Borrowed("")),
        Cell::Text(text) => Ok(Cow::Borrowed(text)),
        Cell::Int(number) => Ok(Cow::Owned(number.to_string())),
        _ => Err(Fault::unreadable(format!("column {column} is not text"))),
    }
}

/// Number of a nullable column, NULL as zero.
pub(crate) fn number_or_zero(row: &dyn Row, column: usize) -> Sql<i64> {
    Ok(number(row, column)?.unwrap_or(0))
}

fn number(row: &dyn Row, column: usize) -> Sql<Option<i64>> {
    match row.cell(column)? {
        Cell::Null => Ok(None),
        Cell::Int(number) => Ok(Some(number)),
        Cell::Bool(truth) => Ok(Some(truth.into())),
        _ => Err(Fault::unreadable(format!("column {column} is not a number"))),
    }
}

/// Truth of a nullable column, NULL as false.
pub(crate) fn flag(row: &dyn Row, column: usize) -> Sql<bool> {
    Ok(number_or_zero(row, column)? != 0)
}

/// Bytes of a nullable column.
pub(crate) fn blob(row: &dyn Row, column: usize) -> Sql<Option<&[u8]>> {
    match row.cell(column)? {
        Cell::Null => Ok(None),
        Cell::Blob(blob) => Ok(Some(blob)),
        _ => Err(Fault::unreadable(format!("column {column} does not hold bytes"))),
    }
}

/// Time of a nullable column.
pub(crate) fn time_or_none(row: &dyn Row, column: usize) -> Sql<Option<OffsetDateTime>> {
    let text = match row.cell(column)? {
        Cell::Null | Cell::Text("") => return Ok(None),
        Cell::Time(at) => return Ok(Some(at)),
        Cell::Text(text) => text,
        _ => return Err(Fault::unreadable(format!("column {column} is not a time"))),
    };
    match parse_time(text) {
        Some(at) => Ok(Some(at)),
        None => Err(Fault::unreadable(format!("stored time {text:?} is invalid"))),
    }
}

#[cfg(test)]
mod tests;
