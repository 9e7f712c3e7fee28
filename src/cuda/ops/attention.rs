//! Causal attention over paged keys and values.

pub mod classes;
pub mod plan;
mod shape;
pub mod sm90;

use super::kv::KvLayout;
use super::tensor_map::tensor_map;
use super::weight_layout::WeightLayout;
use crate::cuda::buffer::{Buffer, View, ViewMut};
use crate::cuda::device::Device;
use crate::cuda::kernels::{KernelSet, Spec};
use crate::cuda::launch::{Launch, args, check_room, int, product, side};
use crate::dtype::HalfType;
use crate::kv::BLOCK;
use crate::{Error, Result};
use classes::KERNELS;
pub use plan::{AttentionProducts, Frame, Plan, PlanLimits};
use plan::{CLASSES, MANY, WIDE};
pub use shape::{Query, Sequence, Shape};

const OP: &str = "attention";

pub(in crate::cuda) struct Kernels;

fn specs_of(storage: HalfType) -> [Spec; KERNELS.len()] {
    KERNELS.map(|class| class.spec(OP, storage))
}

impl KernelSet for Kernels {
    fn specs() -> Vec<Spec> {
        HalfType::ALL.map(specs_of).concat()
    }
}

/// States of parts of queries, sized once.
#[derive(Debug)]
pub struct Scratch {
    /// Per part and head: the weighted sum of values, then of all of them the maximum and the sum.
    pub(super) partials: Buffer<f32>,
    /// All zero between launches.
    pub(super) tickets: Buffer<u32>,
}

impl Scratch {
    /// Room for `partials` parts of queries of any of the shapes. A query has one per 256 positions that it sees.
    pub fn new(device: &Device, shapes: &[Shape], partials: usize) -> Result<Self> {
        let (elements, tickets) = Self::room(shapes, partials)?;
        Ok(Scratch { partials: Buffer::uninitialised(device, elements)?, tickets: Buffer::zeros(device, tickets)? })
    }

    /// Bytes of what [`new`](Self::new) makes.
    pub fn bytes(shapes: &[Shape], partials: usize) -> u64 {
        Self::room(shapes, partials).map_or(u64::MAX, |(elements, tickets)| 4 * (elements as u64 + tickets as u64))
    }

    fn room(shapes: &[Shape], partials: usize) -> Result<(usize, usize)> {
        let (mut elements, mut tickets) = (0, 0);
        for shape in shapes {
            elements = elements.max(product(OP, partials, shape.heads * (shape.head + 2))?);
            tickets = tickets.max(product(OP, partials.div_ceil(2), shape.kv_heads)?);
        }
        Ok((elements, tickets))
    }

    /// What a plan for this device and scratch may use.
    pub fn limits(&self, device: &Device, shape: &Shape) -> PlanLimits {
        let each = (shape.heads * (shape.head + 2)).max(1);
        let by_tickets = self.tickets.len() / shape.kv_heads.max(1) * 2;
        PlanLimits {
            blocks: 2 * device.multiprocessors() as usize,
            partials: (self.partials.len() / each).min(by_tickets),
            products: AttentionProducts::of(device, shape),
        }
    }
}

impl AttentionProducts {
    /// Those of the family that a device runs, as far as they are for heads of this size.
    fn of(device: &Device, shape: &Shape) -> Self {
        match (device.weight_layout(), device.widest_products) {
            _ if !sm90::fits(shape) => AttentionProducts::Mma,
            (WeightLayout::Rows, _) => AttentionProducts::Mma,
            (WeightLayout::Tiles, false) => AttentionProducts::Both,
            (WeightLayout::Tiles, true) => AttentionProducts::Wgmma,
        }
    }
}

/// What is read, all in one storage type.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// 16-bit type.
    pub storage: HalfType,
    /// Rotated queries `[rows, heads * head]`.
    pub q: View<'a, u16>,
    /// The whole pool of keys and values.
    pub pool: View<'a, u16>,
    /// Its shape.
    pub layout: KvLayout,
    /// The layer.
    pub layer: usize,
}

/// What is written, for the rows that queries name.
#[derive(Debug)]
pub struct Output<'a> {
    /// `[rows, width]` with [`Shape::width`] columns, of which the first `heads * head` are written.
    pub out: ViewMut<'a, u16>,
    /// `[rows, heads]`: the natural logarithm of the sum of `exp(scale q.k)`.
    pub lse: Option<ViewMut<'a, f32>>,
}

/// `softmax(scale q k^T) v` for the queries of a plan, whose words are in `work`.
pub fn attention(
    device: &Device,
    output: &mut Output<'_>,
    inputs: Inputs<'_>,
    work: View<'_, u32>,
    plan: &Plan,
    scratch: &mut Scratch,
) -> Result<()> {
    let Inputs { storage, q, pool, layout, layer } = inputs;
    let Shape { heads, kv_heads, head, scale, .. } = plan.shape;
    let width = product(OP, heads, head)?;
    check_room(OP, "q", q.len(), product(OP, plan.rows, width)?)?;
    check_room(OP, "out", output.out.len(), product(OP, plan.rows_out, plan.shape.width())?)?;
    check_room(OP, "work", work.len(), plan.words().len())?;
    let states = product(OP, plan.partials, heads)?;
    check_room(OP, "scratch", scratch.partials.len(), product(OP, states, head + 2)?)?;
    check_room(OP, "tickets", scratch.tickets.len(), product(OP, plan.tickets, kv_heads)?)?;
    if (layout.kv_heads, layout.head) != (kv_heads, head) {
        return Err(Error::Backend(format!("{OP}: the pool is {layout:?}, expected {kv_heads} heads of {head}")));
    }
    check_room(OP, "the pool's layers", layout.layers, layer.saturating_add(1))?;
    check_room(OP, "the pool", pool.len(), product(OP, plan.blocks, layout.block())?)?;
    let lse = match &output.lse {
        Some(lse) => {
            check_room(OP, "lse", lse.len(), product(OP, plan.rows_out, heads)?)?;
            lse.address
        }
        None => 0,
    };
    if !(output.out.address | q.address | pool.address | work.address).is_multiple_of(16) {
        return Err(Error::Backend(format!("{OP}: out, q, pool and work start at multiples of 16 bytes")));
    }
    let from = |words: usize| work.address + 4 * words as u64;
    let (tokens, pages) = (from(plan.tokens_at), from(plan.pages_at));
    let partials = scratch.partials.view_mut().address;
    let states = partials + 4 * (states * head) as u64;
    let tickets = scratch.tickets.view_mut().address;
    let from_layer = pool.slice(layout.layer(layer)..pool.len());
    let block = layout.block() as u64;
    let out_width = int(OP, "width", plan.shape.width())?;
    let by_head = side(OP, "key/value heads", kv_heads, 65_535)?;
    let by_wgmma = (0..CLASSES).any(|class| plan.items[class] > 0 && plan.products.is_wgmma(class));
    // Rows of heads, from the layer's keys of block 0 on.
    let map = if by_wgmma {
        if !sm90::fits(&plan.shape) {
            return Err(Error::Backend(format!("{OP}: heads of {head} elements, expected 64 or 128 for wgmma")));
        }
        let rows = from_layer.len() / head;
        int(OP, "rows of the pool", rows)?;
        Some(tensor_map(OP, "the pool", storage, from_layer, (rows, head), BLOCK)?)
    } else {
        None
    };
    let (heads, kv_heads) = (int(OP, "heads", heads)?, int(OP, "key/value heads", kv_heads)?);
    let of_head = KERNELS.iter().position(|class| class.head == head).unwrap_or(0);
    let mut first = 0;
    for class in 0..CLASSES {
        let items = from(plan::ITEM_WORDS * first);
        let count = plan.items[class];
        first += count;
        if count == 0 {
            continue;
        }
        let grid = (side(OP, "items", count, i32::MAX as u32)?, by_head, 1);
        let out = output.out.address;
        if let Some(map) = map.filter(|_| plan.products.is_wgmma(class)) {
            let kernel = &device.kernels::<sm90::Kernels>()?[sm90::index(head, storage)];
            let threads = sm90::threads(if class == WIDE { 2 } else { 1 });
            let launch = Launch { grid, threads, shared: kernel.shared };
            // SAFETY: parameters are those below with a map in front and no pool. The map is of whole rows of heads, of which a
            // block has whole ones, so a page's keys and values are boxes of 64 rows inside of it.
            unsafe {
                device.launch(
                    kernel,
                    launch,
                    args![
                        map, out, lse, q.address, items, tokens, pages, partials, states, tickets, block, heads,
                        kv_heads, out_width, scale
                    ],
                )?;
            }
            continue;
        }
        let class = of_head + class.min(MANY);
        let kernel = &device.kernels::<Kernels>()?[storage as usize * KERNELS.len() + class];
        let launch = Launch { grid, threads: KERNELS[class].threads, shared: kernel.shared };
        let pool = from_layer.address;
        // SAFETY: parameters are (void* out, float* lse, const void* q, const void* pool, const uint4* items, const uint4*
        // tokens, const uint4* pages, float* partials, float* states, unsigned* tickets, unsigned long long block, int
        // heads, int kv_heads, int out_width, float scale). The work list, as the plan made it, names rows of q below
        // plan.rows, rows of out and lse below plan.rows_out and blocks below plan.blocks, each checked above; only whole
        // 16-byte pieces inside a head are read and written, and heads are multiples of 64 bytes. Parts are below
        // plan.partials and tickets below plan.tickets, and the scratch, whose tickets are zero, and the output are lent
        // to us alone.
        unsafe {
            device.launch(
                kernel,
                launch,
                args![
                    out, lse, q.address, pool, items, tokens, pages, partials, states, tickets, block, heads, kv_heads,
                    out_width, scale
                ],
            )?;
        }
    }
    Ok(())
}
