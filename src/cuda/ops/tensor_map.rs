//! Tensor maps: how the copies of Hopper are told where a matrix lies.

use crate::cuda::buffer::View;
use crate::dtype::HalfType;
use crate::{Error, Result};
use cudarc::driver::sys;

/// Columns of a box: a line of 128 bytes.
const COLUMNS: u32 = 64;

/// A map of a matrix `[rows, columns]` that is copied in boxes of `height` rows of 64 elements, whose 16-byte chunks are swizzled
/// in shared memory. What the matrix lacks becomes zero there. `what` names the matrix in an error.
pub(super) fn tensor_map(
    op: &str,
    what: &str,
    storage: HalfType,
    matrix: View<'_, u16>,
    (rows, columns): (usize, usize),
    height: usize,
) -> Result<sys::CUtensorMap> {
    let kind = match storage {
        HalfType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        HalfType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    };
    let mut map = std::mem::MaybeUninit::<sys::CUtensorMap>::zeroed();
    let (sizes, strides) = ([columns as u64, rows as u64], [columns as u64 * 2]);
    let (side, steps) = ([COLUMNS, height as u32], [1, 1]);
    // SAFETY: the arrays have an element for each of two dimensions, the strides one less; the driver writes the map and reads
    // nothing of the matrix.
    let done = unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr(),
            kind,
            2,
            matrix.address as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            side.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    done.result().map_err(|e| {
        Error::Backend(format!("{op}: {what}, {rows} rows of {columns} elements, has no tensor map: {e}"))
    })?;
    // SAFETY: the driver has written all of it; and zero bytes are a value of this type.
    Ok(unsafe { map.assume_init() })
}
