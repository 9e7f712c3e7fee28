//! What the blocks of the pass over keys compute: tiles of segments' positions, and the tiles of queries that see them.
//!
//! Tiles of both kinds are counted from the segment's own start, so that what a position's gradient is added up from, and in
//! which order, depends on its segment alone. The pass over queries takes the forward plan.

use crate::cuda::ops::attention::classes::Class;
use crate::cuda::ops::attention::{Query, Shape};
use crate::kv::{BLOCK, BlockId};
use crate::{Error, Result};

const OP: &str = "attention_backward";
/// Positions of a block.
const TILE: usize = BLOCK;
/// Rows of queries, a position's heads of a group side by side, that a block looks at together.
const QUERY_ROWS: usize = 64;
/// Words of an item.
pub(super) const ITEM_WORDS: usize = 8;
/// Words of a position.
const TOKEN_WORDS: usize = 2;
/// In place of the rows of a position that nothing is asked of.
const NONE: u32 = u32::MAX;

/// Every kernel, with the numbers of `kernels/attention_backward.cu`: for heads of 32, 64 and 128 elements, the pass over few, some and many queries, and the one over keys.
pub const KERNELS: [Class; 12] = [
    queries(["attention_backward_few_32_bf16", "attention_backward_few_32_f16"], 32, 1, 4, 3),
    queries(["attention_backward_some_32_bf16", "attention_backward_some_32_f16"], 32, 2, 2, 2),
    queries(["attention_backward_many_32_bf16", "attention_backward_many_32_f16"], 32, 4, 1, 2),
    keys(["attention_backward_keys_32_bf16", "attention_backward_keys_32_f16"], 32),
    queries(["attention_backward_few_64_bf16", "attention_backward_few_64_f16"], 64, 1, 4, 3),
    queries(["attention_backward_some_64_bf16", "attention_backward_some_64_f16"], 64, 2, 2, 2),
    queries(["attention_backward_many_64_bf16", "attention_backward_many_64_f16"], 64, 4, 1, 2),
    keys(["attention_backward_keys_64_bf16", "attention_backward_keys_64_f16"], 64),
    Class {
        smaller: Some((
            ["attention_backward_few_128_99k_bf16", "attention_backward_few_128_99k_f16"],
            shared(128, 1, 2) + table(1),
        )),
        ..queries(["attention_backward_few_128_bf16", "attention_backward_few_128_f16"], 128, 1, 4, 3)
    },
    queries(["attention_backward_some_128_bf16", "attention_backward_some_128_f16"], 128, 2, 2, 2),
    // The smaller one has its table in the place of the values.
    Class {
        smaller: Some((
            ["attention_backward_many_128_99k_bf16", "attention_backward_many_128_99k_f16"],
            shared(128, 4, 2),
        )),
        ..queries(["attention_backward_many_128_bf16", "attention_backward_many_128_f16"], 128, 4, 2, 2)
    },
    keys(["attention_backward_keys_128_bf16", "attention_backward_keys_128_f16"], 128),
];

/// Where the pass over keys stands among the kernels for one size of heads, after the classes of queries.
pub(super) const KEYS: usize = 3;

const fn queries(kernels: [&'static str; 2], head: usize, by_rows: usize, by_keys: usize, stages: usize) -> Class {
    let shared = shared(head, by_rows, stages) + if by_keys > 1 { table(by_rows) } else { 0 };
    Class { kernels, head, threads: (by_rows * by_keys * 32) as u32, shared, smaller: None }
}

/// Queries and their gradients, and stages of keys and values.
const fn shared(head: usize, by_rows: usize, stages: usize) -> u32 {
    (2 * (by_rows * 16 + stages * BLOCK) * head * 2) as u32
}

/// Score gradients that warps of one row exchange.
const fn table(by_rows: usize) -> u32 {
    (by_rows * 16 * 2 * BLOCK) as u32
}

const fn keys(kernels: [&'static str; 2], head: usize) -> Class {
    let shared = 2 * (TILE + 2 * QUERY_ROWS) * head * 2;
    Class { kernels, head, threads: (TILE / 16 * 32) as u32, shared: shared as u32, smaller: None }
}

/// Consecutive positions of one sequence, whose queries, keys and values are differentiated.
#[derive(Clone, Copy, Debug)]
pub struct KeySegment<'a> {
    /// Blocks of the sequence, in order of positions.
    pub blocks: &'a [BlockId],
    /// Its first position; what stands before is constant.
    pub start: u32,
    /// Positions.
    pub len: u32,
    /// Row of the first position's key and value gradients; the others follow. No two segments have one row.
    pub row: u32,
    /// The queries that have a gradient, of these positions, in ascending order: those that the forward plan has.
    pub queries: &'a [Query],
}

/// Work lists of the pass over keys for one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    words: Vec<u32>,
    /// Tiles of keys.
    pub(super) items: usize,
    /// First words of the lists of tokens, tiles of queries and blocks.
    pub(super) tokens_at: usize,
    pub(super) tiles_at: usize,
    pub(super) blocks_at: usize,
    /// One past the largest row of `q`, row of `out`, row of the gradients of keys and block.
    pub(super) rows: usize,
    pub(super) rows_out: usize,
    pub(super) batch_rows: usize,
    pub(super) blocks: usize,
    pub(super) shape: Shape,
}

/// What a launch depends on besides the words: two plans of one frame are launched alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    items: usize,
    /// Where lists begin, and the last one ends.
    lists: [usize; 4],
}

impl Plan {
    /// Lists the tiles of a batch of segments.
    ///
    /// # Errors
    /// The shape has no kernel, or a segment has a query outside of it, out of order, or a position without a block.
    pub fn new(shape: &Shape, segments: &[KeySegment<'_>]) -> Result<Self> {
        let group = shape.group()?;
        let mut plan = Plan {
            words: Vec::new(),
            items: 0,
            tokens_at: 0,
            tiles_at: 0,
            blocks_at: 0,
            rows: 0,
            rows_out: 0,
            batch_rows: 0,
            blocks: 0,
            shape: *shape,
        };
        let mut items: Vec<[u32; ITEM_WORDS]> = Vec::new();
        let (mut tokens, mut tiles, mut blocks) = (Vec::<[u32; 2]>::new(), Vec::<u32>::new(), Vec::<u32>::new());
        for (index, segment) in segments.iter().enumerate() {
            plan.check(index, segment)?;
            let (start, len) = (segment.start as usize, segment.len as usize);
            if len == 0 {
                continue;
            }
            let (first_token, first_block) = (word(tokens.len())?, word(blocks.len())?);
            tokens.resize(tokens.len() + len, [NONE; 2]);
            for query in segment.queries {
                tokens[first_token as usize + query.position as usize - start] = [query.row, query.out];
            }
            blocks.extend(segment.blocks[start / BLOCK..(start + len - 1) / BLOCK + 1].iter().map(|block| block.0));
            for first in (0..len).step_by(TILE) {
                let last = len.min(first + TILE) - 1;
                let first_tile = tiles.len();
                for query in segment.queries {
                    let position = query.position as usize;
                    if position < start + first || shape.lowest(position) > start + last {
                        continue;
                    }
                    let row = (position - start) * group;
                    for tile in row / QUERY_ROWS..(row + group - 1) / QUERY_ROWS + 1 {
                        if tiles.len() == first_tile || tiles.last() != Some(&(tile as u32)) {
                            tiles.push(word(tile)?);
                        }
                    }
                }
                items.push([
                    first_token,
                    segment.len,
                    word(first)?,
                    word(first_tile)?,
                    word(tiles.len() - first_tile)?,
                    segment.start,
                    segment.row,
                    first_block,
                ]);
            }
        }
        // The tiles with most to do start first.
        items.sort_by_key(|item| std::cmp::Reverse(item[4]));
        plan.items = items.len();
        plan.words = items.into_flattened();
        plan.tokens_at = plan.words.len();
        plan.words.extend(tokens.as_flattened());
        plan.tiles_at = plan.words.len();
        plan.words.extend(tiles);
        plan.blocks_at = plan.words.len();
        plan.words.extend(blocks);
        Ok(plan)
    }

    /// Checks a segment and notes how large everything must be that it touches.
    fn check(&mut self, index: usize, segment: &KeySegment<'_>) -> Result<()> {
        let &KeySegment { start, len, row, .. } = segment;
        let (first, end) = (start as usize, start as usize + len as usize);
        if end > segment.blocks.len() * BLOCK || end > i32::MAX as usize / 128 {
            return Err(Error::Backend(format!(
                "{OP}: segment {index} has positions {start} to {end}, its {} blocks hold positions below {}",
                segment.blocks.len(),
                segment.blocks.len() * BLOCK
            )));
        }
        let mut before = None;
        for query in segment.queries {
            let position = query.position as usize;
            if !(first..end).contains(&position) || before.is_some_and(|before| before >= position) {
                return Err(Error::Backend(format!(
                    "{OP}: segment {index} has a query at {position}, expected ascending positions from {start} to {end}"
                )));
            }
            before = Some(position);
            self.rows = self.rows.max(query.row as usize + 1);
            self.rows_out = self.rows_out.max(query.out as usize + 1);
        }
        if len > 0 {
            self.batch_rows = self.batch_rows.max(row as usize + len as usize);
            let blocks = segment.blocks[first / BLOCK..(end - 1) / BLOCK + 1].iter().map(|block| block.0 as usize + 1);
            self.blocks = blocks.fold(self.blocks, usize::max);
        }
        Ok(())
    }

    /// The lists as the kernel reads them: items, tokens of segments, tiles of queries, blocks. To be copied to the device.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The same work in a frame that many batches have: each list is filled up to a power of two. An item that fills up has no
    /// positions, so nothing is written for it.
    pub fn filled(&self) -> Plan {
        let lists = [0, self.tokens_at, self.tiles_at, self.blocks_at, self.words.len()];
        let mut plan = Plan { words: Vec::new(), ..self.clone() };
        let mut starts = [0; 4];
        for ((list, width), start) in lists.windows(2).zip([ITEM_WORDS, TOKEN_WORDS, 1, 1]).zip(&mut starts) {
            let entries = (list[1] - list[0]) / width;
            *start = plan.words.len();
            plan.words.extend(&self.words[list[0]..list[1]]);
            // Two at least: what follows stays aligned.
            plan.words.resize(*start + entries.next_power_of_two().max(2) * width, 0);
        }
        [_, plan.tokens_at, plan.tiles_at, plan.blocks_at] = starts;
        plan.items = if self.items == 0 { 0 } else { plan.tokens_at / ITEM_WORDS };
        plan
    }

    /// What a launch of it depends on besides the words.
    pub fn frame(&self) -> Frame {
        let Plan { items, tokens_at, tiles_at, blocks_at, .. } = *self;
        Frame { items, lists: [tokens_at, tiles_at, blocks_at, self.words.len()] }
    }
}

fn word(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Backend(format!("{OP}: a batch with {value} entries is too large")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(group: usize, window: Option<usize>) -> Shape {
        Shape { heads: 2 * group, kv_heads: 2, head: 64, scale: 0.125, window }
    }

    fn blocks(count: usize) -> Vec<BlockId> {
        (0..count as u32).map(|i| BlockId(i * 3 % 101)).collect()
    }

    /// Everything that the kernel relies on, checked on the words themselves.
    fn hold(plan: &Plan, shape: &Shape, segments: &[KeySegment<'_>]) {
        let group = shape.heads / shape.kv_heads;
        let words = plan.words();
        let mut tiles = 0;
        for item in words[..plan.tokens_at].chunks_exact(ITEM_WORDS) {
            let &[first_token, len, first, first_tile, count, start, row, first_block] = item else { unreachable!() };
            let same = |s: &&KeySegment<'_>| (s.start, s.len, s.row) == (start, len, row);
            let segment = segments.iter().find(same).expect("a segment's tile");
            let (start, len, first) = (start as usize, len as usize, first as usize);
            let token = |offset: usize| {
                let at = plan.tokens_at + 2 * (first_token as usize + offset);
                [words[at], words[at + 1]]
            };
            for offset in 0..len {
                let query = segment.queries.iter().find(|query| query.position as usize == start + offset);
                assert_eq!(token(offset), query.map_or([NONE; 2], |query| [query.row, query.out]));
            }
            for offset in first..len.min(first + TILE) {
                let at = plan.blocks_at + first_block as usize + (start + offset) / BLOCK - start / BLOCK;
                assert_eq!(words[at], segment.blocks[(start + offset) / BLOCK].0);
            }
            let listed = &words[plan.tiles_at + first_tile as usize..][..count as usize];
            assert!(listed.windows(2).all(|pair| pair[0] < pair[1]), "tiles ascend");
            for tile in 0..(len * group).div_ceil(QUERY_ROWS) {
                let sees = |query: &&Query| {
                    let position = query.position as usize;
                    let rows = (position - start) * group..(position - start + 1) * group;
                    let some = rows.start < (tile + 1) * QUERY_ROWS && rows.end > tile * QUERY_ROWS;
                    let lowest = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
                    some && (start + first..start + len.min(first + TILE)).any(|key| key <= position && key >= lowest)
                };
                assert_eq!(listed.contains(&(tile as u32)), segment.queries.iter().any(|query| sees(&query)));
            }
            tiles += 1;
        }
        assert_eq!(tiles, plan.items);
        assert_eq!(tiles, segments.iter().map(|segment| (segment.len as usize).div_ceil(TILE)).sum::<usize>());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (shape, blocks) = (shape(2, None), blocks(2));
        let query = |position| Query { row: 0, out: 0, position };
        let plan = |start, len, queries: &[Query]| {
            Plan::new(&shape, &[KeySegment { blocks: &blocks, start, len, row: 0, queries }]).map(|_| ())
        };
        plan(100, 28, &[query(100), query(127)]).unwrap();
        for (start, len, queries, why) in [
            (100, 29, vec![], "hold positions below 128"),
            (100, 28, vec![query(99)], "a query at 99"),
            (100, 28, vec![query(128)], "a query at 128"),
            (100, 28, vec![query(110), query(110)], "a query at 110"),
        ] {
            let error = plan(start, len, &queries).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let plan =
            Plan::new(&shape, &[KeySegment { blocks: &blocks, start: 3, len: 0, row: 9, queries: &[] }]).unwrap();
        assert_eq!((plan.items, plan.batch_rows), (0, 0));
    }

    proptest! {
        #[test]
        fn every_tile_of_queries_that_sees_a_key_is_listed(
            group in 1..9usize,
            window in prop_oneof![Just(None), (1..200usize).prop_map(Some)],
            sizes in prop::collection::vec((0..400usize, 1..300usize, 1..5usize), 1..4),
        ) {
            let shape = shape(group, window);
            let blocks = blocks(11);
            let mut row = 0;
            let lists: Vec<(usize, usize, usize, Vec<Query>)> = sizes.iter().map(|&(start, len, every)| {
                let query = |i: usize| Query { row: (row + i) as u32, out: (row + i) as u32, position: (start + i) as u32 };
                let list = (start, len, row, (0..len).rev().step_by(every).map(query).collect::<Vec<_>>());
                row += len;
                list
            }).collect();
            let lists: Vec<_> = lists.into_iter().map(|(start, len, row, mut queries)| {
                queries.reverse();
                (start, len, row, queries)
            }).collect();
            let segments: Vec<KeySegment<'_>> = lists.iter().map(|(start, len, row, queries)| KeySegment {
                blocks: &blocks,
                start: *start as u32,
                len: *len as u32,
                row: *row as u32,
                queries,
            }).collect();
            let plan = Plan::new(&shape, &segments).unwrap();
            hold(&plan, &shape, &segments);
            prop_assert_eq!(plan.batch_rows, row);

            let filled = plan.filled();
            prop_assert_eq!(filled.filled().frame(), filled.frame());
            prop_assert!(filled.items.is_power_of_two() && filled.tokens_at.is_multiple_of(4));
            let lists = |plan: &Plan| [0, plan.tokens_at, plan.tiles_at, plan.blocks_at, plan.words().len()];
            for (own, filled_up) in lists(&plan).windows(2).zip(lists(&filled).windows(2)) {
                let (own, all) = (&plan.words()[own[0]..own[1]], &filled.words()[filled_up[0]..filled_up[1]]);
                let (same, rest) = all.split_at(own.len());
                prop_assert_eq!(same, own);
                prop_assert!(rest.iter().all(|&word| word == 0));
            }
        }
    }
}
