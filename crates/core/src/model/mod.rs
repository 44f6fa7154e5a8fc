//! The domain model: registration entries, attested nodes, join tokens, federation relationships and the
//! CA journal, with the filters and masks that queries use. Wire types stay at the edges.

mod entry;
mod federation;
mod journal;
mod node;
mod page;

pub use entry::{Attributes, Entry, EntryFilter, EntryId, EntryIdError, EntryMask, FederatesWithMatch};
pub use federation::{BundleEndpoint, FederationRelationship, FederationUpdate};
pub use journal::{AuthorityStatus, CaJournal, KeyRecord, SlotName, X509CaRecord};
pub use node::{JoinToken, Node, NodeFilter, NodeUpdate};
pub use page::{Page, PageToken, Paging, SelectorMatch, SetMatch};
