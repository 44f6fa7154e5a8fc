//! Logging in to a database of AWS RDS with a token of IAM instead of a password
//! (pkg/server/datastore/sqldriver/awsrds): a request that is signed with Signature Version 4 and never sent.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use parking_lot::Mutex;
use spire_ports::datastore::{Error, Result};
use time::OffsetDateTime;

/// How long a token is good for (github.com/aws/aws-sdk-go-v2/feature/rds/auth).
const VALID: Duration = Duration::from_secs(900);

/// A token is replaced this long before it ends.
const SKEW: Duration = Duration::from_secs(60);

/// SHA-256 of nothing: the request has no body.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// `database_type "aws_postgres"` and `"aws_mysql"`: where, and whose keys.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AwsConfig {
    /// `region`
    pub region: String,
    /// `access_key_id`; empty for the environment's.
    pub access_key_id: String,
    /// `secret_access_key`; empty for the environment's.
    pub secret_access_key: String,
}

impl std::fmt::Debug for AwsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AwsConfig").field("region", &self.region).finish_non_exhaustive()
    }
}

/// Keys of an AWS account.
#[derive(Clone)]
struct Keys {
    id: String,
    secret: String,
    /// Of temporary keys.
    session: Option<String>,
}

impl AwsConfig {
    /// The configured keys, or those of the environment.
    fn keys(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Keys> {
        if !self.access_key_id.is_empty() && !self.secret_access_key.is_empty() {
            let (id, secret) = (self.access_key_id.clone(), self.secret_access_key.clone());
            return Ok(Keys { id, secret, session: None });
        }
        let said = |name: &str| variable(name).filter(|value| !value.is_empty());
        match (said("AWS_ACCESS_KEY_ID"), said("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => Ok(Keys { id, secret, session: said("AWS_SESSION_TOKEN") }),
            _ => Err(Error::Invalid(
                "datastore-sql: no AWS keys: set access_key_id and secret_access_key, or AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY in the environment; other sources are not supported yet"
                    .into(),
            )),
        }
    }
}

/// Makes tokens for one user of one database server.
pub(crate) struct RdsLogin {
    region: String,
    keys: Keys,
    /// `host:port`
    endpoint: String,
    user: String,
    last: Mutex<Option<(String, SystemTime)>>,
}

impl RdsLogin {
    /// For the server at `endpoint`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are no keys.
    pub(crate) fn new(config: &AwsConfig, endpoint: String, user: String) -> Result<Self> {
        let keys = config.keys(|name| std::env::var(name).ok())?;
        Ok(Self { region: config.region.clone(), keys, endpoint, user, last: Mutex::new(None) })
    }

    /// A token that is good for a minute at least: the password.
    pub(crate) fn token(&self, now: SystemTime) -> Result<String> {
        let mut last = self.last.lock();
        if let Some((token, made)) = &*last
            && *made <= now
            && now < *made + (VALID - SKEW)
        {
            return Ok(token.clone());
        }
        let seconds = now.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or(0);
        let at = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap_or(0))
            .map_err(|error| Error::Internal(format!("could not get authentication token: {error}")))?;
        let token = self.sign(at);
        *last = Some((token.clone(), now));
        Ok(token)
    }

    /// The signed request without its scheme.
    fn sign(&self, at: OffsetDateTime) -> String {
        let request = Presigned {
            host: &self.endpoint,
            path: "/",
            query: &[("Action", "connect"), ("DBUser", &self.user)],
            service: "rds-db",
            region: &self.region,
            expires: VALID,
            payload: EMPTY_SHA256,
        };
        let query = request.query(&self.keys, at);
        format!("{}/?{query}", self.endpoint)
    }
}

/// A GET request whose signature is in its query.
struct Presigned<'a> {
    host: &'a str,
    path: &'a str,
    query: &'a [(&'a str, &'a str)],
    service: &'a str,
    region: &'a str,
    expires: Duration,
    /// Hash of the body, or what stands for it.
    payload: &'a str,
}

impl Presigned<'_> {
    /// The query, signature included (AWS General Reference: Signature Version 4, query parameters).
    fn query(&self, keys: &Keys, at: OffsetDateTime) -> String {
        let day = format!("{:04}{:02}{:02}", at.year(), u8::from(at.month()), at.day());
        let moment = format!("{day}T{:02}{:02}{:02}Z", at.hour(), at.minute(), at.second());
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let mut query: Vec<(String, String)> = vec![
            ("X-Amz-Algorithm".into(), "AWS4-HMAC-SHA256".into()),
            ("X-Amz-Credential".into(), encoded(&format!("{}/{scope}", keys.id))),
            ("X-Amz-Date".into(), moment.clone()),
            ("X-Amz-Expires".into(), self.expires.as_secs().to_string()),
            ("X-Amz-SignedHeaders".into(), "host".into()),
        ];
        if let Some(session) = &keys.session {
            query.push(("X-Amz-Security-Token".into(), encoded(session)));
        }
        query.extend(self.query.iter().map(|(name, value)| (encoded(name), encoded(value))));
        query.sort();
        let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = pairs.join("&");
        let canonical = format!("GET\n{}\n{query}\nhost:{}\n\nhost\n{}", self.path, self.host, self.payload);
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hash}");
        let mut key = tag(format!("AWS4{}", keys.secret).as_bytes(), &day);
        for part in [self.region, self.service, "aws4_request"] {
            key = tag(key.as_ref(), part);
        }
        format!("{query}&X-Amz-Signature={}", hex::encode(tag(key.as_ref(), &text)))
    }
}

fn tag(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Keys {
        Keys {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session: None,
        }
    }

    /// "Example: Authenticating Requests by Using Query Parameters" in the documentation of Amazon S3.
    #[test]
    fn the_published_example_is_signed_as_published() {
        let request = Presigned {
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            query: &[],
            service: "s3",
            region: "us-east-1",
            expires: Duration::from_secs(86_400),
            payload: "UNSIGNED-PAYLOAD",
        };
        let at = OffsetDateTime::from_unix_timestamp(1_369_353_600).unwrap();
        assert_eq!(
            request.query(&example(), at),
            "X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
             &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
             &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }

    fn login(session: Option<&str>) -> RdsLogin {
        RdsLogin {
            region: "us-west-2".into(),
            keys: Keys { session: session.map(Into::into), ..example() },
            endpoint: "db.example:5432".into(),
            user: "spire user".into(),
            last: Mutex::new(None),
        }
    }

    #[test]
    fn tokens_name_user_and_database_and_are_kept_until_they_end() {
        let login = login(Some("a+b/c"));
        let start = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let token = login.token(start).unwrap();
        assert!(token.starts_with("db.example:5432/?Action=connect&DBUser=spire%20user&X-Amz-Algorithm="));
        assert!(token.contains("%2Fus-west-2%2Frds-db%2Faws4_request&"), "{token}");
        assert!(token.contains("&X-Amz-Date=20231114T221320Z&X-Amz-Expires=900&"), "{token}");
        assert!(token.contains("&X-Amz-Security-Token=a%2Bb%2Fc&"), "{token}");
        assert_eq!(login.token(start + Duration::from_secs(839)).unwrap(), token);
        assert_ne!(login.token(start + Duration::from_secs(840)).unwrap(), token);
        assert_ne!(login.token(start - Duration::from_secs(1)).unwrap(), token, "a clock that was set back");
    }

    #[test]
    fn keys_come_from_the_configuration_or_the_environment() {
        let none = AwsConfig { region: "r".into(), ..AwsConfig::default() };
        assert!(none.keys(|_| None).is_err());
        let environment = |name: &str| Some(format!("{name}!"));
        assert_eq!(none.keys(environment).unwrap().session.as_deref(), Some("AWS_SESSION_TOKEN!"));
        let own = AwsConfig { access_key_id: "id".into(), secret_access_key: "secret".into(), ..none };
        let keys = own.keys(environment).unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.session), ("id", "secret", None));
    }
}
