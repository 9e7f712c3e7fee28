//! The gated activation of the MLP.

use super::{args, check_len, int, product, rows_of, side, vectors};
use crate::Result;
use crate::cuda::device::Launch;
use crate::cuda::kernels::SWIGLU_THREADS;
use crate::cuda::{Device, Storage, View, ViewMut};

/// `out[n, f] = silu(gate) * up` with `gate_up` `[n, 2f]`, the gate first; `f` is a multiple of 8.
pub fn swiglu(
    device: &Device,
    storage: Storage,
    out: &mut ViewMut<'_, u16>,
    gate_up: View<'_, u16>,
    f: usize,
) -> Result<()> {
    const OP: &str = "swiglu";
    let rows = rows_of(OP, "out", out.len(), f)?;
    check_len(OP, "gate_up", gate_up.len(), product(OP, out.len(), 2)?)?;
    vectors(OP, "f", f, out.address | gate_up.address)?;
    if rows == 0 {
        return Ok(());
    }
    let launch = shape(OP, rows, f)?;
    let f = int(OP, "2f", product(OP, f, 2)?)? / 2;
    // SAFETY: parameters are (T* out, const T* gate_up, int f). Block (r, p) reads inside row r of gate_up, 2f elements, and
    // writes inside row r of out, f elements, in 16-byte pieces that are aligned because addresses and f are. Both have as
    // many rows as the grid; out is lent to us alone.
    unsafe { device.launch(&device.kernels().swiglu[storage as usize], launch, args![out.address, gate_up.address, f]) }
}

/// A thread per 8 elements of a row.
fn shape(op: &str, rows: usize, f: usize) -> Result<Launch> {
    let groups = f / 8;
    let threads = groups.next_multiple_of(32).min(SWIGLU_THREADS as usize);
    let parts = side(op, "parts of a row", groups.div_ceil(threads), 65_535)?;
    Ok(Launch { grid: (side(op, "rows", rows, i32::MAX as u32)?, parts, 1), threads: threads as u32, shared: 0 })
}
