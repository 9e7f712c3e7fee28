//! The gated activation of the MLP.

use crate::Result;
use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, int, product, rows_of, side, vectors};
use crate::dtype::HalfType;

/// Threads of a block, at most.
const THREADS: u32 = 256;

/// Index of the first backward kernel.
const BACKWARD: usize = 2;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        let forward = Spec::pair("swiglu", ["swiglu_bf16", "swiglu_f16"], THREADS, 0);
        let backward = Spec::pair("swiglu", ["swiglu_backward_bf16", "swiglu_backward_f16"], THREADS, 0);
        [forward, backward].concat()
    }
}

/// How gates and ups lie in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gates {
    /// All gates, then all ups.
    Apart,
    /// [`GATES`](super::gemm::GATES) gates, then their ups, again and again.
    Grouped,
}

/// `out[n, f] = silu(gate) * up` with `gate_up` `[n, 2f]`; `f` is a multiple of 8.
pub fn swiglu(
    device: &Device,
    storage: HalfType,
    out: &mut ViewMut<'_, u16>,
    gate_up: View<'_, u16>,
    f: usize,
    gates: Gates,
) -> Result<()> {
    const OP: &str = "swiglu";
    let rows = rows_of(OP, "out", out.len(), f)?;
    check_len(OP, "gate_up", gate_up.len(), product(OP, out.len(), 2)?)?;
    vectors(OP, "f", f, out.address | gate_up.address)?;
    if rows == 0 {
        return Ok(());
    }
    let launch = shape(OP, rows, f, 8)?;
    let f = int(OP, "2f", product(OP, f, 2)?)? / 2;
    let kernels = device.kernels::<Kernels>()?;
    let grouped = i32::from(gates == Gates::Grouped);
    // SAFETY: parameters are (T* out, const T* gate_up, int f, int grouped). Block (r, p) reads inside row r of gate_up, 2f elements, and
    // writes inside row r of out, f elements, in 16-byte pieces that are aligned because addresses and f are. Both have as
    // many rows as the grid; out is lent to us alone.
    unsafe { device.launch(&kernels[storage as usize], launch, args![out.address, gate_up.address, f, grouped]) }
}

/// Gradient of [`swiglu`]: `d_gate_up` `[n, 2f]` from `d_act` `[n, f]` and the `gate_up` that the forward pass kept.
pub fn swiglu_backward(
    device: &Device,
    storage: HalfType,
    d_gate_up: &mut ViewMut<'_, u16>,
    d_act: View<'_, f32>,
    gate_up: View<'_, u16>,
    f: usize,
) -> Result<()> {
    const OP: &str = "swiglu_backward";
    let rows = rows_of(OP, "d_act", d_act.len(), f)?;
    let elements = product(OP, d_act.len(), 2)?;
    check_len(OP, "gate_up", gate_up.len(), elements)?;
    check_len(OP, "d_gate_up", d_gate_up.len(), elements)?;
    vectors(OP, "f", f, d_gate_up.address | d_act.address | gate_up.address)?;
    if rows == 0 {
        return Ok(());
    }
    let launch = shape(OP, rows, f, 4)?;
    let f = int(OP, "2f", product(OP, f, 2)?)? / 2;
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (T* d_gate_up, const float* d_act, const T* gate_up, int f). Block (r, p) reads inside row r of
    // gate_up, 2f elements, and of d_act, f elements, and writes inside row r of d_gate_up, 2f elements, in pieces of 4
    // elements that are aligned because addresses and f are. All have as many rows as the grid; d_gate_up is lent to us alone.
    unsafe {
        device.launch(
            &kernels[BACKWARD + storage as usize],
            launch,
            args![d_gate_up.address, d_act.address, gate_up.address, f],
        )
    }
}

/// A thread per `each` elements of a row.
fn shape(op: &str, rows: usize, f: usize, each: usize) -> Result<Launch> {
    let groups = f / each;
    let threads = groups.next_multiple_of(32).min(THREADS as usize);
    let parts = side(op, "parts of a row", groups.div_ceil(threads), 65_535)?;
    Ok(Launch { grid: (side(op, "rows", rows, i32::MAX as u32)?, parts, 1), threads: threads as u32, shared: 0 })
}
