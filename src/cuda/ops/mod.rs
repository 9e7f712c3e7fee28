//! One safe function per kernel, in a file of the kernel's name: lengths are checked, the launch shape is computed, and
//! everything that is written is lent as `&mut`.

pub mod gemm;
pub mod peak;
pub mod place;
pub mod rmsnorm;
pub mod softmax_entropy;

use crate::{Error, Result};

/// Pointers to kernel parameters, which live to the end of the statement.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &mut [$(std::ptr::from_ref(&$value).cast_mut().cast::<std::ffi::c_void>()),*] };
}
use args;

/// An error unless `found` is `expected`.
fn check_len(op: &str, what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Backend(format!("{op}: {what} has {found} elements, expected {expected}")))
}

/// An error unless `found` is at least `needed`.
fn check_room(op: &str, what: &str, found: usize, needed: usize) -> Result<()> {
    if found >= needed {
        return Ok(());
    }
    Err(Error::Backend(format!("{op}: {what} has room for {found} elements, {needed} are needed")))
}

/// The product of two sizes.
fn product(op: &str, a: usize, b: usize) -> Result<usize> {
    a.checked_mul(b).ok_or_else(|| Error::Backend(format!("{op}: {a} x {b} elements are too many")))
}

/// A size as a kernel's parameter.
fn int(op: &str, what: &str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::Backend(format!("{op}: {what} = {value} is too large")))
}

/// A size as one side of a grid.
fn side(op: &str, what: &str, value: usize, limit: u32) -> Result<u32> {
    let fits = u32::try_from(value).ok().filter(|&value| value <= limit);
    fits.ok_or_else(|| Error::Backend(format!("{op}: {value} {what} are more than a grid takes")))
}
