use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::BlockId;

/// Which prefixes may be shared with each other: only those with the same salt (a tenant, say) and
/// computed in the same epoch (lengths for which the keys are the same).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// Isolates requests from each other.
    pub salt: u64,
    /// Isolates keys that were computed differently.
    pub epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(pub(crate) u32);

/// One block's worth of tokens after everything that its ancestors say.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Node {
    /// `None` for the empty prefix of a namespace.
    pub(crate) parent: Option<NodeId>,
    pub(crate) namespace: Namespace,
    pub(crate) tokens: Box<[u32]>,
    /// Hash of the whole prefix: of the parent's hash and `tokens`.
    pub(crate) hash: u64,
    /// Next node with the same hash.
    next: Option<NodeId>,
    /// The block that holds this prefix's last keys and values, if it is still there.
    pub(crate) block: Option<BlockId>,
    /// Children, and page tables whose last cached block this is.
    pub(crate) refs: u32,
}

/// The prefixes that are, were or will be in blocks.
///
/// A node is found by its chained hash and then compared: namespace, parent and tokens. Because
/// the parent is compared by identity, a hit means that the whole prefix is equal, whatever the
/// hash function does. A node stays while a block, a child or a page table needs it, so evicting a
/// block does not cut its descendants off.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct PrefixTree {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    index: HashMap<u64, NodeId>,
    hash_mask: u64,
}

impl PrefixTree {
    /// An empty tree whose hashes keep the bits of `hash_mask`: tests force collisions with it.
    pub(crate) fn new(hash_mask: u64) -> Self {
        Self { nodes: Vec::new(), vacant: Vec::new(), index: HashMap::new(), hash_mask }
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)?.as_ref()
    }

    fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn hash(&self, parent: Option<u64>, namespace: Namespace, tokens: &[u32]) -> u64 {
        let mut hasher = DefaultHasher::new();
        match parent {
            Some(parent) => parent.hash(&mut hasher),
            None => namespace.hash(&mut hasher),
        }
        tokens.hash(&mut hasher);
        hasher.finish() & self.hash_mask
    }

    fn find(
        &self,
        parent: Option<NodeId>,
        namespace: Namespace,
        tokens: &[u32],
    ) -> (u64, Option<NodeId>) {
        let parent_hash = parent.and_then(|id| self.get(id)).map(|node| node.hash);
        let hash = self.hash(parent_hash, namespace, tokens);
        let mut next = self.index.get(&hash).copied();
        while let Some(id) = next {
            let Some(node) = self.get(id) else { break };
            if node.parent == parent && node.namespace == namespace && *node.tokens == *tokens {
                return (hash, Some(id));
            }
            next = node.next;
        }
        (hash, None)
    }

    /// The empty prefix of `namespace`, if anything was cached in it.
    pub(crate) fn find_root(&self, namespace: Namespace) -> Option<NodeId> {
        self.find(None, namespace, &[]).1
    }

    /// The node of `tokens` after `parent`.
    pub(crate) fn find_child(&self, parent: NodeId, tokens: &[u32]) -> Option<NodeId> {
        let namespace = self.get(parent)?.namespace;
        self.find(Some(parent), namespace, tokens).1
    }

    /// The node of `tokens` after `parent` (of the empty prefix with `None`), made if need be. A
    /// new node is held by nothing yet: give it a block or hold it.
    pub(crate) fn insert(
        &mut self,
        parent: Option<NodeId>,
        namespace: Namespace,
        tokens: &[u32],
    ) -> NodeId {
        let (hash, found) = self.find(parent, namespace, tokens);
        if let Some(id) = found {
            return id;
        }
        let id = self.vacant.pop().unwrap_or(NodeId(self.nodes.len() as u32));
        let next = self.index.insert(hash, id);
        let node =
            Node { parent, namespace, tokens: tokens.into(), hash, next, block: None, refs: 0 };
        match self.nodes.get_mut(id.0 as usize) {
            Some(place) => *place = Some(node),
            None => self.nodes.push(Some(node)),
        }
        if let Some(parent) = parent {
            self.hold(parent);
        }
        id
    }

    pub(crate) fn hold(&mut self, id: NodeId) {
        if let Some(node) = self.get_mut(id) {
            node.refs += 1;
        }
    }

    pub(crate) fn unhold(&mut self, id: NodeId) {
        if let Some(node) = self.get_mut(id) {
            node.refs -= 1;
        }
        self.prune(id);
    }

    pub(crate) fn set_block(&mut self, id: NodeId, block: BlockId) {
        if let Some(node) = self.get_mut(id) {
            node.block = Some(block);
        }
    }

    pub(crate) fn clear_block(&mut self, id: NodeId) {
        if let Some(node) = self.get_mut(id) {
            node.block = None;
        }
        self.prune(id);
    }

    /// Removes `id` and then its ancestors as far as nothing needs them.
    fn prune(&mut self, id: NodeId) {
        let mut next = Some(id);
        while let Some(id) = next {
            let needed = self.get(id).is_none_or(|node| node.block.is_some() || node.refs > 0);
            if needed {
                return;
            }
            next = self.remove(id);
            if let Some(parent) = next.and_then(|id| self.get_mut(id)) {
                parent.refs -= 1;
            }
        }
    }

    /// Takes a node out of the index and the store; returns its parent.
    fn remove(&mut self, id: NodeId) -> Option<NodeId> {
        let node = self.nodes.get_mut(id.0 as usize)?.take()?;
        let mut before = self.index.get(&node.hash).copied();
        if before == Some(id) {
            match node.next {
                Some(next) => self.index.insert(node.hash, next),
                None => self.index.remove(&node.hash),
            };
        } else {
            while let Some(previous) = before.and_then(|id| self.get_mut(id)) {
                if previous.next == Some(id) {
                    previous.next = node.next;
                    break;
                }
                before = previous.next;
            }
        }
        self.vacant.push(id);
        node.parent
    }

    /// Every node there is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        let numbered = self.nodes.iter().enumerate();
        numbered.filter_map(|(i, node)| Some((NodeId(i as u32), node.as_ref()?)))
    }

    /// Number of nodes that the index leads to.
    pub(crate) fn num_indexed(&self) -> usize {
        let chain = |&first: &NodeId| {
            std::iter::successors(Some(first), |&id| self.get(id)?.next)
                .take(self.nodes.len() + 1)
                .count()
        };
        self.index.values().map(chain).sum()
    }
}
