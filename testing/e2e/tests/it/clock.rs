//! A server whose clock goes fast.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spire_testkit::{Error, Result, wait};

use crate::harness::clock::fast;
use crate::harness::{Case, Need, Outcome, SOON, Site};

pub(crate) fn cases() -> Vec<Case> {
    // SPIRE's programs, which are in Go, do not take the time from the C library.
    const NEEDS: &[Need] = &[Need::Ours, Need::Faketime];
    vec![Case { name: "clock::expired_entries_are_pruned", needs: NEEDS, run: pruning }]
}

const NODE: &str = "spiffe://example.org/node";
const WORKLOAD: &str = "spiffe://example.org/w";

fn seconds() -> Result<i64> {
    let since =
        SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| Error::new(error.to_string()))?;
    i64::try_from(since.as_secs()).map_err(|error| Error::new(error.to_string()))
}

fn pruning() -> Outcome {
    let mut site = Site::new()?;
    // Expired entries are looked for each five minutes.
    site.server_variables = fast(60)?;
    let server = site.start_server()?;
    let expiry = (seconds()? + 60).to_string();
    let entry = site.entry(NODE, WORKLOAD, "unix:uid:1", &["-entryExpiry", &expiry])?;
    let stays = site.entry(NODE, "spiffe://example.org/stays", "unix:uid:1", &[])?;
    assert_eq!(site.entry_ids()?.len(), 2);
    server.wait_for(&["Pruned an expired registration", &entry, WORKLOAD], SOON + Duration::from_secs(10))?;
    wait::until("the other entry alone", SOON, || (site.entry_ids().ok()? == [stays.clone()]).then_some(()))?;
    Ok(())
}
