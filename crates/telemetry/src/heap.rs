//! What jemalloc says of the heap, in binaries whose allocator it is.

use tikv_jemalloc_ctl::stats_print::{Options, stats_print};
use tikv_jemalloc_ctl::{epoch, stats};

use crate::metrics::Heap;

/// The sizes as of now.
pub fn sizes() -> Option<Heap> {
    // jemalloc keeps its numbers as of the last epoch.
    epoch::advance().ok()?;
    let bytes = |bytes: usize| bytes as u64;
    Some(Heap {
        allocated: bytes(stats::allocated::read().ok()?),
        active: bytes(stats::active::read().ok()?),
        mapped: bytes(stats::mapped::read().ok()?),
    })
}

/// jemalloc's own report, as text.
pub fn report() -> Option<String> {
    let mut report = Vec::new();
    stats_print(&mut report, Options::default()).ok()?;
    Some(String::from_utf8_lossy(&report).into_owned())
}
