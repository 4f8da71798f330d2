/// A block of the device's KV storage: `block_size` consecutive slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A block of the host's swap space, as large as a device block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostBlockId(pub u32);

impl BlockId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where the key and value of `position` live, or `None` beyond the page table.
///
/// This line is the whole contract between scheduling and computing:
///
/// ```
/// use engine_kv::{BlockId, slot};
/// let page_table = [BlockId(7), BlockId(2)];
/// assert_eq!(slot(&page_table, 16, 3), Some(7 * 16 + 3));
/// assert_eq!(slot(&page_table, 16, 20), Some(2 * 16 + 4));
/// assert_eq!(slot(&page_table, 16, 32), None);
/// ```
pub fn slot(page_table: &[BlockId], block_size: usize, position: usize) -> Option<usize> {
    let block = page_table.get(position.checked_div(block_size)?)?;
    Some(block.index() * block_size + position % block_size)
}
