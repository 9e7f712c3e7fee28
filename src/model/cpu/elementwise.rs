//! Elementwise loops and short sums of the CPU backend, in plain Rust that the compiler vectorises.
//!
//! Sums run in 16 lanes like the products of [`product`](super::product). Every multiply-add is fused on every processor, so
//! that wider instructions change no bit.

use super::lanes::{InstructionSet, LANES, lane_sum, level};

/// `e^x` to about one unit in the last place; 0 below -87.3, and no infinity: callers pass `x <= 0` or clamp.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, clamped));
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let value = p.mul_add(r * r, r) + 1.0;
    // The integer from the low bits: a cast saturates, and compilers make one element at a time of that.
    let integer = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let scale = f32::from_bits(integer.wrapping_add(127) << 23);
    if x < -87.3 {
        0.0
    } else if x.is_nan() {
        x
    } else {
        value * scale
    }
}

/// Runs an elementwise loop with the features of the processor. The loop is plain Rust; what changes is only how many
/// elements one instruction takes.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn with_avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match level() {
                    // SAFETY: `level` found these features.
                    InstructionSet::Avx512 => return unsafe { with_avx512($($arg),*) },
                    // SAFETY: as above.
                    InstructionSet::Avx2 => return unsafe { with_avx2($($arg),*) },
                    InstructionSet::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}

vectorised! {
    /// The largest score, minus infinity if there is none; what is not a number does not count.
    pub(super) fn largest(scores: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let groups = scores.chunks_exact(LANES);
        let rest = groups.remainder();
        for group in groups {
            for (lane, &s) in lanes.iter_mut().zip(group) {
                *lane = if s > *lane { s } else { *lane };
            }
        }
        rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |largest, &s| if s > largest { s } else { largest })
    }
}

vectorised! {
    /// Replaces scores by `e^(s - max)` and returns their sum in 16 lanes, element `i` in lane `i % 16`.
    pub(super) fn exp_and_sum(scores: &mut [f32], max: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let mut groups = scores.chunks_exact_mut(LANES);
        for group in &mut groups {
            for (lane, s) in lanes.iter_mut().zip(group) {
                *s = exp(*s - max);
                *lane += *s;
            }
        }
        for (lane, s) in lanes.iter_mut().zip(groups.into_remainder()) {
            *s = exp(*s - max);
            *lane += *s;
        }
        lane_sum(lanes)
    }
}

vectorised! {
    /// `silu(gate) * up`, in the place of `gate`.
    pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

vectorised! {
    /// Gradients of [`swiglu`] in place: `gate` becomes `d/d gate`, `up` becomes `d/d up`, given `d/d out`.
    pub(super) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
        for ((g, u), &d) in gate.iter_mut().zip(up).zip(grad) {
            let sigmoid = 1.0 / (1.0 + exp(-*g));
            let silu = *g * sigmoid;
            let slope = sigmoid * (1.0 + *g * (1.0 - sigmoid));
            (*g, *u) = (d * *u * slope, d * silu);
        }
    }
}

vectorised! {
    /// `y += x`.
    pub(super) fn add(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

vectorised! {
    /// `x = x * factor * weight`, in this order.
    pub(super) fn scale(x: &mut [f32], factor: f32, weight: &[f32]) {
        for (x, w) in x.iter_mut().zip(weight) {
            *x = *x * factor * w;
        }
    }
}

vectorised! {
    /// `y += a x`.
    pub(super) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = a.mul_add(x, *y);
        }
    }
}

vectorised! {
    /// Dot product in 16 lanes.
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (mut ga, mut gb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (a, b) in (&mut ga).zip(&mut gb) {
            for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                *lane = a.mul_add(b, *lane);
            }
        }
        for ((lane, &a), &b) in lanes.iter_mut().zip(ga.remainder()).zip(gb.remainder()) {
            *lane = a.mul_add(b, *lane);
        }
        lane_sum(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in 0..200_000 {
            let x = -87.0 + i as f32 * (174.0 / 200_000.0);
            let exact = (x as f64).exp();
            worst = worst.max(((exp(x) as f64 - exact) / exact).abs());
        }
        assert!(worst < 2.0 * f32::EPSILON as f64, "relative error {worst:e}");
        assert_eq!((exp(-1e30), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn swiglu_gradient_agrees_with_finite_differences() {
        let f = |g: f64, u: f64| g / (1.0 + (-g).exp()) * u;
        for g in [-20.0f32, -1.3, -0.01, 0.0, 0.4, 3.0, 30.0] {
            for u in [-2.0f32, 0.5] {
                let (mut dg, mut du) = ([g], [u]);
                swiglu_backward(&mut dg, &mut du, &[1.5]);
                let (g, u, h) = (g as f64, u as f64, 1e-5);
                let expected_g = 1.5 * (f(g + h, u) - f(g - h, u)) / (2.0 * h);
                let expected_u = 1.5 * f(g, 1.0);
                assert!((dg[0] as f64 - expected_g).abs() < 1e-5 * (1.0 + expected_g.abs()));
                assert!((du[0] as f64 - expected_u).abs() < 1e-5 * (1.0 + expected_u.abs()));
                let mut out = [g as f32];
                swiglu(&mut out, &[u as f32]);
                assert!((out[0] as f64 - f(g, u)).abs() < 1e-5 * (1.0 + f(g, u).abs()));
            }
        }
    }
}
