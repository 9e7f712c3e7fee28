//! Seeded numbers of several distributions.

use crate::dtype::HalfType;

/// SplitMix64: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    /// A stream of its own for each name.
    pub fn named(name: &str) -> Self {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Random(hash)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0 .. n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Uniform in `0 .. 1`.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and variance 1.
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    /// `len` numbers.
    pub fn vector(&mut self, len: usize, values: Values) -> Vec<f32> {
        (0..len)
            .map(|_| match values {
                Values::Normal(scale) => self.normal() * scale,
                Values::Outliers => match self.below(64) {
                    0 => 1e3 * self.normal().signum(),
                    _ => self.normal(),
                },
            })
            .collect()
    }
}

/// How numbers are distributed.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// Normal with this deviation.
    Normal(f32),
    /// Normal, and one in 64 is 1e3 of either sign.
    Outliers,
}

impl std::fmt::Display for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Values::Normal(scale) => write!(f, "normal-{scale}"),
            Values::Outliers => write!(f, "outliers-1e3"),
        }
    }
}

/// Numbers as the device stores them.
pub fn stored(storage: HalfType, values: &[f32]) -> Vec<u16> {
    values.iter().map(|&value| storage.round(value)).collect()
}

/// And back, exactly.
pub fn widened(storage: HalfType, bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|&bits| storage.widen(bits)).collect()
}

/// Gradients held to finite differences.
#[cfg(test)]
pub mod slopes {
    /// Holds a gradient, whose elements come with their magnitudes, to the slope of `sum(dy * f(x))`.
    pub fn hold(x: &[f64], dy: &[f64], gradient: &[(f64, f64)], f: impl Fn(&[f64]) -> Vec<f64>) {
        let value = |x: &[f64]| f(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
        for i in 0..x.len() {
            let at = |step: f64| {
                let mut moved = x.to_vec();
                moved[i] += step;
                value(&moved)
            };
            let (slope, found) = ((at(1e-5) - at(-1e-5)) / 2e-5, gradient[i].0);
            assert!((found - slope).abs() < 1e-8 * slope.abs().max(1.0), "{i}: {found} against {slope}");
        }
    }

    /// Numbers of both signs.
    pub fn numbers(n: usize, a: usize, b: usize) -> Vec<f64> {
        (0..n).map(|i| (i * a % b) as f64 / 3.0 - b as f64 / 6.3).collect()
    }
}
