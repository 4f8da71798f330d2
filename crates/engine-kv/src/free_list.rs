use crate::BlockId;

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    listed: bool,
}

/// The free blocks in the order in which they will be taken: a doubly linked list over block ids,
/// so that a prefix hit can take a block out of the middle.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct FreeList {
    links: Vec<Link>,
    first: u32,
    last: u32,
    len: usize,
}

impl FreeList {
    /// All of `num_blocks` are free, 0 first.
    pub(crate) fn full(num_blocks: usize) -> Self {
        let unlisted = Link { previous: NONE, next: NONE, listed: false };
        let mut list = Self { links: vec![unlisted; num_blocks], first: NONE, last: NONE, len: 0 };
        for block in 0..num_blocks as u32 {
            list.push_back(BlockId(block));
        }
        list
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes `block` the first to be taken: it holds nothing of value.
    pub(crate) fn push_front(&mut self, block: BlockId) {
        self.links[block.index()] = Link { previous: NONE, next: self.first, listed: true };
        match self.first {
            NONE => self.last = block.0,
            first => self.links[first as usize].previous = block.0,
        }
        self.first = block.0;
        self.len += 1;
    }

    /// Makes `block` the last to be taken: it was used most recently.
    pub(crate) fn push_back(&mut self, block: BlockId) {
        self.links[block.index()] = Link { previous: self.last, next: NONE, listed: true };
        match self.last {
            NONE => self.first = block.0,
            last => self.links[last as usize].next = block.0,
        }
        self.last = block.0;
        self.len += 1;
    }

    pub(crate) fn pop_front(&mut self) -> Option<BlockId> {
        if self.first == NONE {
            return None;
        }
        let block = BlockId(self.first);
        self.remove(block);
        Some(block)
    }

    /// Takes `block` out, wherever it stands.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let Link { previous, next, .. } = self.links[block.index()];
        match previous {
            NONE => self.first = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => self.links[next as usize].previous = previous,
        }
        self.links[block.index()] = Link { previous: NONE, next: NONE, listed: false };
        self.len -= 1;
    }

    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.links[block.index()].listed
    }

    /// The free blocks, next to be taken first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let mut next = self.first;
        let walk = std::iter::from_fn(move || {
            let block = (next != NONE).then_some(BlockId(next))?;
            next = self.links[block.index()].next;
            Some(block)
        });
        // A broken list must not make a check run for ever.
        walk.take(self.links.len() + 1)
    }
}
