//! The server's index of registration entries and the view of it that one agent is authorised to see.
//!
//! An [`Index`] is a persistent value: cloning it is cheap, and a clone does not change when the original
//! does. So readers work on a snapshot without any lock, while a single writer applies deltas and publishes
//! the next one. The index keeps of an entry only what the view needs; the rest is the payload `P`, which
//! the server fills with the entry's encoded form.
//!
//! An agent is authorised to see the entries below its own ID, those below each alias that applies to it,
//! and recursively those below the entries found. An alias is an entry whose parent is the server: it
//! applies to the agents that have all its selectors (pkg/server/authorizedentries).

mod index;
mod record;
mod table;

pub use index::{AgentRecord, Index};
pub use record::{Record, Rights};

#[cfg(test)]
mod tests;
