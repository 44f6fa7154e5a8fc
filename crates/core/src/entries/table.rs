//! A persistent hash table: a clone costs nothing and does not change when the original does.
//!
//! A tree over the bits of each element's hash, four ways a level, with leaves of up to sixteen elements. Per element
//! that is about 30 bytes where a map of a general library takes 130, since it keeps one allocation an element
//! and a copy of the key; here the element itself (a shared record) is all there is, and whoever asks compares its key.
//! The hash comes from the caller, so that elements can be grouped: see [`grouped`].

use std::sync::Arc;

/// Elements of a leaf; one more splits it in four.
const LEAF_MAX: usize = 16;

/// Bits of the hash that one level uses.
const LEVEL_BITS: u32 = 2;

/// At this depth all bits are used, and a leaf takes what comes.
const DEPTH_MAX: u32 = u64::BITS / LEVEL_BITS;

/// The bits that elements of one group share.
const GROUP_MASK: u64 = !0 << 40;

/// The hash of an element that is found by its group as well as by itself: the group's hash comes first, so all of a
/// group stand below one branch. Groups may share their bits by chance; [`Table::group`] says so.
pub(super) fn grouped(group: u64, element: u64) -> u64 {
    group & GROUP_MASK | element >> GROUP_MASK.count_ones()
}

/// The first bits of a hash: enough to find a group by, see [`Table::group`] and [`from_short`].
pub(super) fn short(hash: u64) -> u32 {
    // The upper half always fits.
    u32::try_from(hash >> 32).unwrap_or(0)
}

/// A hash that has the group of the one that it was shortened from.
pub(super) fn from_short(short: u32) -> u64 {
    u64::from(short) << 32
}

/// The table.
#[derive(Clone, Debug)]
pub(super) struct Table<T> {
    root: Arc<Node<T>>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<T> {
    Leaf(Vec<(u64, T)>),
    Branch([Option<Arc<Self>>; 1 << LEVEL_BITS]),
}

impl<T> Table<T> {
    /// A table without elements.
    pub(super) fn new() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The element with this hash for which `is` holds.
    pub(super) fn find(&self, hash: u64, is: impl Fn(&T) -> bool) -> Option<&T> {
        let Node::Leaf(elements) = descend(&self.root, hash, DEPTH_MAX)? else { return None };
        elements.iter().find(|(own, element)| *own == hash && is(element)).map(|(_, element)| element)
    }

    /// All elements, in no order.
    pub(super) fn iter(&self) -> Iter<'_, T> {
        Iter::new(Some(&self.root), 0, 0)
    }

    /// The elements of the group with this hash, in no order; elements of another group may be among them.
    pub(super) fn group(&self, hash: u64) -> Iter<'_, T> {
        let start = descend(&self.root, hash, GROUP_MASK.count_ones() / LEVEL_BITS);
        Iter::new(start, GROUP_MASK, hash & GROUP_MASK)
    }
}

impl<T: Clone> Table<T> {
    /// Puts an element in. One with the same key must have been removed before.
    pub(super) fn insert(&mut self, hash: u64, element: T) {
        insert(&mut self.root, 0, hash, element);
        self.len += 1;
    }

    /// Takes the element with this hash out for which `is` holds.
    pub(super) fn remove(&mut self, hash: u64, is: impl Fn(&T) -> bool) -> Option<T> {
        // Looking first spares a shared path from being copied for nothing.
        self.find(hash, &is)?;
        let removed = remove(&mut self.root, 0, hash, &is)?;
        self.len -= 1;
        Some(removed)
    }
}

/// Which child of a branch the hash belongs to.
fn slot(hash: u64, depth: u32) -> usize {
    // Two bits always fit.
    usize::try_from(hash >> (u64::BITS - LEVEL_BITS * (depth + 1)) & 3).unwrap_or(0)
}

/// The node, at most so deep, below which everything with this hash stands.
fn descend<T>(root: &Node<T>, hash: u64, depth_max: u32) -> Option<&Node<T>> {
    let mut node = root;
    for depth in 0..depth_max {
        let Node::Branch(children) = node else { break };
        node = children[slot(hash, depth)].as_ref()?;
    }
    Some(node)
}

fn insert<T: Clone>(node: &mut Arc<Node<T>>, depth: u32, hash: u64, element: T) {
    let node = Arc::make_mut(node);
    match node {
        Node::Branch(children) => insert_below(children, depth, hash, element),
        Node::Leaf(elements) if elements.len() < LEAF_MAX || depth == DEPTH_MAX => {
            if elements.len() == elements.capacity() {
                // Leaves are many and stay small: doubling would waste a quarter of the memory.
                elements.reserve_exact(2);
            }
            elements.push((hash, element));
        }
        Node::Leaf(elements) => {
            let mut children = [const { None }; 1 << LEVEL_BITS];
            for (hash, element) in std::mem::take(elements) {
                insert_below(&mut children, depth, hash, element);
            }
            insert_below(&mut children, depth, hash, element);
            *node = Node::Branch(children);
        }
    }
}

fn insert_below<T: Clone>(
    children: &mut [Option<Arc<Node<T>>>; 1 << LEVEL_BITS],
    depth: u32,
    hash: u64,
    element: T,
) {
    match &mut children[slot(hash, depth)] {
        Some(child) => insert(child, depth + 1, hash, element),
        empty => *empty = Some(Arc::new(Node::Leaf(vec![(hash, element)]))),
    }
}

fn remove<T: Clone>(node: &mut Arc<Node<T>>, depth: u32, hash: u64, is: &impl Fn(&T) -> bool) -> Option<T> {
    let node = Arc::make_mut(node);
    match node {
        Node::Leaf(elements) => {
            let at = elements.iter().position(|(own, element)| *own == hash && is(element))?;
            Some(elements.swap_remove(at).1)
        }
        Node::Branch(children) => {
            let place = &mut children[slot(hash, depth)];
            let child = place.as_mut()?;
            let removed = remove(child, depth + 1, hash, is)?;
            if matches!(&**child, Node::Leaf(elements) if elements.is_empty()) {
                *place = None;
            }
            if let Some(leaf) = only_leaf(children) {
                *node = leaf;
            }
            Some(removed)
        }
    }
}

/// What a branch is replaced by once it has no more than one child, which is a leaf: so a table that shrinks gets
/// its memory back.
fn only_leaf<T: Clone>(children: &[Option<Arc<Node<T>>>]) -> Option<Node<T>> {
    let mut left = children.iter().flatten();
    match (left.next(), left.next()) {
        (None, _) => Some(Node::Leaf(Vec::new())),
        (Some(only), None) => match &**only {
            Node::Leaf(elements) => Some(Node::Leaf(elements.clone())),
            Node::Branch(_) => None,
        },
        _ => None,
    }
}

/// Elements of a table.
pub(super) struct Iter<'a, T> {
    leaf: std::slice::Iter<'a, (u64, T)>,
    open: Vec<&'a Node<T>>,
    mask: u64,
    wanted: u64,
}

impl<'a, T> Iter<'a, T> {
    fn new(start: Option<&'a Node<T>>, mask: u64, wanted: u64) -> Self {
        let (leaf, open) = match start {
            None => ([].iter(), Vec::new()),
            Some(Node::Leaf(elements)) => (elements.iter(), Vec::new()),
            Some(branch) => ([].iter(), vec![branch]),
        };
        Self { leaf, open, mask, wanted }
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            for (hash, element) in self.leaf.by_ref() {
                if hash & self.mask == self.wanted {
                    return Some(element);
                }
            }
            match self.open.pop()? {
                Node::Leaf(elements) => self.leaf = elements.iter(),
                Node::Branch(children) => self.open.extend(children.iter().flatten().map(|child| &**child)),
            }
        }
    }

    /// What `for_each` goes through: leaf by leaf, without a look at the whole state for each element.
    fn fold<B, F: FnMut(B, &'a T) -> B>(mut self, init: B, mut each: F) -> B {
        let mut folded = init;
        loop {
            for (hash, element) in self.leaf {
                if hash & self.mask == self.wanted {
                    folded = each(folded, element);
                }
            }
            self.leaf = [].iter();
            match self.open.pop() {
                Some(Node::Leaf(elements)) => self.leaf = elements.iter(),
                Some(Node::Branch(children)) => {
                    self.open.extend(children.iter().flatten().map(|child| &**child));
                }
                None => return folded,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Hashes that meet in many ways: equal, and equal in the first bits only.
    fn hash_of(key: u16) -> u64 {
        grouped(u64::from(key % 3) << 40 | u64::from(key % 5) << 62, u64::from(key / 8) << 30)
    }

    fn keys(table: &Table<u16>) -> BTreeSet<u16> {
        table.iter().copied().collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(ops in prop::collection::vec((any::<bool>(), 0..400_u16), 0..800)) {
            let mut table = Table::new();
            let mut model = BTreeSet::new();
            let mut snapshots = Vec::new();
            for (n, (put, key)) in ops.into_iter().enumerate() {
                if put && model.insert(key) {
                    table.insert(hash_of(key), key);
                } else if !put {
                    let removed = table.remove(hash_of(key), |k| *k == key);
                    prop_assert_eq!(removed, model.take(&key));
                }
                if n % 97 == 0 {
                    snapshots.push((table.clone(), model.clone()));
                }
            }
            snapshots.push((table, model));
            for (table, model) in &snapshots {
                prop_assert_eq!(&keys(table), model);
                prop_assert_eq!(table.len(), model.len());
                for key in 0..400 {
                    let found = table.find(hash_of(key), |k| *k == key).is_some();
                    prop_assert_eq!(found, model.contains(&key));
                }
                for group in 0..15_u16 {
                    let of = |key: u16| hash_of(key) & GROUP_MASK == hash_of(group) & GROUP_MASK;
                    let found: BTreeSet<u16> = table.group(hash_of(group)).copied().collect();
                    let expected: BTreeSet<u16> = model.iter().copied().filter(|k| of(*k)).collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn more_than_a_leaf_of_one_hash() {
        let mut table = Table::new();
        for key in 0..40 {
            table.insert(7, key);
        }
        assert_eq!(table.find(7, |k| *k == 33), Some(&33));
        for key in 0..40 {
            assert_eq!(table.remove(7, |k| *k == key), Some(key));
        }
        assert!(matches!(&*table.root, Node::Leaf(elements) if elements.is_empty()), "it shrank");
    }
}
