//! Where keys and values live, without a tensor in sight.
#![forbid(unsafe_code)]

mod block;

pub use block::{BlockId, HostBlockId, slot};
