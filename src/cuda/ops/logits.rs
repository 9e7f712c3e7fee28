//! What a request may ask of rows of logits beyond their statistics.

use super::softmax_entropy::RowStatsOut;
use crate::Result;
use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, product, rows_of, side};

/// Threads of a block.
const THREADS: u32 = 256;
/// Indices of the kernels.
const LOG_PROBABILITIES: usize = 0;
const CHOSEN: usize = 1;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        ["log_probabilities_f32", "chosen_logits_f32"].map(|name| Spec::new("logits", name, THREADS, 0)).to_vec()
    }
}

/// Logits per block of [`log_probabilities`].
const PART: usize = 4 * THREADS as usize;

/// `out[rows, v] = logits - log_sum_exp`, per row of `stats`. Rows that are not finite give NaN.
pub fn log_probabilities(
    device: &Device,
    out: &mut ViewMut<'_, f32>,
    logits: View<'_, f32>,
    stats: View<'_, RowStatsOut>,
) -> Result<()> {
    const OP: &str = "log_probabilities";
    let rows = stats.len();
    let v = logits.len().checked_div(rows).unwrap_or(0);
    check_len(OP, "logits", logits.len(), product(OP, rows, v)?)?;
    check_len(OP, "out", out.len(), logits.len())?;
    if out.is_empty() {
        return Ok(());
    }
    let parts = side(OP, "parts of a row", v.div_ceil(PART), 65_535)?;
    let launch = Launch { grid: (side(OP, "rows", rows, i32::MAX as u32)?, parts, 1), threads: THREADS, shared: 0 };
    let v = side(OP, "logits", v, u32::MAX - PART as u32)?;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (float* out, const float* logits, const RowStats* stats, unsigned v). Block (r, p) reads stats
    // of row r, a struct of RowStatsOut's layout, and touches elements below v of row r of logits and out, which have
    // as many rows as stats. out is lent to us alone.
    unsafe { device.launch(&kernels[LOG_PROBABILITIES], launch, args![out.address, logits.address, stats.address, v]) }
}

/// `out[i] = logits[row, id]` for every pair `[row, id]`, with rows of `v`. A pair that names no logit gives NaN.
pub fn chosen_logits(
    device: &Device,
    out: &mut ViewMut<'_, f32>,
    logits: View<'_, f32>,
    pairs: View<'_, [u32; 2]>,
    v: usize,
) -> Result<()> {
    const OP: &str = "chosen_logits";
    let rows = side(OP, "rows", rows_of(OP, "logits", logits.len(), v)?, u32::MAX)?;
    check_len(OP, "out", out.len(), pairs.len())?;
    if out.is_empty() {
        return Ok(());
    }
    let n = side(OP, "pairs", pairs.len(), i32::MAX as u32)?;
    let v = side(OP, "logits", v, u32::MAX)?;
    let launch = Launch { grid: (n.div_ceil(THREADS), 1, 1), threads: THREADS, shared: 0 };
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (float* out, const float* logits, const uint2* pairs, unsigned n, unsigned rows, unsigned v).
    // Thread i below n reads pair i and writes element i of out; it reads a logit only below rows and v, which logits
    // holds. out is lent to us alone.
    unsafe { device.launch(&kernels[CHOSEN], launch, args![out.address, logits.address, pairs.address, n, rows, v]) }
}
