//! How fast the kernels are, against what the card itself can do.
//!
//! The denominators are measured first, on the same card in the same run: a large copy on the device, a kernel that only
//! reads, and products that need no memory: of `mma.sync`, and on Hopper of `wgmma`, which alone reaches the peak there.
//! Each op runs over several sets of buffers in turn, larger together than any cache, so that every run finds its data in
//! memory.
//!
//! A sample is the time between two events with many runs between them, divided by their number. In front of the first event
//! the device has a copy to do, meanwhile the host queues the runs: a launch takes the host longer than a small kernel takes
//! the device, and without that the host would be measured. What is left in the number is the gap between two launches on one
//! stream, about a microsecond. The result is the median of the samples.

use super::numbers::{Random, Values, stored};
use crate::cuda::instruments::mma_peak::mma_peak;
use crate::cuda::instruments::read_peak::read_peak;
use crate::cuda::instruments::wgmma_peak::{self, wgmma_peak};
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use crate::{Error, Result};
use std::cell::RefCell;

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
    /// Percent of the limit: of the measured rate of memory, or of the measured matrix peak if that takes longer.
    pub percent: f64,
}

/// More than any cache holds.
pub const COLD: usize = 256 << 20;
/// Times that the median is taken of.
const SAMPLES: usize = 11;
/// A sample takes at least so long, in seconds, as long as the host can queue it in time.
const SAMPLE_SECONDS: f64 = 200e-6;
/// Runs of a sample, at most: the host queues them while the device copies.
const MOST_RUNS: usize = 32;
/// Bytes of that copy. At 2 TB/s of reading and writing it takes a quarter of a millisecond, which is 8 us for each of the runs.
const DELAY: usize = 256 << 20;

/// What a card can do, measured: bytes a second, the more of reading alone and of copying (each byte read and written), and
/// operations a second of products that need no memory.
///
/// # Errors
/// The device fails.
pub fn limits(device: &Device, quick: bool) -> Result<(f64, f64)> {
    let device = &Bench::new(device, quick)?;
    let (copy, read) = (copy_rate(device)?, read_rate(device)?);
    let (mma, wgmma) = (mma_rate(device)?, wgmma_rate(device)?);
    let peak = wgmma.map_or(0.0, |(seconds, flops)| flops / seconds).max(mma.1 / mma.0);
    Ok(((copy.1 / copy.0).max(read.1 / read.0), peak))
}

/// Times the copy, the matrix peak and what is asked for; `done` sees each timing as it comes.
pub(super) fn run(
    device: &Device,
    timed: Vec<Timed>,
    quick: bool,
    mut done: impl FnMut(&Timing),
) -> Result<Vec<Timing>> {
    let device = &Bench::new(device, quick)?;
    let mut all = Vec::new();
    let mut push = |timing: Timing| {
        done(&timing);
        all.push(timing);
    };
    let copy = copy_rate(device)?;
    push(timing("copy", format!("2 x {} MB", copy.1 as usize / 2_000_000), copy.0, copy.1, 0.0, 1.0));
    let read = read_rate(device)?;
    push(timing("read", format!("{} MB", read.1 as usize / 1_000_000), read.0, read.1, 0.0, 1.0));
    let mma = mma_rate(device)?;
    push(timing("peak_mma", "from registers".into(), mma.0, 0.0, mma.1, 1.0));
    let mut flops = mma.1 / mma.0;
    if let Some(wgmma) = wgmma_rate(device)? {
        push(timing("peak_wgmma", "from shared memory".into(), wgmma.0, 0.0, wgmma.1, 1.0));
        flops = flops.max(wgmma.1 / wgmma.0);
    }
    let limits = TimingLimits { bytes: (copy.1 / copy.0).max(read.1 / read.0), flops };
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
    /// What is copied while the host queues the runs of a sample; empty with `quick`.
    delay: RefCell<(Buffer<u8>, Buffer<u8>)>,
}

impl std::ops::Deref for Bench<'_> {
    type Target = Device;
    fn deref(&self) -> &Device {
        self.device
    }
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, quick: bool) -> Result<Self> {
        let len = if quick { 0 } else { DELAY.min(device.memory()?.0 / 16) };
        let delay = RefCell::new((Buffer::zeros(device, len)?, Buffer::zeros(device, len)?));
        Ok(Bench { device, quick, delay })
    }

    /// As many sets of buffers of so many bytes as no cache holds together.
    pub fn sets<S>(&self, bytes: usize, set: impl FnMut(usize) -> Result<S>) -> Result<Vec<S>> {
        let count = if self.quick { 1 } else { (COLD / bytes.max(1)).clamp(1, 64) + 1 };
        (0..count).map(set).collect()
    }

    /// Random bf16 numbers.
    pub fn random(&self, random: &mut Random, len: usize, values: Values) -> Result<Buffer<u16>> {
        Buffer::from_slice(self, &stored(HalfType::Bf16, &random.vector(len, values)))
    }

    /// Seconds of a run on each of the sets in turn, median.
    pub fn median<S>(&self, sets: &mut [S], mut run: impl FnMut(&mut S) -> Result<()>) -> Result<f64> {
        let count = sets.len();
        let mut next = 0;
        let mut sample = |runs: usize| {
            let (to, from) = &mut *self.delay.borrow_mut();
            to.copy_from(self, from)?;
            let began = self.record()?;
            for _ in 0..runs {
                run(&mut sets[next % count])?;
                next += 1;
            }
            let ended = self.record()?;
            self.synchronize()?;
            Ok::<_, Error>(self.seconds(&began, &ended)? / runs as f64)
        };
        let (samples, runs) = match self.quick {
            true => (1, 1),
            false => {
                // Every set once, so that code and tables are there; then long enough to know how many runs a sample takes.
                sample(count.max(3))?;
                let one = sample(3)?;
                (SAMPLES, (SAMPLE_SECONDS / one.max(1e-9)).ceil().clamp(1.0, MOST_RUNS as f64) as usize)
            }
        };
        let mut times = (0..samples).map(|_| sample(runs)).collect::<Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        let median = times.get(samples / 2).copied().filter(|&t| t > 0.0);
        median.ok_or_else(|| Error::Backend("the clock stands still".into()))
    }
}

struct TimingLimits {
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

fn read_rate(device: &Bench<'_>) -> Result<(f64, f64)> {
    let len = if device.quick { 1 << 20 } else { (1 << 30).min(device.memory()?.0 / 4) };
    let from = Buffer::<u32>::zeros(device, len / 4)?;
    let blocks = if device.quick { 2 } else { device.multiprocessors() as usize * 8 };
    let mut out = Buffer::<u32>::uninitialised(device, blocks)?;
    let seconds = device.median(&mut [()], |()| read_peak(device, &mut out.view_mut(), from.view(), blocks))?;
    Ok((seconds, from.len() as f64 * 4.0))
}

/// Seconds and operations of `mma.sync`.
fn mma_rate(device: &Bench<'_>) -> Result<(f64, f64)> {
    let (blocks, rounds) = if device.quick { (1, 1) } else { (device.multiprocessors() as usize * 8, 4096) };
    let mut out = Buffer::<f32>::uninitialised(device, blocks * 256)?;
    let mut flops = 0.0;
    let seconds = device.median(&mut [()], |()| {
        flops = mma_peak(device, &mut out.view_mut(), blocks, rounds)?;
        Ok(())
    })?;
    Ok((seconds, flops))
}

/// Seconds and operations of `wgmma`; none where the device has no code for it.
fn wgmma_rate(device: &Bench<'_>) -> Result<Option<(f64, f64)>> {
    if !wgmma_peak::runs_on(device) {
        return Ok(None);
    }
    let (blocks, rounds) = if device.quick { (1, 1) } else { (device.multiprocessors() as usize * 2, 2048) };
    let mut out = Buffer::<f32>::uninitialised(device, blocks * wgmma_peak::THREADS as usize)?;
    let mut flops = 0.0;
    let seconds = device.median(&mut [()], |()| {
        flops = wgmma_peak(device, &mut out.view_mut(), blocks, rounds)?;
        Ok(())
    })?;
    Ok(Some((seconds, flops)))
}
