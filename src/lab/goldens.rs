//! Golden fixtures replayed: does a backend decide, and compute, what the PyTorch reference did?
//!
//! Everything takes `&mut ModelPair`, so that any backend can be put to the same files. What a fixture folder holds is
//! described in `tests/goldens/README.md`. Discrete results (ids, boundaries, walks) must be equal; numbers must lie within
//! the bounds that the fixtures suggest for single precision, which are the constants below.
//!
//! A replay is a list of [`Check`]s. A check that fails says where the first difference is, in words.

mod errors;
mod forward;
mod passes;
mod sequences;
pub mod teacher;
mod tensors;
mod text;
mod trace;

pub use errors::{BACKWARD, FLOOR, FORWARD};
pub use forward::{Forward, forward};
pub use passes::Passes;
pub use text::{softmax, tokenizer};
pub use trace::{expected_work, trace};

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Logits, hidden states, entropies and rewards: largest absolute deviation.
pub const ABSOLUTE: f64 = 1e-4;
/// Gradients: largest deviation in Euclidean norm, relative to the norm expected.
pub const GRADIENT: f64 = 1e-4;
/// First-order scores: absolute, or [`DOT_RELATIVE`] of the value if that is more.
pub const DOT_ABSOLUTE: f64 = 1e-5;
/// See [`DOT_ABSOLUTE`].
pub const DOT_RELATIVE: f64 = 1e-4;
/// Statistics of a row of logits: absolute, and relative if that is more.
pub const SOFTMAX: f64 = 1e-5;

/// What one golden case showed.
#[derive(Clone, Debug)]
pub struct Check {
    /// Name of the case.
    pub name: String,
    /// What was compared, in numbers.
    pub extent: String,
    /// The numeric quantities compared, each with its worst deviation.
    pub gauges: Vec<Gauge>,
    /// The first difference; `None` if everything agrees.
    pub difference: Option<String>,
}

impl Check {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Check { name: name.into(), extent: String::new(), gauges: Vec::new(), difference: None }
    }

    /// Whether everything agrees.
    pub fn ok(&self) -> bool {
        self.difference.is_none()
    }

    /// Notes a difference; only the first one is kept.
    pub(crate) fn differs(&mut self, what: impl FnOnce() -> String) {
        if self.difference.is_none() {
            self.difference = Some(what());
        }
    }

    /// Notes a difference if two discrete values are not equal.
    pub(crate) fn same<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: impl FnOnce() -> String,
        expected: &T,
        found: &T,
    ) {
        if expected != found {
            self.differs(|| format!("{}: {expected:?} expected, {found:?} found", what()));
        }
    }

    /// Notes a difference at the first entry where two lists part.
    pub(crate) fn same_list<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: impl FnOnce() -> String,
        expected: &[T],
        found: &[T],
    ) {
        if expected == found {
            return;
        }
        let at = expected.iter().zip(found).take_while(|(e, f)| e == f).count();
        self.differs(|| {
            let show = |list: &[T]| list.get(at).map_or("the end".to_string(), |x| format!("{x:?}"));
            let (expected, found) = (show(expected), show(found));
            format!("{}, entry {at}: {expected} expected, {found} found", what())
        });
    }

    /// Compares numbers within `bound`. A quantity keeps one gauge under its name.
    pub(crate) fn near(
        &mut self,
        quantity: &'static str,
        what: impl FnOnce() -> String,
        expected: f64,
        found: f64,
        bound: f64,
    ) {
        let deviation = if expected == found { 0.0 } else { (expected - found).abs() };
        if !self.note(quantity, deviation, Some(bound)) {
            self.differs(|| {
                format!(
                    "{}: {expected:.9} expected, {found:.9} found (off by {deviation:.2e}, allowed {bound:.0e})",
                    what()
                )
            });
        }
    }

    /// Records a deviation; without a bound for information only. Says whether it is within the bound.
    pub(crate) fn note(&mut self, quantity: &'static str, deviation: f64, bound: Option<f64>) -> bool {
        let at = self.gauges.iter().position(|g| g.quantity == quantity).unwrap_or_else(|| {
            self.gauges.push(Gauge { quantity, worst: 0.0, share: bound.map(|_| 0.0), count: 0 });
            self.gauges.len() - 1
        });
        let gauge = &mut self.gauges[at];
        gauge.count += 1;
        gauge.worst = worse(gauge.worst, deviation);
        if let (Some(share), Some(bound)) = (&mut gauge.share, bound) {
            let now = deviation / bound;
            *share = worse(*share, now);
            return now <= 1.0;
        }
        true
    }
}

/// The larger of two deviations, and a NaN above all: `f64::max` would let it pass.
pub fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// A numeric quantity and how far it was off.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Gauge {
    /// Name of the quantity.
    pub quantity: &'static str,
    /// Largest deviation, absolute (relative for gradients).
    pub worst: f64,
    /// Largest deviation as a share of what is allowed; `None` if it is for information only.
    pub share: Option<f64>,
    /// Numbers compared.
    pub count: usize,
}

/// A folder of fixtures: which parts it has.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The folder.
    pub path: PathBuf,
    /// Its last component, for printing.
    pub name: String,
    /// `traces.json` with `policy/` and `reward/`.
    pub pair: bool,
    /// `softmax_cases.safetensors`.
    pub softmax: bool,
    /// `forward_*.safetensors`, shortest first.
    pub forwards: Vec<PathBuf>,
    /// `tokenizer_cases.json`.
    pub tokenizer: bool,
}

impl Folder {
    /// The fixtures at `path`: the folder itself, and the folders in it that look like fixtures.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn find(path: &Path) -> Result<Vec<Folder>> {
        let mut found = Vec::new();
        let here = Folder::at(path)?;
        if here.pair || here.softmax {
            found.push(here);
        }
        let mut children: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
            let child = entry.map_err(|e| Error::io(path, e))?.path();
            if child.is_dir() {
                children.push(child);
            }
        }
        children.sort();
        for child in children {
            // A pair without traces is listed too, so that it fails by name.
            if child.join("traces.json").exists() || child.join("meta.json").exists() {
                found.push(Folder::at(&child)?);
            }
        }
        Ok(found)
    }

    fn at(path: &Path) -> Result<Folder> {
        let mut forwards = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
            let file = entry.map_err(|e| Error::io(path, e))?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(length) = name.strip_prefix("forward_").and_then(|n| n.strip_suffix(".safetensors")) {
                forwards.push((length.parse().unwrap_or(usize::MAX), file));
            }
        }
        forwards.sort();
        let full = path.canonicalize().map_err(|e| Error::io(path, e))?;
        let name = full.file_name().map_or("/".into(), |n| n.to_string_lossy().into_owned());
        Ok(Folder {
            path: path.to_path_buf(),
            name,
            pair: path.join("traces.json").exists(),
            softmax: path.join("softmax_cases.safetensors").exists(),
            forwards: forwards.into_iter().map(|(_, file)| file).collect(),
            tokenizer: path.join("tokenizer_cases.json").exists(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_kept() {
        let mut check = Check::new("x");
        check.same_list(|| "ids".into(), &[1, 2, 3], &[1, 2]);
        check.same(|| "end".into(), &1, &2);
        let difference = check.difference.as_deref();
        assert_eq!(difference, Some("ids, entry 2: 3 expected, the end found"));
    }

    #[test]
    fn not_a_number_never_passes() {
        let mut check = Check::new("x");
        check.near("reward", || "reward".into(), 1.0, 1.0 + 5e-5, ABSOLUTE);
        assert!(check.ok());
        check.near("reward", || "reward".into(), 1.0, f64::NAN, ABSOLUTE);
        assert!(!check.ok());
        assert!(check.gauges[0].worst.is_nan());
        assert_eq!(check.gauges[0].count, 2);
    }

    #[test]
    fn equal_infinities_agree() {
        let mut check = Check::new("x");
        check.near("margin", || "margin".into(), f64::INFINITY, f64::INFINITY, SOFTMAX);
        assert!(check.ok());
    }
}
