//! Which tokens are cut along their keys.

use super::{PlanLimits, Sequence, TokenRun};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One of so many parts of its own work is what a chunk costs more as an item of its own than as a step of a walk: half of one
/// of its four pages, for a block that starts and states that are written and read again (not measured).
const CUT: usize = 8;

/// Which runs are cut along their keys. Every chunk of theirs becomes an item of its own, which tokens of several sequences
/// can share, and a token's states go through the scratch. A run that is not cut becomes one item, which walks all of it.
///
/// There is nothing between the two: kernels fold a token's chunks one by one, in ascending order, and an item that folded
/// some of them beforehand would give other bits.
///
/// A chunk that is an item of its own costs an eighth more ([`CUT`]). What it is good for is that work is read once and
/// spread evenly: the device is busy for as many waves of blocks as there are, times the longest walk in each. So
///
/// - all runs are cut where they are too few to fill the device;
/// - a run is cut if more than an eighth of its pages are other runs' too: these are read once for all of them;
/// - the others are whole, the longest first and each where there is the least work so far, if that ends within nine eighths
///   of the time that all work takes when it is spread evenly. A run that is too long for that stays cut, as do those that
///   would be a last and mostly idle wave: their chunks fill the gaps.
pub(super) fn cut(
    runs: &[TokenRun],
    sequences: &[Sequence<'_>],
    highest: usize,
    (capacity, kv_heads): (usize, usize),
    limits: PlanLimits,
) -> Vec<bool> {
    let mut cut = vec![true; runs.len()];
    if runs.len().saturating_mul(kv_heads) < limits.blocks {
        return cut;
    }
    let blocks = |run: &TokenRun| &sequences[run.tokens[0].sequence].blocks[run.pages.clone()];
    // A run that fills more than half of an item shares none of them: no other one like it fits in.
    let small = |run: &TokenRun| 2 * run.tokens.len() <= capacity;
    let mut readers = vec![0u32; highest];
    for block in runs.iter().filter(|run| small(run)).flat_map(blocks) {
        readers[block.0 as usize] += 1;
    }
    let shares = |run: &TokenRun| {
        let shared = || blocks(run).iter().filter(|block| readers[block.0 as usize] > 1).count();
        small(run) && shared() * CUT > run.pages.len()
    };
    let (together, apart): (Vec<usize>, Vec<usize>) = (0..runs.len()).partition(|&index| shares(&runs[index]));
    let mut once: Vec<u32> = together.iter().flat_map(|&index| blocks(&runs[index])).map(|block| block.0).collect();
    once.sort_unstable();
    once.dedup();
    let work = once.len() + apart.iter().map(|&index| runs[index].pages.len()).sum::<usize>();
    // Blocks that run at the same time, as many together as there are key/value heads: one run's.
    let lanes = (limits.blocks / kv_heads).max(1);
    let most = work * (CUT + 1) / (CUT * lanes);
    let mut loads: BinaryHeap<Reverse<usize>> = (0..lanes).map(|_| Reverse(0)).collect();
    let several = |run: &TokenRun| run.tokens.iter().any(|token| token.chunks().len() > 1);
    let mut whole: Vec<usize> = apart.into_iter().filter(|&index| several(&runs[index])).collect();
    whole.sort_by_key(|&index| Reverse(runs[index].pages.len()));
    for index in whole {
        let Some(mut least) = loads.peek_mut() else { break };
        let load = least.0 + runs[index].pages.len();
        if load <= most {
            (*least, cut[index]) = (Reverse(load), false);
        }
    }
    cut
}
