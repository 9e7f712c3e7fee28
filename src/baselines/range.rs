//! Parameters are checked by their names.

use crate::{Error, Result};
use std::fmt::Display;

/// Refuses a parameter that is not in its range.
pub(super) fn check(name: &str, value: impl Display, allowed: bool, range: &str) -> Result<()> {
    match allowed {
        true => Ok(()),
        false => Err(Error::invalid(format!("{name} must be {range}, not {value}"))),
    }
}

/// Refuses a count of 0, or of more than `most`.
pub(super) fn count(name: &str, value: usize, most: usize) -> Result<()> {
    check(name, value, (1..=most).contains(&value), &format!("1 to {most}"))
}

/// Refuses a number that is not finite and above 0.
pub(super) fn positive(name: &str, value: f64) -> Result<()> {
    check(name, value, value.is_finite() && value > 0.0, "finite and above 0")
}

/// Refuses the reward to be reached if there is none.
pub(super) fn target(value: f64) -> Result<()> {
    let range = "a finite number: the reward to be reached, on the scale of this reward model";
    check("target_reward", value, value.is_finite(), range)
}
