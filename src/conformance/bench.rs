//! How fast the kernels are, against what the card itself can do.
//!
//! The denominators are measured first, on the same card in the same run: a large copy on the device, and products from
//! registers. Each op runs over several sets of buffers in turn, larger together than any cache, so that every run finds
//! its data in memory; the time is the median of runs measured with events.

use super::numbers::{Random, Values, stored};
use crate::cuda::ops::gemm::{self, Operands, Output, Shape};
use crate::cuda::ops::peak::peak_mma;
use crate::cuda::ops::rmsnorm::{Delta, Norm, rmsnorm};
use crate::cuda::ops::softmax_entropy::{self, RowStatsOut, softmax_entropy};
use crate::cuda::{Buffer, Device, Storage};
use crate::{Error, Result};

/// One measurement.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Timing {
    /// Name of the op.
    pub op: &'static str,
    /// Shape.
    pub case: String,
    /// Median seconds of a run.
    pub seconds: f64,
    /// Fewest bytes that the op must move, per second, in 1e9.
    pub gigabytes_per_second: f64,
    /// Floating-point operations per second in 1e12; 0 where they do not matter.
    pub teraflops: f64,
    /// Percent of the limit: of the measured copy rate, or of the measured matrix peak if that takes longer.
    pub percent: f64,
}

/// More than any cache holds.
const COLD: usize = 256 << 20;
const RUNS: usize = 21;

/// Times the copy, the matrix peak and every op, or one op; `done` sees each timing as it comes.
pub fn bench(device: &Device, op: Option<&str>, mut done: impl FnMut(&Timing)) -> Result<Vec<Timing>> {
    let mut all = Vec::new();
    let mut push = |timing: Timing| {
        done(&timing);
        all.push(timing);
    };
    let copy = copy_rate(device)?;
    push(timing("copy", "2 x 1 GB".into(), copy.0, copy.1, 0.0, 1.0));
    let peak = matrix_peak(device)?;
    push(timing("peak_mma", "registers only".into(), peak.0, 0.0, peak.1, 1.0));
    let limits = Limits { bytes: copy.1 / copy.0, flops: peak.1 / peak.0 };
    let wanted = |name: &str| op.is_none_or(|op| op == name);
    if wanted("rmsnorm") {
        for rows in [1, 64, 2048] {
            push(limits.timing("rmsnorm", format!("bf16 [{rows}, 4096]"), time_rmsnorm(device, rows, 4096)?));
        }
    }
    if wanted("softmax_entropy") {
        for rows in [1, 8, 64] {
            push(limits.timing("softmax_entropy", format!("[{rows}, 128256]"), time_softmax(device, rows, 128_256)?));
        }
    }
    if wanted("gemm") {
        for (n, k) in [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)] {
            for tokens in [1, 8, 32, 64, 128, 512, 2048] {
                if tokens > 64 && n > 100_000 {
                    continue;
                }
                let measured = time_gemm(device, Shape { tokens, n, k })?;
                push(limits.timing("gemm", format!("bf16 [{tokens}, {n}, {k}]"), measured));
            }
        }
    }
    Ok(all)
}

struct Limits {
    bytes: f64,
    flops: f64,
}

/// Seconds, bytes and operations of a run.
type Measured = (f64, f64, f64);

impl Limits {
    fn timing(&self, op: &'static str, case: String, (seconds, bytes, flops): Measured) -> Timing {
        let floor = (bytes / self.bytes).max(flops / self.flops);
        timing(op, case, seconds, bytes, flops, floor / seconds)
    }
}

fn timing(op: &'static str, case: String, seconds: f64, bytes: f64, flops: f64, share: f64) -> Timing {
    Timing {
        op,
        case,
        seconds,
        gigabytes_per_second: bytes / seconds / 1e9,
        teraflops: flops / seconds / 1e12,
        percent: 100.0 * share,
    }
}

/// Median seconds of `run(i)`, with `i` counting through the sets of buffers.
fn median(device: &Device, sets: usize, mut run: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    for i in 0..sets.max(3) {
        run(i % sets)?;
    }
    device.synchronize()?;
    let mut times = Vec::with_capacity(RUNS);
    for i in 0..RUNS {
        let from = device.record()?;
        run(i % sets)?;
        let to = device.record()?;
        device.synchronize()?;
        times.push(device.seconds(&from, &to)?);
    }
    times.sort_by(f64::total_cmp);
    times.get(RUNS / 2).copied().filter(|&t| t > 0.0).ok_or_else(|| Error::Backend("the clock stands still".into()))
}

fn sets(bytes: usize) -> usize {
    (COLD / bytes.max(1)).clamp(1, 64) + 1
}

fn copy_rate(device: &Device) -> Result<(f64, f64)> {
    let len = (1 << 30).min(device.memory()?.0 / 4);
    let from = Buffer::<u8>::zeros(device, len)?;
    let mut to = Buffer::<u8>::zeros(device, len)?;
    let seconds = median(device, 1, |_| to.copy_from(device, &from))?;
    Ok((seconds, 2.0 * len as f64))
}

fn matrix_peak(device: &Device) -> Result<(f64, f64)> {
    let blocks = device.multiprocessors() as usize * 8;
    let mut out = Buffer::<f32>::uninitialised(device, blocks * 256)?;
    let mut flops = 0.0;
    let seconds = median(device, 1, |_| {
        flops = peak_mma(device, &mut out.view_mut(), blocks, 4096)?;
        Ok(())
    })?;
    Ok((seconds, flops))
}

fn time_rmsnorm(device: &Device, rows: usize, d: usize) -> Result<Measured> {
    let elements = rows * d;
    let bytes = elements * (4 + 2 + 4 + 2);
    let mut random = Random::named("bench");
    let weight = Buffer::from_slice(device, &stored(Storage::Bf16, &random.vector(d, Values::Normal(1.0))))?;
    let residual = random.vector(elements, Values::Normal(1.0));
    let delta = stored(Storage::Bf16, &random.vector(elements, Values::Normal(0.01)));
    let mut data = Vec::new();
    for _ in 0..sets(bytes) {
        let out = Buffer::<u16>::uninitialised(device, elements)?;
        data.push((out, Buffer::from_slice(device, &residual)?, Buffer::from_slice(device, &delta)?));
    }
    let seconds = median(device, data.len(), |i| {
        let (out, residual, delta) = &mut data[i];
        let delta = Delta::Storage(delta.view());
        let norm = Norm { weight: weight.view(), columns: d, eps: 1e-5 };
        rmsnorm(device, Storage::Bf16, &mut out.view_mut(), &mut residual.view_mut(), delta, norm)
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

fn time_softmax(device: &Device, rows: usize, v: usize) -> Result<Measured> {
    let bytes = rows * v * 4;
    let logits = Random::named("bench").vector(rows * v, Values::Normal(2.5));
    let floors = Buffer::from_slice(device, &vec![1e-9f64; rows])?;
    let mut stats = Buffer::<RowStatsOut>::uninitialised(device, rows)?;
    let mut scratch = softmax_entropy::Scratch::new(device, rows, v)?;
    let mut data = Vec::new();
    for _ in 0..sets(bytes) {
        data.push(Buffer::from_slice(device, &logits)?);
    }
    let seconds = median(device, data.len(), |i| {
        softmax_entropy(device, &mut stats.view_mut(), data[i].view(), floors.view(), &mut scratch)
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

fn time_gemm(device: &Device, shape: Shape) -> Result<Measured> {
    let Shape { tokens, n, k } = shape;
    let bytes = 2 * (n * k + tokens * k + tokens * n);
    let mut random = Random::named("bench");
    // A weight matrix of random numbers, drawn once and repeated: drawing them all takes longer than the benchmark.
    let drawn = stored(Storage::Bf16, &random.vector(64 * k, Values::Normal(0.02)));
    let weights: Vec<u16> = drawn.iter().copied().cycle().take(n * k).collect();
    let x = Buffer::from_slice(device, &stored(Storage::Bf16, &random.vector(tokens * k, Values::Normal(1.0))))?;
    let mut y = Buffer::<u16>::uninitialised(device, tokens * n)?;
    let mut scratch = gemm::Scratch::new(device, &[(n, k)], 32 * 128 * n.min(8192))?;
    let mut data = Vec::new();
    for _ in 0..sets(2 * n * k) {
        data.push(Buffer::from_slice(device, &weights)?);
    }
    let seconds = median(device, data.len(), |i| {
        let operands = Operands { storage: Storage::Bf16, x: x.view(), w: data[i].view(), bias: None };
        gemm::gemm(device, &mut Output::Storage(y.view_mut()), operands, shape, &mut scratch)
    })?;
    Ok((seconds, bytes as f64, 2.0 * tokens as f64 * n as f64 * k as f64))
}
