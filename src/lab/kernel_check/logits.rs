//! Cases of `log_probabilities` and `chosen_logits`.

use super::case::{Case, Check};
use super::guarded::Guarded;
use super::numbers::{Random, Values};
use super::softmax_entropy::random_rows;
use super::timing::{Bench, Measured, Timed};
use crate::Result;
use crate::cuda::ops::logits::{chosen_logits, log_probabilities};
use crate::cuda::ops::softmax_entropy::RowStatsOut;
use crate::cuda::{Buffer, Device};

const OP: &str = "logits";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, v) in [(1usize, 1usize), (7, 31), (3, 1024), (5, 1028), (2, 4099), (1, 128_256)] {
        for values in [Values::Normal(2.5), Values::Outliers] {
            cases.push(Case::new(OP, format!("[{rows}, {v}], {values}"), 2 * rows * v, move |device, check| {
                let mut logits = Random::named("logits").vector(rows * v, values);
                logits[v / 2] = f32::NEG_INFINITY;
                for shift in [0, 1] {
                    probabilities(device, check, &logits, v, shift)?;
                }
                chosen(device, check, &logits, v)
            }));
        }
    }
    cases
}

fn probabilities(device: &Device, check: &mut Check, logits: &[f32], v: usize, shift: usize) -> Result<()> {
    let stats: Vec<RowStatsOut> = logits
        .chunks_exact(v)
        .enumerate()
        .map(|(row, logits)| {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&z| (f64::from(z) - f64::from(max)).exp()).sum();
            let log_sum_exp = if v == 1 { 0.25 } else { f64::from(max) + sum.ln() };
            RowStatsOut { log_sum_exp, finite: u32::from(row != 3), ..RowStatsOut::default() }
        })
        .collect();
    let row = |(logits, stats): (&[f32], &RowStatsOut)| -> Vec<f32> {
        logits.iter().map(|&z| (f64::from(z) - stats.log_sum_exp) as f32).collect()
    };
    let expected: Vec<f32> = logits.chunks_exact(v).zip(&stats).flat_map(row).collect();
    let device_stats = Guarded::input(device, &stats)?;
    let device_logits = Guarded::shifted(device, logits, shift)?;
    for what in ["out", "out, run again"] {
        let mut out = Guarded::output(device, logits.len(), shift)?;
        log_probabilities(device, &mut out.view_mut(), device_logits.view(), device_stats.view())?;
        let found = out.read(device, check, what)?;
        for (row, (found, expected)) in found.chunks_exact(v).zip(expected.chunks_exact(v)).enumerate() {
            match stats[row].finite {
                0 if found.iter().all(|x| x.is_nan()) => {}
                0 => check.fail(format!("{what}: row {row} is not finite, but its log-probabilities are not NaN")),
                _ => check.same(&format!("{what}, row {row}"), found, expected),
            }
        }
    }
    Ok(())
}

fn chosen(device: &Device, check: &mut Check, logits: &[f32], v: usize) -> Result<()> {
    let (mut random, rows) = (Random::named("pairs"), logits.len() / v);
    let mut pairs: Vec<[u32; 2]> = (0..300).map(|_| [random.below(rows) as u32, random.below(v) as u32]).collect();
    pairs[0] = [rows as u32 - 1, v as u32 - 1];
    pairs[7] = [rows as u32, 0];
    pairs[299] = [0, v as u32];
    let device_logits = Guarded::input(device, logits)?;
    for n in [1, 256, 300] {
        let device_pairs = Guarded::input(device, &pairs[..n])?;
        let mut out = Guarded::output(device, n, 0)?;
        chosen_logits(device, &mut out.view_mut(), device_logits.view(), device_pairs.view(), v)?;
        for (&[row, id], found) in pairs.iter().zip(out.read(device, check, "chosen")?) {
            let named = (row as usize) < rows && (id as usize) < v;
            if !named && !found.is_nan() {
                check.fail(format!("the logit of row {row}, id {id}, which is not there, is {found}"));
            }
            if named {
                let expected = logits[row as usize * v + id as usize];
                check.same(&format!("the logit of row {row}, id {id}"), &[found], &[expected]);
            }
        }
    }
    Ok(())
}

const V: usize = 128_256;

pub fn timings() -> Vec<Timed> {
    let mut all = Timed::each("log_probabilities", [1, 8], |rows| format!("[{rows}, {V}]"), time_log_probabilities);
    all.extend(Timed::each("chosen_logits", [64], |n| format!("{n} of [1, {V}]"), time_chosen));
    all
}

fn time_log_probabilities(device: &Bench<'_>, rows: usize) -> Result<Measured> {
    let stats = RowStatsOut { finite: 1, log_sum_exp: 12.0, ..RowStatsOut::default() };
    let (mut logits, stats) = (random_rows(device, rows, V)?, Buffer::from_slice(device, &vec![stats; rows])?);
    let mut out = Buffer::<f32>::uninitialised(device, rows * V)?;
    let seconds = device
        .median(&mut logits, |logits| log_probabilities(device, &mut out.view_mut(), logits.view(), stats.view()))?;
    Ok(Measured::bytes(seconds, 8 * rows * V))
}

fn time_chosen(device: &Bench<'_>, n: u32) -> Result<Measured> {
    let mut logits = random_rows(device, 1, V)?;
    let pairs = Buffer::from_slice(device, &(0..n).map(|i| [0, i * 2003]).collect::<Vec<_>>())?;
    let mut out = Buffer::<f32>::uninitialised(device, n as usize)?;
    let seconds = device
        .median(&mut logits, |logits| chosen_logits(device, &mut out.view_mut(), logits.view(), pairs.view(), V))?;
    Ok(Measured::bytes(seconds, n as usize * 16))
}
