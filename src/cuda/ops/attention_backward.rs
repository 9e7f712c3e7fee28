//! Gradients of causal attention over paged keys and values.

pub mod plan;

use super::attention::plan::{CLASSES, MANY, WIDE};
use super::attention::{self, Shape};
use super::kv::KvLayout;
use crate::cuda::buffer::{Buffer, View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_room, int, product, side};
use crate::dtype::HalfType;
use crate::{Error, Result};
pub use plan::{Frame, KeySegment, Plan};
use plan::{ITEM_WORDS, KERNELS, KEYS};

const OP: &str = "attention_backward";

pub(in crate::cuda) struct Kernels;

fn specs_of(storage: HalfType) -> [Spec; KERNELS.len()] {
    KERNELS.map(|class| class.spec(OP, storage))
}

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        HalfType::ALL.map(specs_of).concat()
    }
}

/// What one pass of a launch leaves to the other, sized once.
#[derive(Debug)]
pub struct Scratch {
    /// Per row of the output and head: the sum of `d_out * out`.
    deltas: Buffer<f32>,
}

impl Scratch {
    /// Room for so many rows of the output.
    pub fn new(device: &Device, heads: usize, rows: usize) -> Result<Self> {
        Ok(Scratch { deltas: Buffer::uninitialised(device, product(OP, rows, heads)?)? })
    }

    /// Bytes for so many rows.
    pub fn bytes(heads: usize, rows: usize) -> u64 {
        (4 * heads * rows) as u64
    }
}

/// What is read. The 16-bit matrices are in one storage type.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// 16-bit type.
    pub storage: HalfType,
    /// Rotated queries `[rows, heads * head]`, as in the forward pass.
    pub q: View<'a, u16>,
    /// The whole pool of keys and values.
    pub pool: View<'a, u16>,
    /// Its shape.
    pub layout: KvLayout,
    /// The layer.
    pub layer: usize,
    /// What the forward pass gave: `[rows, width]` with [`Shape::width`] columns.
    pub out: View<'a, u16>,
    /// And its normalisers `[rows, heads]`.
    pub lse: View<'a, f32>,
    /// The gradient of `out`, `[rows, width]`. Columns beyond `heads * head` are not read.
    pub d_out: View<'a, u16>,
}

/// What is written.
#[derive(Debug)]
pub struct Output<'a> {
    /// `[rows, heads * head]`: the rows of queries. Others are left alone.
    pub q: ViewMut<'a, f32>,
    /// `[rows, kv_heads * head]`: the rows of segments, of every position of theirs.
    pub k: ViewMut<'a, f32>,
    /// The same for values.
    pub v: ViewMut<'a, f32>,
}

/// Work lists on the host, and their words on the device.
#[derive(Clone, Copy, Debug)]
pub struct BackwardLists<'a> {
    /// The plan that the forward pass of the same queries had, or another one of them.
    pub queries: (&'a attention::Plan, View<'a, u32>),
    /// The segments that these queries are in.
    pub keys: (&'a Plan, View<'a, u32>),
}

/// Gradients of the queries of a plan and of the keys and values of the segments that they are in. `parts` is what the
/// forward plan was made for.
pub fn attention_backward(
    device: &Device,
    output: &mut Output<'_>,
    inputs: Inputs<'_>,
    work: BackwardLists<'_>,
    parts: &mut attention::Scratch,
    scratch: &mut Scratch,
) -> Result<()> {
    let (plan, keys) = (work.queries.0, work.keys.0);
    if plan.shape != keys.shape {
        return Err(Error::Backend(format!(
            "{OP}: a plan of keys for {:?}, expected {:?} as for the queries",
            keys.shape, plan.shape
        )));
    }
    let Inputs { storage, q, pool, layout, layer, out, lse, d_out } = inputs;
    let Shape { heads, kv_heads, head, scale, window } = plan.shape;
    let (rows, rows_out) = (plan.rows.max(keys.rows), plan.rows_out.max(keys.rows_out));
    let (width, out_width) = (product(OP, heads, head)?, plan.shape.width());
    check_room(OP, "q", q.len(), product(OP, rows, width)?)?;
    check_room(OP, "dq", output.q.len(), product(OP, rows, width)?)?;
    for (what, len) in [("dk", output.k.len()), ("dv", output.v.len())] {
        check_room(OP, what, len, product(OP, keys.batch_rows, product(OP, kv_heads, head)?)?)?;
    }
    for (what, len) in [("out", out.len()), ("d_out", d_out.len())] {
        check_room(OP, what, len, product(OP, rows_out, out_width)?)?;
    }
    check_room(OP, "lse", lse.len(), product(OP, rows_out, heads)?)?;
    check_room(OP, "deltas", scratch.deltas.len(), product(OP, rows_out, heads)?)?;
    check_room(OP, "work of queries", work.queries.1.len(), plan.words().len())?;
    check_room(OP, "work of keys", work.keys.1.len(), keys.words().len())?;
    let states = product(OP, plan.partials, heads)?;
    check_room(OP, "scratch", parts.partials.len(), product(OP, states, head)?)?;
    check_room(OP, "tickets", parts.tickets.len(), product(OP, plan.tickets, kv_heads)?)?;
    if (layout.kv_heads, layout.head) != (kv_heads, head) {
        return Err(Error::Backend(format!("{OP}: the pool is {layout:?}, expected {kv_heads} heads of {head}")));
    }
    check_room(OP, "the pool's layers", layout.layers, layer.saturating_add(1))?;
    check_room(OP, "the pool", pool.len(), product(OP, plan.blocks.max(keys.blocks), layout.block())?)?;
    let addresses = [q, pool, out, d_out].iter().fold(0, |all, view| all | view.address);
    let gradients = output.q.address | output.k.address | output.v.address;
    let lists = work.queries.1.address | work.keys.1.address;
    if !(addresses | gradients | lists).is_multiple_of(16) {
        return Err(Error::Backend(format!(
            "{OP}: q, pool, out, d_out, dq, dk, dv and work start at multiples of 16 bytes"
        )));
    }
    let pool = pool.address + 2 * layout.layer(layer) as u64;
    let block = layout.block() as u64;
    let out_width = int(OP, "width", out_width)?;
    let by_head = side(OP, "key/value heads", kv_heads, 65_535)?;
    let (heads, kv_heads) = (int(OP, "heads", heads)?, int(OP, "key/value heads", kv_heads)?);
    let window = int(OP, "window", window.unwrap_or(0).min(i32::MAX as usize / 2))?;
    let of_head = KERNELS.iter().position(|class| class.head == head).unwrap_or(0);
    let kernels = &device.kernels::<Kernels>()?[storage as usize * KERNELS.len()..];
    let deltas = scratch.deltas.view_mut().address;

    let from = |words: usize| work.queries.1.address + 4 * words as u64;
    let (tokens, pages) = (from(plan.tokens_at), from(plan.pages_at));
    let partials = parts.partials.view_mut().address;
    let tickets = parts.tickets.view_mut().address;
    let mut first = 0;
    for class in 0..CLASSES {
        let items = from(attention::plan::ITEM_WORDS * first);
        let count = plan.items[class];
        first += count;
        if count == 0 {
            continue;
        }
        // A wide item is two blocks of class many, each with one of its tiles.
        let (of, tiles) = if class == WIDE { (of_head + MANY, 2) } else { (of_head + class, 1) };
        let kernel = &kernels[of];
        let grid = (side(OP, "items", count, i32::MAX as u32)?, by_head, tiles);
        let launch = Launch { grid, threads: KERNELS[of].threads, shared: kernel.shared };
        // SAFETY: parameters are (float* dq, float* deltas, const void* q, const void* pool, const void* out, const float*
        // lse, const void* d_out, const uint4* items, const uint4* tokens, const uint4* pages, float* partials, unsigned*
        // tickets, unsigned long long block, int heads, int kv_heads, int out_width, float scale). The work list, as the
        // plan made it, names rows of q and dq below plan.rows, rows of out, d_out, lse and deltas below plan.rows_out and
        // blocks below plan.blocks, each checked above; only whole 16-byte pieces inside a head are read and written, and
        // heads are multiples of 64 bytes. Parts are below plan.partials and tickets below plan.tickets; the scratch, whose
        // tickets are zero, and the output are lent to us alone.
        unsafe {
            device.launch(
                kernel,
                launch,
                args![
                    output.q.address,
                    deltas,
                    q.address,
                    pool,
                    out.address,
                    lse.address,
                    d_out.address,
                    items,
                    tokens,
                    pages,
                    partials,
                    tickets,
                    block,
                    heads,
                    kv_heads,
                    out_width,
                    scale
                ],
            )?;
        }
    }

    if keys.items == 0 {
        return Ok(());
    }
    let from = |words: usize| work.keys.1.address + 4 * words as u64;
    let (items, tokens, tiles, blocks) = (from(0), from(keys.tokens_at), from(keys.tiles_at), from(keys.blocks_at));
    debug_assert!(keys.tokens_at >= ITEM_WORDS * keys.items);
    let kernel = &kernels[of_head + KEYS];
    let grid = (side(OP, "tiles of keys", keys.items, i32::MAX as u32)?, by_head, 1);
    let launch = Launch { grid, threads: KERNELS[of_head + KEYS].threads, shared: kernel.shared };
    // SAFETY: parameters are (float* dk, float* dv, const void* q, const void* pool, const float* lse, const float* deltas,
    // const void* d_out, const uint4* items, const uint2* tokens, const unsigned* tiles, const unsigned* blocks, unsigned
    // long long block, int heads, int kv_heads, int out_width, int window, float scale). The work list, as the plan made
    // it, names rows of q below keys.rows, of d_out, lse and deltas below keys.rows_out, of dk and dv below keys.batch_rows
    // and blocks below keys.blocks, each checked above; only whole 16-byte pieces inside a head are read and 8-byte pieces
    // written, and heads are multiples of 64 bytes. Deltas are those that the launches before wrote. The output is lent to
    // us alone.
    unsafe {
        device.launch(
            kernel,
            launch,
            args![
                output.k.address,
                output.v.address,
                q.address,
                pool,
                lse.address,
                deltas,
                d_out.address,
                items,
                tokens,
                tiles,
                blocks,
                block,
                heads,
                kv_heads,
                out_width,
                window,
                scale
            ],
        )
    }
}
