//! Are the kernels right, and how fast are they? One table of cases for whatever device is there.
//!
//! A case runs one op on one shape and one distribution and compares with an evaluation in f64. What error is allowed is
//! not guessed: it is twice the error of an independent simulation which rounds where the kernel is documented to round;
//! statistics of rows are held to 1e-5, absolute or relative. Around every buffer lie guard words, inputs are surrounded
//! by NaN, outputs start as NaN, every launch is repeated, and rows are run alone, in other company and in other slots:
//! the bits must be the same.
//!
//! To add an op, write a file with a function that lists its cases, and name it in [`cases`].

mod attention;
mod attention_backward;
mod bench;
mod candidate_scores;
mod copy_rows;
mod embed;
mod errors;
mod gemm;
mod gemm_backward;
mod gradients;
mod guarded;
mod kv_copy;
mod logits;
mod numbers;
mod occupancy;
mod pad_convert;
mod random_fill;
mod rmsnorm;
mod rope;
mod softmax_entropy;
mod swiglu;
pub mod vectors;

pub use bench::{TIMED, Timing, bench, limits};
pub use occupancy::{Listed, Occupancy, list, occupancy};

use crate::Result;
use crate::cuda::Device;

type Run = Box<dyn Fn(&Device, &mut Check) -> Result<()> + Send + Sync>;

/// One op on one shape and distribution.
pub struct Case {
    /// Name of the op, as its files are called.
    pub op: &'static str,
    /// Shape and distribution.
    pub name: String,
    /// Elements or multiply-adds, roughly: what an emulated device needs time for.
    pub work: u64,
    run: Run,
}

impl Case {
    fn new(
        op: &'static str,
        name: String,
        work: usize,
        run: impl Fn(&Device, &mut Check) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Case { op, name, work: work as u64, run: Box::new(run) }
    }

    /// Runs the case. A device that fails is a failure like any other.
    pub fn run(&self, device: &Device) -> Finding {
        let mut check = Check::default();
        if let Err(error) = (self.run)(device, &mut check) {
            check.failures.push(error.to_string());
        }
        Finding::new(self.op, self.name.clone(), check)
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.op, self.name)
    }
}

/// What a case found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Finding {
    /// Name of the op.
    pub op: &'static str,
    /// Shape and distribution.
    pub case: String,
    /// Largest error divided by what is allowed: the distance to the bound.
    pub error_over_bound: f64,
    /// Hash of everything that the device wrote, in hexadecimal. The same case has the same on one card, whatever the order of
    /// its blocks; other cards may round otherwise.
    pub digest: String,
    /// What is wrong; empty if all is well.
    pub failures: Vec<String>,
}

impl Finding {
    fn new(op: &'static str, case: String, check: Check) -> Self {
        let digest = format!("{:016x}", check.digest.0);
        Finding { op, case, error_over_bound: check.worst, digest, failures: check.failures }
    }

    /// Nothing is wrong.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Every case of every op.
pub fn cases() -> Vec<Case> {
    let mut all = rmsnorm::cases();
    all.extend(softmax_entropy::cases());
    all.extend(gemm::cases());
    all.extend(attention::cases());
    all.extend(attention_backward::cases());
    all.extend(gemm_backward::cases());
    all.extend(copy_rows::cases());
    all.extend(random_fill::cases());
    all.extend(embed::cases());
    all.extend(kv_copy::cases());
    all.extend(logits::cases());
    all.extend(candidate_scores::cases());
    all.extend(rope::cases());
    all.extend(swiglu::cases());
    all.extend(pad_convert::cases());
    all
}

/// Runs the cases of an op, or of all, that are at most `work` large; `done` sees each finding as it comes.
pub fn test(device: &Device, op: Option<&str>, work: Option<u64>, mut done: impl FnMut(&Finding)) -> Vec<Finding> {
    let chosen = |case: &Case| op.is_none_or(|op| case.op == op) && work.is_none_or(|work| case.work <= work);
    let chosen = cases().into_iter().filter(chosen);
    let findings = chosen.map(|case| {
        let finding = case.run(device);
        done(&finding);
        finding
    });
    findings.collect()
}

/// Collects what is wrong in a case.
#[derive(Debug, Default)]
struct Check {
    worst: f64,
    digest: Digest,
    failures: Vec<String>,
}

/// FNV-1a over 64-bit words: only has to tell one outcome from another, and is the same in every build.
#[derive(Debug)]
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Digest(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    fn add(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            self.0 = (self.0 ^ u64::from_le_bytes(padded)).wrapping_mul(0x0100_0000_01b3);
            // A product only carries upwards.
            self.0 ^= self.0 >> 29;
        }
    }
}

impl Check {
    fn fail(&mut self, what: impl Into<String>) {
        // A broken kernel is wrong everywhere; the first few places say enough.
        if self.failures.len() < 8 {
            self.failures.push(what.into());
        }
    }

    /// An error against its bound. NaN is larger than any bound.
    fn bound(&mut self, what: impl FnOnce() -> String, error: f64, bound: f64) {
        let ratio = if error == 0.0 { 0.0 } else { error / bound };
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        self.worst = self.worst.max(ratio);
        if ratio > 1.0 {
            let what = what();
            self.fail(format!("{what}: error {error:.3e}, allowed {bound:.3e}"));
        }
    }

    /// A number against a reference, 1e-5 absolute or relative. Equal infinities are equal.
    fn close(&mut self, what: impl FnOnce() -> String, found: f64, expected: f64) {
        let error = if found == expected { 0.0 } else { (found - expected).abs() };
        self.bound(|| format!("{}: {found} instead of {expected}", what()), error, 1e-5 * expected.abs().max(1.0));
    }

    /// The same bits, or the first place where they differ.
    fn same<T: bytemuck::Pod + std::fmt::Debug>(&mut self, what: &str, found: &[T], expected: &[T]) {
        if found.len() != expected.len() {
            return self.fail(format!("{what}: {} elements instead of {}", found.len(), expected.len()));
        }
        let differs = |(a, b): (&T, &T)| bytemuck::bytes_of(a) != bytemuck::bytes_of(b);
        if let Some(at) = found.iter().zip(expected).position(differs) {
            self.fail(format!("{what}: element {at} is {:?} instead of {:?}", found[at], expected[at]));
        }
    }
}

/// Row counts whose results must agree bit for bit.
const ROWS: [usize; 7] = [1, 2, 7, 32, 33, 129, 257];

#[cfg(test)]
mod tests {
    use super::Digest;

    #[test]
    fn digests_tell_outcomes_apart() {
        let of = |parts: &[&[u8]]| {
            let mut digest = Digest::default();
            parts.iter().for_each(|part| digest.add(part));
            digest.0
        };
        let base: Vec<u8> = (0..200).collect();
        assert_eq!(of(&[&base]), of(&[&base]));
        for bit in 0..8 * base.len() {
            let mut other = base.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(of(&[&base]), of(&[&other]), "bit {bit}");
        }
        assert_ne!(of(&[&base[..8], &base[8..16]]), of(&[&base[8..16], &base[..8]]));
    }
}
