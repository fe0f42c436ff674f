//! The tree of known directories: names, watches, and what is known of each.
//!
//! Pure book-keeping, no system call. Made for 100,000 directories: a name is
//! stored once, a node knows its parent by index, no path is kept. One inode can
//! be seen at several places (bind mounts), so a watch leads to a chain of
//! nodes. Must not: recurse, depth is unbounded. Tested in `tree_tests`
//! against a naive model.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};

use crate::kernel::inotify::WatchId;

/// No node.
const NONE: u32 = u32::MAX;

/// A directory of the tree. It stays the same when the directory is moved, and
/// leads nowhere once the directory was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    index: u32,
    generation: u32,
}

/// What is known of a directory.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not a state machine"
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// It carries our mark.
    pub marked: bool,
    /// It has been looked at, and its sub-directories are nodes.
    pub settled: bool,
    /// All its sub-directories are followed, not only those on the way to an
    /// include path.
    pub whole: bool,
    /// It appeared while the agent ran: what is in it already is scanned.
    pub fresh: bool,
    /// It has no watch: the limit is reached, or the filesystem has none.
    pub unwatched: bool,
    /// Something failed here: it is tried again.
    pub troubled: bool,
    /// That was said in the log.
    pub complained: bool,
    /// It waits in the queue of those that are looked at again.
    pub polled: bool,
}

#[derive(Debug)]
struct Node {
    name: Box<[u8]>,
    parent: u32,
    first_child: u32,
    next_sibling: u32,
    previous_sibling: u32,
    /// Next node whose parent and name have the same hash.
    next_same_hash: u32,
    /// Next node of the same watch.
    next_same_watch: u32,
    /// 0: none.
    watch: WatchId,
    generation: u32,
    /// When it was last seen in its parent.
    stamp: u32,
    state: State,
}

/// The tree. Its root is `/`.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    free: Vec<u32>,
    hashes: HashMap<u64, u32, BuildHasherDefault<IsHash>>,
    hasher: RandomState,
    watches: HashMap<WatchId, u32, BuildHasherDefault<SpreadHash>>,
    stamp: u32,
}

/// The key is a hash already.
#[derive(Debug, Default)]
struct IsHash(u64);

impl Hasher for IsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The kernel chooses the key, so nobody can choose colliding ones.
#[derive(Debug, Default)]
struct SpreadHash(u64);

impl Hasher for SpreadHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn write_i32(&mut self, watch: i32) {
        self.0 = u64::from(watch.cast_unsigned()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The root alone.
    pub fn new() -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            free: Vec::new(),
            hashes: HashMap::default(),
            hasher: RandomState::new(),
            watches: HashMap::default(),
            stamp: 0,
        };
        tree.allot(NONE, &[]);
        tree
    }

    /// The root.
    pub fn root(&self) -> NodeId {
        self.id(0)
    }

    /// How many directories there are, the root included.
    pub fn count(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// How many watches are in use.
    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    /// Whether the directory is still in the tree.
    pub fn contains(&self, id: NodeId) -> bool {
        self.nodes
            .get(id.index as usize)
            .is_some_and(|node| node.generation == id.generation)
    }

    /// What is known of it; nothing, if it is gone.
    pub fn state(&self, id: NodeId) -> State {
        self.get(id).map_or(State::default(), |node| node.state)
    }

    /// To note what is known of it.
    pub fn state_mut(&mut self, id: NodeId) -> Option<&mut State> {
        self.contains(id)
            .then(|| &mut self.nodes[id.index as usize].state)
    }

    /// The parent; `None` for the root and for what is gone.
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        let parent = self.get(id)?.parent;
        (parent != NONE).then(|| self.id(parent))
    }

    /// The sub-directory of this name.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.get(parent)?;
        let mut at = *self.hashes.get(&self.hash(parent.index, name))?;
        while at != NONE {
            let node = &self.nodes[at as usize];
            if node.parent == parent.index && *node.name == *name {
                return Some(self.id(at));
            }
            at = node.next_same_hash;
        }
        None
    }

    /// All sub-directories.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let first = self.get(id).map_or(NONE, |node| node.first_child);
        let next = |at: u32| (at != NONE).then_some(at);
        std::iter::successors(next(first), move |at| {
            next(self.nodes[*at as usize].next_sibling)
        })
        .map(|at| self.id(at))
    }

    /// The sub-directory of this name, made if need be.
    pub fn add(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        if let Some(child) = self.child(parent, name) {
            return Some(child);
        }
        self.get(parent)?;
        let index = self.allot(parent.index, name);
        self.attach(index);
        Some(self.id(index))
    }

    /// Takes a directory out with all below it (the root stays). Watches that no
    /// node holds any more are put into `released`.
    pub fn remove(&mut self, id: NodeId, released: &mut Vec<WatchId>) {
        if !self.contains(id) || id.index == 0 {
            return;
        }
        self.detach(id.index);
        let mut doomed = vec![id.index];
        while let Some(index) = doomed.pop() {
            let mut child = self.nodes[index as usize].first_child;
            while child != NONE {
                // Only the topmost one must leave its siblings, not the others.
                self.unhash(child);
                doomed.push(child);
                child = self.nodes[child as usize].next_sibling;
            }
            released.extend(self.set_watch(self.id(index), None));
            let node = &mut self.nodes[index as usize];
            node.generation = node.generation.wrapping_add(1);
            node.name = Box::default();
            node.first_child = NONE;
            self.free.push(index);
        }
    }

    /// Puts a directory elsewhere, with all below it. False: there is no such
    /// place, it is taken, or it lies within the directory itself.
    pub fn move_to(&mut self, id: NodeId, parent: NodeId, name: &[u8]) -> bool {
        let possible = id.index != 0
            && self.contains(id)
            && self.contains(parent)
            && self.child(parent, name).is_none()
            && !self.is_within(parent, id);
        if possible {
            self.detach(id.index);
            let node = &mut self.nodes[id.index as usize];
            node.parent = parent.index;
            if *node.name != *name {
                node.name = name.into();
            }
            self.attach(id.index);
        }
        possible
    }

    fn is_within(&self, id: NodeId, above: NodeId) -> bool {
        let mut at = id.index;
        while at != NONE {
            if at == above.index {
                return true;
            }
            at = self.nodes[at as usize].parent;
        }
        false
    }

    /// Writes the absolute path into `path`.
    pub fn path_into(&self, id: NodeId, path: &mut Vec<u8>) {
        path.clear();
        let mut chain = Vec::new();
        let mut at = id.index;
        while at != 0 && at != NONE && self.contains(id) {
            chain.push(at);
            at = self.nodes[at as usize].parent;
        }
        for index in chain.into_iter().rev() {
            path.push(b'/');
            path.extend_from_slice(&self.nodes[index as usize].name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
    }

    /// The deepest known directory on the way to an absolute path, and the name
    /// that is missing below it; no name: it is the path itself.
    pub fn find<'a>(&self, path: &'a [u8]) -> (NodeId, Option<&'a [u8]>) {
        let mut at = self.root();
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            match self.child(at, name) {
                Some(child) => at = child,
                None => return (at, Some(name)),
            }
        }
        (at, None)
    }

    /// The watch of a directory.
    pub fn watch_of(&self, id: NodeId) -> Option<WatchId> {
        self.get(id).map(|node| node.watch).filter(|at| *at != 0)
    }

    /// Notes which watch a directory has. Returns the former one if no node
    /// holds it any more.
    pub fn set_watch(&mut self, id: NodeId, watch: Option<WatchId>) -> Option<WatchId> {
        let old = self.watch_of(id);
        if !self.contains(id) || old == watch {
            return None;
        }
        let released = old.filter(|old| self.unchain_watch(*old, id.index));
        self.nodes[id.index as usize].watch = watch.unwrap_or(0);
        if let Some(watch) = watch {
            let before = self.watches.insert(watch, id.index);
            self.nodes[id.index as usize].next_same_watch = before.unwrap_or(NONE);
        }
        released
    }

    /// Takes a node out of the chain of its watch. Whether it was the last one.
    fn unchain_watch(&mut self, watch: WatchId, index: u32) -> bool {
        let after = self.nodes[index as usize].next_same_watch;
        self.nodes[index as usize].next_same_watch = NONE;
        let Some(first) = self.watches.get_mut(&watch) else {
            return true;
        };
        if *first == index {
            *first = after;
            if after == NONE {
                self.watches.remove(&watch);
                return true;
            }
            return false;
        }
        let mut at = *first;
        while self.nodes[at as usize].next_same_watch != index {
            at = self.nodes[at as usize].next_same_watch;
        }
        self.nodes[at as usize].next_same_watch = after;
        false
    }

    /// The directories that a watch is on: more than one where an inode is seen
    /// at several places.
    pub fn nodes_of(&self, watch: WatchId) -> impl Iterator<Item = NodeId> {
        let next = |at: u32| (at != NONE).then_some(at);
        std::iter::successors(self.watches.get(&watch).copied(), move |at| {
            next(self.nodes[*at as usize].next_same_watch)
        })
        .map(|at| self.id(at))
    }

    /// Begins a comparison of what a directory holds with what is known.
    pub fn begin_comparison(&mut self) -> u32 {
        self.stamp = self.stamp.wrapping_add(1);
        self.stamp
    }

    /// Notes that a directory was seen in this comparison.
    pub fn seen(&mut self, id: NodeId, comparison: u32) {
        if self.contains(id) {
            self.nodes[id.index as usize].stamp = comparison;
        }
    }

    /// Sub-directories that this comparison did not see.
    pub fn unseen(&self, id: NodeId, comparison: u32) -> Vec<NodeId> {
        self.children(id)
            .filter(|child| self.nodes[child.index as usize].stamp != comparison)
            .collect()
    }

    /// All directories, in no order.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> {
        (0..self.nodes.len())
            .filter_map(|index| u32::try_from(index).ok())
            .filter(|index| *index == 0 || !self.nodes[*index as usize].name.is_empty())
            .map(|index| self.id(index))
    }

    fn get(&self, id: NodeId) -> Option<&Node> {
        let node = self.nodes.get(id.index as usize)?;
        (node.generation == id.generation).then_some(node)
    }

    fn id(&self, index: u32) -> NodeId {
        NodeId {
            index,
            generation: self.nodes[index as usize].generation,
        }
    }

    fn hash(&self, parent: u32, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    fn allot(&mut self, parent: u32, name: &[u8]) -> u32 {
        let mut node = Node {
            name: name.into(),
            parent,
            first_child: NONE,
            next_sibling: NONE,
            previous_sibling: NONE,
            next_same_hash: NONE,
            next_same_watch: NONE,
            watch: 0,
            generation: 0,
            stamp: self.stamp,
            state: State::default(),
        };
        if let Some(index) = self.free.pop() {
            node.generation = self.nodes[index as usize].generation;
            self.nodes[index as usize] = node;
            return index;
        }
        // Four thousand million directories do not fit into the kernel's memory.
        let index = u32::try_from(self.nodes.len()).unwrap_or(NONE);
        assert!(index != NONE, "more directories than can be numbered");
        self.nodes.push(node);
        index
    }

    /// Enters a node into its parent and under its hash.
    fn attach(&mut self, index: u32) {
        let parent = self.nodes[index as usize].parent;
        let hash = self.hash(parent, &self.nodes[index as usize].name);
        let next_same_hash = self.hashes.insert(hash, index).unwrap_or(NONE);
        let next = std::mem::replace(&mut self.nodes[parent as usize].first_child, index);
        if next != NONE {
            self.nodes[next as usize].previous_sibling = index;
        }
        let node = &mut self.nodes[index as usize];
        node.next_same_hash = next_same_hash;
        node.next_sibling = next;
        node.previous_sibling = NONE;
    }

    /// Takes a node out of its parent and from under its hash.
    fn detach(&mut self, index: u32) {
        self.unhash(index);
        let node = &self.nodes[index as usize];
        let (parent, previous, next) = (node.parent, node.previous_sibling, node.next_sibling);
        if previous == NONE {
            self.nodes[parent as usize].first_child = next;
        } else {
            self.nodes[previous as usize].next_sibling = next;
        }
        if next != NONE {
            self.nodes[next as usize].previous_sibling = previous;
        }
    }

    fn unhash(&mut self, index: u32) {
        let node = &self.nodes[index as usize];
        let after = node.next_same_hash;
        let hash = self.hash(node.parent, &node.name);
        let Some(first) = self.hashes.get_mut(&hash) else {
            return;
        };
        if *first != index {
            let mut at = *first;
            while self.nodes[at as usize].next_same_hash != index {
                at = self.nodes[at as usize].next_same_hash;
            }
            self.nodes[at as usize].next_same_hash = after;
        } else if after == NONE {
            self.hashes.remove(&hash);
        } else {
            *first = after;
        }
    }
}
