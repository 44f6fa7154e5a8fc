//! Parameters and rows in the binary form of prepared statements (MySQL Internals: binary protocol).

use super::Failure;
use super::packet::{MALFORMED, Reader, push_string};

/// A value on its way to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mysql) enum Value {
    Null,
    Int(i64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
    Time(Moment),
}

/// Date and time without a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mysql) struct Moment {
    pub(in crate::mysql) date: (u16, u8, u8),
    pub(in crate::mysql) clock: (u8, u8, u8),
    pub(in crate::mysql) micros: u32,
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mysql) enum Field<'a> {
    Null,
    Int(i64),
    Text(&'a [u8]),
    Blob(&'a [u8]),
    Time(Moment),
}

/// What a column holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    kind: u8,
    unsigned: bool,
    binary: bool,
}

mod kind {
    pub(super) const DECIMAL: u8 = 0;
    pub(super) const TINY: u8 = 1;
    pub(super) const SHORT: u8 = 2;
    pub(super) const LONG: u8 = 3;
    pub(super) const NULL: u8 = 6;
    pub(super) const TIMESTAMP: u8 = 7;
    pub(super) const LONGLONG: u8 = 8;
    pub(super) const INT24: u8 = 9;
    pub(super) const DATE: u8 = 10;
    pub(super) const DATETIME: u8 = 12;
    pub(super) const YEAR: u8 = 13;
    pub(super) const NEWDECIMAL: u8 = 246;
    pub(super) const TINY_BLOB: u8 = 249;
    pub(super) const BLOB: u8 = 252;
    pub(super) const VAR_STRING: u8 = 253;
    pub(super) const STRING: u8 = 254;
}

/// The character set of what is no text.
const BINARY: u16 = 63;

/// A flag of columns whose numbers have no sign.
const UNSIGNED: u16 = 0x20;

impl Column {
    /// Reads a description of a column.
    pub(super) fn read(payload: &[u8]) -> Result<Self, Failure> {
        let mut reader = Reader(payload);
        // Catalogue, schema, table and column, each by its names; and the length of what follows.
        for _ in 0..6 {
            reader.string()?;
        }
        reader.length()?;
        let charset = reader.u16()?;
        reader.take(4)?;
        let kind = reader.u8()?;
        let flags = reader.u16()?;
        Ok(Self { kind, unsigned: flags & UNSIGNED != 0, binary: charset == BINARY })
    }
}

/// The message that executes a statement.
pub(super) fn execution(statement: u32, values: &[Value]) -> Vec<u8> {
    let mut out = vec![0x17];
    out.extend_from_slice(&statement.to_le_bytes());
    // No cursor, one iteration.
    out.extend_from_slice(&[0, 1, 0, 0, 0]);
    if values.is_empty() {
        return out;
    }
    let mut nulls = vec![0_u8; values.len().div_ceil(8)];
    for (at, _) in values.iter().enumerate().filter(|(_, value)| **value == Value::Null) {
        nulls[at / 8] |= 1 << (at % 8);
    }
    out.extend_from_slice(&nulls);
    // The types follow.
    out.push(1);
    for value in values {
        out.push(match value {
            Value::Null => kind::NULL,
            Value::Int(_) => kind::LONGLONG,
            Value::Text(_) => kind::VAR_STRING,
            Value::Blob(_) => kind::BLOB,
            Value::Time(_) => kind::DATETIME,
        });
        out.push(0);
    }
    for value in values {
        match value {
            Value::Null => {}
            Value::Int(number) => out.extend_from_slice(&number.to_le_bytes()),
            Value::Text(bytes) | Value::Blob(bytes) => push_string(&mut out, bytes),
            Value::Time(Moment { date: (year, month, day), clock: (hour, minute, second), micros }) => {
                out.push(11);
                out.extend_from_slice(&year.to_le_bytes());
                out.extend_from_slice(&[*month, *day, *hour, *minute, *second]);
                out.extend_from_slice(&micros.to_le_bytes());
            }
        }
    }
    out
}

/// Reads a row.
pub(super) fn row<'a>(payload: &'a [u8], columns: &[Column]) -> Result<Vec<Field<'a>>, Failure> {
    let mut reader = Reader(payload);
    if reader.u8()? != 0 {
        return Err(MALFORMED);
    }
    // The first two bits are of no column.
    let nulls = reader.take((columns.len() + 9) / 8)?;
    let is_null = |at: usize| nulls.get((at + 2) / 8).is_some_and(|byte| byte & (1 << ((at + 2) % 8)) != 0);
    let field = |(at, column): (usize, &Column)| {
        if is_null(at) { Ok(Field::Null) } else { field(&mut reader, *column) }
    };
    columns.iter().enumerate().map(field).collect()
}

fn field<'a>(reader: &mut Reader<'a>, column: Column) -> Result<Field<'a>, Failure> {
    let size = match column.kind {
        kind::TINY => 1,
        kind::SHORT | kind::YEAR => 2,
        kind::LONG | kind::INT24 => 4,
        kind::LONGLONG => 8,
        kind::DATE | kind::DATETIME | kind::TIMESTAMP => return moment(reader),
        kind::DECIMAL | kind::NEWDECIMAL => {
            // Sums of numbers with and without a sign.
            let text = std::str::from_utf8(reader.string()?).map_err(|_| MALFORMED)?;
            return text.parse().map(Field::Int).map_err(|_| MALFORMED);
        }
        kind::TINY_BLOB..=kind::STRING | 15 | 245 => {
            let bytes = reader.string()?;
            return Ok(if column.binary { Field::Blob(bytes) } else { Field::Text(bytes) });
        }
        _ => return Err(Failure::Protocol("a column has an unexpected type")),
    };
    let number = reader.number(size)?;
    if column.unsigned {
        return i64::try_from(number).map(Field::Int).map_err(|_| MALFORMED);
    }
    // The sign is in the highest bit of however many there are.
    let shift = 64 - 8 * u32::try_from(size).unwrap_or(8);
    Ok(Field::Int((number << shift).cast_signed() >> shift))
}

fn moment<'a>(reader: &mut Reader<'a>) -> Result<Field<'a>, Failure> {
    let mut inner = Reader(reader.string()?);
    if inner.is_empty() {
        return Ok(Field::Null);
    }
    let date = (inner.u16()?, inner.u8()?, inner.u8()?);
    let clock = if inner.is_empty() { (0, 0, 0) } else { (inner.u8()?, inner.u8()?, inner.u8()?) };
    let micros = if inner.is_empty() { 0 } else { inner.u32()? };
    // A date of zeros, which old servers take for none.
    let is_date = date.1 > 0 && date.2 > 0;
    Ok(if is_date { Field::Time(Moment { date, clock, micros }) } else { Field::Null })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kind: u8) -> Column {
        Column { kind, unsigned: false, binary: false }
    }

    #[test]
    fn rows_are_read_by_the_types_of_their_columns() {
        let columns = [
            column(kind::TINY),
            column(kind::LONG),
            Column { unsigned: true, ..column(kind::LONG) },
            column(kind::LONGLONG),
            column(kind::VAR_STRING),
            Column { binary: true, ..column(kind::BLOB) },
            column(kind::DATETIME),
            column(kind::NEWDECIMAL),
            column(kind::STRING),
        ];
        // The last is NULL: bit 10.
        let mut bytes = vec![0, 0, 0b100, 0xff];
        bytes.extend_from_slice(&(-5_i32).to_le_bytes());
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        bytes.extend_from_slice(&i64::MIN.to_le_bytes());
        bytes.extend_from_slice(b"\x02hi\x01\x00\x07\xea\x07\x0b\x16\x15\x05\x06\x0242");
        assert_eq!(
            row(&bytes, &columns).unwrap(),
            [
                Field::Int(-1),
                Field::Int(-5),
                Field::Int(u32::MAX.into()),
                Field::Int(i64::MIN),
                Field::Text(b"hi"),
                Field::Blob(&[0]),
                Field::Time(Moment { date: (2026, 11, 22), clock: (21, 5, 6), micros: 0 }),
                Field::Int(42),
                Field::Null,
            ]
        );
        for cut in 0..bytes.len() {
            assert!(row(&bytes[..cut], &columns).is_err(), "{cut}");
        }
    }

    #[test]
    fn dates_of_zeros_are_none() {
        let columns = [column(kind::DATETIME)];
        assert_eq!(row(b"\x00\x00\x00", &columns).unwrap(), [Field::Null]);
        assert_eq!(row(b"\x00\x00\x04\x00\x00\x00\x00", &columns).unwrap(), [Field::Null]);
        assert!(row(b"\x00\x00\x03\x00\x00\x00", &columns).is_err());
    }

    #[test]
    fn executions_name_types_and_values() {
        let values = [Value::Null, Value::Int(-1), Value::Text(b"a".to_vec())];
        assert_eq!(
            execution(7, &values),
            b"\x17\x07\0\0\0\0\x01\0\0\0\x01\x01\x06\0\x08\0\xfd\0\xff\xff\xff\xff\xff\xff\xff\xff\x01a"
        );
        assert_eq!(execution(1, &[]), b"\x17\x01\0\0\0\0\x01\0\0\0");
    }
}
