//! Golden vectors of single instructions: what a card answered, for the emulated device to be held to.
//!
//! [`record`] runs every probe on seeded inputs and keeps both sides. [`replay`] runs the same inputs elsewhere and compares:
//! exactly where data is only moved or rounded; products within what a tensor core may lose by aligning and truncating.

use super::case::{Check, Finding};
use super::numbers::Random;
use crate::cuda::instruments::probe::{IN, OUT, Probe, probe};
use crate::cuda::{Buffer, Device};
use crate::dtype::HalfType;
use crate::files::checkpoint::read_whole;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::path::Path;

/// Cases of a probe.
const CASES: usize = 32;
/// A word of an output that was not written.
const UNWRITTEN: u32 = u32::MAX;

/// One probe's cases and what a device answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    /// The instruction.
    pub probe: Probe,
    /// Words, [`IN`] per case.
    pub input: Vec<u32>,
    /// Words, [`OUT`] per case.
    pub output: Vec<u32>,
}

/// Runs all probes. Those that the device's code lacks are left out.
///
/// # Errors
/// The device fails.
pub fn record(device: &Device) -> Result<Vec<Vectors>> {
    let mut all = Vec::new();
    for which in Probe::ALL {
        let input = inputs(which);
        if let Some(output) = run(device, which, &input)? {
            all.push(Vectors { probe: which, input, output });
        }
    }
    Ok(all)
}

/// Runs recorded inputs and compares with what was recorded; probes that the device's code lacks are left out.
pub fn replay(device: &Device, recorded: &[Vectors]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for vectors in recorded {
        let mut check = Check::default();
        match run(device, vectors.probe, &vectors.input) {
            Ok(Some(found)) => compare(&mut check, vectors, &found),
            Ok(None) => continue,
            Err(error) => check.fail(error.to_string()),
        }
        findings.push(Finding::new("probe", vectors.probe.name().to_string(), check));
    }
    findings
}

/// Writes a file of vectors; `about` is kept in it as it is.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, vectors: &[Vectors], about: HashMap<String, String>) -> Result<()> {
    let bytes = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    let mut data = Vec::new();
    for Vectors { probe, input, output } in vectors {
        let cases = input.len() / IN;
        data.push((format!("{}.in", probe.name()), vec![cases, IN], bytes(input)));
        data.push((format!("{}.out", probe.name()), vec![cases, OUT], bytes(output)));
    }
    let views = data.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::U32, shape.clone(), bytes);
        view.map(|view| (name.as_str(), view)).map_err(|e| Error::file(path, e.to_string()))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let file = safetensors::serialize(views, Some(about)).map_err(|e| Error::file(path, e.to_string()))?;
    std::fs::write(path, file).map_err(|e| Error::io(path, e))
}

/// Reads a file of vectors. Probes that it lacks are left out.
///
/// # Errors
/// The file cannot be read, or a tensor has another shape or type.
pub fn read(path: &Path) -> Result<Vec<Vectors>> {
    let bytes = read_whole(path, std::fs::File::open(path).map_err(|e| Error::io(path, e))?)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::file(path, e.to_string()))?;
    let words = |name: String, width: usize| -> Result<Option<Vec<u32>>> {
        let Ok(tensor) = file.tensor(&name) else { return Ok(None) };
        if tensor.dtype() != Dtype::U32 || tensor.shape().get(1) != Some(&width) || tensor.shape().len() != 2 {
            let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
            return Err(Error::file(path, format!("{name}: U32 words, {width} per case, expected, {found} found")));
        }
        Ok(Some(tensor.data().as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()))
    };
    let mut all = Vec::new();
    for probe in Probe::ALL {
        let (input, output) =
            (words(format!("{}.in", probe.name()), IN)?, words(format!("{}.out", probe.name()), OUT)?);
        match (input, output) {
            (Some(input), Some(output)) if input.len() / IN == output.len() / OUT => {
                all.push(Vectors { probe, input, output });
            }
            (None, None) => {}
            _ => return Err(Error::file(path, format!("{}: input and output do not fit each other", probe.name()))),
        }
    }
    Ok(all)
}

fn run(device: &Device, which: Probe, input: &[u32]) -> Result<Option<Vec<u32>>> {
    let given = Buffer::from_slice(device, input)?;
    let mut out = Buffer::from_slice(device, &vec![UNWRITTEN; input.len() / IN * OUT])?;
    probe(device, which, &mut out.view_mut(), given.view())?;
    let out = out.download(device)?;
    Ok(out.iter().any(|&word| word != UNWRITTEN).then_some(out))
}

fn inputs(which: Probe) -> Vec<u32> {
    let mut random = Random::named(which.name());
    let mut words = Vec::with_capacity(CASES * IN);
    for case in 0..CASES {
        match which {
            Probe::MmaBf16 => product(&mut words, &mut random, case, HalfType::Bf16),
            Probe::MmaF16 => product(&mut words, &mut random, case, HalfType::F16),
            Probe::Round => {
                // Numbers of every size, ties, and bit patterns as they come; NaNs only of the ordinary kind.
                for _ in 0..IN {
                    let value = match random.below(4) {
                        0 => f32::from_bits(random.below(1 << 32) as u32),
                        1 => random.normal() * 2f32.powi(random.below(60) as i32 - 30),
                        2 => f32::from_bits(((random.below(1 << 20) as u32) << 12) | (1 << 30)),
                        _ => (random.normal() * 64.0).round() / 64.0,
                    };
                    words.push(if value.is_nan() { f32::INFINITY.to_bits() } else { value.to_bits() });
                }
            }
            _ => words.extend((0..IN).map(|_| random.below(1 << 32) as u32)),
        }
    }
    words
}

/// Fragments of `a`, `b` and the accumulator: ordinary numbers, numbers of very different size, and sums that nearly vanish.
fn product(words: &mut Vec<u32>, random: &mut Random, case: usize, storage: HalfType) {
    let start = words.len();
    let spread = |random: &mut Random| 2f32.powi(random.below(16) as i32 - 8);
    let element = |random: &mut Random| match case % 4 {
        0 => random.normal(),
        1 => random.normal() * spread(random),
        2 => (random.normal() * 8.0).round(),
        _ => random.normal() * 64.0,
    };
    for _ in 0..128 + 64 {
        let (low, high) = (element(random), element(random));
        words.push(u32::from(storage.round(low)) | (u32::from(storage.round(high)) << 16));
    }
    let sums = exact(storage, &words[start..], &[0.0; 128]);
    for sum in sums {
        let accumulator = match case / 4 % 3 {
            0 => 0.0,
            1 => random.normal() * spread(random),
            // What the products add up to, taken away: only what was lost remains.
            _ => -sum.0 as f32,
        };
        words.push(accumulator.to_bits());
    }
    words.resize(start + IN, 0);
}

/// Per word of a product's output, the exact value and the largest term in magnitude.
fn exact(storage: HalfType, words: &[u32], accumulator: &[f32; 128]) -> Vec<(f64, f64)> {
    let half = |word: u32, high: usize| f64::from(storage.widen((word >> (16 * high)) as u16));
    let mut out = Vec::with_capacity(128);
    for lane in 0..32 {
        for register in 0..4 {
            let (row, column) = (lane / 4 + register / 2 * 8, lane % 4 * 2 + register % 2);
            let start = f64::from(accumulator[4 * lane + register]);
            let (mut sum, mut largest) = (start, start.abs());
            for k in 0..16 {
                // Registers of a: rows 0..8 and 8..16 of columns 0..8, then of columns 8..16.
                let a = words[4 * (row % 8 * 4 + k % 8 / 2) + row / 8 + k / 8 * 2];
                let b = words[128 + 2 * (column * 4 + k % 8 / 2) + k / 8];
                let term = half(a, k % 2) * half(b, k % 2);
                sum += term;
                largest = largest.max(term.abs());
            }
            out.push((sum, largest));
        }
    }
    out
}

fn compare(check: &mut Check, recorded: &Vectors, found: &[u32]) {
    let storage = match recorded.probe {
        Probe::MmaBf16 => HalfType::Bf16,
        Probe::MmaF16 => HalfType::F16,
        _ => return check.same("out", found, &recorded.output),
    };
    if found.len() != recorded.output.len() {
        return check.fail(format!("{} words instead of {}", found.len(), recorded.output.len()));
    }
    let cases = recorded.input.chunks_exact(IN).zip(recorded.output.chunks_exact(OUT).zip(found.chunks_exact(OUT)));
    for (case, (input, (expected, found))) in cases.enumerate() {
        let mut accumulator = [0.0; 128];
        for (value, word) in accumulator.iter_mut().zip(&input[192..]) {
            *value = f32::from_bits(*word);
        }
        let exact = exact(storage, input, &accumulator);
        for (word, ((&expected, &found), (sum, largest))) in expected.iter().zip(found).zip(exact).enumerate() {
            // Seventeen terms, each cut off at the last of 24 bits of the largest, and the result rounded or cut off.
            let bound = 18.0 * largest.max(sum.abs()) * f64::from(f32::EPSILON);
            for (what, word_found) in [("recorded", expected), ("found", found)] {
                let value = f64::from(f32::from_bits(word_found));
                let error = (value - sum).abs();
                check.bound(|| format!("case {case}, word {word}: {what} {value:e} for {sum:e}"), error, bound);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_what_they_are_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vectors.safetensors");
        let vectors = [Probe::Shuffle, Probe::MmaF16].map(|probe| Vectors {
            probe,
            input: inputs(probe),
            output: (0..CASES * OUT).map(|word| word as u32).collect(),
        });
        write(&path, &vectors, HashMap::from([("device".to_string(), "none".to_string())])).unwrap();
        let mut back = read(&path).unwrap();
        back.reverse();
        assert_eq!(back, vectors);
        std::fs::write(&path, b"nothing").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("vectors.safetensors"));
    }

    #[test]
    fn sums_that_nearly_vanish_are_among_the_products() {
        let input = inputs(Probe::MmaBf16);
        let vanishing = input.chunks_exact(IN).filter(|case| {
            let mut accumulator = [0.0; 128];
            for (value, word) in accumulator.iter_mut().zip(&case[192..]) {
                *value = f32::from_bits(*word);
            }
            exact(HalfType::Bf16, case, &accumulator).iter().all(|(sum, largest)| sum.abs() < 1e-5 * largest)
        });
        assert!(vanishing.count() >= CASES / 4);
    }
}
