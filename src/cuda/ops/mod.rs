//! One safe function per kernel, in a file of the kernel's name: lengths are checked, the launch shape is computed, and
//! everything that is written is lent as `&mut`.

pub mod attention;
pub mod attention_backward;
pub mod copy_rows;
pub mod draw;
pub mod embed;
pub mod gemm;
pub mod kv;
pub mod kv_copy;
pub mod logits;
pub mod nudge;
pub mod peak;
pub mod place;
pub mod probe;
pub mod rmsnorm;
pub mod rope;
pub mod softmax_entropy;
pub mod swiglu;

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

/// Rows of `width` elements, an error unless they are whole.
fn rows_of(op: &str, what: &str, elements: usize, width: usize) -> Result<usize> {
    let rows = elements.checked_div(width).filter(|rows| rows * width == elements);
    rows.ok_or_else(|| Error::Backend(format!("{op}: {what} has {elements} elements, not whole rows of {width}")))
}

/// An error unless rows of `width` 16-bit elements at these addresses, joined by `|`, are made of aligned 16-byte words.
fn vectors(op: &str, what: &str, width: usize, addresses: u64) -> Result<()> {
    if width.is_multiple_of(8) && addresses.is_multiple_of(16) {
        return Ok(());
    }
    Err(Error::Backend(format!(
        "{op}: {what} = {width} is no multiple of 8, or matrices do not start at one of 16 bytes"
    )))
}
