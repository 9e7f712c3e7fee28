//! What picks and moves: lists of the largest logits, log-probabilities, nudges, copies.

use super::super::numbers::{Random, Values, stored};
use super::{Bench, Measured, Timed, median};
use crate::Result;
use crate::cuda::Buffer;
use crate::cuda::ops::candidate_scores::{self, ScoreQuery, candidate_scores};
use crate::cuda::ops::copy_rows::copy_rows;
use crate::cuda::ops::kv::KvLayout;
use crate::cuda::ops::kv_copy::kv_copy;
use crate::cuda::ops::logits::{chosen_logits, log_probabilities};
use crate::cuda::ops::softmax_entropy::{RowStatsOut, Scratch, TopKOut, TopKQuery, When, top_k};
use crate::dtype::HalfType;

const V: usize = 128_256;
/// Candidates of a slot.
const K: usize = 25;

pub fn cases() -> Vec<Timed> {
    let mut cases: Vec<Timed> = Vec::new();
    for rows in [1, 8, 64] {
        let name = format!("[{rows}, {V}], {K} largest");
        cases.push(("top_k", name, Box::new(move |device| largest(device, rows, When::Always))));
    }
    // What a step pays when no row reaches its threshold.
    cases.push(("top_k", format!("[64, {V}], none asked for"), Box::new(|device| largest(device, 64, When::Never))));
    for rows in [1, 8] {
        let name = format!("[{rows}, {V}]");
        cases.push(("log_probabilities", name, Box::new(move |device| probabilities(device, rows))));
    }
    cases.push(("chosen_logits", format!("64 of [1, {V}]"), Box::new(chosen)));
    for slots in [1, 8, 64] {
        let name = format!("bf16 {slots} slots, {K} of 4096");
        cases.push(("candidate_scores", name, Box::new(move |device| nudges(device, slots))));
    }
    for copies in [1, 25] {
        let name = format!("{copies} blocks of 32 layers, 8 heads of 128");
        cases.push(("kv_copy", name, Box::new(move |device| blocks(device, copies))));
    }
    for rows in [8, 64, 512] {
        cases.push(("copy_rows", format!("f32 [{rows}, 4096]"), Box::new(move |device| rows_copied(device, rows))));
    }
    cases
}

fn logits(device: &Bench<'_>, rows: usize) -> Result<Vec<Buffer<f32>>> {
    let logits = Random::named("bench").vector(rows * V, Values::Normal(2.5));
    (0..device.sets(4 * rows * V)).map(|_| Buffer::from_slice(device, &logits)).collect()
}

fn stats(device: &Bench<'_>, rows: usize) -> Result<Buffer<RowStatsOut>> {
    let one = RowStatsOut { finite: 1, log_sum_exp: 12.0, ..RowStatsOut::default() };
    Buffer::from_slice(device, &vec![one; rows])
}

fn largest(device: &Bench<'_>, rows: usize, when: When) -> Result<Measured> {
    let (logits, stats) = (logits(device, rows)?, stats(device, rows)?);
    let queries = Buffer::from_slice(device, &vec![TopKQuery::new(K, when, 0.0); rows])?;
    let mut ids = Buffer::<u32>::uninitialised(device, rows * K)?;
    let mut values = Buffer::<f32>::uninitialised(device, rows * K)?;
    let mut found = Buffer::<u32>::uninitialised(device, rows)?;
    let mut scratch = Scratch::new(device, rows, V)?;
    let seconds = median(device, logits.len(), |i| {
        let mut out = TopKOut { ids: ids.view_mut(), logits: values.view_mut(), found: found.view_mut(), stride: K };
        top_k(device, &mut out, logits[i].view(), stats.view(), queries.view(), V, &mut scratch)
    })?;
    let read = if when == When::Never { rows * size_of::<RowStatsOut>() } else { 4 * rows * V };
    Ok((seconds, (read + rows * (8 * K + 4)) as f64, 0.0))
}

fn probabilities(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let (logits, stats) = (logits(device, rows)?, stats(device, rows)?);
    let mut out = Buffer::<f32>::uninitialised(device, rows * V)?;
    let seconds = median(device, logits.len(), |i| {
        log_probabilities(device, &mut out.view_mut(), logits[i].view(), stats.view())
    })?;
    Ok((seconds, (8 * rows * V) as f64, 0.0))
}

fn chosen(device: &Bench<'_>) -> Result<Measured> {
    let (logits, n) = (logits(device, 1)?, 64u32);
    let pairs = Buffer::from_slice(device, &(0..n).map(|i| [0, i * 2003]).collect::<Vec<_>>())?;
    let mut out = Buffer::<f32>::uninitialised(device, n as usize)?;
    let seconds = median(device, logits.len(), |i| {
        chosen_logits(device, &mut out.view_mut(), logits[i].view(), pairs.view(), V)
    })?;
    Ok((seconds, f64::from(n * 16), 0.0))
}

fn nudges(device: &Bench<'_>, slots: usize) -> Result<Measured> {
    let d = 4096;
    let mut random = Random::named("bench");
    let drawn = stored(HalfType::Bf16, &random.vector(512 * d, Values::Normal(0.02)));
    // Rows all over a table that no cache holds.
    let vocabulary = 32_768;
    let table: Vec<u16> = drawn.iter().copied().cycle().take(vocabulary * d).collect();
    let table = Buffer::from_slice(device, &table)?;
    let grads = Buffer::from_slice(device, &random.vector(slots * d, Values::Normal(0.3)))?;
    let ids: Vec<u32> = (0..slots * K).map(|_| random.below(vocabulary) as u32).collect();
    let query = |slot: usize| ScoreQuery { row: slot as u32, first: (slot * K) as u32, count: K as u32 };
    let ids = Buffer::from_slice(device, &ids)?;
    let queries = Buffer::from_slice(device, &(0..slots).map(query).collect::<Vec<_>>())?;
    let mut norms = Buffer::<f32>::uninitialised(device, slots)?;
    let mut products = Buffer::<f32>::uninitialised(device, slots * K)?;
    let seconds = median(device, 1, |_| {
        let (grads, table, ids, queries) = (grads.view(), table.view(), ids.view(), queries.view());
        let inputs = candidate_scores::Inputs { grads, table, ids, queries, d, scale: 1.0 };
        candidate_scores(device, HalfType::Bf16, &mut norms.view_mut(), &mut products.view_mut(), &inputs)
    })?;
    Ok((seconds, (slots * (K * (2 * d + 8) + 4 * d)) as f64, 0.0))
}

fn blocks(device: &Bench<'_>, copies: usize) -> Result<Measured> {
    let layout = KvLayout { layers: 32, kv_heads: 8, head: 128 };
    let mut pool = Buffer::<u16>::zeros(device, 2 * copies * layout.block())?;
    let list: Vec<[u32; 3]> = (0..copies as u32).map(|i| [2 * i, 2 * i + 1, 64]).collect();
    let list = Buffer::from_slice(device, &list)?;
    let seconds = median(device, 1, |_| kv_copy(device, &mut pool.view_mut(), list.view(), layout))?;
    Ok((seconds, (2 * copies * 2 * layout.block()) as f64, 0.0))
}

fn rows_copied(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let width = 4096;
    let pairs = Buffer::from_slice(device, &(0..rows as u32).map(|i| [i, i]).collect::<Vec<_>>())?;
    let mut data = Vec::new();
    for _ in 0..device.sets(8 * rows * width) {
        data.push((Buffer::<f32>::zeros(device, rows * width)?, Buffer::<f32>::uninitialised(device, rows * width)?));
    }
    let seconds = median(device, data.len(), |i| {
        let (src, dst) = &mut data[i];
        copy_rows(device, &mut dst.view_mut(), src.view(), pairs.view(), width)
    })?;
    Ok((seconds, (8 * rows * width) as f64, 0.0))
}
