//! One StreamSecrets stream: what was asked and answered, without any IO.
//!
//! A response has a version, which grows with each change, and a nonce. The next request must repeat the nonce, or it
//! is late and without meaning; its version says whether Envoy took the response.

use std::collections::HashSet;

use bytes::Bytes;
use spire_core::svids::View;
use tonic::Status;

use super::request::{Asked, EnvoyNode};
use super::secrets::{Secrets, response};
use crate::runtime::SdsOptions;

/// The state of a stream.
#[derive(Debug)]
pub(super) struct Conversation {
    version: u64,
    /// Of the last response; empty before the first.
    nonce: String,
    asked: Option<Asked>,
    /// Who asked last, since later requests need not say.
    node: Option<EnvoyNode>,
    sent: Vec<Bytes>,
}

/// What a request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It asks for something else than before.
    Question,
    /// It took the last response.
    Acknowledged,
    /// It refused the last response, of the version that is expected, and goes on with another.
    Refused {
        /// What Envoy should use.
        expected: String,
        /// Whether it asks for something else at the same time.
        question: bool,
    },
    /// It answers a response before the last one.
    Late {
        /// The nonce that it should have.
        expected: String,
    },
}

/// A response to send.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) version: String,
    pub(super) nonce: String,
    pub(super) count: usize,
    /// The encoded message, in parts.
    pub(super) message: Vec<Bytes>,
}

impl Conversation {
    /// Nothing was asked yet.
    pub(super) fn new() -> Self {
        // The first response is that of the first update, as the reference counts.
        Self { version: 1, nonce: String::new(), asked: None, node: None, sent: Vec::new() }
    }

    /// Takes a request.
    pub(super) fn take(&mut self, mut asked: Asked) -> Taken {
        let version = self.version.to_string();
        let mut refused = false;
        if !self.nonce.is_empty() {
            if self.nonce != asked.nonce {
                return Taken::Late { expected: self.nonce.clone() };
            }
            refused = asked.version != version;
            asked.node = asked.node.or(self.node);
        }
        let question = self.asked.as_ref().is_none_or(|last| differ(&last.names, &asked.names));
        self.asked = Some(asked);
        match (refused, question) {
            (true, question) => Taken::Refused { expected: version, question },
            (false, true) => Taken::Question,
            (false, false) => Taken::Acknowledged,
        }
    }

    /// The response to the last question from this view; none before the first question, and none when it has what was
    /// sent last and no `question` is open.
    ///
    /// # Errors
    /// The status with which the stream ends: a name means nothing that this workload may have.
    pub(super) fn answer(
        &mut self,
        (view, secrets): (&View, &Secrets),
        options: &SdsOptions,
        question: bool,
        nonce: impl FnOnce() -> Result<String, Status>,
    ) -> Result<Option<Reply>, Status> {
        let Some(asked) = &self.asked else { return Ok(None) };
        let validator = asked.node.unwrap_or_default().validator(options);
        let resources = secrets.select(view, options, &asked.names, validator)?;
        if !question {
            if resources == self.sent {
                return Ok(None);
            }
            self.version += 1;
        }
        self.reply(resources, nonce).map(Some)
    }

    fn reply(
        &mut self,
        resources: Vec<Bytes>,
        nonce: impl FnOnce() -> Result<String, Status>,
    ) -> Result<Reply, Status> {
        let nonce = nonce()?;
        let version = self.version.to_string();
        let type_url = self.asked.as_ref().map_or("", |asked| &asked.type_url);
        let message = response(&version, resources.clone(), type_url, &nonce);
        let count = resources.len();
        self.node = self.asked.as_ref().and_then(|asked| asked.node).or(self.node);
        self.nonce.clone_from(&nonce);
        self.sent = resources;
        Ok(Reply { version, nonce, count, message })
    }
}

/// Whether other names are asked for, in whatever order.
fn differ(old: &[String], new: &[String]) -> bool {
    let known: HashSet<&String> = old.iter().collect();
    old.len() != new.len() || new.iter().any(|name| !known.contains(name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;
    use spire_core::model::{Entry, EntryId};
    use spire_core::spiffe::{Bundle, Selectors, SpiffeId, TrustDomain};
    use spire_core::svids::{Match, X509Svid};
    use spire_core::time::Timestamp;
    use spire_wire::envoy::service::discovery::v3::DiscoveryResponse;
    use tonic::Code;
    use zeroize::Zeroizing;

    use super::*;

    const WEB: &str = "spiffe://a.org/web";

    fn identity(id: &str, certificate: &'static [u8]) -> Match {
        let spiffe_id = SpiffeId::parse(id).unwrap();
        let entry =
            Entry::new(EntryId::from_stored("e"), spiffe_id.clone(), spiffe_id.clone(), Selectors::default());
        let svid = X509Svid {
            spiffe_id,
            chain: vec![Bytes::from_static(certificate)],
            private_key: Zeroizing::new(b"key".to_vec()),
            not_before: Timestamp::from_unix(0),
            not_after: Timestamp::from_unix(60),
        };
        Match { entry: Arc::new(entry), svid: Some(Arc::new(svid)) }
    }

    fn view(identities: &[(&str, &'static [u8])]) -> (View, Secrets) {
        let bundle = |name: &str| Arc::new(Bundle::empty(TrustDomain::parse(name).unwrap()));
        let view = View {
            matches: identities.iter().map(|(id, certificate)| identity(id, certificate)).collect(),
            bundle: bundle("a.org"),
            federated: [bundle("b.org"), bundle("c.org")].into(),
            missing_bundles: Box::default(),
        };
        let secrets = Secrets::of(&view);
        (view, secrets)
    }

    fn ask(names: &[&str], version: &str, nonce: &str) -> Asked {
        Asked {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            type_url: "t".to_owned(),
            version: version.to_owned(),
            nonce: nonce.to_owned(),
            ..Asked::default()
        }
    }

    fn answer(
        conversation: &mut Conversation,
        of: &(View, Secrets),
        question: bool,
        nonce: &str,
    ) -> Result<Option<Reply>, Status> {
        let nonce = || Ok(nonce.to_owned());
        conversation.answer((&of.0, &of.1), &SdsOptions::default(), question, nonce)
    }

    #[test]
    fn a_question_an_update_and_their_acknowledgements() {
        let first = view(&[(WEB, b"1")]);
        let mut c = Conversation::new();
        assert!(answer(&mut c, &first, false, "n").unwrap().is_none(), "nothing was asked");
        assert_eq!(c.take(ask(&[WEB], "", "")), Taken::Question);
        let reply = answer(&mut c, &first, true, "n1").unwrap().unwrap();
        assert_eq!((reply.version.as_str(), reply.nonce.as_str(), reply.count), ("1", "n1", 1));
        let decoded = DiscoveryResponse::decode(reply.message.concat().as_slice()).unwrap();
        assert_eq!((decoded.version_info.as_str(), decoded.type_url.as_str()), ("1", "t"));
        assert_eq!((decoded.nonce.as_str(), decoded.resources.len()), ("n1", 1));
        assert_eq!(c.take(ask(&[WEB], "1", "n1")), Taken::Acknowledged);

        assert!(answer(&mut c, &view(&[(WEB, b"1")]), false, "n").unwrap().is_none(), "nothing is new");
        assert_eq!(
            c.take(ask(&[WEB], "1", "n1")),
            Taken::Acknowledged,
            "the version is that of what was sent"
        );
        let reply = answer(&mut c, &view(&[(WEB, b"2")]), false, "n2").unwrap().unwrap();
        assert_eq!((reply.version.as_str(), reply.nonce.as_str()), ("2", "n2"));
        assert_eq!(c.take(ask(&[WEB], "1", "n1")), Taken::Late { expected: "n2".to_owned() });
        let expected = "2".to_owned();
        assert_eq!(c.take(ask(&[WEB], "1", "n2")), Taken::Refused { expected, question: false });
        let expected = "2".to_owned();
        assert_eq!(c.take(ask(&[WEB], "", "n2")), Taken::Refused { expected, question: false });
        assert_eq!(c.take(ask(&[WEB], "2", "n2")), Taken::Acknowledged);
    }

    #[test]
    fn other_names_are_another_question() {
        let of = view(&[(WEB, b"1"), ("spiffe://a.org/api", b"2")]);
        let mut c = Conversation::new();
        c.take(ask(&["ROOTCA"], "", ""));
        answer(&mut c, &of, true, "n1").unwrap();
        assert_eq!(c.take(ask(&["ROOTCA", WEB], "1", "n1")), Taken::Question);
        let reply = answer(&mut c, &of, true, "n2").unwrap().unwrap();
        assert_eq!((reply.version.as_str(), reply.count), ("1", 2));
        assert_eq!(c.take(ask(&[WEB, "ROOTCA"], "1", "n2")), Taken::Acknowledged);
        let expected = "1".to_owned();
        assert_eq!(c.take(ask(&[WEB], "", "n2")), Taken::Refused { expected, question: true });
        let error = {
            c.take(ask(&["b", "a\"", WEB], "1", "n2"));
            answer(&mut c, &of, true, "n3").unwrap_err()
        };
        assert_eq!(error.code(), Code::InvalidArgument);
        let text = r#"workload is not authorized for the requested identities ["a\"" "b"]"#;
        assert_eq!(error.message(), text);
    }

    #[test]
    fn later_requests_need_not_say_who_asks() {
        let of = view(&[(WEB, b"1")]);
        let mut old = ask(&["ROOTCA"], "", "");
        old.node = Some(EnvoyNode::without_validator());
        let mut c = Conversation::new();
        c.take(old);
        answer(&mut c, &of, true, "n1").unwrap();
        c.take(ask(&["ALL"], "1", "n1"));
        let error = answer(&mut c, &of, true, "n2").unwrap_err();
        assert_eq!(error.code(), Code::Internal);
        assert_eq!(error.message(), "unable to use \"SPIFFE validator\" on Envoy below 1.17");
    }

    /// What each set of names gets, as the names of the secrets.
    #[test]
    fn names_select_as_in_the_reference() {
        const A: &str = "spiffe://a.org";
        const B: &str = "spiffe://b.org";
        const API: &str = "spiffe://a.org/api";
        const ALL: &[&str] = &[A, B, "spiffe://c.org", WEB, API];
        type Names = &'static [&'static str];
        const TABLE: &[(Names, Result<Names, &str>)] = &[
            (&[], Ok(ALL)),
            (&[""], Ok(ALL)),
            (&["ROOTCA"], Ok(&["ROOTCA"])),
            (&["ALL"], Ok(&["ALL"])),
            (&["default"], Ok(&["default"])),
            (&["default", API], Ok(&["default", API])),
            (&[A, B, API], Ok(&[A, B, API])),
            // The first identity has one name at a time, and so have the authorities.
            (&["default", WEB], Err(r#"["default"]"#)),
            (&["ROOTCA", A], Err(r#"["ROOTCA"]"#)),
            (&["ROOTCA", "ALL"], Err(r#"["ALL"]"#)),
            (&["spiffe://d.org"], Err(r#"["spiffe://d.org"]"#)),
        ];
        let of = view(&[(WEB, b"1"), (API, b"2")]);
        for (names, expected) in TABLE {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let validator = EnvoyNode::default().validator(&SdsOptions::default());
            let found = of.1.select(&of.0, &SdsOptions::default(), &names, validator);
            let found = found.map(|resources| crate::api::sds::secrets::names(&resources));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, *expected, "{names:?}"),
                (Err(status), Err(text)) => assert!(status.message().ends_with(text), "{names:?}: {status}"),
                (found, _) => panic!("{names:?}: {found:?}"),
            }
        }
    }
}
