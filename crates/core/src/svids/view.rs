//! What one workload gets.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::model::Entry;
use crate::spiffe::{Bundle, SpiffeId, TrustDomain};
use crate::time::Timestamp;

/// An X.509-SVID with its key, as the server signed it.
pub struct X509Svid {
    /// Whom the leaf names: that of the entry when it was signed, which may have another since.
    pub spiffe_id: SpiffeId,
    /// Leaf and intermediates, DER.
    pub chain: Vec<Bytes>,
    /// The private key, PKCS#8 DER. Wiped when dropped, never printed.
    pub private_key: Zeroizing<Vec<u8>>,
    /// Start of the leaf's validity.
    pub not_before: Timestamp,
    /// End of the leaf's validity.
    pub not_after: Timestamp,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("certificates", &self.chain.len())
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// An entry that a workload matches, and the SVID that is held for it.
#[derive(Clone, Debug)]
pub struct Match {
    /// The entry.
    pub entry: Arc<Entry>,
    /// Its SVID; none while it has not been fetched.
    pub svid: Option<Arc<X509Svid>>,
}

/// What the workloads of one selector set get: entries by ID, SVIDs, and the bundles they need.
#[derive(Clone, Debug)]
pub struct View {
    /// The entries that match, by entry ID.
    pub matches: Box<[Match]>,
    /// The bundle of the agent's trust domain.
    pub bundle: Arc<Bundle>,
    /// Bundles of the trust domains that entries with an SVID federate with, by trust domain.
    pub federated: Box<[Arc<Bundle>]>,
    /// Trust domains that such an entry federates with and whose bundle is not there.
    pub missing_bundles: Box<[(Arc<Entry>, TrustDomain)]>,
}

impl View {
    /// The entries that have an SVID, with it.
    pub fn identities(&self) -> impl Iterator<Item = (&Arc<Entry>, &Arc<X509Svid>)> {
        self.matches.iter().filter_map(|m| m.svid.as_ref().map(|svid| (&m.entry, svid)))
    }

    /// Whether the workload has an identity that can be served.
    pub fn has_identity(&self) -> bool {
        self.matches.iter().any(|m| m.svid.is_some())
    }

    /// Whether an entry that matches waits for its SVID.
    pub fn is_incomplete(&self) -> bool {
        self.matches.iter().any(|m| m.svid.is_none())
    }
}
