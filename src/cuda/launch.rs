//! What launches have in common: their shape, their argument lists, and the checks before them.

use crate::{Error, Result};
use cudarc::driver::{DriverError, sys};
use std::ffi::c_void;

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

/// Queues a kernel. With `dependent` it may begin before the one before it in the stream has ended; if something else is before it,
/// a copy for instance, it waits for that all the same.
///
/// # Safety
///
/// The function and the stream belong to the context that is bound to this thread. `args` points to the kernel's parameters, in their
/// order and of their types; every address among them is valid for what the kernel reads and writes in this shape of launch. With
/// `dependent`, threads of the kernel touch nothing that kernels before it touch, but for what all of them only read, until they have
/// waited for those, and some thread of every block does.
pub(super) unsafe fn queue(
    function: sys::CUfunction,
    launch: Launch,
    dependent: bool,
    stream: sys::CUstream,
    args: &mut [*mut c_void],
) -> std::result::Result<(), DriverError> {
    let Launch { grid: (x, y, z), threads, shared } = launch;
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared,
        hStream: stream,
        attrs: &raw mut attribute,
        numAttrs: u32::from(dependent),
    };
    // SAFETY: the call reads the configuration, its attribute and the parameters before it returns; every driver that this build takes
    // has it (CUDA 11.8). The caller vouches for the rest.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, args.as_mut_ptr(), std::ptr::null_mut()) }.result()
}

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
