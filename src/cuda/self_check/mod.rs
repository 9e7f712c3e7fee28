//! Does this device compute what the kernels say? Small problems of every kernel of every op, whose results are known.
//!
//! `expected.safetensors` has the results in f64 with a bound for every element, in which sums in another order and roundings
//! to the storage type have room; the laboratory writes it. What goes in is drawn here. It is asked before a device is used for
//! the first time, so it has to be quick: it finds a card, a driver or an image that is broken, and is no proof of the kernels,
//! which `ggro kernels test` is for.

pub(crate) mod attention;
mod case;
mod dependents;
mod expected;
mod numbers;
pub(crate) mod products;
pub(crate) mod rows;
pub(crate) mod tables;

use super::device::Device;
use super::images;
use crate::Result;
use crate::dtype::HalfType;
pub(crate) use case::Case;
use case::CheckRun;
use expected::Expected;
#[cfg(all(test, feature = "lab"))]
pub(crate) use expected::FILE;
#[cfg(feature = "lab")]
pub(crate) use expected::names;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What a self-check found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// How many cases there are.
    pub cases: usize,
    /// How many were run.
    pub ran: usize,
    /// Why the others were not, if that is no fault of the kernels.
    pub stopped: Option<&'static str>,
    /// Per case that differs, which it is and where.
    pub wrong: Vec<String>,
    /// What it took.
    pub seconds: f64,
}

/// The cases of the kernels that every device needs.
pub(crate) fn cases() -> Vec<Case> {
    [tables::cases(), rows::cases(), products::cases(), attention::cases()].into_iter().flatten().collect()
}

/// The cases of the kernels for Hopper alone. They are a group of their own, because a device can do without these kernels.
fn sm90_cases() -> Vec<Case> {
    [products::sm90_cases(), attention::sm90_cases(), tables::tiled_cases()].into_iter().flatten().collect()
}

/// Runs the cases of the kernels that every device needs, until the time is over. A device that fails differs.
pub fn run(device: &Device, limit: Duration) -> Findings {
    run_cases(device, cases(), limit)
}

/// The same for the family [`Sm90`](super::KernelFamily::Sm90): its products, its attention, and what reads and writes weights in tiles.
pub fn run_sm90(device: &Device, limit: Duration) -> Findings {
    run_cases(device, sm90_cases(), limit)
}

/// Chains of kernels that may each begin before the one before it has ended, in the family that the device runs: they must give the
/// bits of the same kernels one after the other. The device must be one that
/// [can launch so](Device::can_launch_dependents).
pub fn run_dependents(device: &Device, limit: Duration) -> Findings {
    let run = CheckRun { device, started: Instant::now(), limit };
    gather(&run, &dependents::cases(), dependents::ChainCase::name, |case| case.check(&run))
}

fn run_cases(device: &Device, cases: Vec<Case>, limit: Duration) -> Findings {
    let run = CheckRun { device, started: Instant::now(), limit };
    let all = cases.into_iter().flat_map(|case| {
        let types = if case.both { &HalfType::ALL[..] } else { &HalfType::ALL[..1] };
        let case = std::rc::Rc::new(case);
        types.iter().map(move |&storage| (case.clone(), storage)).collect::<Vec<_>>()
    });
    let all: Vec<_> = all.collect();
    let expected = match Expected::embedded() {
        Ok(expected) => expected,
        Err(error) => return Findings { cases: all.len(), wrong: vec![error.to_string()], ..Findings::default() },
    };
    let name = |(case, storage): &(std::rc::Rc<Case>, HalfType)| {
        let of = if case.both { format!("{} {}", storage.name(), case.name) } else { case.name.clone() };
        format!("{} ({of})", case.op)
    };
    let mut seen = Seen::default();
    gather(&run, &all, name, |(case, storage)| check(case, *storage, &run, &expected, &mut seen))
}

/// Checks cases until the time is over. `check` gives the first place where one differs; one that fails differs, too.
fn gather<T>(
    run: &CheckRun<'_>,
    cases: &[T],
    name: impl Fn(&T) -> String,
    mut check: impl FnMut(&T) -> Result<Option<String>>,
) -> Findings {
    let mut findings = Findings { cases: cases.len(), ..Findings::default() };
    for case in cases {
        if run.is_over() {
            findings.stopped = Some("the time was over");
            break;
        }
        // What is lost answers nothing any more.
        if run.device.alive().is_err() {
            break;
        }
        let wrong = match check(case) {
            Ok(wrong) => wrong,
            // Somebody else has it all.
            Err(error) if error.to_string().contains("OUT_OF_MEMORY") => {
                findings.stopped = Some("the device had no memory left");
                break;
            }
            Err(error) => Some(error.to_string()),
        };
        findings.ran += 1;
        findings.wrong.extend(wrong.map(|what| format!("{}: {what}", name(case))));
    }
    findings.seconds = run.started.elapsed().as_secs_f64();
    findings
}

/// What cases gave that have the same results, by those, storage type and output: the longest, and which case it was.
type Seen = HashMap<(String, HalfType, &'static str), (String, Vec<f64>)>;

/// The first place where a case is not what it should be: near the results, and, where another case has the same, of the same bits.
/// Kernels for few and for many rows must not differ, or an answer depended on what stands beside it.
fn check(
    case: &Case,
    storage: HalfType,
    run: &CheckRun<'_>,
    expected: &Expected<'_>,
    seen: &mut Seen,
) -> Result<Option<String>> {
    for output in case.run(run, storage)? {
        let known = expected.of(&case.expected, output.name)?;
        let count = known.values.len();
        let first = if case.both { storage as usize * count } else { 0 };
        let bounds = known.bounds.get(first..).unwrap_or_default();
        // A problem with fewer rows has the first of the results.
        if output.values.len() > count || bounds.len() < count {
            return Ok(Some(format!("{} elements of {}, expected {count}", output.values.len(), output.name)));
        }
        let what = output.name;
        for (at, ((found, known), &bound)) in output.values.iter().zip(known.values).zip(bounds).enumerate() {
            // Written so that NaN is no answer.
            let is_near = (found - known).abs() <= f64::from(bound);
            if !is_near {
                return Ok(Some(format!("{what}, element {at}, is {found}, expected {known} within {bound:.1e}")));
            }
        }
        let (other, values) = seen.entry((case.expected.clone(), storage, what)).or_default();
        if let Some(at) = output.values.iter().zip(&*values).position(|(a, b)| a.to_bits() != b.to_bits()) {
            let (found, there) = (output.values[at], values[at]);
            return Ok(Some(format!(
                "{what}, element {at}, is {found}, but {there} in {other}: a row depends on its company"
            )));
        }
        if output.values.len() > values.len() {
            (*other, *values) = (case.name.clone(), output.values);
        }
    }
    Ok(None)
}

/// Tells one build's kernels and results from another's.
pub fn fingerprint() -> u64 {
    let images = images::embedded().iter().flat_map(|image| [image.name.as_bytes(), image.code.bytes()]);
    images.chain([expected::FILE]).fold(0xcbf2_9ce4_8422_2325, |hash: u64, bytes| {
        bytes.chunks(8).fold(hash, |hash, word| {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            let mixed = (hash ^ u64::from_le_bytes(padded)).wrapping_mul(0x0100_0000_01b3);
            // A product only carries upwards.
            mixed ^ (mixed >> 29)
        })
    })
}
