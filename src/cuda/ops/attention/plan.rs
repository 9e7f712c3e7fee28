//! What the blocks of an attention launch compute: items of query tokens and the pages that they see.
//!
//! A plan is made once per batch (and window) and serves all layers. It decides how work is spread and shared, never what
//! a token's result is: chunk boundaries are absolute, and the kernels fold a token's chunks in ascending order whether
//! one block walks them all or each has its own.

mod cut;

use super::shape::{Query, Sequence, Shape};
use crate::kv::BLOCK;
use crate::{Error, Result};
use cut::cut;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

/// Pages per chunk: the stretch of positions whose state is complete in itself.
pub const CHUNK_PAGES: usize = 4;

const OP: &str = "attention";
/// Positions per chunk.
const CHUNK: usize = CHUNK_PAGES * BLOCK;
/// Classes of items by their rows: few, some, many and wide.
pub(in crate::cuda::ops) const CLASSES: usize = 4;
/// The class of one whole tile, and that of two tiles.
pub(in crate::cuda::ops) const MANY: usize = 2;
pub(in crate::cuda::ops) const WIDE: usize = 3;
/// Most rows (tokens times heads of a group) of an item, by class.
const CLASS_ROWS: [usize; CLASSES] = [16, 32, TILE_ROWS, 2 * TILE_ROWS];
/// Rows of a tile. A token's rows are in one tile: the first tile of a wide item has as many tokens as fit into it, the other
/// tile has the rest.
const TILE_ROWS: usize = 64;
/// Words of an item, of a token in an item, and of a page.
pub(in crate::cuda::ops) const ITEM_WORDS: usize = 4;
const TOKEN_WORDS: usize = 8;
const PAGE_WORDS: usize = 4;
/// In an item's number of tokens: some of its tokens have parts in other items.
const SHARED: u32 = 1 << 16;
/// In a page's number of positions: the last page of its chunk.
const CHUNK_ENDS: u32 = 1 << 16;
/// There too, for the first tile of an item, and one bit further for its second: some row sees some of the page, every row sees some
/// of it, every row sees all of it.
const SEEN: u32 = 1 << 17;
const TOGETHER: u32 = 1 << 19;
const WHOLE: u32 = 1 << 21;

/// What a plan may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLimits {
    /// Blocks that fill the device: with fewer, long sequences are cut along their keys.
    pub blocks: usize,
    /// Parts of tokens that the scratch has room for.
    pub partials: usize,
    /// By what the kernels multiply that take the items.
    pub products: AttentionProducts,
}

/// By what the kernels multiply that take a plan's items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AttentionProducts {
    /// By mma, on every card. There are no wide items.
    #[default]
    Mma,
    /// On Hopper, by mma items of few and some rows, by wgmma the others: every sum is the same in both.
    Both,
    /// On Hopper, all by wgmma, and products of one width alone: the plan for a card where the sums of mma are others, or those of
    /// another width.
    Wgmma,
}

impl AttentionProducts {
    /// All of them.
    pub const ALL: [AttentionProducts; 3] = [AttentionProducts::Mma, AttentionProducts::Both, AttentionProducts::Wgmma];

    /// Tiles of 64 rows that an item may have.
    fn tiles(self) -> usize {
        if self == AttentionProducts::Mma { 1 } else { 2 }
    }

    /// Whether the items of a class are multiplied by wgmma.
    pub(super) fn is_wgmma(self, class: usize) -> bool {
        match self {
            AttentionProducts::Mma => false,
            AttentionProducts::Both => class >= MANY,
            AttentionProducts::Wgmma => true,
        }
    }
}

/// Work lists for one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    words: Vec<u32>,
    /// Items of each class; they follow each other from word 0.
    pub(in crate::cuda::ops) items: [usize; CLASSES],
    /// First words of the tokens and of the pages.
    pub(in crate::cuda::ops) tokens_at: usize,
    pub(in crate::cuda::ops) pages_at: usize,
    /// Parts that go through the scratch, and tokens that have several.
    pub(in crate::cuda::ops) partials: usize,
    pub(in crate::cuda::ops) tickets: usize,
    /// One past the largest row of `q`, row of `out` and block.
    pub(in crate::cuda::ops) rows: usize,
    pub(in crate::cuda::ops) rows_out: usize,
    pub(in crate::cuda::ops) blocks: usize,
    pub(in crate::cuda::ops) shape: Shape,
    pub(super) products: AttentionProducts,
}

/// What a launch depends on besides the words: two plans of one frame are launched alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    items: [usize; CLASSES],
    tokens_at: usize,
    pages_at: usize,
    words: usize,
    partials: usize,
    products: AttentionProducts,
}

/// A query token with what it sees.
#[derive(Clone, Copy, Debug)]
struct QueryToken {
    query: Query,
    sequence: usize,
    /// Lowest visible position.
    lowest: usize,
    /// First of its parts in the scratch, their number, and its ticket; one part if an item has it whole.
    partial: usize,
    parts: usize,
    ticket: usize,
}

impl QueryToken {
    fn position(&self) -> usize {
        self.query.position as usize
    }

    fn chunks(&self) -> Range<usize> {
        self.lowest / CHUNK..self.position() / CHUNK + 1
    }

    fn sees(&self, page: usize) -> bool {
        self.position() >= page * BLOCK && self.lowest < (page + 1) * BLOCK
    }
}

/// Tokens of one sequence, as many as an item has room for, and the pages that they see.
struct TokenRun {
    tokens: Vec<QueryToken>,
    pages: Range<usize>,
}

impl TokenRun {
    fn new(tokens: &[QueryToken]) -> Self {
        let from = tokens.iter().map(|token| token.lowest / BLOCK).min().unwrap_or(0);
        let to = tokens.iter().map(|token| token.position() / BLOCK + 1).max().unwrap_or(from);
        TokenRun { tokens: tokens.to_vec(), pages: from..to }
    }
}

/// Tokens of one block and the chunks that it walks.
struct Item {
    tokens: Vec<QueryToken>,
    pages: Vec<[u32; PAGE_WORDS]>,
    /// The only chunk, if the tokens have parts in other items.
    chunk: Option<usize>,
}

impl Plan {
    /// Spreads the queries of a batch over blocks.
    ///
    /// # Errors
    /// The shape has no kernel, positions do not ascend, or a sequence has no block for one of them.
    pub fn new(shape: &Shape, sequences: &[Sequence<'_>], limits: PlanLimits) -> Result<Self> {
        let group = shape.group()?;
        let tile = TILE_ROWS / group;
        let capacity = limits.products.tiles() * tile;
        let mut plan = Plan {
            words: Vec::new(),
            items: [0; CLASSES],
            tokens_at: 0,
            pages_at: 0,
            partials: 0,
            tickets: 0,
            rows: 0,
            rows_out: 0,
            blocks: 0,
            shape: *shape,
            products: limits.products,
        };
        for (index, sequence) in sequences.iter().enumerate() {
            plan.check(index, sequence)?;
        }
        let mut runs: Vec<TokenRun> = Vec::new();
        for (index, sequence) in sequences.iter().enumerate() {
            let tokens = sequence.queries.iter().map(|&query| QueryToken {
                query,
                sequence: index,
                lowest: shape.lowest(query.position as usize),
                partial: 0,
                parts: 1,
                ticket: 0,
            });
            runs.extend(tokens.collect::<Vec<_>>().chunks(capacity).map(TokenRun::new));
        }

        let mut items: Vec<Item> = Vec::new();
        let mut apart: BTreeMap<(usize, u32), Vec<QueryToken>> = BTreeMap::new();
        let cut = cut(&runs, sequences, plan.blocks, (capacity, shape.kv_heads), limits);
        for (TokenRun { mut tokens, .. }, cut) in runs.into_iter().zip(cut) {
            let parts: usize = tokens.iter().map(|token| token.chunks().len()).filter(|&n| n > 1).sum();
            if cut && plan.partials + parts <= limits.partials {
                for token in &mut tokens {
                    token.parts = token.chunks().len();
                    if token.parts > 1 {
                        (token.partial, token.ticket) = (plan.partials, plan.tickets);
                        plan.partials += token.parts;
                        plan.tickets += 1;
                    }
                    for chunk in token.chunks() {
                        let first = sequences[token.sequence].blocks[chunk * CHUNK_PAGES].0;
                        apart.entry((chunk, first)).or_default().push(*token);
                    }
                }
                continue;
            }
            let chunks = tokens.iter().map(QueryToken::chunks);
            let last = chunks.clone().map(|c| c.end).max().unwrap_or(0);
            let chunks = chunks.map(|c| c.start).min().unwrap_or(0)..last;
            let pages = chunks.flat_map(|chunk| pages(sequences, &tokens, chunk, tile, limits.products)).collect();
            items.push(Item { tokens, pages, chunk: None });
        }
        for ((chunk, _), mut tokens) in apart {
            // Tokens that share a block become neighbours, so that its page names them by a range.
            let path = |token: &QueryToken| {
                let blocks = sequences[token.sequence].blocks;
                blocks[chunk * CHUNK_PAGES..blocks.len().min((chunk + 1) * CHUNK_PAGES)].iter().map(|block| block.0)
            };
            tokens.sort_by(|a, b| path(a).cmp(path(b)));
            for tokens in tokens.chunks(capacity) {
                let pages = pages(sequences, tokens, chunk, tile, limits.products);
                items.push(Item { tokens: tokens.to_vec(), pages, chunk: Some(chunk) });
            }
        }
        plan.write(items, group)?;
        Ok(plan)
    }

    /// Checks a sequence and notes how large everything must be that its queries touch.
    fn check(&mut self, index: usize, sequence: &Sequence<'_>) -> Result<()> {
        let mut before = None;
        for query in sequence.queries {
            let page = query.position as usize / BLOCK;
            if before.is_some_and(|before| before >= query.position) {
                return Err(Error::Backend(format!(
                    "{OP}: sequence {index} asks for position {} after {}, expected ascending positions",
                    query.position,
                    before.unwrap_or(0)
                )));
            }
            if page >= sequence.blocks.len() || query.position > i32::MAX as u32 - CHUNK as u32 {
                return Err(Error::Backend(format!(
                    "{OP}: sequence {index} asks for position {}, its {} blocks hold positions below {}",
                    query.position,
                    sequence.blocks.len(),
                    sequence.blocks.len() * BLOCK
                )));
            }
            before = Some(query.position);
            self.rows = self.rows.max(query.row as usize + 1);
            self.rows_out = self.rows_out.max(query.out as usize + 1);
        }
        let seen = before.map_or(0, |last| last as usize / BLOCK + 1);
        let blocks = sequence.blocks[..seen].iter().map(|block| block.0 as usize + 1);
        self.blocks = blocks.fold(self.blocks, usize::max);
        Ok(())
    }

    fn write(&mut self, mut items: Vec<Item>, group: usize) -> Result<()> {
        let class = |item: &Item| {
            let rows = item.tokens.len() * group;
            CLASS_ROWS.iter().position(|&limit| rows <= limit).unwrap_or(CLASSES - 1)
        };
        // The longest items of a class start first.
        items.sort_by_key(|item| (class(item), Reverse(item.pages.len())));
        let (mut tokens, mut pages): (Vec<[u32; TOKEN_WORDS]>, Vec<[u32; PAGE_WORDS]>) = (Vec::new(), Vec::new());
        for item in &items {
            self.items[class(item)] += 1;
            let shared = item.tokens.iter().any(|token| token.parts > 1);
            let first = [word(tokens.len())?, word(pages.len())?];
            let count = word(item.tokens.len())? | if shared { SHARED } else { 0 };
            self.words.extend([first[0], count, first[1], word(item.pages.len())?]);
            for token in &item.tokens {
                let part = item.chunk.filter(|_| token.parts > 1).map_or(0, |chunk| chunk - token.chunks().start);
                tokens.push([
                    token.query.row,
                    token.query.out,
                    token.query.position,
                    word(token.lowest)?,
                    word(token.partial)?,
                    word(token.parts)?,
                    word(part)?,
                    word(token.ticket)?,
                ]);
            }
            pages.extend(&item.pages);
        }
        self.tokens_at = self.words.len();
        self.words.extend(tokens.as_flattened());
        self.pages_at = self.words.len();
        self.words.extend(pages.as_flattened());
        Ok(())
    }

    /// The lists as the kernels read them: items, tokens of items, pages of items. To be copied to the device.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The same work in a frame that many batches have: items of each class, their tokens and their pages are filled up to
    /// powers of two, and the scratch is used as if it were full. What fills up does nothing.
    pub fn filled(&self, limits: PlanLimits) -> Plan {
        let mut plan = Plan { words: Vec::new(), partials: limits.partials.max(self.partials), ..self.clone() };
        let mut rest = &self.words[..self.tokens_at];
        for (items, filled) in self.items.iter().zip(&mut plan.items) {
            let (own, others) = rest.split_at(ITEM_WORDS * items);
            rest = others;
            *filled = if *items == 0 { 0 } else { items.next_power_of_two() };
            plan.words.extend(own);
            plan.words.resize(plan.words.len() + ITEM_WORDS * (*filled - items), 0);
        }
        let fill = |words: &mut Vec<u32>, list: &[u32], width: usize| {
            let at = words.len();
            words.extend(list);
            words.resize(at + (list.len() / width).next_power_of_two() * width, 0);
            at
        };
        plan.tokens_at = fill(&mut plan.words, &self.words[self.tokens_at..self.pages_at], TOKEN_WORDS);
        plan.pages_at = fill(&mut plan.words, &self.words[self.pages_at..], PAGE_WORDS);
        plan
    }

    /// What a launch of it depends on besides the words.
    pub fn frame(&self) -> Frame {
        let Plan { items, tokens_at, pages_at, partials, products, .. } = *self;
        Frame { items, tokens_at, pages_at, words: self.words.len(), partials, products }
    }

    /// Blocks that a launch has.
    pub fn grid(&self) -> usize {
        self.items.iter().sum::<usize>() * self.shape.kv_heads
    }

    /// Parts of tokens that go through the scratch.
    pub fn partials(&self) -> usize {
        self.partials
    }
}

fn word(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Backend(format!("{OP}: a batch with {value} entries is too large")))
}

/// Pages of one chunk that some of the tokens see, ascending: block, first position, range of tokens, positions and flags. A tile has
/// `tile` tokens.
fn pages(
    sequences: &[Sequence<'_>],
    tokens: &[QueryToken],
    chunk: usize,
    tile: usize,
    products: AttentionProducts,
) -> Vec<[u32; PAGE_WORDS]> {
    let mut pages = Vec::new();
    for page in chunk * CHUNK_PAGES..(chunk + 1) * CHUNK_PAGES {
        let block = |token: &QueryToken| sequences[token.sequence].blocks.get(page).copied();
        let mut from = 0;
        for run in tokens.chunk_by(|a, b| block(a) == block(b)) {
            let to = from + run.len();
            let last = run.iter().filter(|token| token.sees(page)).map(QueryToken::position).max();
            if let (Some(last), Some(block)) = (last, block(&run[0])) {
                let valid = (last + 1 - page * BLOCK).min(BLOCK);
                let flags = sight(tokens, page, from..to, tile, products);
                // Tokens of an item and positions of a page are few, at most 128 and 64. Positions are below 2^31.
                pages.push([block.0, (page * BLOCK) as u32, (from | to << 16) as u32, valid as u32 | flags]);
            }
            from = to;
        }
    }
    if let Some(last) = pages.last_mut() {
        last[3] |= CHUNK_ENDS;
    }
    pages
}

/// What the tiles of an item see of a page that some of the tokens have.
fn sight(tokens: &[QueryToken], page: usize, having: Range<usize>, tile: usize, products: AttentionProducts) -> u32 {
    let (first, last) = (page * BLOCK, (page + 1) * BLOCK - 1);
    let mut flags = 0;
    for (index, tokens) in tokens.chunks(tile).enumerate() {
        let (from, to) = (index * tile, index * tile + tokens.len());
        let inside = having.start.clamp(from, to) - from..having.end.clamp(from, to) - from;
        let all = inside.len() == tokens.len();
        let mut put = |flag: u32, is: bool| flags |= if is { flag << index } else { 0 };
        put(SEEN, tokens[inside].iter().any(|token| token.sees(page)));
        // Products of one width alone are those with a copy of the sums.
        put(TOGETHER, products != AttentionProducts::Wgmma && all && tokens.iter().all(|token| token.sees(page)));
        put(WHOLE, all && tokens.iter().all(|token| token.position() >= last && token.lowest <= first));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockId;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn shape(heads: usize, kv_heads: usize, window: Option<usize>) -> Shape {
        Shape { heads, kv_heads, head: 64, scale: 0.125, window }
    }

    const PLENTY: PlanLimits = PlanLimits { blocks: 264, partials: 1 << 20, products: AttentionProducts::Mma };

    fn queries(from: usize, count: usize, row: usize) -> Vec<Query> {
        let query = |i: usize| Query { row: (row + i) as u32, out: (row + i) as u32, position: (from + i) as u32 };
        (0..count).map(query).collect()
    }

    /// An item as the kernel reads it: class, tokens, pages.
    struct ReadItem {
        class: usize,
        tokens: Vec<[u32; TOKEN_WORDS]>,
        pages: Vec<[u32; PAGE_WORDS]>,
    }

    fn read(plan: &Plan) -> Vec<ReadItem> {
        let words = plan.words();
        let classes = plan.items.iter().enumerate().flat_map(|(class, &n)| std::iter::repeat_n(class, n));
        let list = |at: usize, first: u32, count: u32, width: usize| {
            let from = at + first as usize * width;
            words[from..from + count as usize * width].to_vec()
        };
        let items = words[..plan.tokens_at].chunks_exact(ITEM_WORDS).zip(classes).map(|(item, class)| ReadItem {
            class,
            tokens: list(plan.tokens_at, item[0], item[1] & 0xffff, TOKEN_WORDS).as_chunks().0.to_vec(),
            pages: list(plan.pages_at, item[2], item[3], PAGE_WORDS).as_chunks().0.to_vec(),
        });
        items.collect()
    }

    /// Everything that the kernel relies on, checked on the words themselves.
    fn hold(plan: &Plan, shape: &Shape, sequences: &[Sequence<'_>]) {
        let group = shape.heads / shape.kv_heads;
        // (row of q, page) -> block, in the order in which items see them; (ticket) -> parts.
        let mut seen: HashMap<(u32, u32), u32> = HashMap::new();
        let mut parts: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut slots: HashMap<u32, u32> = HashMap::new();
        let mut whole: HashMap<u32, usize> = HashMap::new();
        for item in read(plan) {
            if item.tokens.is_empty() {
                assert!(item.pages.is_empty(), "what fills up does nothing");
                continue;
            }
            let rows = item.tokens.len() * group;
            if item.class == WIDE {
                let tile = TILE_ROWS / group;
                assert!(item.tokens.len() > tile && item.tokens.len() <= 2 * tile, "two tiles, neither of them empty");
            }
            assert!(rows > 0 && rows <= CLASS_ROWS[item.class] && !item.pages.is_empty());
            assert!(item.class == 0 || rows > CLASS_ROWS[item.class - 1], "the smallest class that fits");
            let ends = |page: &[u32; PAGE_WORDS]| page[3] & CHUNK_ENDS != 0;
            for pair in item.pages.windows(2) {
                assert!(pair[0][1] <= pair[1][1], "pages ascend");
                assert_eq!(ends(&pair[0]), pair[0][1] as usize / CHUNK != pair[1][1] as usize / CHUNK);
            }
            assert!(ends(item.pages.last().unwrap()));
            for page in &item.pages {
                let (from, to, valid) = (page[2] & 0xffff, page[2] >> 16, page[3] & 0xffff);
                assert!(from < to && to as usize <= item.tokens.len() && (1..=64).contains(&valid));
                for (index, tokens) in item.tokens.chunks(TILE_ROWS / group).enumerate() {
                    let first = index * (TILE_ROWS / group);
                    let has = |i: usize| (from as usize..to as usize).contains(&(first + i));
                    let sees = |(i, t): (usize, &[u32; TOKEN_WORDS])| has(i) && t[2] >= page[1] && t[3] < page[1] + 64;
                    let whole =
                        |(i, t): (usize, &[u32; TOKEN_WORDS])| has(i) && t[2] >= page[1] + 63 && t[3] <= page[1];
                    let flag = |flag: u32| page[3] & flag << index != 0;
                    assert_eq!(flag(SEEN), tokens.iter().enumerate().any(sees));
                    let together = tokens.iter().enumerate().all(sees);
                    assert_eq!(flag(TOGETHER), together && plan.products != AttentionProducts::Wgmma);
                    assert_eq!(flag(WHOLE), tokens.iter().enumerate().all(whole));
                }
                for token in &item.tokens[from as usize..to as usize] {
                    let (position, lowest) = (token[2], token[3]);
                    if position < page[1] || lowest >= page[1] + 64 {
                        continue;
                    }
                    assert!(position >= page[1] + 63 || position < page[1] + valid, "its keys are loaded");
                    assert_eq!(seen.insert((token[0], page[1]), page[0]), None, "a page is seen once");
                }
            }
            for token in &item.tokens {
                if token[5] == 1 {
                    *whole.entry(token[0]).or_default() += 1;
                } else {
                    assert!(
                        item.pages.iter().all(|page| page[1] as usize / CHUNK == item.pages[0][1] as usize / CHUNK)
                    );
                    let chunk = token[3] as usize / CHUNK + token[6] as usize;
                    assert_eq!(item.pages[0][1] as usize / CHUNK, chunk, "parts are numbered by chunk");
                    parts.entry(token[7]).or_default().push(token[6]);
                    assert_eq!(slots.insert(token[4] + token[6], token[0]), None, "a part has a place of its own");
                    assert!((token[4] + token[5]) as usize <= plan.partials && (token[7] as usize) < plan.tickets);
                }
            }
        }
        let mut expected = 0;
        let mut several = 0;
        for sequence in sequences {
            for query in sequence.queries {
                let lowest = shape.window.map_or(0, |w| (query.position as usize + 1).saturating_sub(w));
                let pages = lowest / BLOCK..query.position as usize / BLOCK + 1;
                expected += pages.len();
                for page in pages.clone() {
                    let block = seen.get(&(query.row, (page * BLOCK) as u32));
                    assert_eq!(block, Some(&sequence.blocks[page].0), "position {} sees page {page}", query.position);
                }
                if whole.get(&query.row) != Some(&1) {
                    assert!(!whole.contains_key(&query.row));
                    several += 1;
                }
            }
        }
        assert_eq!(seen.len(), expected, "nothing else is seen");
        assert_eq!(several, plan.tickets);
        assert_eq!(slots.len(), plan.partials);
        for parts in parts.values_mut() {
            parts.sort_unstable();
            assert!(parts.iter().enumerate().all(|(i, &part)| i as u32 == part), "every part once");
        }
    }

    fn ids(range: Range<u32>) -> Vec<BlockId> {
        range.map(BlockId).collect()
    }

    #[test]
    fn a_page_that_branches_share_is_read_once() {
        // Eight branches behind 300 shared positions, each with a private block for the rest.
        let queries: Vec<Vec<Query>> = (0..8).map(|b| queries(300, 1, b)).collect();
        let blocks: Vec<Vec<BlockId>> = (0..8).map(|b| [ids(0..4), ids(10 + b..11 + b)].concat()).collect();
        let sequences: Vec<Sequence<'_>> =
            blocks.iter().zip(&queries).map(|(blocks, queries)| Sequence { blocks, queries }).collect();
        let shape = shape(32, 8, None);
        let plan = Plan::new(&shape, &sequences, PLENTY).unwrap();
        hold(&plan, &shape, &sequences);
        let items = read(&plan);
        assert_eq!(plan.items, [8, 1, 0, 0], "the shared chunk has 32 rows, the private ones 4 each");
        assert_eq!(items.iter().map(|item| item.pages.len()).sum::<usize>(), 4 + 8);

        // They part inside a chunk: the shared pages are still read once.
        let blocks: Vec<Vec<BlockId>> = (0..8).map(|b| [ids(0..2), ids(10 + 3 * b..13 + 3 * b)].concat()).collect();
        let sequences: Vec<Sequence<'_>> =
            blocks.iter().zip(&queries).map(|(blocks, queries)| Sequence { blocks, queries }).collect();
        let plan = Plan::new(&shape, &sequences, PLENTY).unwrap();
        hold(&plan, &shape, &sequences);
        assert_eq!(read(&plan)[8].pages.len(), 2 + 2 * 8);
        assert_eq!(plan.partials, 16);
    }

    #[test]
    fn prefill_walks_its_chunks_where_there_are_blocks_enough() {
        let blocks = ids(0..32);
        let queries = queries(0, 2048, 0);
        let sequences = [Sequence { blocks: &blocks, queries: &queries }];
        let shape = shape(32, 8, None);
        let plan = Plan::new(&shape, &sequences, PLENTY).unwrap();
        hold(&plan, &shape, &sequences);
        assert_eq!((plan.items, plan.partials), ([0, 0, 128, 0], 0));
        assert_eq!(read(&plan)[0].pages.len(), 32, "the longest item starts first");

        let sequences = [Sequence { blocks: &blocks, queries: &queries[1024..1040] }];
        let plan = Plan::new(&shape, &sequences, PLENTY).unwrap();
        hold(&plan, &shape, &sequences);
        assert_eq!((plan.items, plan.partials), ([0, 0, 5, 0], 80), "a segment is cut along its keys");
        let plan = Plan::new(&shape, &sequences, PlanLimits { partials: 79, ..PLENTY }).unwrap();
        hold(&plan, &shape, &sequences);
        assert_eq!((plan.items, plan.partials), ([0, 0, 1, 0], 0), "unless there is no room for parts");
    }

    /// One query at the end of sequences of these lengths, whose first positions are the same, on a card of 132
    /// multiprocessors: the items of class few, their parts, and the longest item's pages.
    fn decode(lengths: &[usize], same: usize, limits: PlanLimits) -> (usize, usize, usize) {
        let shape = shape(32, 8, None);
        let mut next = 1 << 20;
        let mut fresh = |count: usize| {
            next += count as u32;
            ids(next - count as u32..next)
        };
        let blocks = lengths.iter().map(|&length| {
            let own = fresh(length.div_ceil(BLOCK) - same / BLOCK);
            [ids(0..(same / BLOCK) as u32), own].concat()
        });
        let blocks: Vec<Vec<BlockId>> = blocks.collect();
        let queries: Vec<Vec<Query>> = lengths.iter().enumerate().map(|(i, &len)| queries(len - 1, 1, i)).collect();
        let sequences: Vec<Sequence<'_>> =
            blocks.iter().zip(&queries).map(|(blocks, queries)| Sequence { blocks, queries }).collect();
        let plan = Plan::new(&shape, &sequences, limits).unwrap();
        hold(&plan, &shape, &sequences);
        (plan.items[0], plan.partials, read(&plan)[0].pages.len())
    }

    #[test]
    fn decoding_is_not_cut_where_there_are_sequences_enough() {
        assert_eq!(decode(&[1024; 256], 0, PLENTY), (256, 0, 16));
        assert_eq!(decode(&[4000; 64], 0, PLENTY), (64, 0, 63));
        // Lengths that differ.
        let lengths: Vec<usize> = (0..256).map(|i| 1024 + 13 * i).collect();
        assert_eq!(decode(&lengths, 0, PLENTY), (256, 0, 68));
        // 32 sequences of 8 heads are not quite two blocks a multiprocessor.
        assert_eq!(decode(&[1024; 32], 0, PLENTY), (128, 128, 4));
        // Of 40, 33 are a whole wave, and the others fill up what is left.
        assert_eq!(decode(&[1024; 40], 0, PLENTY), (33 + 7 * 4, 7 * 4, 16));
        // What is short has nothing to be cut.
        assert_eq!(decode(&[200; 256], 0, PLENTY), (256, 0, 4));
    }

    #[test]
    fn a_long_sequence_among_short_ones_is_cut() {
        let mut lengths = [1024; 256];
        lengths[100] = 65_536;
        assert_eq!(decode(&lengths, 0, PLENTY), (255 + 256, 256, 16));
        assert_eq!(decode(&lengths, 0, PlanLimits { partials: 255, ..PLENTY }), (256, 0, 1024), "no room for parts");
        lengths[100] = 4096;
        assert_eq!(decode(&lengths, 0, PLENTY), (256, 0, 64), "less than a block's share");
        // What the kernels' cases have, on a device with room for three sequences.
        let few = PlanLimits { blocks: 24, ..PLENTY };
        assert_eq!(decode(&[300, 300, 1500, 300, 300, 300], 0, few), (5 + 6, 6, 5));
    }

    #[test]
    fn sequences_that_share_pages_are_cut() {
        // 16 rows of 4 heads are an item of class many, in each of the two chunks that all share.
        let (items, partials, longest) = decode(&[1024; 256], 512, PLENTY);
        assert_eq!((items, partials, longest), (2 * 256, 4 * 256, 4));
        assert_eq!(decode(&[1024; 256], 128, PLENTY), (256, 0, 16), "an eighth is read again");
        assert_eq!(decode(&[1024; 256], 192, PLENTY).1, 4 * 256);
    }

    #[test]
    fn wide_items_have_two_tiles() {
        let blocks = ids(0..2);
        let queries = queries(0, 128, 0);
        let wide = PlanLimits { products: AttentionProducts::Both, ..PLENTY };
        let items = |kv_heads: usize, group: usize, count: usize, limits: PlanLimits| {
            let sequences = [Sequence { blocks: &blocks, queries: &queries[..count] }];
            let shape = shape(kv_heads * group, kv_heads, None);
            let plan = Plan::new(&shape, &sequences, limits).unwrap();
            hold(&plan, &shape, &sequences);
            plan.items
        };
        // For groups of one, of three, whose tiles have 21 tokens each, and of 64, whose tiles have one.
        assert_eq!(items(2, 1, 128, wide), [0, 0, 0, 1]);
        assert_eq!(items(2, 1, 64, wide), [0, 0, 1, 0], "one tile is enough");
        assert_eq!(items(2, 1, 128, PLENTY), [0, 0, 2, 0]);
        assert_eq!(items(2, 3, 42, wide), [0, 0, 0, 1]);
        assert_eq!(items(2, 3, 43, wide), [1, 0, 0, 1]);
        assert_eq!(items(2, 3, 22, wide), [0, 0, 0, 1]);
        assert_eq!(items(2, 3, 22, PLENTY), [1, 0, 1, 0]);
        assert_eq!(items(1, 64, 5, wide), [0, 0, 1, 2]);
    }

    #[test]
    fn a_window_leaves_pages_out() {
        let blocks = ids(0..20);
        let queries = queries(1000, 3, 0);
        let sequences = [Sequence { blocks: &blocks, queries: &queries }];
        let shape = shape(8, 8, Some(64));
        let plan = Plan::new(&shape, &sequences, PLENTY).unwrap();
        hold(&plan, &shape, &sequences);
        assert_eq!(read(&plan)[0].pages.len(), 2);
    }

    #[test]
    fn what_cannot_be_planned_is_named() {
        let blocks = ids(0..2);
        let error = |shape: Shape, queries: &[Query]| {
            let sequences = [Sequence { blocks: &blocks, queries }];
            Plan::new(&shape, &sequences, PLENTY).unwrap_err().to_string()
        };
        let good = shape(8, 8, None);
        assert!(error(good, &queries(128, 1, 0)).contains("2 blocks hold positions below 128"));
        let mut twice = queries(3, 2, 0);
        twice[1].position = 3;
        assert!(error(good, &twice).contains("position 3 after 3"));
        assert!(error(Shape { head: 80, ..good }, &[]).contains("80"));
        assert!(error(Shape { kv_heads: 3, ..good }, &[]).contains("8 query heads"));
        assert!(error(Shape { heads: 520, ..good }, &[]).contains("65"));
        assert!(error(Shape { window: Some(0), ..good }, &[]).contains("window"));
        assert!(error(Shape { scale: f32::NAN, ..good }, &[]).contains("scale"));
    }

    proptest! {
        /// Trees of sequences with any lengths, windows, groups and limits.
        #[test]
        fn every_visible_page_once(
            tree in prop::collection::vec((0usize..8, 0usize..900, 1usize..90, 0usize..130), 1..7),
            (kv_heads, group) in (1usize..4, prop::sample::select(vec![1usize, 3, 4, 8, 64])),
            window in prop::option::of(1usize..700),
            blocks in prop::sample::select(vec![1usize, 64, 100_000]),
            partials in prop::sample::select(vec![0usize, 40, 1 << 20]),
            products in prop::sample::select(AttentionProducts::ALL.to_vec()),
        ) {
            let limits = PlanLimits { blocks, partials, products };
            let shape = shape(kv_heads * group, kv_heads, window);
            let mut all: Vec<(Vec<BlockId>, Vec<Query>)> = Vec::new();
            let (mut fresh, mut row) = (0, 0);
            for (parent, at, count, skip) in tree {
                // A fork shares the whole blocks before it, or the sequence is new.
                let (position, mut blocks) = match all.get(parent) {
                    Some((blocks, _)) => {
                        let position = at.min(blocks.len() * BLOCK);
                        (position, blocks[..position / BLOCK].to_vec())
                    }
                    None => (at, Vec::new()),
                };
                let from = position + skip;
                while blocks.len() * BLOCK < from + count {
                    blocks.push(BlockId(fresh));
                    fresh += 1;
                }
                all.push((blocks, queries(from, count, row)));
                row += count;
            }
            let sequences: Vec<Sequence<'_>> =
                all.iter().map(|(blocks, queries)| Sequence { blocks, queries }).collect();
            let plan = Plan::new(&shape, &sequences, limits).unwrap();
            prop_assert!(plan.partials <= partials);
            prop_assert!(products != AttentionProducts::Mma || plan.items[WIDE] == 0);
            hold(&plan, &shape, &sequences);
            prop_assert_eq!(plan.rows, row);

            let filled = plan.filled(limits);
            prop_assert!(filled.items.iter().all(|&items| items == 0 || items.is_power_of_two()));
            prop_assert_eq!(filled.filled(limits).frame(), filled.frame());
            let busy = |plan: &Plan| read(plan).into_iter().filter(|item| !item.tokens.is_empty());
            let pairs = busy(&plan).zip(busy(&filled));
            for (own, filled) in pairs {
                prop_assert!(own.class == filled.class && own.tokens == filled.tokens && own.pages == filled.pages);
            }
            prop_assert_eq!(busy(&filled).count(), busy(&plan).count());
            let as_if = Plan { partials: plan.partials, ..filled };
            hold(&as_if, &shape, &sequences);
        }
    }
}
