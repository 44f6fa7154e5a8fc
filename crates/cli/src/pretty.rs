//! What the pretty printers of several commands share.

use spire_compat::config::Level;
use spire_compat::duration::GoDuration;
use spire_compat::gotime;
use spire_core::spiffe::SpiffeId;
use spire_wire::api::types;

use crate::env::Env;
use crate::failure::{Failure, plain};

/// `1 agent`, `2 agents`.
pub(crate) fn counted<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// Counts come as 32 signed bits.
pub(crate) fn counted_i32<'a>(count: i32, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// An ID as text, as it came; empty for none.
pub(crate) fn id_text(id: Option<&types::Spiffeid>) -> String {
    id.map_or_else(String::new, |id| format!("spiffe://{}{}", id.trust_domain, id.path))
}

/// An ID as text that is one.
pub(crate) fn valid_id_text(id: Option<&types::Spiffeid>) -> Result<String, Failure> {
    let text = id_text(Some(id.ok_or_else(|| Failure::new("SPIFFE ID is nil"))?));
    SpiffeId::parse(&text).map_err(plain)?;
    Ok(text)
}

/// A SPIFFE ID that the user gave, as a message.
pub(crate) fn parse_id(text: &str) -> Result<types::Spiffeid, Failure> {
    let id = SpiffeId::parse(text).map_err(plain)?;
    Ok(types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() })
}

/// `type:value`; everything behind the first colon is the value.
pub(crate) fn parse_selector(text: &str) -> Result<types::Selector, Failure> {
    let (kind, value) = text
        .split_once(':')
        .ok_or_else(|| Failure::new(format!("selector \"{text}\" must be formatted as type:value")))?;
    Ok(types::Selector { r#type: kind.to_owned(), value: value.to_owned() })
}

/// An integer flag that goes out with 32 bits (pkg/common/util/cast.go).
pub(crate) fn to_i32(value: i64) -> Result<i32, Failure> {
    i32::try_from(value).map_err(|_| Failure::new(format!("overflow converting int({value}) to int32")))
}

/// A TTL in seconds, rounded up.
pub(crate) fn ttl_seconds(ttl: GoDuration) -> Result<i32, Failure> {
    let seconds = ttl.as_nanos().wrapping_add(999_999_999) / 1_000_000_000;
    i32::try_from(seconds).map_err(|_| {
        // The reference counts the seconds as a duration and prints that.
        let shown = GoDuration::from_nanos(seconds);
        Failure::new(format!("invalid value for TTL: overflow converting time.Duration({shown}) to int32"))
    })
}

/// Tells the user when less was granted than asked for.
pub(crate) fn warn_if_capped(env: &mut Env, what: &str, expires_at: i64, ttl: GoDuration) {
    let left = i128::from(expires_at) - i128::from(env.unix_now());
    if left * 1_000_000_000 < i128::from(ttl.as_nanos()) {
        let expiry = gotime::rfc3339(expires_at);
        env.err(format_args!(
            "{what} lifetime was capped shorter than specified ttl; expires \"{expiry}\"\n"
        ));
    }
}

/// The state of loggers, server's and agent's (pkg/common/api/logger).
pub(crate) fn logger(env: &mut Env, logger: &types::Logger) -> Result<(), Failure> {
    let level = |level: i32, which: &str| {
        level_text(level).ok_or_else(|| {
            Failure::new(format!(
                "internal error: returned {which} log level is undefined; please report this as a bug"
            ))
        })
    };
    let (current, launch) = (level(logger.current_level, "current")?, level(logger.launch_level, "launch")?);
    env.out(format_args!("Logger Level : {current}\nLaunch Level : {launch}\n\n"));
    Ok(())
}

/// logrus' name of a level of the API.
fn level_text(level: i32) -> Option<&'static str> {
    types::LogLevel::try_from(level).ok()?;
    // Unspecified is 0 and has no name.
    let number = u8::try_from(level - 1).ok()?;
    Some(Level::from_number(number).as_str())
}

/// The argument of `logger set -level`, as the API numbers levels: logrus' number and one.
pub(crate) fn parse_level(text: &str) -> Result<i32, Failure> {
    if text.is_empty() {
        return Err(Failure::new("a value (-level) must be set"));
    }
    let level: Level = text.parse().map_err(|_| {
        let shown = spire_compat::quote::quote(text);
        Failure::new(format!("the value {shown} is not a valid setting"))
    })?;
    Ok(level as i32 + 1)
}

/// One certificate of a chain that `debug getinfo` shows.
pub(crate) fn chain_line(
    env: &mut Env,
    index: usize,
    id: Option<&types::Spiffeid>,
    subject: &str,
    expires_at: i64,
) {
    let id = id.map_or_else(|| "(none)".to_owned(), |id| id_text(Some(id)));
    env.out(format_args!("    [{index}] SPIFFE ID:  {id}\n"));
    env.out(format_args!("        Subject:    {subject}\n"));
    env.out(format_args!("        Expires At: {}\n", gotime::rfc3339(expires_at)));
}
