//! Statistics of one row of logits: everything a decision may look at.
//!
//! Two sweeps over the row. The first finds the two largest logits and anything that is not a number; the second sums
//! `e`, `e d` and `e d^2` with `d = max - z` and `e = exp(-d)`. Everything follows from these three sums: with
//! `-ln q = d + ln sum e`, the entropy is the mean of `-ln q` under `q` and the varentropy its variance. Logits never
//! enter an exponential unshifted, so a common shift of 1e4 or an outlier of 1e30 costs no digit. The probability floor
//! needs the final normaliser and is a third sweep.
//!
//! Exponentials are in f32 (a polynomial that the compiler can vectorise), products and sums in f64. Both sums behind a
//! variance use the same `e` and `d`, so what rounding they carry is a perturbation of the weights and cannot cancel
//! badly. The row is cut into [`LANES`] interleaved lanes which are added up in a fixed order: the result depends on the
//! row alone, to the last bit, whatever the processor.

/// Statistics of a next-token distribution `q = softmax(z)`. Entropies in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// Id of the largest logit, the lowest on a tie.
    pub argmax: u32,
    /// The largest logit.
    pub max_logit: f32,
    /// `ln sum exp z`.
    pub log_sum_exp: f64,
    /// `-sum q ln q`.
    pub entropy: f64,
    /// `-sum max(q, f) ln max(q, f)` with the floor `f` that was asked for, not renormalised.
    pub entropy_floored: f64,
    /// Largest probability.
    pub max_probability: f64,
    /// Largest minus second largest logit: 0 on a tie, infinite if there is no second or it is minus infinity.
    pub margin: f32,
    /// Variance of `-ln q` under `q`.
    pub varentropy: f64,
    /// No logit is NaN or plus infinity, and not all are minus infinity. If false, the other fields mean nothing.
    pub finite: bool,
}

impl RowStats {
    /// Statistics of `logits` with the probability floor `floor`.
    ///
    /// An empty row has no distribution and comes back as not finite.
    pub fn of(logits: &[f32], floor: f64) -> RowStats {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, the only thing the function asks for.
            return unsafe { RowStats::of_avx2(logits, floor) };
        }
        RowStats::of_any(logits, floor)
    }

    /// The same operations in wider vectors. Multiplications and additions are never fused, so the bits are the same.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn of_avx2(logits: &[f32], floor: f64) -> RowStats {
        RowStats::of_any(logits, floor)
    }

    #[inline(always)]
    fn of_any(logits: &[f32], floor: f64) -> RowStats {
        let Some(top) = Top::of(logits) else {
            return RowStats::not_finite();
        };
        let sums = Sums::of(logits, top.max);
        let log_norm = sums.weight.ln();
        let mean = sums.first / sums.weight;
        let entropy = log_norm + mean;
        let entropy_floored = if floor > 0.0 { floored(logits, top.max, &sums, floor) } else { entropy };
        RowStats {
            argmax: top.argmax,
            max_logit: top.max,
            log_sum_exp: f64::from(top.max) + log_norm,
            entropy,
            entropy_floored,
            max_probability: 1.0 / sums.weight,
            margin: top.max - top.second,
            varentropy: (sums.second / sums.weight - mean * mean).max(0.0),
            finite: true,
        }
    }

    fn not_finite() -> RowStats {
        RowStats {
            argmax: 0,
            max_logit: f32::NAN,
            log_sum_exp: f64::NAN,
            entropy: f64::NAN,
            entropy_floored: f64::NAN,
            max_probability: f64::NAN,
            margin: f32::NAN,
            varentropy: f64::NAN,
            finite: false,
        }
    }
}

/// The `k` largest of `logits[..below]` as `(id, logit)`, largest first, the lower id first on a tie.
///
/// Minus infinity ranks last, and so does NaN (such a row is refused by [`RowStats::finite`] before anyone chooses from
/// it). All ids come back if there are no more than `k`.
pub fn top_k(logits: &[f32], k: usize, below: usize) -> Vec<(u32, f32)> {
    let row = &logits[..below.min(logits.len())];
    let k = k.min(row.len());
    if k == 0 {
        return Vec::new();
    }
    // Candidates gather until there are twice as many as wanted; then the smaller half goes, and only logits above the
    // k-th so far can matter: an equal one further on loses to the lower id.
    let capacity = k.saturating_mul(2).max(64).min(row.len());
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(capacity);
    let mut bar = None;
    for (id, &logit) in row.iter().enumerate() {
        if bar.is_some_and(|bar| logit <= bar || logit.is_nan()) {
            continue;
        }
        best.push((id as u32, logit));
        if best.len() == capacity && capacity > k {
            best.select_nth_unstable_by(k - 1, descending);
            best.truncate(k);
            bar = Some(best[k - 1].1).filter(|bar| !bar.is_nan());
        }
    }
    best.sort_unstable_by(descending);
    best.truncate(k);
    best
}

/// Larger logits first, then lower ids; a total order, in which -0 equals 0 and NaN is the least.
fn descending(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    let key = |logit: f32| {
        if logit.is_nan() { f32::NEG_INFINITY } else { logit + 0.0 }
    };
    key(b.1).total_cmp(&key(a.1)).then(a.0.cmp(&b.0))
}

/// Independent accumulators of a sweep. A multiple of every vector width in use, so that the lanes of a processor's
/// vectors never decide which numbers are added to which.
const LANES: usize = 16;

/// Beyond this `d`, `exp(-d)` is taken as 0. It is below 2e-38 there, next to the 1 that the largest logit contributes.
const DEEPEST: f32 = 87.0;

struct Top {
    argmax: u32,
    max: f32,
    second: f32,
}

impl Top {
    /// `None` if the row holds NaN or plus infinity, or nothing but minus infinity.
    #[inline(always)]
    fn of(logits: &[f32]) -> Option<Top> {
        let mut max = [f32::NEG_INFINITY; LANES];
        let mut second = [f32::NEG_INFINITY; LANES];
        let mut usable = true;
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            let mut all = true;
            for lane in 0..LANES {
                let z = chunk[lane];
                // False for NaN as well.
                all &= z < f32::INFINITY;
                let beaten = if z > max[lane] { max[lane] } else { z };
                second[lane] = if beaten > second[lane] { beaten } else { second[lane] };
                max[lane] = if z > max[lane] { z } else { max[lane] };
            }
            usable &= all;
        }
        let (mut first, mut runner_up) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &z in rest.iter().chain(&max).chain(&second) {
            usable &= z < f32::INFINITY;
            if z > first {
                runner_up = first;
                first = z;
            } else if z > runner_up {
                runner_up = z;
            }
        }
        if !usable || first == f32::NEG_INFINITY {
            return None;
        }
        // The lowest id on a tie is the first one found.
        let argmax = logits.iter().position(|&z| z == first)?;
        Some(Top { argmax: u32::try_from(argmax).ok()?, max: first, second: runner_up })
    }
}

/// Sums over the row: of `e`, of `e d` and of `e d^2`.
struct Sums {
    weight: f64,
    first: f64,
    second: f64,
}

impl Sums {
    #[inline(always)]
    fn of(logits: &[f32], max: f32) -> Sums {
        let mut weight = [0.0f64; LANES];
        let mut first = [0.0f64; LANES];
        let mut second = [0.0f64; LANES];
        each_chunk(logits, |chunk| {
            let mut depth = [0.0f32; LANES];
            let mut e = [0.0f32; LANES];
            for lane in 0..LANES {
                depth[lane] = depth_of(max, chunk[lane]);
                e[lane] = exp_minus(depth[lane]);
            }
            for lane in 0..LANES {
                let d = f64::from(depth[lane]);
                let e = f64::from(e[lane]);
                let ed = e * d;
                weight[lane] += e;
                first[lane] += ed;
                second[lane] += ed * d;
            }
        });
        Sums { weight: weight.iter().sum(), first: first.iter().sum(), second: second.iter().sum() }
    }
}

/// `-sum max(q, f) ln max(q, f)`: the part of the entropy that lies above the floor, plus `f ln(1/f)` for each id below.
#[inline(always)]
fn floored(logits: &[f32], max: f32, sums: &Sums, floor: f64) -> f64 {
    // q < f exactly if d exceeds this; at the boundary both readings give the same sum.
    let deepest_above = -(floor.ln() + sums.weight.ln());
    let bar = deepest_above as f32;
    let mut weight = [0.0f64; LANES];
    let mut first = [0.0f64; LANES];
    let mut above = [0u32; LANES];
    each_chunk(logits, |chunk| {
        let mut depth = [0.0f32; LANES];
        let mut e = [0.0f32; LANES];
        let mut count = [0u32; LANES];
        for lane in 0..LANES {
            let d = max - chunk[lane];
            let stays = d <= bar;
            depth[lane] = if d < DEEPEST { d } else { DEEPEST };
            e[lane] = if stays { exp_minus(depth[lane]) } else { 0.0 };
            count[lane] = u32::from(stays);
        }
        for lane in 0..LANES {
            let e = f64::from(e[lane]);
            weight[lane] += e;
            first[lane] += e * f64::from(depth[lane]);
            above[lane] += count[lane];
        }
    });
    let weight: f64 = weight.iter().sum();
    let first: f64 = first.iter().sum();
    let above: u64 = above.iter().map(|&n| u64::from(n)).sum();
    let below = logits.len() as u64 - above;
    (first + weight * sums.weight.ln()) / sums.weight - below as f64 * floor * floor.ln()
}

/// Calls `f` with the row in chunks; the last one is filled up with minus infinity, which weighs nothing and is below
/// every floor.
#[inline(always)]
fn each_chunk(logits: &[f32], mut f: impl FnMut(&[f32; LANES])) {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        f(chunk);
    }
    if !rest.is_empty() {
        let mut chunk = [f32::NEG_INFINITY; LANES];
        chunk[..rest.len()].copy_from_slice(rest);
        f(&chunk);
    }
}

/// `max - z`, cut off where the exponential is 0 anyway, so that a hole is `0 * DEEPEST` and not `0 * infinity`.
#[inline(always)]
fn depth_of(max: f32, z: f32) -> f32 {
    let d = max - z;
    if d < DEEPEST { d } else { DEEPEST }
}

/// `exp(-d)` for `0 <= d <= DEEPEST`, within 2 units in the last place; exactly 1 at 0 and exactly 0 at `DEEPEST`.
///
/// `d = n ln 2 + r` with `|r| <= ln 2 / 2`; a polynomial for `exp(-r)`, and `2^-n` straight into the exponent bits.
#[inline(always)]
fn exp_minus(d: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the significand.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few enough digits for n * HIGH to be exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    let t = d * -std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = (-d - n * HIGH) - n * LOW;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    let scale = f32::from_bits(t.to_bits().wrapping_add(127) << 23);
    if d < DEEPEST { p * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_good_to_two_units() {
        let mut worst = 0.0f64;
        for step in 0..870_000 {
            let d = step as f32 * 1e-4;
            let exact = (-f64::from(d)).exp();
            worst = worst.max((f64::from(exp_minus(d)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "relative error {worst:e}");
        assert_eq!(exp_minus(0.0), 1.0);
        assert_eq!(exp_minus(DEEPEST), 0.0);
    }

    #[test]
    fn one_bad_logit_anywhere_is_noticed() {
        for len in [1, 15, 16, 17, 40] {
            for at in 0..len {
                for bad in [f32::NAN, f32::INFINITY] {
                    let mut row = vec![0.5f32; len];
                    row[at] = bad;
                    assert!(!RowStats::of(&row, 1e-9).finite, "{bad} at {at} of {len}");
                }
            }
            assert!(!RowStats::of(&vec![f32::NEG_INFINITY; len], 0.0).finite);
        }
        assert!(!RowStats::of(&[], 0.0).finite);
    }

    #[test]
    fn every_length_agrees_with_the_plain_sum() {
        for len in 1..70 {
            let row: Vec<f32> = (0..len).map(|i| ((i * 37) % 11) as f32 * 0.7 - 3.0).collect();
            for floor in [0.0, 1e-9, 1e-2, 0.3] {
                let stats = RowStats::of(&row, floor);
                let norm: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
                let terms = row.iter().map(|&z| (f64::from(z).exp() / norm).max(floor));
                let entropy: f64 = terms.map(|q| -q * q.ln()).sum();
                assert!((stats.entropy_floored - entropy).abs() < 1e-6, "{len} {floor}");
            }
        }
    }

    #[test]
    fn wider_vectors_change_no_bit() {
        for len in [1usize, 17, 1000, 4099] {
            let row: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1013) as f32 * 0.03).collect();
            for floor in [0.0, 1e-5] {
                assert_eq!(RowStats::of(&row, floor), RowStats::of_any(&row, floor), "{len}");
            }
        }
    }

    #[test]
    fn top_k_is_a_sort() {
        for len in [1usize, 5, 63, 64, 65, 300] {
            let row: Vec<f32> = (0..len)
                .map(|i| match (i * 7919) % 23 {
                    0 => f32::NEG_INFINITY,
                    1 => -0.0,
                    2 => 0.0,
                    v => (v as f32) - 9.0,
                })
                .collect();
            let mut sorted: Vec<(u32, f32)> = (0u32..).zip(row.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
            for k in [0, 1, 2, 25, 64, 299, 300, 1000, usize::MAX] {
                assert_eq!(top_k(&row, k, usize::MAX), sorted[..k.min(len)], "{k} of {len}");
            }
            let below = len / 2;
            sorted.retain(|&(id, _)| (id as usize) < below);
            assert_eq!(top_k(&row, 9, below), sorted[..below.min(9)]);
        }
        assert_eq!(top_k(&[f32::NAN, 1.0, f32::NAN], 2, 3)[0], (1, 1.0));
    }
}
