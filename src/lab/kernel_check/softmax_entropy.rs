//! Cases of `softmax_entropy` and its top-k.

use super::case::{Case, Check};
use super::guarded::Guarded;
use super::numbers::{Random, Values};
use super::rows::{Rows, batches, first_of, repeated, single};
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::softmax_entropy::{
    MAX_K, RowStatsOut, Scratch, TopKOut, TopKQuery, When, softmax_entropy, top_k,
};
use crate::cuda::{Buffer, Device};
use crate::model;
use std::ops::Range;

const OP: &str = "softmax_entropy";
const FLOORS: [f64; 4] = [1e-9, 0.0, 1e-3, 0.2];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for v in [1, 31, 33, 111, 4095, 4096, 4097, 32_000, 128_256] {
        for kind in KINDS {
            // Long rows: only where something happens that short ones do not show.
            if v > 5000 && !matches!(kind, InputKind::Normal | InputKind::Holes | InputKind::Ties) {
                continue;
            }
            let rows = if v > 5000 { 2 } else { 4 };
            let name = format!("[{rows}, {v}] {kind:?}");
            cases.push(Case::seeded(OP, name, 14 * rows * whole_splits(v), move |seed, device, check| {
                let logits = logits(seed, rows, v, kind);
                statistics(device, check, &logits, v)?;
                largest(device, check, &logits, v)
            }));
        }
    }
    for (rows, v) in [(257, 111), (33, 9001)] {
        cases.push(Case::new(
            OP,
            format!("rows alone and together, v {v}"),
            12 * rows * whole_splits(v),
            move |device, check| alone_and_together(device, check, rows, v),
        ));
    }
    cases.push(Case::new(OP, "top-k on demand".into(), 400_000, on_demand));
    cases
}

/// A block has work for as many logits, however few there are.
fn whole_splits(v: usize) -> usize {
    v.next_multiple_of(4096)
}

#[derive(Clone, Copy, Debug)]
enum InputKind {
    Normal,
    Outliers,
    Shifted,
    Uniform,
    OneHot,
    Holes,
    Ties,
    NotFinite,
}

const KINDS: [InputKind; 8] = [
    InputKind::Normal,
    InputKind::Outliers,
    InputKind::Shifted,
    InputKind::Uniform,
    InputKind::OneHot,
    InputKind::Holes,
    InputKind::Ties,
    InputKind::NotFinite,
];

fn logits(seed: &str, rows: usize, v: usize, kind: InputKind) -> Vec<f32> {
    let mut random = Random::named(seed);
    let mut all = Vec::with_capacity(rows * v);
    for r in 0..rows {
        let mut row = random.vector(v, Values::Normal(2.5));
        let at = random.below(v);
        match kind {
            InputKind::Normal => {}
            InputKind::Outliers => row = random.vector(v, Values::Outliers),
            InputKind::Shifted => row.iter_mut().for_each(|z| *z += if r % 2 == 0 { 1e4 } else { -1e4 }),
            InputKind::Uniform => row.fill([0.0, -1e4, 3.25, 1e30][r % 4]),
            InputKind::OneHot => {
                row.fill(0.0);
                row[at] = [40.0, 16.0, 1e30, 1e3][r % 4];
            }
            InputKind::Holes => {
                for (i, z) in row.iter_mut().enumerate() {
                    let keep = i == at || (r % 2 == 1 && i % 3 == 0);
                    *z = if keep { *z } else { f32::NEG_INFINITY };
                }
            }
            InputKind::Ties => {
                row.iter_mut().for_each(|z| *z = z.round());
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row[at] = if r == 0 { top } else { top + 1.0 };
                row[v - 1] = row[at];
                row[0] = if r == 2 { -0.0 } else { row[0] };
            }
            InputKind::NotFinite => match r % 4 {
                0 => row[at] = f32::NAN,
                1 => row[at] = f32::INFINITY,
                2 => row.fill(f32::NEG_INFINITY),
                _ => {}
            },
        }
        all.extend(row);
    }
    all
}

/// Twice with one scratch: the tickets must be back at zero.
fn run(device: &Device, check: &mut Check, logits: &[f32], floors: &[f64], shift: usize) -> Result<Vec<RowStatsOut>> {
    let (rows, v) = (floors.len(), logits.len() / floors.len());
    let logits = Guarded::shifted(device, logits, shift)?;
    let floors = Guarded::input(device, floors)?;
    let mut scratch = Scratch::new(device, rows, v)?;
    let stats = repeated(check, rows, |check, _| {
        let mut stats = Guarded::output(device, rows, 0)?;
        softmax_entropy(device, &mut stats.view_mut(), logits.view(), floors.view(), &mut scratch)?;
        Ok(Rows { name: "stats", width: 1, values: stats.read(device, check, "stats")? })
    })?;
    Ok(stats.values)
}

fn statistics(device: &Device, check: &mut Check, logits: &[f32], v: usize) -> Result<()> {
    let rows = logits.len() / v;
    let floors: Vec<f64> = (0..rows).map(|r| FLOORS[r % FLOORS.len()]).collect();
    let found = run(device, check, logits, &floors, 0)?;
    let shifted = run(device, check, logits, &floors, 1)?;
    check.same("stats, at an odd address", &shifted, &found);
    for (r, (row, stats)) in logits.chunks_exact(v).zip(&found).enumerate() {
        compare(check, r, row, floors[r], stats);
    }
    Ok(())
}

/// Against the definitions in f64.
fn compare(check: &mut Check, r: usize, row: &[f32], floor: f64, found: &RowStatsOut) {
    let finite = row.iter().all(|&z| z < f32::INFINITY) && row.iter().any(|&z| z > f32::NEG_INFINITY);
    if (found.finite == 1) != finite {
        check.fail(format!("row {r}: finite is {}", found.finite));
    }
    if !finite {
        return;
    }
    let mut argmax = 0;
    for (id, &z) in row.iter().enumerate() {
        argmax = if z > row[argmax] { id } else { argmax };
    }
    let max = f64::from(row[argmax]);
    let others = row.iter().enumerate().filter(|&(id, _)| id != argmax);
    let second = others.map(|(_, &z)| z).fold(f32::NEG_INFINITY, f32::max);
    let depths: Vec<f64> = row.iter().map(|&z| max - f64::from(z)).collect();
    let norm: f64 = depths.iter().map(|d| (-d).exp()).sum();
    let (mut entropy, mut floored) = (0.0, 0.0);
    for d in &depths {
        let q = (-d).exp() / norm;
        let surprise = d + norm.ln();
        if q > 0.0 {
            entropy += q * surprise;
        }
        floored += if floor > 0.0 && q < floor {
            -floor * floor.ln()
        } else if q > 0.0 {
            q * surprise
        } else {
            0.0
        };
    }
    let variance: f64 = depths
        .iter()
        .map(|d| ((-d).exp() / norm, d + norm.ln()))
        .filter(|&(q, _)| q > 0.0)
        .map(|(q, surprise)| q * (surprise - entropy) * (surprise - entropy))
        .sum();
    if found.argmax as usize != argmax {
        check.fail(format!("row {r}: argmax {} instead of {argmax}", found.argmax));
    }
    let margin = f64::from(row[argmax] - second);
    for (what, found, expected) in [
        ("max logit", f64::from(found.max_logit), max),
        ("log-sum-exp", found.log_sum_exp, max + norm.ln()),
        ("entropy", found.entropy, entropy),
        ("floored entropy", found.entropy_floored, floored),
        ("largest probability", found.max_probability, 1.0 / norm),
        ("margin", f64::from(found.margin), margin),
        ("varentropy", found.varentropy, variance),
    ] {
        check.close(|| format!("row {r}: {what}"), found, expected);
    }
}

/// Ids, logits, and how many there are.
type Lists = ((Rows<u32>, Rows<f32>), Rows<u32>);

fn run_top_k(
    device: &Device,
    check: &mut Check,
    logits: &[f32],
    stats: &[RowStatsOut],
    queries: &[TopKQuery],
    below: usize,
    stride: usize,
) -> Result<Lists> {
    let rows = queries.len();
    let v = logits.len() / rows;
    let row_logits = Guarded::input(device, logits)?;
    let (stats, queries) = (Guarded::input(device, stats)?, Guarded::input(device, queries)?);
    let mut scratch = Scratch::new(device, rows, v)?;
    repeated(check, rows, |check, _| {
        let mut ids = Guarded::output(device, rows * stride, 0)?;
        let mut logits = Guarded::output(device, rows * stride, 0)?;
        let mut found = Guarded::output(device, rows, 0)?;
        let mut out = TopKOut { ids: ids.view_mut(), logits: logits.view_mut(), found: found.view_mut(), stride };
        top_k(device, &mut out, row_logits.view(), stats.view(), queries.view(), below, &mut scratch)?;
        let ids = Rows { name: "ids", width: stride, values: ids.read(device, check, "ids")? };
        let logits = logits.read(device, check, "logits of the list")?;
        let logits = Rows { name: "logits of the list", width: stride, values: logits };
        Ok(((ids, logits), Rows { name: "found", width: 1, values: found.read(device, check, "found")? }))
    })
}

fn largest(device: &Device, check: &mut Check, logits: &[f32], v: usize) -> Result<()> {
    let rows = logits.len() / v;
    let stats = vec![RowStatsOut { finite: 1, ..RowStatsOut::default() }; rows];
    for (k, below) in [(25, v), (1, v), (MAX_K, v.div_ceil(2))] {
        let queries = vec![TopKQuery::new(k, When::Always, 0.0); rows];
        let ((ids_found, logits_found), found) = run_top_k(device, check, logits, &stats, &queries, below, MAX_K)?;
        for (r, row) in logits.chunks_exact(v).enumerate() {
            let expected = model::top_k(row, k, below);
            let range = r * MAX_K..r * MAX_K + expected.len();
            let ids: Vec<u32> = expected.iter().map(|&(id, _)| id).collect();
            let values: Vec<f32> = expected.iter().map(|&(_, z)| z).collect();
            if found.values[r] as usize != expected.len() {
                check.fail(format!("row {r}: {} largest logits instead of {}", found.values[r], expected.len()));
                continue;
            }
            check.same(&format!("row {r}: top {k} of {below}, ids"), &ids_found.values[range.clone()], &ids);
            check.same(&format!("row {r}: top {k} of {below}, logits"), &logits_found.values[range], &values);
            let rest = &ids_found.values[r * MAX_K + expected.len()..(r + 1) * MAX_K];
            check.same(&format!("row {r}: after the list"), rest, &vec![u32::MAX; rest.len()]);
        }
    }
    Ok(())
}

/// Rows that do not reach their threshold keep their list as it was; reaching it exactly is enough.
fn on_demand(device: &Device, check: &mut Check) -> Result<()> {
    const V: usize = 5000;
    let stats = RowStatsOut {
        entropy_floored: 2.0,
        margin: 0.5,
        max_probability: 0.25,
        varentropy: 3.0,
        finite: 1,
        ..RowStatsOut::default()
    };
    let signals = [(When::Entropy, 2.0), (When::Margin, -0.5), (When::MaxProbability, 0.75), (When::Varentropy, 3.0)];
    let mut queries = vec![TopKQuery::new(5, When::Never, 0.0), TopKQuery::new(5, When::Always, 0.0)];
    let mut expected = vec![0, 5];
    for (when, value) in signals {
        for (threshold, reached) in [(value, true), (f64::next_up(value), false), (f64::NAN, false)] {
            queries.push(TopKQuery::new(5, when, threshold));
            expected.push(if reached { 5 } else { 0 });
        }
    }
    let mut all = vec![stats; queries.len()];
    queries.push(TopKQuery::new(5, When::Entropy, 0.0));
    expected.push(0);
    all.push(RowStatsOut { finite: 0, ..stats });
    let logits = logits("on demand", queries.len(), V, InputKind::Normal);
    let ((_, listed), found) = run_top_k(device, check, &logits, &all, &queries, V, 8)?;
    check.same("found", &found.values, &expected);
    for (r, &found) in expected.iter().enumerate() {
        let written = listed.values[r * 8..(r + 1) * 8].iter().all(|z| !z.is_nan());
        if written != (found > 0) {
            check.fail(format!("row {r}: the list was {}written", if written { "" } else { "not " }));
        }
    }
    Ok(())
}

fn alone_and_together(device: &Device, check: &mut Check, rows: usize, v: usize) -> Result<()> {
    let logits = logits("together", rows, v, InputKind::Normal);
    let floors: Vec<f64> = (0..rows).map(|r| FLOORS[r % FLOORS.len()]).collect();
    const K: usize = 5;
    let queries = vec![TopKQuery::new(K, When::Always, 0.0); rows];
    let statistics = |check: &mut Check, some: Range<usize>| {
        let values = run(device, check, &logits[some.start * v..some.end * v], &floors[some], 0)?;
        Ok(Rows { name: "stats", width: 1, values })
    };
    let all = statistics(check, 0..rows)?;
    let lists = |check: &mut Check, some: Range<usize>| {
        let logits = &logits[some.start * v..some.end * v];
        run_top_k(device, check, logits, &all.values[some.clone()], &queries[some], v, K)
    };
    let both = (all.clone(), lists(check, 0..rows)?);
    batches(check, &both, first_of(rows), |check, some| Ok((statistics(check, some.clone())?, lists(check, some)?)))?;
    batches(check, &all, single([1, rows / 2, rows - 1]), statistics)
}

/// Sets of random logits that no cache holds together.
pub fn random_rows(device: &Bench<'_>, rows: usize, v: usize) -> Result<Vec<Buffer<f32>>> {
    let logits = Random::named("bench").vector(rows * v, Values::Normal(2.5));
    device.sets(4 * rows * v, |_| Buffer::from_slice(device, &logits))
}

/// Logits of a row that is timed, and how many of them are listed.
const V: usize = 128_256;
const K: usize = 25;

pub fn timings() -> Vec<Timed> {
    let mut all = Timed::each(OP, [1, 8, 64], |rows| format!("[{rows}, {V}]"), time);
    all.extend(Timed::each(
        "top_k",
        [1, 8, 64],
        |rows| format!("[{rows}, {V}], {K} largest"),
        |device, rows| time_top_k(device, rows, When::Always),
    ));
    // What a step pays when no row reaches its threshold.
    all.extend(Timed::each(
        "top_k",
        [64],
        |rows| format!("[{rows}, {V}], none asked for"),
        |device, rows| time_top_k(device, rows, When::Never),
    ));
    all
}

fn time(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let mut logits = random_rows(device, rows, V)?;
    let floors = Buffer::from_slice(device, &vec![1e-9f64; rows])?;
    let mut stats = Buffer::<RowStatsOut>::uninitialised(device, rows)?;
    let mut scratch = Scratch::new(device, rows, V)?;
    let seconds = device.median(&mut logits, |logits| {
        softmax_entropy(device, &mut stats.view_mut(), logits.view(), floors.view(), &mut scratch)
    })?;
    Ok(Measured::bytes(seconds, 4 * rows * V))
}

fn time_top_k(device: &Bench<'_>, rows: usize, when: When) -> Result<Measured> {
    let mut logits = random_rows(device, rows, V)?;
    let stats = RowStatsOut { finite: 1, log_sum_exp: 12.0, ..RowStatsOut::default() };
    let stats = Buffer::from_slice(device, &vec![stats; rows])?;
    let queries = Buffer::from_slice(device, &vec![TopKQuery::new(K, when, 0.0); rows])?;
    let mut ids = Buffer::<u32>::uninitialised(device, rows * K)?;
    let mut values = Buffer::<f32>::uninitialised(device, rows * K)?;
    let mut found = Buffer::<u32>::uninitialised(device, rows)?;
    let mut scratch = Scratch::new(device, rows, V)?;
    let seconds = device.median(&mut logits, |logits| {
        let (ids, logits_out, found) = (ids.view_mut(), values.view_mut(), found.view_mut());
        let mut out = TopKOut { ids, logits: logits_out, found, stride: K };
        top_k(device, &mut out, logits.view(), stats.view(), queries.view(), V, &mut scratch)
    })?;
    let read = if when == When::Never { rows * size_of::<RowStatsOut>() } else { 4 * rows * V };
    Ok(Measured::bytes(seconds, read + rows * (8 * K + 4)))
}
