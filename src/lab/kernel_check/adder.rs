//! How tensor cores add up the products of a dot product.
//!
//! What is measured of the cards: products of 16-bit numbers are exact and come in groups, of 8 on an A100 and of 16 on an H100. The
//! products of a group and the sum so far are shifted to the largest of their exponents `e` (a product's is the sum of those of
//! its factors), keep one (A100) or two (H100) bits more than the 24 of f32, and lose what is below: each less than `2^(e - 24)`
//! or `2^(e - 25)`. Then they are added without loss, and the total is cut to 24 bits, which loses less than a unit in its last
//! place. So a group costs at most `9 * 2^(e - 24)` or `17 * 2^(e - 25)`, and up to `2^-23` of the total, always toward zero,
//! where a sum that rounds once costs half a unit, and the loss grows with the number of groups. A bound on kernels is derived
//! from sums that are really made so, from the same numbers and in the same order, in place of the largest loss that could be.

/// The adder of a card.
#[derive(Clone, Copy, Debug)]
pub struct Adder {
    /// Products that are added at once.
    group: usize,
    /// Bits that are kept below the 24 of f32.
    extra: i32,
}

/// The coarser one.
pub const A100: Adder = Adder { group: 8, extra: 1 };
pub const H100: Adder = Adder { group: 16, extra: 2 };

impl Adder {
    /// A dot product of finite numbers that 16 bits hold, in a chain of steps over ascending elements.
    pub fn dot(self, x: &[f32], w: &[f32]) -> f32 {
        x.chunks(self.group).zip(w.chunks(self.group)).fold(0.0f32, |sum, (x, w)| self.step(sum, x, w))
    }

    fn step(self, sum: f32, x: &[f32], w: &[f32]) -> f32 {
        let largest = x.iter().zip(w).fold(exponent(sum), |most, (&x, &w)| most.max(exponent(x) + exponent(w)));
        if largest < ZERO / 2 {
            return sum;
        }
        let scale = power_of_two(23 + self.extra - largest);
        // A product is less than 4 * 2^largest, so what is kept of it has 27 bits at most.
        let kept = |term: f64| i64::from((term * scale) as i32);
        let products = x.iter().zip(w).map(|(&x, &w)| kept(f64::from(x) * f64::from(w)));
        toward_zero((kept(f64::from(sum)) + products.sum::<i64>()) as f64 / scale)
    }
}

/// Of a zero: less than that of any sum or product.
const ZERO: i32 = -300;

/// The binary exponent. (The cards count that of a subnormal number as the lowest normal one's. It makes a difference where all
/// terms are that small.)
fn exponent(x: f32) -> i32 {
    let biased = (x.to_bits() >> 23 & 255) as i32;
    if biased == 0 { ZERO } else { biased - 127 }
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

fn toward_zero(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near).abs() > x.abs() { near.to_bits().checked_sub(1).map_or(near, f32::from_bits) } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_goes_toward_zero() {
        for x in [1.0 + 1e-9, 0.1, -0.1, 1.0 - 1e-9, -3.3, 0.0, 1e-30] {
            let cut = f64::from(toward_zero(x));
            assert!(cut.abs() <= x.abs() && (cut - x).abs() <= x.abs() * 1.2e-7, "{x}: {cut}");
        }
    }

    /// A one, and behind it as many numbers of a power of two as fill its group.
    fn small_beside_one(adder: Adder, sign: f32, exponent: i32) -> f32 {
        let mut x = vec![sign * power_of_two(exponent) as f32; adder.group];
        x[0] = sign;
        adder.dot(&x, &vec![1.0; adder.group])
    }

    #[test]
    fn bits_below_the_extra_ones_are_lost() {
        for sign in [1.0, -1.0] {
            // Seven numbers of 2^-24 are kept, and of their sum what f32 holds; of 2^-25 nothing is.
            assert_eq!(small_beside_one(A100, sign, -24), sign * (1.0 + 3.0 * f32::EPSILON));
            assert_eq!(small_beside_one(A100, sign, -25), sign);
            // 15 of them.
            assert_eq!(small_beside_one(H100, sign, -25), sign * (1.0 + 3.0 * f32::EPSILON));
            assert_eq!(small_beside_one(H100, sign, -26), sign);
        }
    }

    #[test]
    fn exponents_are_those_of_the_factors() {
        // 1.5 * 1.5 is more than two, and shifts nothing further than one times one does.
        let x = [1.5, 1.0, -2.25, 0.0, 0.0, 0.0, 0.0, 0.0];
        let w = [1.5, power_of_two(-24) as f32, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        // -2.25 times one has the exponent one, and the small number is lost.
        assert_eq!(A100.dot(&x, &w), 0.0);
        let x = [1.5, 1.0, -1.5, 0.0, 0.0, 0.0, 0.0, 0.0];
        let w = [1.5, power_of_two(-24) as f32, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(A100.dot(&x, &w), power_of_two(-24) as f32);
    }

    #[test]
    fn small_integers_and_zeros_are_exact() {
        let x: Vec<f32> = (0..100).map(|i| (i % 17) as f32 - 8.0).collect();
        let w: Vec<f32> = (0..100).map(|i| (i % 23) as f32 - 11.0).collect();
        let exact: f32 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
        assert_eq!([A100.dot(&x, &w), H100.dot(&x, &w)], [exact; 2]);
        assert_eq!(A100.dot(&[0.0; 9], &x[..9]), 0.0);
        assert_eq!(A100.dot(&[1e-30, 0.0], &[1e-3, 1.0]), H100.dot(&[1e-30], &[1e-3]));
    }
}
