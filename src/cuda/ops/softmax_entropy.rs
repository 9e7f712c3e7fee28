//! Statistics and largest logits of rows of logits.

use crate::cuda::buffer::{Buffer, View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, check_room, product, side};
use crate::{Error, Result};

/// Threads of a block.
const THREADS: u32 = 256;
/// Indices of the kernels.
const SPLITS: usize = 0;
const STATISTICS: usize = 1;
const TOP_K: usize = 2;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        let names = ["softmax_entropy_splits_f32", "softmax_entropy_f32", "top_k_f32"];
        names.map(|name| Spec::new("softmax_entropy", name, THREADS, 0)).to_vec()
    }
}

/// Logits per block: the boundaries between the parts of a row, whatever the batch.
const SPLIT: usize = 4096;

/// Most of the largest logits that [`top_k`] gives.
pub const MAX_K: usize = 64;

/// Statistics of a row as the device writes them; the model's `RowStats` says what they mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct RowStatsOut {
    /// `ln sum exp z`.
    pub log_sum_exp: f64,
    /// Entropy in nats.
    pub entropy: f64,
    /// Entropy with the probability floor.
    pub entropy_floored: f64,
    /// Largest probability.
    pub max_probability: f64,
    /// Variance of `-ln q`.
    pub varentropy: f64,
    /// The largest logit.
    pub max_logit: f32,
    /// Largest minus second largest logit.
    pub margin: f32,
    /// Id of the largest logit.
    pub argmax: u32,
    /// 1 if the other fields mean something.
    pub finite: u32,
}

// SAFETY: C layout of 5 doubles, 2 floats and 2 words: 56 bytes without padding, and every bit pattern is a value.
unsafe impl bytemuck::Zeroable for RowStatsOut {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for RowStatsOut {}

/// What a row's uncertainty is compared with; the numbers are the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum When {
    /// No list.
    Never = 0,
    /// The list, whatever the row.
    Always = 1,
    /// Floored entropy.
    Entropy = 2,
    /// Minus the margin.
    Margin = 3,
    /// One minus the largest probability.
    MaxProbability = 4,
    /// Varentropy.
    Varentropy = 5,
}

/// How many of its largest logits a row asks for, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct TopKQuery {
    /// A signal that reaches it, inclusively, makes the list.
    pub threshold: f64,
    /// At most [`MAX_K`].
    pub k: u32,
    /// A [`When`].
    pub when: u32,
}

// SAFETY: C layout of a double and two words: 16 bytes without padding, and every bit pattern is a value.
unsafe impl bytemuck::Zeroable for TopKQuery {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for TopKQuery {}

impl TopKQuery {
    /// The `k` largest, under a condition.
    pub fn new(k: usize, when: When, threshold: f64) -> Self {
        TopKQuery { threshold, k: k.min(MAX_K) as u32, when: when as u32 }
    }
}

/// Partial results of rows, sized once.
#[derive(Debug)]
pub struct Scratch {
    /// 5 words per split.
    split_sums: Buffer<u64>,
    /// 3 words per split.
    floor_sums: Buffer<u64>,
    /// [`MAX_K`] keys per split.
    candidates: Buffer<u64>,
    /// One per row, all zero between launches.
    tickets: Buffer<u32>,
}

impl Scratch {
    /// Room for `rows` rows of up to `v` logits.
    pub fn new(device: &Device, rows: usize, v: usize) -> Result<Self> {
        let splits = product("softmax_entropy", rows, v.div_ceil(SPLIT))?;
        Ok(Scratch {
            split_sums: Buffer::uninitialised(device, product("softmax_entropy", splits, 5)?)?,
            floor_sums: Buffer::uninitialised(device, product("softmax_entropy", splits, 3)?)?,
            candidates: Buffer::uninitialised(device, product("softmax_entropy", splits, MAX_K)?)?,
            tickets: Buffer::zeros(device, rows)?,
        })
    }

    /// Bytes of what [`new`](Self::new) makes.
    pub fn bytes(rows: usize, v: usize) -> u64 {
        (rows * (v.div_ceil(SPLIT) * (5 + 3 + MAX_K) * 8 + 4)) as u64
    }
}

/// Statistics of each row of `logits[rows, v]` with its own probability floor; 0 means none.
pub fn softmax_entropy(
    device: &Device,
    stats: &mut ViewMut<'_, RowStatsOut>,
    logits: View<'_, f32>,
    floors: View<'_, f64>,
    scratch: &mut Scratch,
) -> Result<()> {
    const OP: &str = "softmax_entropy";
    let rows = stats.len();
    if rows == 0 {
        return Ok(());
    }
    let v = logits.len() / rows;
    check_len(OP, "logits", logits.len(), product(OP, rows, v)?)?;
    check_len(OP, "floors", floors.len(), rows)?;
    if v == 0 {
        return Err(Error::Backend(format!("{OP}: a row without logits has no distribution")));
    }
    let splits = v.div_ceil(SPLIT);
    let all = product(OP, rows, splits)?;
    check_room(OP, "scratch", scratch.split_sums.len() / 5, all)?;
    check_room(OP, "scratch", scratch.tickets.len(), rows)?;
    let launch = grid(OP, splits, rows)?;
    let v = id(OP, v)?;
    let (split_sums, floor_sums) = (scratch.split_sums.view_mut(), scratch.floor_sums.view_mut());
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (SplitSums* sums, const float* logits, unsigned v). Block (s, r) reads logits of row r below
    // v and writes the 40 bytes of sums[r splits + s], for which there is room; the scratch is lent to us alone.
    unsafe {
        device.launch(&kernels[SPLITS], launch, args![split_sums.address, logits.address, v])?;
    }
    // SAFETY: parameters are (RowStats* stats, const float* logits, const SplitSums* sums, FloorSums* floor_sums,
    // unsigned* tickets, const double* floors, unsigned v). Row r reads what the launch before wrote for it, its floor
    // and its logits, and writes stats[r] (56 bytes), 24 bytes per split of floor_sums, and tickets[r], which is zero.
    unsafe {
        device.launch(
            &kernels[STATISTICS],
            launch,
            args![
                stats.address,
                logits.address,
                split_sums.address,
                floor_sums.address,
                scratch.tickets.view_mut().address,
                floors.address,
                v
            ],
        )
    }
}

/// Where [`top_k`] writes: `[rows, stride]` ids and logits, largest first, and how many of them each row has.
#[derive(Debug)]
pub struct TopKOut<'a> {
    /// `u32::MAX` where there is none.
    pub ids: ViewMut<'a, u32>,
    /// Minus infinity where there is none.
    pub logits: ViewMut<'a, f32>,
    /// Per row; 0 if the row did not ask for a list, whose entries are then not written.
    pub found: ViewMut<'a, u32>,
    /// Entries per row, at most [`MAX_K`].
    pub stride: usize,
}

/// The largest of the first `below` logits of each row that asks for them, the lower id first on a tie.
pub fn top_k(
    device: &Device,
    out: &mut TopKOut<'_>,
    logits: View<'_, f32>,
    stats: View<'_, RowStatsOut>,
    queries: View<'_, TopKQuery>,
    below: usize,
    scratch: &mut Scratch,
) -> Result<()> {
    const OP: &str = "top_k";
    let rows = queries.len();
    if rows == 0 {
        return Ok(());
    }
    let v = logits.len() / rows;
    let listed = product(OP, rows, out.stride)?;
    check_len(OP, "ids", out.ids.len(), listed)?;
    check_len(OP, "logits of the list", out.logits.len(), listed)?;
    check_len(OP, "found", out.found.len(), rows)?;
    check_len(OP, "logits", logits.len(), product(OP, rows, v)?)?;
    check_len(OP, "stats", stats.len(), rows)?;
    if out.stride == 0 || out.stride > MAX_K || below == 0 || below > v {
        return Err(Error::Backend(format!(
            "{OP}: {} entries of {below} logits of {v}; expected 1 to {MAX_K} entries of 1 to {v} logits",
            out.stride
        )));
    }
    let splits = below.div_ceil(SPLIT);
    check_room(OP, "scratch", scratch.candidates.len() / MAX_K, product(OP, rows, splits)?)?;
    check_room(OP, "scratch", scratch.tickets.len(), rows)?;
    let launch = grid(OP, splits, rows)?;
    let (v, below, stride) = (id(OP, v)?, id(OP, below)?, id(OP, out.stride)?);
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (unsigned* ids, float* values, unsigned* found, unsigned long long* candidates, unsigned*
    // tickets, const float* logits, const RowStats* stats, const TopKQuery* queries, unsigned v, unsigned below, unsigned
    // stride). Row r writes stride entries of ids and values, found[r], 64 keys per split of candidates, and tickets[r],
    // which is zero; all are lent to us alone and have that room. It reads logits of row r below `below` <= v.
    unsafe {
        device.launch(
            &kernels[TOP_K],
            launch,
            args![
                out.ids.address,
                out.logits.address,
                out.found.address,
                scratch.candidates.view_mut().address,
                scratch.tickets.view_mut().address,
                logits.address,
                stats.address,
                queries.address,
                v,
                below,
                stride
            ],
        )
    }
}

fn grid(op: &str, splits: usize, rows: usize) -> Result<Launch> {
    let splits = side(op, "splits", splits, i32::MAX as u32)?;
    Ok(Launch { grid: (splits, side(op, "rows", rows, 65_535)?, 1), threads: THREADS, shared: 0 })
}

/// A number of ids; the last one of 32 bits stands for none.
fn id(op: &str, value: usize) -> Result<u32> {
    let fits = u32::try_from(value).ok().filter(|&value| value < u32::MAX - SPLIT as u32);
    fits.ok_or_else(|| Error::Backend(format!("{op}: {value} logits are too many")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_kernel() {
        assert_eq!((size_of::<RowStatsOut>(), align_of::<RowStatsOut>()), (56, 8));
        assert_eq!(std::mem::offset_of!(RowStatsOut, argmax), 48);
        assert_eq!((size_of::<TopKQuery>(), std::mem::offset_of!(TopKQuery, when)), (16, 12));
    }
}
