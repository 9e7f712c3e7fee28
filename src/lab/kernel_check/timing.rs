//! How fast the kernels are, against what the card itself can do.
//!
//! The denominators are measured first, on the same card in the same run: a large copy on the device, and products from
//! registers. Each op runs over several sets of buffers in turn, larger together than any cache, so that every run finds
//! its data in memory; the time is the median of runs measured with events.

use super::numbers::{Random, Values, stored};
use crate::cuda::instruments::mma_peak::mma_peak;
use crate::cuda::{Buffer, Device};
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

/// More than any cache holds.
pub const COLD: usize = 256 << 20;
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

/// Times the copy, the matrix peak and what is asked for; `done` sees each timing as it comes.
pub(super) fn run(
    device: &Device,
    timed: Vec<Timed>,
    quick: bool,
    mut done: impl FnMut(&Timing),
) -> Result<Vec<Timing>> {
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
    for Timed { op, case, measure } in timed {
        let Measured { seconds, bytes, flops } = measure(device)?;
        let floor = (bytes / limits.bytes).max(flops / limits.flops);
        push(timing(op, case, seconds, bytes, flops, floor / seconds));
    }
    Ok(all)
}

/// The device, and how much is made of measuring.
pub struct Bench<'a> {
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
    /// As many sets of buffers of so many bytes as no cache holds together.
    pub fn sets<S>(&self, bytes: usize, set: impl FnMut(usize) -> Result<S>) -> Result<Vec<S>> {
        let count = if self.quick { 1 } else { (COLD / bytes.max(1)).clamp(1, 64) + 1 };
        (0..count).map(set).collect()
    }

    /// Random bf16 numbers.
    pub fn random(&self, random: &mut Random, len: usize, values: Values) -> Result<Buffer<u16>> {
        Buffer::from_slice(self, &stored(HalfType::Bf16, &random.vector(len, values)))
    }

    /// Median seconds of a run on each of the sets in turn.
    pub fn median<S>(&self, sets: &mut [S], mut run: impl FnMut(&mut S) -> Result<()>) -> Result<f64> {
        let count = sets.len();
        for i in 0..if self.quick { 0 } else { count.max(3) } {
            run(&mut sets[i % count])?;
        }
        self.synchronize()?;
        let runs = if self.quick { 1 } else { RUNS };
        let mut times = Vec::with_capacity(runs);
        for i in 0..runs {
            let from = self.record()?;
            run(&mut sets[i % count])?;
            let to = self.record()?;
            self.synchronize()?;
            times.push(self.seconds(&from, &to)?);
        }
        times.sort_by(f64::total_cmp);
        times.get(runs / 2).copied().filter(|&t| t > 0.0).ok_or_else(|| Error::Backend("the clock stands still".into()))
    }
}

struct Limits {
    bytes: f64,
    flops: f64,
}

/// Seconds, bytes and operations of a run.
pub struct Measured {
    seconds: f64,
    bytes: f64,
    flops: f64,
}

impl Measured {
    /// An op that moves so many bytes and computes next to nothing.
    pub fn bytes(seconds: f64, bytes: usize) -> Self {
        Measured { seconds, bytes: bytes as f64, flops: 0.0 }
    }

    /// An op that also needs so many floating-point operations.
    pub fn flops(self, flops: f64) -> Self {
        Measured { flops, ..self }
    }
}

type Measure = Box<dyn Fn(&Bench<'_>) -> Result<Measured>>;

/// An op, a shape in words, and how it is measured.
pub struct Timed {
    pub op: &'static str,
    case: String,
    measure: Measure,
}

impl Timed {
    pub fn new(op: &'static str, case: String, measure: impl Fn(&Bench<'_>) -> Result<Measured> + 'static) -> Self {
        Timed { op, case, measure: Box::new(measure) }
    }

    /// One timing for each shape.
    pub fn each<S: Copy + 'static, const N: usize>(
        op: &'static str,
        shapes: [S; N],
        case: impl Fn(S) -> String,
        measure: fn(&Bench<'_>, S) -> Result<Measured>,
    ) -> Vec<Self> {
        shapes.map(|shape| Timed::new(op, case(shape), move |device| measure(device, shape))).into()
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

fn copy_rate(device: &Bench<'_>) -> Result<(f64, f64)> {
    let len = if device.quick { 1 << 20 } else { (1 << 30).min(device.memory()?.0 / 4) };
    let from = Buffer::<u8>::zeros(device, len)?;
    let mut to = Buffer::<u8>::zeros(device, len)?;
    let seconds = device.median(&mut [()], |_| to.copy_from(device, &from))?;
    Ok((seconds, 2.0 * len as f64))
}

fn matrix_peak(device: &Bench<'_>) -> Result<(f64, f64)> {
    let (blocks, rounds) = if device.quick { (1, 1) } else { (device.multiprocessors() as usize * 8, 4096) };
    let mut out = Buffer::<f32>::uninitialised(device, blocks * 256)?;
    let mut flops = 0.0;
    let seconds = device.median(&mut [()], |_| {
        flops = mma_peak(device, &mut out.view_mut(), blocks, rounds)?;
        Ok(())
    })?;
    Ok((seconds, flops))
}
