//! Why a workload gets no identity: the entries that nearly match it, and how an entry leads to an agent.

pub mod chain;
pub mod near;

pub use chain::{Break, Chain, Chains, Hop, Node};
pub use near::{Lack, Near, lacks, nearest};
