//! Where keys and values live, without a tensor in sight.
//!
//! A [`BlockPool`] is a fixed set of blocks; a [`PageTable`] says which of them hold a sequence.
//! Blocks are shared between sequences with equal prefixes and between forks, copied when one of
//! the sharers writes, evicted in least-recently-used order, moved to host memory and back. Nothing
//! here knows a request, a queue or a tensor: the whole contract with those who compute is
//! [`slot`].
#![forbid(unsafe_code)]

mod block;
mod check;
mod free_list;
mod host;
mod pool;
mod prefix;
mod statistics;
mod table;
#[cfg(test)]
mod tests;

pub use block::{BlockId, HostBlockId, slot};
pub use check::InvariantError;
pub use host::{HostPool, SwapIn, SwapOut, SwappedTable};
pub use pool::{BlockPool, OutOfBlocks, PrefixMatch};
pub use prefix::Namespace;
pub use statistics::{Counters, Usage};
pub use table::PageTable;
