//! Sizes of the view, and how long a full reload takes (pkg/server/endpoints: emitMetrics;
//! pkg/server/cache/entrycache).

use spire_ports::observe::names::server as metric;
use spire_ports::observe::{Call, Metrics};

use super::LiveEntries;

impl LiveEntries {
    pub(super) fn measure_reload(&self) -> Call<'_, dyn Metrics> {
        Call::start(&*self.metrics, metric::ENTRY_CACHE_RELOAD)
    }

    /// The gauges by which the reference shows its cache.
    pub(super) async fn emit_sizes(&self) {
        let (skipped_entries, skipped_nodes) = self.tracker.lock().await.skipped();
        let view = self.view();
        let by_selector: usize = view.aliases().map(|alias| alias.alias_selectors.len()).sum();
        for (name, size) in [
            (metric::NODE_AGENTS_BY_ID_CACHE_COUNT, view.agent_count()),
            (metric::NODE_AGENTS_BY_EXPIRESAT_CACHE_COUNT, view.agent_count()),
            (metric::NODE_SKIPPED_NODE_EVENT_IDS_COUNT, skipped_nodes),
            (metric::ENTRY_NODEALIASES_BY_ENTRYID_CACHE_COUNT, view.aliases().count()),
            (metric::ENTRY_NODEALIASES_BY_SELECTOR_CACHE_COUNT, by_selector),
            (metric::ENTRY_ENTRIES_BY_ENTRYID_CACHE_COUNT, view.len()),
            (metric::ENTRY_SKIPPED_ENTRY_EVENT_IDS_COUNT, skipped_entries),
        ] {
            self.metrics.set_gauge(name, size as f64, &[]);
        }
    }
}
