//! The suite that every datastore must pass. An adapter's test crate stamps it out with
//! [`datastore_conformance!`](crate::datastore_conformance), a test a case, each on a store of its own.

pub mod bundles;
pub mod entries;
pub mod events;
pub mod federation;
pub mod journals;
pub mod listing;
pub mod nodes;
pub mod tokens;

use spire_core::model::{Entry, EntryId, Node, PageToken, Paging};
use spire_core::spiffe::{Bundle, JwtAuthority, Selector, Selectors, SpiffeId, TrustDomain, X509Authority};
use spire_core::time::Timestamp;

/// Hands the names of all cases to a macro, `[stamp] [before…]` becomes `stamp! { before… module: [case, …]; … }`: for
/// adapters whose tests are not libtest's.
#[macro_export]
macro_rules! datastore_cases {
    ([$($stamp:tt)*] [$($before:tt)*]) => {
        $($stamp)*! { $($before)*
            bundles: [
                a_created_bundle_reads_back, create_refuses_a_second_one, set_makes_or_replaces,
                update_replaces_masked_parts, append_counts_changes_only, list_pages_in_row_order,
                delete_follows_its_mode, prune_drops_what_expired, prune_keeps_the_last_authority,
                x509_authorities_are_tainted_then_revoked, jwt_authorities_are_tainted_then_revoked,
                wit_authorities_are_tainted_then_revoked,
            ];
            entries: [
                a_created_entry_reads_back, a_similar_entry_is_returned, one_bad_item_spares_the_others,
                stored_rules_hold, updates_follow_their_mask, updates_of_children_replace_them,
                deletion_returns_what_was_there, expired_entries_are_pruned, many_ids_are_fetched_at_once,
                concurrent_creation_makes_one_entry, federation_needs_a_bundle,
            ];
            listing: [entries_as_a_naive_model_lists_them, bad_paging_is_refused];
            nodes: [
                an_attested_node_reads_back, attesting_again_replaces, updates_set_named_fields,
                deletion_takes_selectors_along, deletion_takes_the_token_alias_along, expired_nodes_are_pruned,
                nodes_as_a_naive_model_lists_them, selectors_are_replaced_as_a_set,
            ];
            tokens: [
                a_token_is_there_until_it_is_deleted,
                a_token_admits_one_node,
                fifty_callers_share_one_token,
                expired_tokens_are_pruned,
            ];
            federation: [
                a_relationship_reads_back, its_bundle_is_stored_with_it, updates_set_named_fields,
                deletion_keeps_the_bundle, list_pages_in_row_order,
            ];
            journals: [a_journal_reads_back, a_journal_keeps_its_row, only_stale_journals_are_pruned];
            events: [every_write_appends_one, reads_are_bounded_and_ordered, pruned_ids_are_not_reused];
        }
    };
}

/// Stamps out a test for each case. `$make` is an async function that returns a new, empty store as
/// `Arc<dyn DataStore>` and something to keep alive as long as it.
#[macro_export]
macro_rules! datastore_conformance {
    ($make:path) => {
        $crate::datastore_cases!([$crate::datastore_conformance_tests] [$make;]);
    };
}

/// The libtest form of a case.
#[doc(hidden)]
#[macro_export]
macro_rules! datastore_conformance_tests {
    ($make:path; $($module:ident: [$($case:ident),* $(,)?];)*) => {
        $(mod $module {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (store, _keep) = $make().await;
                $crate::datastore::conformance::$module::$case(store).await;
            })*
        })*
    };
}

/// An X.509 authority that expired at the end of 2020, with subject key ID [`EXPIRED_KEY`].
const EXPIRED: &[u8] = include_bytes!("testdata/expired.der");
/// Two that are valid until 2120.
const FIRST: &[u8] = include_bytes!("testdata/first.der");
const SECOND: &[u8] = include_bytes!("testdata/second.der");

const FIRST_KEY: &str = "131828b59b1d5d827fa4abda4d1f02adb708576d";
const SECOND_KEY: &str = "d9e73495317cd206a327963ad46fbe4ccc440449";

/// A time after [`EXPIRED`] and before the others.
const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::from_path(&domain("example.org"), path).unwrap()
}

fn selectors(texts: &[&str]) -> Selectors {
    let parse = |text: &&str| {
        let (kind, value) = text.split_once(':').unwrap();
        Selector::new(kind, value).unwrap()
    };
    texts.iter().map(parse).collect()
}

fn entry_id(text: &str) -> EntryId {
    EntryId::parse(text).unwrap()
}

fn entry(name: &str, parent: &str, spiffe_id: &str, wanted: &[&str]) -> Entry {
    Entry::new(entry_id(name), id(parent), id(spiffe_id), selectors(wanted))
}

/// An attested node of `example.org` with this path.
pub fn node(path: &str) -> Node {
    Node {
        spiffe_id: id(path),
        attestation_type: "test".into(),
        serial_number: "1234".into(),
        expires_at: NOW,
        new_serial_number: "".into(),
        new_expires_at: None,
        can_reattest: false,
        agent_version: "1.15.3".into(),
        selectors: Selectors::default(),
    }
}

fn x509(der: &'static [u8]) -> X509Authority {
    X509Authority { der: der.into(), tainted: false }
}

fn jwt(kid: &str, not_after: i64) -> JwtAuthority {
    JwtAuthority {
        kid: kid.into(),
        public_key: vec![1, 2, 3].into(),
        not_after: Timestamp::from_unix(not_after),
        tainted: false,
    }
}

fn bundle(name: &str, authorities: &[&'static [u8]]) -> Bundle {
    let mut bundle = Bundle::empty(domain(name));
    bundle.x509_authorities = authorities.iter().map(|der| x509(der)).collect();
    bundle
}

fn paging(size: u32, token: &PageToken) -> Paging {
    Paging { token: token.clone(), size }
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators".
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    fn flip(&mut self) -> bool {
        self.roll(2) == 1
    }

    /// Some of the items, in their order; perhaps none.
    fn some<'a>(&mut self, items: &[&'a str]) -> Vec<&'a str> {
        items.iter().copied().filter(|_| self.flip()).collect()
    }

    /// One of the items.
    fn one<'a>(&mut self, items: &[&'a str]) -> &'a str {
        let index = self.roll(u64::try_from(items.len()).unwrap());
        items[usize::try_from(index).unwrap()]
    }
}
