//! Ports that measure their calls (the reference's `pkg/common/telemetry/server/{datastore,keymanager}` wrappers).

mod keys;
mod store;

pub(super) use keys::MeteredKeys;
pub(super) use store::MeteredStore;
