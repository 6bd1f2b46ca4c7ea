//! What depends on what: order, depth and cycles of prerequisites and of nested segments.
//! Without recursion, because ten thousand flags in one chain are input like any other.

use alloc::vec;
use alloc::vec::Vec;

#[derive(Debug, Default, PartialEq)]
pub struct Order {
    /// Dependencies before dependents; without what a cycle holds up.
    pub sorted: Vec<usize>,
    /// 1 without dependencies, else one more than the deepest of them; 0 behind a cycle.
    pub depths: Vec<usize>,
    /// Cycles, each from its smallest member on; not every one if they share members.
    pub cycles: Vec<Vec<usize>>,
    /// Everything on a cycle, or between two.
    pub circular: Vec<usize>,
}

/// `dependencies[n]` is what `n` needs; all of them are indices into it.
pub fn order(dependencies: &[Vec<usize>]) -> Order {
    let count = dependencies.len();
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (node, needs) in dependencies.iter().enumerate() {
        for need in needs {
            if let Some(of_need) = dependents.get_mut(*need) {
                of_need.push(node);
            }
        }
    }
    let sorted = peel(dependencies, &dependents, &vec![true; count]);
    let mut depths = vec![0usize; count];
    for node in &sorted {
        let deepest = dependencies
            .get(*node)
            .into_iter()
            .flatten()
            .map(|need| depths.get(*need).copied().unwrap_or(0))
            .max();
        if let Some(depth) = depths.get_mut(*node) {
            *depth = deepest.unwrap_or(0).saturating_add(1);
        }
    }
    // What is left needs a cycle; peeled from the other side, what only needs one falls off.
    let mut left = vec![true; count];
    forget(&mut left, &sorted);
    let outer = peel(&dependents, dependencies, &left);
    forget(&mut left, &outer);

    let mut seen = vec![usize::MAX; count];
    let mut cycles = Vec::new();
    for start in 0..count {
        let mut path = Vec::new();
        let mut node = start;
        while left.get(node) == Some(&true) && seen.get(node) == Some(&usize::MAX) {
            if let Some(mark) = seen.get_mut(node) {
                *mark = start;
            }
            path.push(node);
            let next = dependencies.get(node).and_then(|needs| {
                needs.iter().copied().find(|need| left.get(*need) == Some(&true))
            });
            let Some(next) = next else { break };
            node = next;
        }
        // Ran into itself, not into an earlier walk.
        if seen.get(node) == Some(&start)
            && let Some(from) = path.iter().position(|on_path| *on_path == node)
        {
            let mut cycle = path.split_off(from);
            let smallest =
                cycle.iter().enumerate().min_by_key(|(_, node)| **node).map_or(0, |(at, _)| at);
            cycle.rotate_left(smallest);
            cycles.push(cycle);
        }
    }
    let circular =
        left.iter().enumerate().filter(|(_, left)| **left).map(|(node, _)| node).collect();
    Order { sorted, depths, cycles, circular }
}

/// Nodes among `within` in an order in which all of `needs` comes first; without those that
/// cannot have one.
fn peel(needs: &[Vec<usize>], needed_by: &[Vec<usize>], within: &[bool]) -> Vec<usize> {
    let inside = |node: usize| within.get(node) == Some(&true);
    let mut waiting: Vec<usize> =
        needs.iter().map(|needs| needs.iter().filter(|need| inside(**need)).count()).collect();
    let mut sorted: Vec<usize> =
        (0..needs.len()).filter(|node| inside(*node) && waiting.get(*node) == Some(&0)).collect();
    let mut next = 0usize;
    while let Some(node) = sorted.get(next).copied() {
        next = next.saturating_add(1);
        for dependent in needed_by.get(node).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(*dependent) {
                *count = count.saturating_sub(1);
                if *count == 0 && inside(*dependent) {
                    sorted.push(*dependent);
                }
            }
        }
    }
    sorted
}

fn forget(left: &mut [bool], gone: &[usize]) {
    for node in gone {
        if let Some(left) = left.get_mut(*node) {
            *left = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_as_deep_as_its_longest_way() {
        let order = order(&[vec![1, 2], vec![2], vec![], vec![0]]);
        assert_eq!(order.depths, [3, 2, 1, 4]);
        assert_eq!(order.sorted, [2, 1, 0, 3]);
        assert!(order.cycles.is_empty() && order.circular.is_empty());
    }

    #[test]
    fn who_only_depends_on_a_cycle_is_not_on_it() {
        let order = order(&[vec![1], vec![2], vec![1], vec![]]);
        assert_eq!(order.cycles, [vec![1, 2]]);
        assert_eq!(order.circular, [1, 2]);
        assert_eq!(order.sorted, [3]);
    }

    #[test]
    fn a_node_that_needs_itself_is_a_cycle_of_one() {
        assert_eq!(order(&[vec![0]]).cycles, [vec![0]]);
    }

    #[test]
    fn the_same_need_twice_is_one_need() {
        assert_eq!(order(&[vec![1, 1], vec![]]).sorted, [1, 0]);
    }

    #[test]
    fn a_hundred_thousand_in_a_row_do_not_overflow_the_stack() {
        let row: Vec<Vec<usize>> =
            (0..100_000).map(|n| if n == 0 { vec![] } else { vec![n - 1] }).collect();
        assert_eq!(order(&row).depths.last(), Some(&100_000));
    }
}
