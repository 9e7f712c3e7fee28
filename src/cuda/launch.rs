//! What launches have in common: their shape, their argument lists, and the checks before them.

use crate::{Error, Result};

/// Shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    pub grid: (u32, u32, u32),
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared: u32,
}

/// Pointers to kernel parameters, which live to the end of the statement.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &mut [$(std::ptr::from_ref(&$value).cast_mut().cast::<std::ffi::c_void>()),*] };
}
pub(super) use args;

/// An error unless `found` is `expected`.
pub(super) fn check_len(op: &str, what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Backend(format!("{op}: {what} has {found} elements, expected {expected}")))
}

/// An error unless `found` is at least `needed`.
pub(super) fn check_room(op: &str, what: &str, found: usize, needed: usize) -> Result<()> {
    if found >= needed {
        return Ok(());
    }
    Err(Error::Backend(format!("{op}: {what} has room for {found} elements, {needed} are needed")))
}

/// The product of two sizes.
pub(super) fn product(op: &str, a: usize, b: usize) -> Result<usize> {
    a.checked_mul(b).ok_or_else(|| Error::Backend(format!("{op}: {a} x {b} elements are too many")))
}

/// A size as a kernel's parameter.
pub(super) fn int(op: &str, what: &str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::Backend(format!("{op}: {what} = {value} is too large")))
}

/// A size as one side of a grid.
pub(super) fn side(op: &str, what: &str, value: usize, limit: u32) -> Result<u32> {
    let fits = u32::try_from(value).ok().filter(|&value| value <= limit);
    fits.ok_or_else(|| Error::Backend(format!("{op}: {value} {what} are more than a grid takes")))
}

/// Rows of `width` elements, an error unless they are whole.
pub(super) fn rows_of(op: &str, what: &str, elements: usize, width: usize) -> Result<usize> {
    let rows = elements.checked_div(width).filter(|rows| rows * width == elements);
    rows.ok_or_else(|| Error::Backend(format!("{op}: {what} has {elements} elements, not whole rows of {width}")))
}

/// An error unless rows of `width` 16-bit elements at these addresses, joined by `|`, are made of aligned 16-byte words.
pub(super) fn vectors(op: &str, what: &str, width: usize, addresses: u64) -> Result<()> {
    if width.is_multiple_of(8) && addresses.is_multiple_of(16) {
        return Ok(());
    }
    Err(Error::Backend(format!(
        "{op}: {what} = {width} is no multiple of 8, or matrices do not start at one of 16 bytes"
    )))
}
