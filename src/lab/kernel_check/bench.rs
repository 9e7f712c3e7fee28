//! How fast the kernels are, against what the card itself can do.
//!
//! The denominators are measured first, on the same card in the same run: a large copy on the device, and products from
//! registers. Each op runs over several sets of buffers in turn, larger together than any cache, so that every run finds
//! its data in memory; the time is the median of runs measured with events.

mod attention;
mod choices;

use super::numbers::{Random, Values, stored};
use crate::cuda::instruments::mma_peak::mma_peak;
use crate::cuda::ops::embed::embed;
use crate::cuda::ops::gemm::{self, Operands, Output, Shape};
use crate::cuda::ops::gemm_backward::{self, gemm_backward};
use crate::cuda::ops::kv::{KvLayout, KvRows};
use crate::cuda::ops::pad_convert::{Changed, Layout, Stored, pad_convert};
use crate::cuda::ops::rmsnorm::{Delta, Norm, Upstream, rmsnorm, rmsnorm_backward};
use crate::cuda::ops::rope::{self, Heads, Inputs, rope_backward};
use crate::cuda::ops::softmax_entropy::{self, RowStatsOut, softmax_entropy};
use crate::cuda::ops::swiglu::{swiglu, swiglu_backward};
use crate::cuda::staging::SLOT;
use crate::cuda::{Buffer, Device};
use crate::dtype::DType;
use crate::dtype::HalfType;
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

/// Names of what is timed.
pub const TIMED: [&str; 19] = [
    "rmsnorm",
    "softmax_entropy",
    "top_k",
    "log_probabilities",
    "chosen_logits",
    "attention",
    "attention_backward",
    "candidate_scores",
    "kv_copy",
    "copy_rows",
    "rmsnorm_backward",
    "swiglu",
    "swiglu_backward",
    "embed",
    "rope",
    "rope_backward",
    "gemm",
    "gemm_backward",
    "pad_convert",
];

/// More than any cache holds.
const COLD: usize = 256 << 20;
const RUNS: usize = 21;

/// What a card can do, measured: bytes a second of a large copy on the device (each byte read and written), and operations a
/// second of products from registers.
///
/// # Errors
/// The device fails.
pub fn limits(device: &Device, quick: bool) -> Result<(f64, f64)> {
    let device = &Bench { device, quick };
    let (copy, peak) = (copy_rate(device)?, matrix_peak(device)?);
    Ok((copy.1 / copy.0, peak.1 / peak.0))
}

/// Times the copy, the matrix peak and every op, or one op; `done` sees each timing as it comes.
///
/// `quick` runs everything once and on warm buffers: whether it runs at all, not how fast.
pub fn bench(device: &Device, op: Option<&str>, quick: bool, mut done: impl FnMut(&Timing)) -> Result<Vec<Timing>> {
    let device = &Bench { device, quick };
    let mut all = Vec::new();
    let mut push = |timing: Timing| {
        done(&timing);
        all.push(timing);
    };
    let copy = copy_rate(device)?;
    push(timing("copy", format!("2 x {} MB", copy.1 as usize / 2_000_000), copy.0, copy.1, 0.0, 1.0));
    let peak = matrix_peak(device)?;
    push(timing("peak_mma", "registers only".into(), peak.0, 0.0, peak.1, 1.0));
    let limits = Limits { bytes: copy.1 / copy.0, flops: peak.1 / peak.0 };
    let wanted = |name: &str| {
        debug_assert!(TIMED.contains(&name));
        op.is_none_or(|op| op == name)
    };
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
    for (op, case, measure) in choices::cases().into_iter().chain(attention::cases()) {
        if wanted(op) {
            push(limits.timing(op, case, measure(device)?));
        }
    }
    if wanted("rmsnorm_backward") {
        for rows in [16, 128, 2048] {
            let measured = time_rmsnorm_backward(device, rows, 4096)?;
            push(limits.timing("rmsnorm_backward", format!("bf16 [{rows}, 4096]"), measured));
        }
    }
    if wanted("swiglu") {
        for rows in [1, 128, 2048] {
            push(limits.timing("swiglu", format!("bf16 [{rows}, 14336]"), time_swiglu(device, rows, 14_336, false)?));
        }
    }
    if wanted("swiglu_backward") {
        for rows in [16, 128, 2048] {
            let measured = time_swiglu(device, rows, 14_336, true)?;
            push(limits.timing("swiglu_backward", format!("bf16 [{rows}, 14336]"), measured));
        }
    }
    if wanted("embed") {
        for rows in [1, 128, 2048] {
            push(limits.timing("embed", format!("bf16 [{rows}, 4096]"), time_embed(device, rows, 4096)?));
        }
    }
    for (op, backward) in [("rope", false), ("rope_backward", true)] {
        for rows in if wanted(op) { &[16, 128, 2048][..] } else { &[] } {
            push(limits.timing(op, format!("bf16 {rows} rows, 32 + 2 x 8 heads"), time_rope(device, *rows, backward)?));
        }
    }
    for (op, backward) in [("gemm", false), ("gemm_backward", true)] {
        if !wanted(op) {
            continue;
        }
        for (n, k) in [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)] {
            for tokens in [1, 8, 32, 64, 128, 512, 2048] {
                // The head's gradient is a row, not a product.
                if n > 100_000 && (tokens > 64 || backward) {
                    continue;
                }
                let measured = time_gemm(device, Shape { tokens, n, k }, backward)?;
                push(limits.timing(op, format!("bf16 [{tokens}, {n}, {k}]"), measured));
            }
        }
    }
    if wanted("pad_convert") {
        for (what, dtype) in [("bf16 rows of 4000 into 4096", DType::Bf16), ("f32 rows of 4000 into 4096", DType::F32)]
        {
            push(limits.timing("pad_convert", what.to_string(), time_place(device, dtype)?));
        }
    }
    Ok(all)
}

/// The device, and how much is made of measuring.
struct Bench<'a> {
    device: &'a Device,
    quick: bool,
}

impl std::ops::Deref for Bench<'_> {
    type Target = Device;
    fn deref(&self) -> &Device {
        self.device
    }
}

impl Bench<'_> {
    fn runs(&self) -> usize {
        if self.quick { 1 } else { RUNS }
    }

    /// Sets of buffers of so many bytes that no cache holds together.
    fn sets(&self, bytes: usize) -> usize {
        if self.quick { 1 } else { (COLD / bytes.max(1)).clamp(1, 64) + 1 }
    }
}

struct Limits {
    bytes: f64,
    flops: f64,
}

/// Seconds, bytes and operations of a run.
type Measured = (f64, f64, f64);

/// An op, a shape in words, and how it is measured.
type Timed = (&'static str, String, Box<dyn Fn(&Bench<'_>) -> Result<Measured>>);

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
fn median(device: &Bench<'_>, sets: usize, mut run: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    for i in 0..if device.quick { 0 } else { sets.max(3) } {
        run(i % sets)?;
    }
    device.synchronize()?;
    let runs = device.runs();
    let mut times = Vec::with_capacity(runs);
    for i in 0..runs {
        let from = device.record()?;
        run(i % sets)?;
        let to = device.record()?;
        device.synchronize()?;
        times.push(device.seconds(&from, &to)?);
    }
    times.sort_by(f64::total_cmp);
    times.get(runs / 2).copied().filter(|&t| t > 0.0).ok_or_else(|| Error::Backend("the clock stands still".into()))
}

fn copy_rate(device: &Bench<'_>) -> Result<(f64, f64)> {
    let len = if device.quick { 1 << 20 } else { (1 << 30).min(device.memory()?.0 / 4) };
    let from = Buffer::<u8>::zeros(device, len)?;
    let mut to = Buffer::<u8>::zeros(device, len)?;
    let seconds = median(device, 1, |_| to.copy_from(device, &from))?;
    Ok((seconds, 2.0 * len as f64))
}

fn matrix_peak(device: &Bench<'_>) -> Result<(f64, f64)> {
    let (blocks, rounds) = if device.quick { (1, 1) } else { (device.multiprocessors() as usize * 8, 4096) };
    let mut out = Buffer::<f32>::uninitialised(device, blocks * 256)?;
    let mut flops = 0.0;
    let seconds = median(device, 1, |_| {
        flops = mma_peak(device, &mut out.view_mut(), blocks, rounds)?;
        Ok(())
    })?;
    Ok((seconds, flops))
}

fn time_rmsnorm(device: &Bench<'_>, rows: usize, d: usize) -> Result<Measured> {
    let elements = rows * d;
    let bytes = elements * (4 + 2 + 4 + 2);
    let mut random = Random::named("bench");
    let weight = Buffer::from_slice(device, &stored(HalfType::Bf16, &random.vector(d, Values::Normal(1.0))))?;
    let residual = random.vector(elements, Values::Normal(1.0));
    let delta = stored(HalfType::Bf16, &random.vector(elements, Values::Normal(0.01)));
    let mut data = Vec::new();
    for _ in 0..device.sets(bytes) {
        let out = Buffer::<u16>::uninitialised(device, elements)?;
        data.push((out, Buffer::from_slice(device, &residual)?, Buffer::from_slice(device, &delta)?));
    }
    let seconds = median(device, data.len(), |i| {
        let (out, residual, delta) = &mut data[i];
        let delta = Delta::HalfType(delta.view());
        let norm = Norm { weight: weight.view(), columns: d, eps: 1e-5 };
        rmsnorm(device, HalfType::Bf16, &mut out.view_mut(), &mut residual.view_mut(), delta, norm)
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

fn time_rmsnorm_backward(device: &Bench<'_>, rows: usize, d: usize) -> Result<Measured> {
    let elements = rows * d;
    let bytes = elements * (12 + 4 + 2);
    let mut random = Random::named("bench");
    let weight = Buffer::from_slice(device, &stored(HalfType::Bf16, &random.vector(d, Values::Normal(1.0))))?;
    let residual = random.vector(elements, Values::Normal(1.0));
    let mut data = Vec::new();
    for _ in 0..device.sets(bytes) {
        let buffers = [&residual; 3].map(|values| Buffer::from_slice(device, values));
        let [grad, dy, residual] = buffers;
        data.push((grad?, Buffer::<u16>::uninitialised(device, elements)?, dy?, residual?));
    }
    let seconds = median(device, data.len(), |i| {
        let (grad, rounded, dy, residual) = &mut data[i];
        let norm = Norm { weight: weight.view(), columns: d, eps: 1e-5 };
        let (grad, rounded) = (&mut grad.view_mut(), &mut rounded.view_mut());
        let behind = Upstream::Rows(dy.view());
        rmsnorm_backward(device, HalfType::Bf16, grad, Some(rounded), behind, residual.view(), norm)
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

fn time_swiglu(device: &Bench<'_>, rows: usize, f: usize, backward: bool) -> Result<Measured> {
    let bytes = rows * f * if backward { 12 } else { 6 };
    let mut random = Random::named("bench");
    let gate_up = stored(HalfType::Bf16, &random.vector(rows * 2 * f, Values::Normal(1.0)));
    let d_act = random.vector(if backward { rows * f } else { 0 }, Values::Normal(1.0));
    let mut data = Vec::new();
    for _ in 0..device.sets(bytes) {
        let out = Buffer::<u16>::uninitialised(device, rows * f * if backward { 2 } else { 1 })?;
        data.push((out, Buffer::from_slice(device, &gate_up)?, Buffer::from_slice(device, &d_act)?));
    }
    let seconds = median(device, data.len(), |i| {
        let (out, gate_up, d_act) = &mut data[i];
        let out = &mut out.view_mut();
        match backward {
            true => swiglu_backward(device, HalfType::Bf16, out, d_act.view(), gate_up.view(), f),
            false => swiglu(device, HalfType::Bf16, out, gate_up.view(), f),
        }
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

fn time_embed(device: &Bench<'_>, rows: usize, d: usize) -> Result<Measured> {
    let bytes = rows * d * 6;
    // Rows far apart, in a table larger than any cache.
    let vocabulary = COLD / d;
    let table = Buffer::<u16>::zeros(device, vocabulary * d)?;
    let ids: Vec<u32> = (0..rows).map(|row| (row * 7919 % vocabulary) as u32).collect();
    let ids = Buffer::from_slice(device, &ids)?;
    let mut data = Vec::new();
    for _ in 0..device.sets(bytes) {
        data.push(Buffer::<f32>::uninitialised(device, rows * d)?);
    }
    let seconds = median(device, data.len(), |i| {
        embed(device, HalfType::Bf16, &mut data[i].view_mut(), table.view(), ids.view(), d)
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

/// Without head norms.
fn time_rope(device: &Bench<'_>, rows: usize, backward: bool) -> Result<Measured> {
    let heads = Heads { heads: 32, kv_heads: 8, head: 128, padded: 128 };
    let bytes = rows * heads.qkv() * if backward { 6 } else { 4 };
    let layout = KvLayout { layers: 1, kv_heads: heads.kv_heads, head: heads.padded };
    let places: Vec<u32> = (0..rows as u32).collect();
    let places = Buffer::from_slice(device, &places)?;
    let table = Buffer::from_slice(device, &vec![[0.6f32, 0.8]; rows * heads.head / 2])?;
    let mut data = Vec::new();
    for _ in 0..device.sets(bytes) {
        let qkv = Buffer::<u16>::zeros(device, rows * heads.qkv())?;
        let gradients = [heads.heads, heads.kv_heads, heads.kv_heads]
            .map(|count| Buffer::<f32>::zeros(device, if backward { rows * count * heads.padded } else { 0 }));
        let [dq, dk, dv] = gradients;
        let out = Buffer::<u16>::uninitialised(device, rows * if backward { heads.qkv() } else { 32 * 128 })?;
        let pool = Buffer::<u16>::uninitialised(device, rows.div_ceil(64) * layout.block())?;
        data.push((qkv, dq?, dk?, dv?, out, pool));
    }
    let seconds = median(device, data.len(), |i| {
        let (qkv, dq, dk, dv, out, pool) = &mut data[i];
        let inputs = Inputs { qkv: qkv.view(), positions: places.view(), table: table.view(), norms: None };
        if backward {
            let gradients = rope::Gradients { q: dq.view(), k: dk.view(), v: dv.view() };
            return rope_backward(device, HalfType::Bf16, &mut out.view_mut(), &gradients, &inputs, heads);
        }
        let mut kv = KvRows { pool: pool.view_mut(), layout, layer: 0, slots: places.view() };
        rope::rope(device, HalfType::Bf16, &mut out.view_mut(), &mut kv, &inputs, heads)
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

fn time_softmax(device: &Bench<'_>, rows: usize, v: usize) -> Result<Measured> {
    let bytes = rows * v * 4;
    let logits = Random::named("bench").vector(rows * v, Values::Normal(2.5));
    let floors = Buffer::from_slice(device, &vec![1e-9f64; rows])?;
    let mut stats = Buffer::<RowStatsOut>::uninitialised(device, rows)?;
    let mut scratch = softmax_entropy::Scratch::new(device, rows, v)?;
    let mut data = Vec::new();
    for _ in 0..device.sets(bytes) {
        data.push(Buffer::from_slice(device, &logits)?);
    }
    let seconds = median(device, data.len(), |i| {
        softmax_entropy(device, &mut stats.view_mut(), data[i].view(), floors.view(), &mut scratch)
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

/// A slot of the staging ring.
fn time_place(device: &Bench<'_>, dtype: DType) -> Result<Measured> {
    let (cols, width) = (4000, 4096);
    let rows = SLOT / (cols * dtype.size());
    let layout = Layout::corner(rows, cols, width);
    let bytes = rows * cols * (dtype.size() + 2);
    let mut changed = Buffer::<Changed>::zeros(device, 1)?;
    let mut data = Vec::new();
    for _ in 0..device.sets(bytes) {
        let from = Buffer::<u8>::zeros(device, rows * cols * dtype.size())?;
        data.push((Buffer::<u16>::zeros(device, rows * width)?, from));
    }
    let seconds = median(device, data.len(), |i| {
        let (out, from) = &mut data[i];
        let from = Stored { bytes: from.view(), dtype, first: 0 };
        pad_convert(device, HalfType::Bf16, &mut out.view_mut(), from, &layout, &mut changed.view_mut())
    })?;
    Ok((seconds, bytes as f64, 0.0))
}

fn time_gemm(device: &Bench<'_>, shape: Shape, backward: bool) -> Result<Measured> {
    let Shape { tokens, n, k } = shape;
    let (terms, outputs) = if backward { (n, k) } else { (k, n) };
    // A gradient is stored in f32.
    let bytes = 2 * (n * k + tokens * terms + tokens * outputs * if backward { 2 } else { 1 });
    let mut random = Random::named("bench");
    // A weight matrix of random numbers, drawn once and repeated: drawing them all takes longer than the benchmark.
    let drawn = stored(HalfType::Bf16, &random.vector(64 * k, Values::Normal(0.02)));
    let weights: Vec<u16> = drawn.iter().copied().cycle().take(n * k).collect();
    let x = Buffer::from_slice(device, &stored(HalfType::Bf16, &random.vector(tokens * terms, Values::Normal(1.0))))?;
    let mut y = Buffer::<u16>::uninitialised(device, if backward { 0 } else { tokens * outputs })?;
    let mut dx = Buffer::<f32>::uninitialised(device, if backward { tokens * outputs } else { 0 })?;
    let mut scratch = gemm::Scratch::new(device, &[(outputs, terms)], 32 * 128 * outputs.min(8192))?;
    let mut data = Vec::new();
    for _ in 0..device.sets(2 * n * k) {
        data.push(Buffer::from_slice(device, &weights)?);
    }
    let seconds = median(device, data.len(), |i| {
        let (storage, w) = (HalfType::Bf16, data[i].view());
        if backward {
            let gradients = gemm_backward::Gradients { storage, dy: x.view(), w };
            return gemm_backward(device, &mut Output::F32(dx.view_mut()), gradients, shape, &mut scratch);
        }
        let operands = Operands { storage, x: x.view(), w, bias: None };
        gemm::gemm(device, &mut Output::HalfType(y.view_mut()), operands, shape, &mut scratch)
    })?;
    Ok((seconds, bytes as f64, 2.0 * tokens as f64 * n as f64 * k as f64))
}
