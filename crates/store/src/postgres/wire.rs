//! Values on the wire, in PostgreSQL's binary form.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use time::{Duration, OffsetDateTime};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};

use crate::fault::{Fault, Sql};
use crate::sql::{Cell, Param, Row};

type Boxed = Box<dyn Error + Sync + Send>;

/// Seconds from 1970 to 2000, where PostgreSQL counts from.
const EPOCH: i64 = 946_684_800;

/// The type with which a statement is prepared for a parameter.
pub(super) fn type_of(param: &Param<'_>) -> Type {
    match param {
        Param::Int(_) => Type::INT8,
        Param::Bool(_) => Type::BOOL,
        Param::Text(_) => Type::TEXT,
        Param::Blob(_) => Type::BYTEA,
        Param::Time(_) => Type::TIMESTAMPTZ,
    }
}

impl ToSql for Param<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        match *self {
            Param::Int(number) => out.put_i64(number),
            Param::Bool(truth) => out.put_u8(truth.into()),
            Param::Text(text) => out.put_slice(text.as_bytes()),
            Param::Blob(Some(blob)) => out.put_slice(blob),
            Param::Time(Some(at)) => {
                // Rounded to microseconds, as the server rounds texts.
                let nanos = at.unix_timestamp_nanos() - i128::from(EPOCH) * 1_000_000_000;
                out.put_i64(i64::try_from((nanos + 500).div_euclid(1000))?);
            }
            Param::Blob(None) | Param::Time(None) => return Ok(IsNull::Yes),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Boxed> {
        self.to_sql(ty, out)
    }
}

impl<'a> FromSql<'a> for Cell<'a> {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Boxed> {
        Ok(match *ty {
            Type::INT2 => Cell::Int(i16::from_be_bytes(raw.try_into()?).into()),
            Type::INT4 => Cell::Int(i32::from_be_bytes(raw.try_into()?).into()),
            Type::INT8 => Cell::Int(i64::from_be_bytes(raw.try_into()?)),
            Type::BOOL => Cell::Bool(raw.first().is_some_and(|byte| *byte != 0)),
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME => Cell::Text(std::str::from_utf8(raw)?),
            Type::BYTEA => Cell::Blob(raw),
            Type::TIMESTAMPTZ | Type::TIMESTAMP => Cell::Time(time(i64::from_be_bytes(raw.try_into()?))?),
            _ => return Err(format!("a column has the type {ty}").into()),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, Boxed> {
        Ok(Cell::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Microseconds since 2000 as a time; the infinite ones are none that we have words for.
fn time(micros: i64) -> Result<OffsetDateTime, Boxed> {
    let start = OffsetDateTime::from_unix_timestamp(EPOCH)?;
    start.checked_add(Duration::microseconds(micros)).ok_or_else(|| "a time is out of range".into())
}

impl Row for tokio_postgres::Row {
    fn cell(&self, column: usize) -> Sql<Cell<'_>> {
        self.try_get(column).map_err(|error| Fault::unreadable(super::fault::unreachable(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_with_microseconds() {
        for (nanos, back) in [
            (1_700_000_000_000_000_000, 1_700_000_000_000_000_000),
            (1_700_000_000_123_456_789, 1_700_000_000_123_457_000),
            (0, 0),
            (-1_500, -1_000),
        ] {
            let mut out = BytesMut::new();
            let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
            let param = Param::Time(Some(at));
            assert!(matches!(param.to_sql(&Type::TIMESTAMPTZ, &mut out), Ok(IsNull::No)));
            let expected = OffsetDateTime::from_unix_timestamp_nanos(back).unwrap();
            assert_eq!(Cell::from_sql(&Type::TIMESTAMPTZ, &out).unwrap(), Cell::Time(expected), "{nanos}");
        }
        assert!(time(i64::MAX).is_err(), "infinity");
    }

    #[test]
    fn numbers_of_every_width_are_read() {
        assert_eq!(Cell::from_sql(&Type::INT2, &[255, 254]).unwrap(), Cell::Int(-2));
        assert_eq!(Cell::from_sql(&Type::INT4, &[0, 0, 1, 0]).unwrap(), Cell::Int(256));
        assert!(Cell::from_sql(&Type::INT4, &[0]).is_err());
        assert!(Cell::from_sql(&Type::FLOAT8, &[0; 8]).is_err());
    }
}
