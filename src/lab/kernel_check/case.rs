//! One case of one op, and what it finds.

use crate::Result;
use crate::cuda::Device;
use crate::cuda::KernelFamily;

type CaseRun = Box<dyn Fn(&Device, &mut Check) -> Result<()> + Send + Sync>;

/// One op on one shape and distribution.
pub struct Case {
    /// Name of the op, as its files are called.
    pub op: &'static str,
    /// Shape and distribution.
    pub name: String,
    /// Elements or multiply-adds, roughly: what an emulated device needs time for.
    pub work: u64,
    run: CaseRun,
}

impl Case {
    pub(super) fn new(
        op: &'static str,
        name: String,
        work: usize,
        run: impl Fn(&Device, &mut Check) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Case { op, name, work: work as u64, run: Box::new(run) }
    }

    /// A case whose numbers are drawn from its name.
    pub(super) fn seeded(
        op: &'static str,
        name: String,
        work: usize,
        run: impl Fn(&str, &Device, &mut Check) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let seed = name.clone();
        Case::new(op, name, work, move |device, check| run(&seed, device, check))
    }

    /// Whether the device has the op's kernels.
    pub fn runs_on(&self, device: &Device) -> bool {
        runs_on(self.op, device)
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

/// Whether a device has the kernels of an op: those for Hopper alone are on no other.
pub(super) fn runs_on(op: &str, device: &Device) -> bool {
    !op.ends_with("_sm90") || KernelFamily::Sm90.runs_on(device)
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
    pub(super) fn new(op: &'static str, case: String, check: Check) -> Self {
        let digest = format!("{:016x}", check.digest.0);
        Finding { op, case, error_over_bound: check.worst, digest, failures: check.failures }
    }

    /// Nothing is wrong.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Collects what is wrong in a case.
#[derive(Debug, Default)]
pub(super) struct Check {
    worst: f64,
    pub digest: Digest,
    failures: Vec<String>,
}

/// FNV-1a over 64-bit words: only has to tell one outcome from another, and is the same in every build.
#[derive(Debug)]
pub(super) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Digest(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub fn add(&mut self, bytes: &[u8]) {
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
    pub fn fail(&mut self, what: impl Into<String>) {
        // A broken kernel is wrong everywhere: the first few places are enough.
        if self.failures.len() < 8 {
            self.failures.push(what.into());
        }
    }

    /// What another one has found wrong, without its digest.
    pub fn join(&mut self, other: Check) {
        other.failures.into_iter().for_each(|failure| self.fail(failure));
    }

    /// An error against its bound. NaN is larger than any bound.
    pub fn bound(&mut self, what: impl FnOnce() -> String, error: f64, bound: f64) {
        let ratio = if error == 0.0 { 0.0 } else { error / bound };
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        self.worst = self.worst.max(ratio);
        if ratio > 1.0 {
            let what = what();
            self.fail(format!("{what}: error {error:.3e}, allowed {bound:.3e}"));
        }
    }

    /// A number against a reference, 1e-5 absolute or relative. Equal infinities are equal.
    pub fn close(&mut self, what: impl FnOnce() -> String, found: f64, expected: f64) {
        let error = if found == expected { 0.0 } else { (found - expected).abs() };
        self.bound(|| format!("{}: {found} instead of {expected}", what()), error, 1e-5 * expected.abs().max(1.0));
    }

    /// The same bits, or the first place where they differ.
    pub fn same<T: bytemuck::Pod + std::fmt::Debug>(&mut self, what: &str, found: &[T], expected: &[T]) {
        if found.len() != expected.len() {
            return self.fail(format!("{what}: {} elements instead of {}", found.len(), expected.len()));
        }
        let differs = |(a, b): (&T, &T)| bytemuck::bytes_of(a) != bytemuck::bytes_of(b);
        if let Some(at) = found.iter().zip(expected).position(differs) {
            self.fail(format!("{what}: element {at} is {:?} instead of {:?}", found[at], expected[at]));
        }
    }
}

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
