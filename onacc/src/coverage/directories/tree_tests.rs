//! The tree against a naive model, and what the model cannot say.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::tree::{NodeId, Tree};

fn path_of(tree: &Tree, id: NodeId) -> Vec<u8> {
    let mut path = Vec::new();
    tree.path_into(id, &mut path);
    path
}

#[test]
fn a_path_leads_to_its_node_and_back() {
    let mut tree = Tree::new();
    assert_eq!(tree.count(), 1);
    let home = tree.add(tree.root(), b"home").unwrap();
    let anna = tree.add(home, b"an\xffna").unwrap();
    assert_eq!(tree.add(home, b"an\xffna"), Some(anna), "once");
    assert_eq!(path_of(&tree, anna), b"/home/an\xffna");
    assert_eq!(path_of(&tree, tree.root()), b"/");
    assert_eq!(tree.find(b"/home/an\xffna"), (anna, None));
    assert_eq!(tree.find(b"/home//b/c"), (home, Some(&b"b"[..])));
    assert_eq!(tree.find(b"/"), (tree.root(), None));
    assert_eq!(tree.parent(anna), Some(home));
    assert_eq!(tree.parent(tree.root()), None);
    assert_eq!(tree.count(), 3);
}

#[test]
fn what_was_removed_leads_nowhere_though_its_place_is_used_again() {
    let mut tree = Tree::new();
    let old = tree.add(tree.root(), b"old").unwrap();
    let below = tree.add(old, b"below").unwrap();
    tree.set_watch(old, Some(1));
    tree.set_watch(below, Some(2));
    let mut released = Vec::new();
    tree.remove(old, &mut released);
    released.sort_unstable();
    assert_eq!(released, [1, 2]);
    let new = tree.add(tree.root(), b"old").unwrap();
    assert!(!tree.contains(old) && !tree.contains(below) && tree.contains(new));
    assert_eq!(tree.watch_of(old), None);
    assert_eq!(tree.child(old, b"below"), None);
    assert_eq!(tree.add(old, b"x"), None);
    assert!(!tree.move_to(old, new, b"x"));
    assert_eq!(tree.set_watch(old, Some(9)), None);
    assert_eq!(tree.nodes_of(9).count(), 0);
    tree.remove(tree.root(), &mut released);
    assert!(tree.contains(tree.root()), "the root stays");
}

#[test]
fn a_watch_on_an_inode_seen_twice_is_released_with_the_last_place() {
    let mut tree = Tree::new();
    let [a, b, c] = [b"a", b"b", b"c"].map(|name| tree.add(tree.root(), name).unwrap());
    for id in [a, b, c] {
        assert_eq!(tree.set_watch(id, Some(5)), None);
    }
    assert_eq!((tree.nodes_of(5).count(), tree.watches()), (3, 1));
    let mut released = Vec::new();
    tree.remove(b, &mut released);
    assert_eq!(tree.set_watch(c, Some(6)), None, "a still has it");
    assert!(released.is_empty());
    assert_eq!(tree.nodes_of(5).collect::<Vec<_>>(), [a]);
    assert_eq!(tree.set_watch(a, None), Some(5));
    assert_eq!((tree.nodes_of(5).count(), tree.watches()), (0, 1));
}

#[test]
fn a_directory_cannot_be_moved_into_itself_or_onto_another() {
    let mut tree = Tree::new();
    let a = tree.add(tree.root(), b"a").unwrap();
    let b = tree.add(a, b"b").unwrap();
    assert!(!tree.move_to(a, b, b"a"));
    assert!(!tree.move_to(b, tree.root(), b"a"));
    assert!(tree.move_to(b, tree.root(), b"b"));
    assert!(tree.move_to(a, b, b"a"));
    assert_eq!(path_of(&tree, a), b"/b/a");
}

#[test]
fn a_very_deep_tree_needs_no_stack() {
    let mut tree = Tree::new();
    let mut at = tree.root();
    for _ in 0..200_000 {
        at = tree.add(at, b"d").unwrap();
    }
    let mut path = Vec::new();
    tree.path_into(at, &mut path);
    assert_eq!(path.len(), 400_000);
    let top = tree.child(tree.root(), b"d").unwrap();
    tree.remove(top, &mut Vec::new());
    assert_eq!(tree.count(), 1);
}

#[test]
fn a_comparison_finds_what_was_not_seen() {
    let mut tree = Tree::new();
    let [a, b] = [b"a", b"b"].map(|name| tree.add(tree.root(), name).unwrap());
    let comparison = tree.begin_comparison();
    tree.seen(a, comparison);
    assert_eq!(tree.unseen(tree.root(), comparison), [b]);
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize, u8),
    Remove(usize),
    Move(usize, usize, u8),
    Watch(usize, Option<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<usize>(), 0u8..6).prop_map(|(at, name)| Step::Add(at, name)),
        1 => any::<usize>().prop_map(Step::Remove),
        2 => (any::<usize>(), any::<usize>(), 0u8..6).prop_map(|(a, b, n)| Step::Move(a, b, n)),
        3 => (any::<usize>(), proptest::option::of(1u8..9)).prop_map(|(a, w)| Step::Watch(a, w)),
    ]
}

/// Path to watch; the root is the empty path.
type Model = BTreeMap<Vec<u8>, Option<i32>>;

fn below(model: &Model, path: &[u8]) -> Vec<Vec<u8>> {
    let is_below = |other: &Vec<u8>| {
        other
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    model.keys().filter(|key| is_below(key)).cloned().collect()
}

fn watches(model: &Model) -> BTreeSet<i32> {
    model.values().flatten().copied().collect()
}

fn node(tree: &Tree, path: &[u8]) -> NodeId {
    let (id, missing) = tree.find(path);
    assert_eq!(missing, None);
    id
}

fn child_path(parent: &[u8], name: u8) -> Vec<u8> {
    [parent, b"/", &[b'a' + name]].concat()
}

fn apply(step: &Step, tree: &mut Tree, model: &mut Model) {
    let pick = |at: usize| model.keys().nth(at % model.len()).unwrap().clone();
    let before = watches(model);
    let mut released = Vec::new();
    match step {
        Step::Add(at, name) => {
            let parent = pick(*at);
            let id = tree.add(node(tree, &parent), &[b'a' + name]).unwrap();
            let path = child_path(&parent, *name);
            assert_eq!(node(tree, &path), id);
            model.entry(path).or_insert(None);
        }
        Step::Remove(at) => {
            let path = pick(*at);
            tree.remove(node(tree, &path), &mut released);
            if !path.is_empty() {
                for gone in below(model, &path) {
                    model.remove(&gone);
                }
            }
        }
        Step::Move(from, to, name) => {
            let (from, to) = (pick(*from), pick(*to));
            let target = child_path(&to, *name);
            let moved = tree.move_to(node(tree, &from), node(tree, &to), &[b'a' + name]);
            let possible = !from.is_empty()
                && !model.contains_key(&target)
                && !below(model, &from).contains(&to);
            assert_eq!(moved, possible);
            if moved {
                for old in below(model, &from) {
                    let watch = model.remove(&old).unwrap();
                    model.insert([&target, &old[from.len()..]].concat(), watch);
                }
            }
        }
        Step::Watch(at, watch) => {
            let path = pick(*at);
            let watch = watch.map(i32::from);
            released.extend(tree.set_watch(node(tree, &path), watch));
            model.insert(path, watch);
        }
    }
    let gone: BTreeSet<i32> = before.difference(&watches(model)).copied().collect();
    assert_eq!(released.iter().copied().collect::<BTreeSet<_>>(), gone);
    assert_eq!(released.len(), gone.len(), "released once");
}

fn check(tree: &Tree, model: &Model) {
    assert_eq!(tree.count(), model.len());
    assert_eq!(tree.iter().count(), model.len());
    assert_eq!(tree.watches(), watches(model).len());
    for (path, watch) in model {
        let id = node(tree, path);
        assert_eq!(tree.watch_of(id), *watch);
        let whole: &[u8] = if path.is_empty() { b"/" } else { path };
        assert_eq!(path_of(tree, id), whole);
        let children: BTreeSet<Vec<u8>> = tree
            .children(id)
            .map(|child| path_of(tree, child))
            .collect();
        let wanted: BTreeSet<Vec<u8>> = below(model, path)
            .into_iter()
            .filter(|other| other.len() > path.len() && !other[path.len() + 1..].contains(&b'/'))
            .collect();
        assert_eq!(children, wanted);
    }
    for watch in watches(model) {
        let found: BTreeSet<Vec<u8>> = tree.nodes_of(watch).map(|id| path_of(tree, id)).collect();
        let wanted: BTreeSet<Vec<u8>> = model
            .iter()
            .filter(|(_, other)| **other == Some(watch))
            .map(|(path, _)| {
                if path.is_empty() {
                    b"/".to_vec()
                } else {
                    path.clone()
                }
            })
            .collect();
        assert_eq!(found, wanted);
    }
}

proptest! {
    #[test]
    fn the_tree_is_what_a_map_of_paths_would_be(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let mut tree = Tree::new();
        let mut model = Model::from([(Vec::new(), None)]);
        for step in &steps {
            apply(step, &mut tree, &mut model);
            check(&tree, &model);
        }
    }
}
