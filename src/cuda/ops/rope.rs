//! Per-head norm, rotary embedding, and the write of keys and values into the pool.

use super::kv::KvRows;
use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_len, int, product, side};
use crate::dtype::HalfType;
use crate::{Error, Result, kv};

/// Threads of a block.
const THREADS: u32 = 256;

/// Index of the first backward kernel.
const BACKWARD: usize = 2;

pub(in crate::cuda) struct Kernels;

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        let forward = Spec::pair("rope", ["rope_bf16", "rope_f16"], THREADS, 0);
        let backward = Spec::pair("rope", ["rope_backward_bf16", "rope_backward_f16"], THREADS, 0);
        [forward, backward].concat()
    }
}

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head: even.
    pub head: usize,
    /// Elements of a head as stored: 32, 64 or 128.
    pub padded: usize,
}

/// Pairs of a head whose first elements lie together, followed by their partners, where an epilogue takes heads: in the rows of
/// the weights and in the columns of what they give.
pub const PAIRS: usize = 8;

/// Where an element of a head of `head` elements is among its pairs: it and the one half a head further are turned together.
pub fn pair_place(element: usize, head: usize) -> usize {
    let (half, pair) = (element / (head / 2).max(1), element % (head / 2).max(1));
    pair / PAIRS * 2 * PAIRS + half * PAIRS + pair % PAIRS
}

/// In which order the columns of a query or key head are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HeadOrder {
    /// As attention reads them.
    #[default]
    Halves,
    /// By pairs: see [`pair_place`].
    Pairs,
}

impl Heads {
    /// The stored size of a head: the smallest that holds it, none beyond 128.
    pub fn padded(head: usize) -> Option<usize> {
        [32, 64, 128].into_iter().find(|&padded| head <= padded)
    }

    /// Elements of a row of `qkv`.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.padded
    }
}

/// RMSNorm of every query and key head.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// `[padded]`, for queries.
    pub q: View<'a, u16>,
    /// `[padded]`, for keys.
    pub k: View<'a, u16>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// By what queries and keys are turned.
#[derive(Clone, Copy, Debug)]
pub struct Turns<'a> {
    /// `[n]`.
    pub positions: View<'a, u32>,
    /// `[positions, head / 2]` of cosine and sine.
    pub table: View<'a, [f32; 2]>,
}

impl Turns<'_> {
    /// Checks the heads and the table, and returns the table's positions.
    fn check(&self, op: &str, Heads { head, padded, .. }: Heads) -> Result<u32> {
        if ![32, 64, 128].contains(&padded) || head > padded || head == 0 || !head.is_multiple_of(2) {
            return Err(Error::Backend(format!("{op}: heads of {head} elements stored as {padded}")));
        }
        let table_rows = self.table.len() / (head / 2);
        check_len(op, "table", self.table.len(), table_rows * (head / 2))?;
        side(op, "positions of the table", table_rows, u32::MAX)
    }
}

/// What a kernel has to know of heads and the pool: `HeadArgs` of kernels/heads.cuh, field by field.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct HeadParameters {
    table: u64,
    positions: u64,
    slots: u64,
    block_stride: u64,
    layer_offset: u64,
    pool_slots: u32,
    table_rows: u32,
    heads: i32,
    kv_heads: i32,
    half: i32,
    padded: i32,
}

impl HeadParameters {
    /// Of as many rows as there are positions. In the pool a kernel writes position `slot % 64` of every key/value head of the layer in
    /// block `slot / 64`, and only if the slot is below `pool_slots`, the number of its whole blocks times 64; it reads a row of the
    /// table below `table_rows` for each position.
    ///
    /// # Errors
    /// Sizes that no kernel has, or that do not go together; matrices that do not start at multiples of 16 bytes.
    pub(super) fn new(
        op: &str,
        q: &ViewMut<'_, u16>,
        kv: &KvRows<'_>,
        turns: &Turns<'_>,
        sizes: Heads,
    ) -> Result<Self> {
        let (rows, table_rows) = (turns.positions.len(), turns.check(op, sizes)?);
        let Heads { heads, kv_heads, head, padded } = sizes;
        check_len(op, "q", q.len(), product(op, rows, product(op, heads, padded)?)?)?;
        check_len(op, "slots", kv.slots.len(), rows)?;
        if (kv.layout.kv_heads, kv.layout.head) != (kv_heads, padded) {
            return Err(Error::Backend(format!("{op}: the pool is for {:?}, the heads are {sizes:?}", kv.layout)));
        }
        let (pool_slots, layer) = kv.check(op)?;
        if !(q.address | kv.pool.address).is_multiple_of(16) {
            return Err(Error::Backend(format!("{op}: matrices start at multiples of 16 bytes")));
        }
        int(op, "elements of a row", sizes.qkv())?;
        Ok(HeadParameters {
            table: turns.table.address,
            positions: turns.positions.address,
            slots: kv.slots.address,
            block_stride: kv.layout.block() as u64,
            layer_offset: layer as u64,
            pool_slots,
            table_rows,
            heads: int(op, "heads", heads)?,
            kv_heads: int(op, "kv_heads", kv_heads)?,
            half: int(op, "half", head / 2)?,
            padded: int(op, "padded", padded)?,
        })
    }
}

// The device reads the fields in this order.
const _: () = assert!(size_of::<HeadParameters>() == 64 && std::mem::offset_of!(HeadParameters, pool_slots) == 40);

/// What [`rope`] reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[n, (heads + 2 kv_heads) padded]`: query heads, key heads, value heads, with their bias.
    pub qkv: View<'a, u16>,
    /// Where the rows stand.
    pub turns: Turns<'a>,
    /// Before the rotation, for models that have them.
    pub norms: Option<HeadNorms<'a>>,
    /// Of the columns of queries and keys in `qkv`, and in its gradient. Norms have their weights, and attention its heads, in halves.
    pub order: HeadOrder,
}

impl Inputs<'_> {
    /// Checks lengths and alignment and returns the rows and the table's positions.
    fn check(&self, op: &str, heads: Heads) -> Result<(usize, u32)> {
        let (rows, table_rows) = (self.turns.positions.len(), self.turns.check(op, heads)?);
        check_len(op, "qkv", self.qkv.len(), product(op, rows, heads.qkv())?)?;
        let mut addresses = self.qkv.address;
        if let Some(norms) = self.norms {
            check_len(op, "q_norm", norms.q.len(), heads.padded)?;
            check_len(op, "k_norm", norms.k.len(), heads.padded)?;
            addresses |= norms.q.address | norms.k.address;
        }
        if !addresses.is_multiple_of(16) {
            return Err(Error::Backend(format!("{op}: matrices start at multiples of 16 bytes")));
        }
        Ok((rows, table_rows))
    }
}

/// Turns queries and keys by their positions, after their norms, writes queries to `q` `[n, heads padded]` and keys and
/// values to their slots.
pub fn rope(
    device: &Device,
    storage: HalfType,
    q: &mut ViewMut<'_, u16>,
    kv: &mut KvRows<'_>,
    inputs: &Inputs<'_>,
    heads: Heads,
) -> Result<()> {
    const OP: &str = "rope";
    let (rows, _) = inputs.check(OP, heads)?;
    let HeadParameters {
        table,
        positions,
        slots,
        block_stride,
        layer_offset,
        pool_slots,
        table_rows,
        heads,
        kv_heads,
        half,
        padded,
    } = HeadParameters::new(OP, q, kv, &inputs.turns, heads)?;
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch { grid: (side(OP, "rows", rows, i32::MAX as u32)?, 1, 1), threads: THREADS, shared: 0 };
    let (q_weight, k_weight, eps) = inputs.norms.map_or((0, 0, 0.0), |n| (n.q.address, n.k.address, n.eps));
    let paired = i32::from(inputs.order == HeadOrder::Pairs);
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (T* q, T* pool, const T* qkv, const unsigned* slots, unsigned pool_slots, unsigned long long
    // block_stride, unsigned long long layer_offset, const float2* table, const unsigned* positions, const T* q_weight,
    // const T* k_weight, float eps, unsigned table_rows, int heads, int kv_heads, int half, int padded, int paired). Block r
    // touches row r of qkv, q, slots and positions, which have as many rows as the grid; of the pool and the table it touches
    // what `HeadParameters` says. Weights are read in padded elements unless null. q and the pool are lent to us alone; packs of
    // 8 bytes are aligned because the addresses are and heads are multiples of 32.
    unsafe {
        device.launch(
            &kernels[storage as usize],
            launch,
            args![
                q.address,
                kv.pool.address,
                inputs.qkv.address,
                slots,
                pool_slots,
                block_stride,
                layer_offset,
                table,
                positions,
                q_weight,
                k_weight,
                eps,
                table_rows,
                heads,
                kv_heads,
                half,
                padded,
                paired
            ],
        )
    }
}

/// Attention's gradients, what [`rope_backward`] starts from.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    /// `[n, heads padded]`, of turned queries.
    pub q: View<'a, f32>,
    /// `[n, kv_heads padded]`, of turned keys.
    pub k: View<'a, f32>,
    /// `[n, kv_heads padded]`, of values.
    pub v: View<'a, f32>,
}

/// Gradient of [`rope`]: `d_qkv` `[n, (heads + 2 kv_heads) padded]`, the padding zero, its columns in the order of `qkv`. `inputs` are those of the forward pass.
pub fn rope_backward(
    device: &Device,
    storage: HalfType,
    d_qkv: &mut ViewMut<'_, u16>,
    gradients: &Gradients<'_>,
    inputs: &Inputs<'_>,
    heads: Heads,
) -> Result<()> {
    const OP: &str = "rope_backward";
    let (rows, table_rows) = inputs.check(OP, heads)?;
    let Heads { heads: query_heads, kv_heads, head, padded } = heads;
    let Gradients { q, k, v } = gradients;
    check_len(OP, "d_qkv", d_qkv.len(), inputs.qkv.len())?;
    check_len(OP, "dq", q.len(), product(OP, rows, query_heads * padded)?)?;
    check_len(OP, "dk", k.len(), product(OP, rows, kv_heads * padded)?)?;
    check_len(OP, "dv", v.len(), k.len())?;
    if !(d_qkv.address | q.address | k.address | v.address).is_multiple_of(16) {
        return Err(Error::Backend(format!("{OP}: matrices start at multiples of 16 bytes")));
    }
    if rows == 0 {
        return Ok(());
    }
    let launch = Launch { grid: (side(OP, "rows", rows, i32::MAX as u32)?, 1, 1), threads: THREADS, shared: 0 };
    int(OP, "elements of a row", heads.qkv())?;
    let (query_heads, kv_heads) = (int(OP, "heads", query_heads)?, int(OP, "kv_heads", kv_heads)?);
    let (half, padded) = (int(OP, "half", head / 2)?, int(OP, "padded", padded)?);
    let (q_weight, k_weight, eps) = inputs.norms.map_or((0, 0, 0.0), |n| (n.q.address, n.k.address, n.eps));
    let paired = i32::from(inputs.order == HeadOrder::Pairs);
    let kernels = device.kernels::<Kernels>()?;
    // SAFETY: parameters are (T* d_qkv, const float* dq, const float* dk, const float* dv, const T* qkv, const float2* table,
    // const unsigned* positions, const T* q_weight, const T* k_weight, float eps, unsigned table_rows, int heads, int
    // kv_heads, int half, int padded, int paired). Block r touches row r of d_qkv, dq, dk, dv, qkv and positions, which have as many rows
    // as the grid, and one row of the table below table_rows; weights are read in padded elements unless null. d_qkv is
    // lent to us alone; packs of 8 and 16 bytes are aligned because the addresses are and heads are multiples of 32.
    unsafe {
        device.launch(
            &kernels[BACKWARD + storage as usize],
            launch,
            args![
                d_qkv.address,
                q.address,
                k.address,
                v.address,
                inputs.qkv.address,
                inputs.turns.table.address,
                inputs.turns.positions.address,
                q_weight,
                k_weight,
                eps,
                table_rows,
                query_heads,
                kv_heads,
                half,
                padded,
                paired
            ],
        )
    }
}

/// Blocks of [`kv::BLOCK`] positions, which the kernel knows by number.
const _: () = assert!(kv::BLOCK == 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_padded_to_what_attention_takes() {
        assert_eq!([16, 32, 33, 64, 80, 96, 128].map(Heads::padded), [32, 32, 64, 64, 128, 128, 128].map(Some));
        assert_eq!(Heads::padded(129), None);
        assert_eq!(Heads { heads: 6, kv_heads: 2, head: 20, padded: 32 }.qkv(), 320);
    }
}
