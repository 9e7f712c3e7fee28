//! Problems of the ops around a model's layers: what goes in, what is moved, and what is asked about logits and gradients.

use super::case::{Case, CheckOutput, CheckRun};
use super::numbers::{halves, singles, stored, unwritten, wide, widened};
use crate::Result;
use crate::cuda::buffer::Buffer;

use crate::cuda::ops::candidate_scores::{self, ScoreQuery, candidate_scores};
use crate::cuda::ops::copy_rows::copy_rows;
use crate::cuda::ops::embed::{Table, embed};
use crate::cuda::ops::kv::KvLayout;
use crate::cuda::ops::kv_copy::kv_copy;
use crate::cuda::ops::logits::{chosen_logits, log_probabilities};
use crate::cuda::ops::pad_convert::{Changed, Groups, Layout, Stored, pad_convert};
use crate::cuda::ops::random_fill::random_fill;
use crate::cuda::ops::softmax_entropy::{RowStatsOut, Scratch, TopKOut, TopKQuery, When, softmax_entropy, top_k};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::dtype::{DType, HalfType};
use crate::kv::BLOCK;
use crate::rng::RandomFill;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::of_both("embed", "3 ids", "embed", |device, storage| {
            Embedding::new().run(device, storage, WeightLayout::Rows)
        }),
        Case::of_one("copy_rows", "3 rows", "copy_rows", |device| CopiedRows::new().run(device)),
        Case::of_one("kv_copy", "one block", "kv_copy", |device| Block::new().run(device)),
        Case::of_both("pad_convert", "f32 heads of 5 in 8", "pad_convert", |device, storage| {
            Padded::new().run(device, storage, WeightLayout::Rows)
        }),
        Case::of_both("random_fill", "40 elements", "random_fill", drawn),
        Case::of_both("candidate_scores", "2 queries", "candidate_scores", |device, storage| {
            CandidatesCase::new().run(device, storage)
        }),
        Case::of_one("softmax_entropy", "2 rows", "softmax_entropy", |device| LogitsCase::long().statistics(device)),
        Case::of_one("softmax_entropy", "largest of 2 rows", "top_k", |device| LogitsCase::long().largest(device)),
        Case::of_one("logits", "2 rows", "logits", |device| LogitsCase::short().asked(device)),
    ]
}

/// What reads and writes weights in tiles, beside the products.
pub(super) fn tiled_cases() -> Vec<Case> {
    vec![
        Case::of_both("embed", "3 ids, tiles", "embed", |device, storage| {
            Embedding::new().run(device, storage, WeightLayout::Tiles)
        }),
        Case::of_both("pad_convert", "f32 heads of 5 in 8, tiles", "pad_convert", |device, storage| {
            Padded::new().run(device, storage, WeightLayout::Tiles)
        }),
    ]
}

/// Rows of a table.
pub(crate) struct Embedding {
    /// `[ROWS, WIDTH]`.
    pub table: Vec<f32>,
    pub ids: [u32; 3],
}

impl Embedding {
    pub const ROWS: usize = 5;
    pub const WIDTH: usize = 24;

    pub fn new() -> Self {
        Embedding { table: halves("embedding", Self::ROWS * Self::WIDTH, 1.0), ids: [4, 0, 2] }
    }

    fn run(&self, device: &CheckRun<'_>, storage: HalfType, layout: WeightLayout) -> Result<Vec<CheckOutput>> {
        let rows: Vec<u16> = self.table.iter().map(|&x| storage.round(x)).collect();
        let table = Buffer::from_slice(device, &layout.arranged(&rows, Self::ROWS, Self::WIDTH))?;
        let ids = Buffer::from_slice(device, &self.ids)?;
        let mut out = unwritten(device, self.ids.len() * Self::WIDTH)?;
        let table = Table { elements: table.view(), vocabulary: Self::ROWS, layout };
        embed(device, storage, &mut out.view_mut(), table, ids.view(), Self::WIDTH)?;
        Ok(vec![CheckOutput::new("out", wide(&device.finished(&out)?))])
    }
}

/// Rows that are copied into others.
pub(crate) struct CopiedRows {
    /// `[4, WIDTH]`.
    pub src: Vec<f32>,
    /// From, to.
    pub pairs: [[u32; 2]; 3],
}

impl CopiedRows {
    pub const WIDTH: usize = 12;
    /// Of the target.
    pub const ROWS: usize = 5;

    pub fn new() -> Self {
        CopiedRows { src: singles("rows", 4 * Self::WIDTH, 1.0), pairs: [[3, 0], [0, 4], [1, 2]] }
    }

    fn run(&self, device: &CheckRun<'_>) -> Result<Vec<CheckOutput>> {
        let (src, pairs) = (Buffer::from_slice(device, &self.src)?, Buffer::from_slice(device, &self.pairs)?);
        let mut dst = Buffer::<f32>::zeros(device, Self::ROWS * Self::WIDTH)?;
        copy_rows(device, &mut dst.view_mut(), src.view(), pairs.view(), Self::WIDTH)?;
        Ok(vec![CheckOutput::new("dst", wide(&device.finished(&dst)?))])
    }
}

/// A block of which the first positions are copied into another one.
pub(crate) struct Block {
    pub block: Vec<f32>,
}

impl Block {
    pub const LAYOUT: KvLayout = KvLayout { layers: 1, kv_heads: 1, head: 8 };
    pub const POSITIONS: usize = 61;
    /// Of the target's elements, every so many are looked at.
    pub const STEP: usize = 7;

    pub fn new() -> Self {
        Block { block: halves("block", 2 * BLOCK * Self::LAYOUT.head, 1.0) }
    }

    fn run(&self, device: &CheckRun<'_>) -> Result<Vec<CheckOutput>> {
        let (size, storage) = (Self::LAYOUT.block(), HalfType::Bf16);
        let mut pool: Vec<u16> = self.block.iter().map(|&x| storage.round(x)).collect();
        pool.resize(3 * size, 0);
        let mut pool = Buffer::from_slice(device, &pool)?;
        let copies = Buffer::from_slice(device, &[[0, 2, Self::POSITIONS as u32]])?;
        kv_copy(device, &mut pool.view_mut(), copies.view(), Self::LAYOUT)?;
        let found = widened(storage, &device.finished(&pool)?[2 * size..]);
        Ok(vec![CheckOutput::new("block", found).every(Self::STEP)])
    }
}

/// A matrix in f32 that is spread over a wider one.
pub(crate) struct Padded {
    pub stored: Vec<f32>,
    pub layout: Layout,
}

impl Padded {
    /// Rows of the destination, and their width.
    const ROWS: usize = 5;
    const WIDTH: usize = 16;
    /// Elements of the destination.
    pub const LEN: usize = Self::ROWS * Self::WIDTH;

    pub fn new() -> Self {
        let layout = Layout { first_row: 1, col_groups: Groups::new(5, 8), ..Layout::corner(3, 10, Self::WIDTH) };
        Padded { stored: singles("padded", 30, 1.0), layout }
    }

    fn run(&self, device: &CheckRun<'_>, storage: HalfType, destination: WeightLayout) -> Result<Vec<CheckOutput>> {
        let (rows, width) = (Self::ROWS, Self::WIDTH);
        let bytes = Buffer::<u8>::from_slice(device, bytemuck::cast_slice(&self.stored))?;
        let mut out = Buffer::<u16>::zeros(device, destination.elements(rows, width))?;
        let mut changed = Buffer::<Changed>::zeros(device, 1)?;
        let stored = Stored { bytes: bytes.view(), dtype: DType::F32, first: 0 };
        let layout = Layout { destination, ..self.layout };
        pad_convert(device, storage, &mut out.view_mut(), stored, &layout, &mut changed.view_mut())?;
        let found = device.finished(&out)?;
        // In the order of rows, in which the results are.
        let found: Vec<u16> =
            (0..Self::LEN).map(|at| found[destination.index(width, at / width, at % width)]).collect();
        Ok(vec![CheckOutput::new("out", widened(storage, &found))])
    }
}

/// What random weights are drawn from, and the first of [`DRAWN`] elements.
pub(crate) const DRAW: (RandomFill, usize) = (RandomFill { seed: 20_260, mean: 0.25, scale: 0.5 }, 3);
pub(crate) const DRAWN: usize = 40;

fn drawn(device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
    let mut out = unwritten(device, DRAWN)?;
    random_fill(device, storage, &mut out.view_mut(), DRAW.1, DRAW.0)?;
    Ok(vec![CheckOutput::new("out", widened(storage, &device.finished(&out)?))])
}

/// Gradients, and the embeddings that they are multiplied with.
pub(crate) struct CandidatesCase {
    /// `[2, WIDTH]`.
    pub grads: Vec<f32>,
    /// `[7, WIDTH]`.
    pub table: Vec<f32>,
    pub ids: [u32; 5],
    pub queries: [ScoreQuery; 2],
}

impl CandidatesCase {
    pub const WIDTH: usize = 40;
    pub const SCALE: f32 = 0.125;

    pub fn new() -> Self {
        CandidatesCase {
            grads: singles("candidates' gradients", 2 * Self::WIDTH, 0.3),
            table: halves("candidates", 7 * Self::WIDTH, 1.0),
            ids: [6, 0, 3, 3, 1],
            queries: [ScoreQuery { row: 1, first: 0, count: 3 }, ScoreQuery { row: 0, first: 3, count: 2 }],
        }
    }

    fn run(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        let (grads, table) = (Buffer::from_slice(device, &self.grads)?, stored(device, storage, &self.table)?);
        let (ids, queries) = (Buffer::from_slice(device, &self.ids)?, Buffer::from_slice(device, &self.queries)?);
        let inputs = candidate_scores::Inputs {
            grads: grads.view(),
            table: table.view(),
            ids: ids.view(),
            queries: queries.view(),
            d: Self::WIDTH,
            scale: Self::SCALE,
        };
        let mut norms = unwritten(device, self.queries.len())?;
        let mut products = unwritten(device, self.ids.len())?;
        candidate_scores(device, storage, &mut norms.view_mut(), &mut products.view_mut(), &inputs)?;
        Ok(vec![
            CheckOutput::new("norms", wide(&device.finished(&norms)?)),
            CheckOutput::new("products", wide(&device.finished(&products)?)),
        ])
    }
}

/// Two rows of logits.
pub(crate) struct LogitsCase {
    pub logits: Vec<f32>,
    pub width: usize,
}

impl LogitsCase {
    /// Probability floors of the rows.
    pub const FLOORS: [f64; 2] = [1e-9, 1e-3];
    /// How many of the largest are asked for, and of how many.
    pub const LARGEST: usize = 5;
    pub const BELOW: usize = 4098;
    /// Row and id.
    pub const PAIRS: [[u32; 2]; 3] = [[1, 36], [0, 0], [1, 7]];

    /// More than one block takes.
    pub fn long() -> Self {
        LogitsCase { logits: singles("long logits", 2 * 4099, 2.5), width: 4099 }
    }

    pub fn short() -> Self {
        LogitsCase { logits: singles("short logits", 2 * 37, 2.5), width: 37 }
    }

    fn stats(&self, device: &CheckRun<'_>, scratch: &mut Scratch) -> Result<(Buffer<f32>, Buffer<RowStatsOut>)> {
        let (logits, floors) = (Buffer::from_slice(device, &self.logits)?, Buffer::from_slice(device, &Self::FLOORS)?);
        let mut stats = unwritten(device, 2)?;
        softmax_entropy(device, &mut stats.view_mut(), logits.view(), floors.view(), scratch)?;
        Ok((logits, stats))
    }

    fn statistics(&self, device: &CheckRun<'_>) -> Result<Vec<CheckOutput>> {
        let mut scratch = Scratch::new(device, 2, self.width)?;
        let stats = device.finished(&self.stats(device, &mut scratch)?.1)?;
        let of = |name, field: fn(&RowStatsOut) -> f64| CheckOutput::new(name, stats.iter().map(field).collect());
        Ok(vec![
            of("log_sum_exp", |row| row.log_sum_exp),
            of("entropy", |row| row.entropy),
            of("entropy_floored", |row| row.entropy_floored),
            of("max_probability", |row| row.max_probability),
            of("varentropy", |row| row.varentropy),
            of("margin", |row| f64::from(row.margin)),
            of("argmax", |row| f64::from(row.argmax)),
            of("finite", |row| f64::from(row.finite)),
        ])
    }

    fn largest(&self, device: &CheckRun<'_>) -> Result<Vec<CheckOutput>> {
        let mut scratch = Scratch::new(device, 2, self.width)?;
        let (logits, stats) = self.stats(device, &mut scratch)?;
        let queries = Buffer::from_slice(device, &[TopKQuery::new(Self::LARGEST, When::Always, 0.0); 2])?;
        let mut ids = unwritten(device, 2 * Self::LARGEST)?;
        let (mut values, mut found) = (unwritten(device, 2 * Self::LARGEST)?, unwritten(device, 2)?);
        let mut out =
            TopKOut { ids: ids.view_mut(), logits: values.view_mut(), found: found.view_mut(), stride: Self::LARGEST };
        top_k(device, &mut out, logits.view(), stats.view(), queries.view(), Self::BELOW, &mut scratch)?;
        let whole = |words: Vec<u32>| words.into_iter().map(f64::from).collect();
        Ok(vec![
            CheckOutput::new("ids", whole(device.finished(&ids)?)),
            CheckOutput::new("logits", wide(&device.finished(&values)?)),
            CheckOutput::new("found", whole(device.finished(&found)?)),
        ])
    }

    fn asked(&self, device: &CheckRun<'_>) -> Result<Vec<CheckOutput>> {
        let mut scratch = Scratch::new(device, 2, self.width)?;
        let (logits, stats) = self.stats(device, &mut scratch)?;
        let pairs = Buffer::from_slice(device, &Self::PAIRS)?;
        let (mut out, mut chosen) = (unwritten(device, self.logits.len())?, unwritten(device, Self::PAIRS.len())?);
        log_probabilities(device, &mut out.view_mut(), logits.view(), stats.view())?;
        chosen_logits(device, &mut chosen.view_mut(), logits.view(), pairs.view(), self.width)?;
        Ok(vec![
            CheckOutput::new("log_probabilities", wide(&device.finished(&out)?)),
            CheckOutput::new("chosen", wide(&device.finished(&chosen)?)),
        ])
    }
}
