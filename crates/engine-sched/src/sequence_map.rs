use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::SequenceId;
use crate::sequence::Sequence;

/// All sequences by id. They are boxed because a step takes each out and puts it back.
pub(crate) type SequenceMap = HashMap<SequenceId, Box<Sequence>, BuildHasherDefault<IdHasher>>;

/// Spreads ids, which count up and come from no one else, in one multiplication.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(32)
    }
}
