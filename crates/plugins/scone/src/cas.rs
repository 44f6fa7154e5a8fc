//! The one call that CAS knows for sessions: create and update are the same POST.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use serde::Deserialize;
use spire_net::https::HttpsClient;
use zeroize::Zeroizing;

use crate::NAME;
use crate::predecessors::Predecessors;
use crate::session::{Part, is_hash};

/// Times that a session is posted before the agent is told that it failed.
const TRIES: u32 = 5;

/// A random part of a wait is between once and twice this.
const SECOND: Duration = Duration::from_secs(1);
/// A longer wait is one of half to the whole of this.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// What CAS says of an update of a session whose hash we do not have.
const PREDECESSOR_WANTED: &str = "Session already exists, please specify predecessor hash";

/// Characters of an answer that an error shows.
const SHOWN_MAX: usize = 1024;

/// The CAS.
pub(crate) struct Cas {
    client: HttpsClient,
    url: String,
    predecessors: Predecessors,
    /// The unit of waits; nothing in tests.
    second: Duration,
}

/// A session on its way.
pub(crate) struct Posting {
    pub(crate) part: Part,
    pub(crate) name: String,
}

/// The session could not be posted.
#[derive(Debug, thiserror::Error)]
#[error("max retries exceeded! {text} {last}")]
pub(crate) struct GivenUp {
    text: &'static str,
    last: String,
}

/// The answer to a session that was taken.
#[derive(Deserialize)]
struct Created {
    hash: String,
}

impl Cas {
    pub(crate) fn new(client: HttpsClient, base: &str, predecessors: Predecessors) -> Self {
        Self { client, url: format!("{base}/session"), predecessors, second: SECOND }
    }

    #[cfg(test)]
    pub(crate) fn without_waits(self) -> Self {
        Self { second: Duration::ZERO, ..self }
    }

    /// Posts a session, made anew for each try since its predecessor may be another then.
    pub(crate) async fn post(
        &self,
        posting: &Posting,
        compose: impl Fn(&str) -> Zeroizing<String>,
    ) -> Result<(), GivenUp> {
        let mut last = String::new();
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(self.wait(attempt - 1)).await;
            }
            let session = compose(&self.predecessors.read(&posting.name));
            // Never the session itself: it holds the key.
            tracing::info!(plugin_name = NAME, session_name = posting.name, "Posting Session");
            match self.attempt(posting, &session).await {
                Ok(hash) => {
                    self.predecessors.store(&posting.name, &hash);
                    return Ok(());
                }
                Err(error) => last = error,
            }
        }
        Err(GivenUp { text: posting.part.given_up_text(), last })
    }

    async fn attempt(&self, posting: &Posting, session: &str) -> Result<String, String> {
        let request = Request::post(&self.url)
            .header(header::CONTENT_TYPE, "application/text")
            .body(Bytes::copy_from_slice(session.as_bytes()))
            .map_err(|error| format!("cas_connection_string: {error}"))?;
        let answer = self.client.send(request).await.map_err(|error| {
            // The client's texts are those of its usual requests.
            let text = error.to_string();
            text.strip_prefix("Get ").map_or(text.clone(), |rest| format!("Post {rest}"))
        })?;
        if answer.status() == StatusCode::CREATED {
            let created: Result<Created, _> = serde_json::from_slice(answer.body());
            let hash = created.ok().map(|created| created.hash).filter(|hash| is_hash(hash));
            return hash.ok_or_else(|| "cannot decode JSON response from CAS".to_owned());
        }
        let name = &posting.name;
        let status = answer.status();
        tracing::error!(
            plugin_name = NAME,
            session_name = name,
            status = %status,
            "{} {status}",
            posting.part.refused_text()
        );
        let body = String::from_utf8_lossy(answer.body());
        let shown: String = body.chars().take(SHOWN_MAX).collect();
        if status == StatusCode::NOT_FOUND {
            tracing::warn!(
                plugin_name = NAME,
                "Predecessor may be not needed for session={name}. Cleaning up predecessor file to try again."
            );
            self.predecessors.remove(name);
        } else if body.contains(PREDECESSOR_WANTED) {
            return Err(format!(
                "unknown predecessor hash needed for the session={name} Reconfigure your CAS"
            ));
        }
        Err(format!("error={shown}"))
    }

    /// How long to wait after this try: twice as long each time, with a random part.
    fn wait(&self, attempt: u32) -> Duration {
        let wait = self.second.mul_f64(1.0 + random()) * 2_u32.pow(attempt);
        let bounded = if wait > WAIT_MAX { WAIT_MAX.mul_f64(0.5 + random() / 2.0) } else { wait };
        bounded + self.second
    }
}

/// From 0 up to 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness waits are shorter, which harms nobody.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
