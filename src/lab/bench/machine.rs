//! What the processor does at most, measured now: how fast it reads as much memory as a model has weights, and how many
//! multiply-adds its vector units do.

use super::cost::Roofline;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Passes of each measurement, some ten milliseconds each; the fastest counts. A shared machine is rarely at its limit.
const PASSES: usize = 15;
/// Bytes that are read at least, and at most.
const READ: [usize; 2] = [1 << 20, 1 << 30];

/// Limits of the processor, with the threads of the pool in which this is called, for work that reads `bytes` of weights: those that fit into a cache are read at a cache's pace.
pub fn processor(bytes: usize) -> Roofline {
    Roofline { bytes: read_rate(bytes.clamp(READ[0], READ[1])), flops: multiply_rate() }
}

/// Bytes a second that all threads read together.
fn read_rate(bytes: usize) -> f64 {
    let words: Vec<u64> = (0..bytes / 8).map(|i| i as u64).collect();
    let threads = rayon::current_num_threads().max(1);
    let part = words.len().div_ceil(threads).max(1);
    // Small ones several times over, so that starting threads is not what is measured.
    let rounds = (512 << 20) / bytes + 1;
    let pass = || {
        let started = Instant::now();
        let sum: u64 = words
            .par_chunks(part)
            .map(|words| (0..rounds).fold(0u64, |sum, _| sum.wrapping_add(sum_of(black_box(words)))))
            .reduce(|| 0, u64::wrapping_add);
        black_box(sum);
        (rounds * words.len() * 8) as f64 / started.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

fn sum_of(words: &[u64]) -> u64 {
    // Eight sums, so that additions do not wait for each other.
    let (chunks, rest) = words.as_chunks::<8>();
    let mut sums = [0u64; 8];
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |sum, &word| sum.wrapping_add(word))
}

/// Multiply-adds in f32 a second, two operations each, of all threads together.
fn multiply_rate() -> f64 {
    const STEPS: usize = 1 << 21;
    let threads = rayon::current_num_threads().max(1);
    let pass = || {
        let started = Instant::now();
        let sum: f32 = (0..threads).into_par_iter().map(|_| multiply_adds(STEPS)).sum();
        black_box(sum);
        (threads * STEPS * LANES * 2) as f64 / started.elapsed().as_secs_f64()
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

/// Independent sums: enough for the latency of a multiply-add times the width of the widest registers, twice over.
const LANES: usize = 192;

fn multiply_adds(steps: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, the only thing the function asks for.
            return unsafe { multiply_adds_avx512(steps) };
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA, the only things the function asks for.
            return unsafe { multiply_adds_avx2(steps) };
        }
    }
    multiply_adds_any(steps, |a, b, c| a * b + c)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_adds_avx512(steps: usize) -> f32 {
    multiply_adds_any(steps, f32::mul_add)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_adds_avx2(steps: usize) -> f32 {
    multiply_adds_any(steps, f32::mul_add)
}

#[inline(always)]
fn multiply_adds_any(steps: usize, fused: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [0.5f32; LANES];
    let (a, b) = (black_box(0.999_f32), black_box(1e-3_f32));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = fused(*sum, a, b);
        }
    }
    sums.iter().sum()
}

/// The processor's name, its memory in bytes.
pub fn described() -> (String, Option<u64>) {
    let value = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let name = value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_string());
    let memory =
        value("/proc/meminfo", "MemTotal").and_then(|text| text.strip_suffix(" kB")?.trim().parse::<u64>().ok());
    (name, memory.map(|kilobytes| kilobytes << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_sums_are_sums() {
        assert_eq!(sum_of(&(0..1003).collect::<Vec<u64>>()), 1002 * 1003 / 2);
        // The fixed point of x -> 0.999 x + 0.001 is 1.
        assert!((multiply_adds(1 << 14) / LANES as f32 - 1.0).abs() < 1e-3);
        let limits = processor(1 << 20);
        assert!(limits.bytes > 1e8 && limits.flops > 1e8, "{limits:?}");
    }
}
