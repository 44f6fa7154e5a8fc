//! What all tests here share: the programs under test, a site that they run in, what a test needs, and peers.

pub(crate) mod case;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod envoy;
pub(crate) mod http;
pub(crate) mod inside;
pub(crate) mod level;
pub(crate) mod peer;
pub(crate) mod programs;
pub(crate) mod site;
pub(crate) mod svid;
pub(crate) mod turns;
pub(crate) mod walk;

use std::time::Duration;

pub(crate) use case::{Case, Need, Outcome};
pub(crate) use level::Level;
pub(crate) use site::{Sides, Site};

/// The bound of waits that end in well under a second on a quiet machine. A test never waits it out where things work.
pub(crate) const SOON: Duration = Duration::from_secs(40);
