//! A decoder's weights on the device: padded, fused and of one storage type.
//!
//! [`LoadPlan`] looks every tensor up by its Hugging Face name and decides where it goes, without a device; [`Weights::load`]
//! brings the bytes there. What has the storage type and no padding inside is copied from the pinned ring straight to its
//! place, the rest goes through a staging area and the `pad_convert` kernel.
//!
//! # Layouts
//!
//! Matrices that products read lie as the device's products want them, in rows or in tiles ([`WeightLayout`]): those of the
//! layers, the head of a language model, and the embedding where it is this head. Everything else is in rows: vectors; an
//! embedding that is only gathered from, which is every reward model's; and the head of a reward model, a single row that its
//! gradient reads as a vector. Nothing is stored twice. No tensor in tiles has the order of its file, so all of them go
//! through the staging area.
//!
//! # 16-bit type
//!
//! Unless one is asked for, it is the 16-bit type that most of the model's weights have, bf16 if none has: a model stored in
//! f32 runs in bf16. Tensors of another type are converted, and only if no element changes; a type that was asked for may
//! round. Numbers that it cannot hold at all are refused in any case.

use super::sizes::Sizes;
use crate::cuda::ops::gemm::GATES;
use crate::cuda::ops::pad_convert::{Changed, Groups, Layout, Stored, pad_convert};
use crate::cuda::ops::random_fill::random_fill;
use crate::cuda::ops::rope::HeadOrder;
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::cuda::{Buffer, Device, View, staging};
use crate::dtype::DType;
use crate::dtype::HalfType;
use crate::error::{Error, Remedy, Result};
use crate::files::checkpoint::{Bytes, Checkpoint};
use crate::files::config::{ModelConfig, ModelKind};
use crate::files::tensors::{EMBEDDING, LM_HEAD, SCORE};
use crate::model::synthetic;
use crate::rng::RandomFill;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// One decoder layer, in the storage type. Names of sizes are those of [`Sizes`]: `d` hidden, `h` and `g` heads, `e` their
/// size, `f` MLP width; `p` for padded, `ap` for the padded attention output. Matrices are in the [`Weights`]' layout.
#[derive(Debug)]
pub struct Layer<B = Buffer<u16>> {
    /// `[dp]`.
    pub attention_norm: B,
    /// `[(h + 2 g) ep, dp]`: query heads, key heads, value heads; the rows of queries and keys in the [`Weights`]' order.
    pub qkv: B,
    /// `[(h + 2 g) ep]`.
    pub qkv_bias: Option<B>,
    /// Norms of query and key heads, `[ep]` each.
    pub head_norms: Option<(B, B)>,
    /// `[dp, ap]`.
    pub o: B,
    /// `[dp]`.
    pub o_bias: Option<B>,
    /// `[dp]`.
    pub mlp_norm: B,
    /// `[2 fp, dp]`: gates, then ups; in tiles, 8 gates and then their ups, again and again.
    pub gate_up: B,
    /// `[2 fp]`, in the order of `gate_up`.
    pub gate_up_bias: Option<B>,
    /// `[dp, fp]`.
    pub down: B,
    /// `[dp]`.
    pub down_bias: Option<B>,
}

/// What stands on top of the decoder.
#[derive(Debug)]
pub enum Head<B = Buffer<u16>> {
    /// The embedding of a language model.
    Tied,
    /// `[vocab, dp]` of a language model, in the [`Weights`]' layout.
    Own(B),
    /// `[1, dp]` of a reward model, a row in every layout of the others: where its gradient begins it is read as a vector.
    /// In tiles it would take 64 rows.
    Score(B),
}

/// A decoder with its head, in the storage type.
#[derive(Debug)]
pub struct Weights<B = Buffer<u16>> {
    /// How the matrices of products lie.
    pub layout: WeightLayout,
    /// How query and key heads lie in the rows of the fused projections.
    pub head_order: HeadOrder,
    /// `[vocab, dp]`, in the [`embedding_layout`](Self::embedding_layout).
    pub embedding: B,
    /// The layers.
    pub layers: Vec<Layer<B>>,
    /// `[dp]`.
    pub final_norm: B,
    /// The head.
    pub head: Head<B>,
}

/// What loading a model took, and what became of its numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// Bytes of the files that were read.
    pub bytes: u64,
    /// Time it took.
    pub seconds: f64,
    /// Elements whose stored type was not the storage type.
    pub converted: u64,
    /// Those of them that were rounded to another number.
    pub inexact: u64,
    /// The first tensor with such an element.
    pub first_inexact: Option<String>,
}

impl LoadReport {
    /// Billions of bytes a second.
    pub fn gigabytes_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 / self.seconds / 1e9 } else { 0.0 }
    }
}

/// Where a model's numbers come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Files.
    Stored(&'a Checkpoint),
    /// This seed: see [`synthetic`].
    Drawn(u64),
}

/// Where everything of a model goes.
#[derive(Debug)]
pub struct LoadPlan {
    sizes: Sizes,
    storage: HalfType,
    /// The storage type was asked for, so elements may be rounded to it.
    asked: bool,
    /// The checkpoint, for messages.
    path: PathBuf,
    /// Lengths of the buffers.
    slabs: Vec<Slab>,
    tensors: Vec<PlacedTensor>,
    /// Indices of `slabs`.
    weights: Weights<usize>,
}

/// A buffer to be.
#[derive(Debug)]
struct Slab {
    len: usize,
    /// Elements that some tensor fills. The others, the padding of widths, heads and tiles, are zero.
    filled: usize,
}

/// A stored tensor and its place.
#[derive(Debug)]
struct PlacedTensor {
    name: String,
    content: Content,
    slab: usize,
    layout: Layout,
}

/// Its numbers.
#[derive(Debug)]
enum Content {
    Stored(DType, Bytes),
    /// Made on the device.
    Drawn(RandomFill),
}

impl Content {
    fn dtype(&self) -> Option<DType> {
        match self {
            Content::Stored(dtype, _) => Some(*dtype),
            Content::Drawn(_) => None,
        }
    }

    /// What is read from files.
    fn bytes(&self) -> &[u8] {
        match self {
            Content::Stored(_, bytes) => bytes,
            Content::Drawn(_) => &[],
        }
    }
}

impl LoadPlan {
    /// Looks all tensors up and checks their shapes and types. Matrices of products will lie in `layout`.
    ///
    /// # Errors
    /// The kernels cannot do the model's sizes; a tensor is missing, or has another shape or type.
    pub fn new(
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        asked: Option<HalfType>,
        layout: WeightLayout,
    ) -> Result<Self> {
        Self::of(config, Source::Stored(checkpoint), asked, layout)
    }

    /// The same for numbers from anywhere. Those that are drawn are bf16 unless another type is asked for.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(config: &ModelConfig, source: Source<'_>, asked: Option<HalfType>, layout: WeightLayout) -> Result<Self> {
        let sizes = Sizes::new(config)?;
        let mut builder = Builder { config, source, layout, slabs: Vec::new(), tensors: Vec::new() };
        let weights = builder.decoder(&sizes)?;
        let Builder { slabs, tensors, .. } = builder;
        let path = match source {
            Source::Stored(checkpoint) => checkpoint.path().to_path_buf(),
            Source::Drawn(seed) => PathBuf::from(format!("seed {seed}")),
        };
        let of = |dtype| move |tensor: &&PlacedTensor| tensor.content.dtype() == Some(dtype);
        let elements = |dtype| -> u64 { tensors.iter().filter(of(dtype)).map(|t| t.elements() as u64).sum() };
        let most = if elements(DType::F16) > elements(DType::Bf16) { HalfType::F16 } else { HalfType::Bf16 };
        Ok(LoadPlan { sizes, storage: asked.unwrap_or(most), asked: asked.is_some(), path, slabs, tensors, weights })
    }

    /// The model's sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The storage type.
    pub fn storage(&self) -> HalfType {
        self.storage
    }

    /// Bytes that will be read from the files.
    pub fn source_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.content.bytes().len() as u64).sum()
    }

    /// Bytes that the weights take on the device, padding and that of tiles included.
    pub fn device_bytes(&self) -> u64 {
        self.slabs.iter().map(|slab| slab.len as u64 * 2).sum()
    }

    /// Bytes of the area for what cannot be copied straight to its place.
    fn staged(&self) -> usize {
        let indirect = self.tensors.iter().filter(|tensor| tensor.direct(self.storage).is_none());
        indirect
            .map(|tensor| tensor.elements() * tensor.content.dtype().map_or(2, DType::size))
            .map(|bytes| bytes.min(staging::SLOT))
            .max()
            .unwrap_or(0)
    }
}

impl Weights {
    /// Brings a model to the device. `progress` is told how many bytes have been queued so far.
    ///
    /// # Errors
    /// The device fails or has no room; an element is not a number of the storage type and no type was asked for, or is beyond
    /// its range.
    pub fn load(device: &Device, plan: &LoadPlan, progress: &mut dyn FnMut(u64)) -> Result<(Weights, LoadReport)> {
        let started = Instant::now();
        let slabs = plan.slabs.iter().map(|slab| match slab.filled == slab.len {
            true => Buffer::uninitialised(device, slab.len),
            false => Buffer::zeros(device, slab.len),
        });
        let mut loader = Loader {
            device,
            plan,
            slabs: slabs.collect::<Result<Vec<_>>>()?,
            staged: Buffer::uninitialised(device, plan.staged())?,
            changed: Buffer::zeros(device, plan.tensors.len())?,
            progress,
            done: 0,
        };
        // The embedding is the largest tensor: whether its numbers change tells, long before the rest is there.
        let first =
            usize::from(!plan.asked && plan.tensors.first().is_some_and(|tensor| tensor.converts(plan.storage)));
        loader.bring(0..first)?;
        loader.check()?;
        loader.bring(first..plan.tensors.len())?;
        let mut report = loader.check()?;
        let mut slabs: Vec<Option<Buffer<u16>>> = loader.slabs.into_iter().map(Some).collect();
        let weights = plan.weights.map(&mut |&slab| {
            slabs[slab].take().ok_or_else(|| Error::Backend(format!("weights: buffer {slab} is used twice")))
        })?;
        report.seconds = started.elapsed().as_secs_f64();
        Ok((weights, report))
    }

    /// The matrix of the head, `[vocab, dp]` or `[1, dp]`, in the [`head_layout`](Self::head_layout).
    pub fn head(&self) -> View<'_, u16> {
        match &self.head {
            Head::Tied => self.embedding.view(),
            Head::Own(head) | Head::Score(head) => head.view(),
        }
    }
}

/// How query and key heads lie in the rows of the fused projection, and in what it gives: in pairs where its product turns them,
/// which it does without norms.
pub fn head_order(layout: WeightLayout, config: &ModelConfig) -> HeadOrder {
    match layout {
        WeightLayout::Tiles if !config.qk_norm => HeadOrder::Pairs,
        WeightLayout::Tiles | WeightLayout::Rows => HeadOrder::Halves,
    }
}

/// Whether products with weights in this layout end in the gated activation and its gradients. Gates and ups lie in groups then,
/// wherever they are kept.
pub fn gates_in_products(layout: WeightLayout) -> bool {
    layout == WeightLayout::Tiles
}

impl<B> Weights<B> {
    /// [`gates_in_products`] of this layout.
    pub fn gates_in_products(&self) -> bool {
        gates_in_products(self.layout)
    }

    /// How the embedding lies: as a product reads it where it is the head too.
    pub fn embedding_layout(&self) -> WeightLayout {
        match self.head {
            Head::Tied => self.layout,
            Head::Own(_) | Head::Score(_) => WeightLayout::Rows,
        }
    }

    /// How the matrix of the head lies: a reward model's single row as a vector.
    pub fn head_layout(&self) -> WeightLayout {
        match self.head {
            Head::Tied | Head::Own(_) => self.layout,
            Head::Score(_) => WeightLayout::Rows,
        }
    }

    fn map<C>(&self, each: &mut impl FnMut(&B) -> Result<C>) -> Result<Weights<C>> {
        let embedding = each(&self.embedding)?;
        let layers = self.layers.iter().map(|layer| layer.map(each)).collect::<Result<Vec<_>>>()?;
        let final_norm = each(&self.final_norm)?;
        let head = match &self.head {
            Head::Tied => Head::Tied,
            Head::Own(head) => Head::Own(each(head)?),
            Head::Score(head) => Head::Score(each(head)?),
        };
        let (layout, head_order) = (self.layout, self.head_order);
        Ok(Weights { layout, head_order, embedding, layers, final_norm, head })
    }
}

impl<B> Layer<B> {
    fn map<C>(&self, each: &mut impl FnMut(&B) -> Result<C>) -> Result<Layer<C>> {
        let head_norms = match &self.head_norms {
            Some((q, k)) => Some((each(q)?, each(k)?)),
            None => None,
        };
        Ok(Layer {
            attention_norm: each(&self.attention_norm)?,
            qkv: each(&self.qkv)?,
            qkv_bias: self.qkv_bias.as_ref().map(&mut *each).transpose()?,
            head_norms,
            o: each(&self.o)?,
            o_bias: self.o_bias.as_ref().map(&mut *each).transpose()?,
            mlp_norm: each(&self.mlp_norm)?,
            gate_up: each(&self.gate_up)?,
            gate_up_bias: self.gate_up_bias.as_ref().map(&mut *each).transpose()?,
            down: each(&self.down)?,
            down_bias: self.down_bias.as_ref().map(&mut *each).transpose()?,
        })
    }
}

impl PlacedTensor {
    fn elements(&self) -> usize {
        self.layout.rows * self.layout.cols
    }

    fn converts(&self, storage: HalfType) -> bool {
        match (self.content.dtype(), storage) {
            (None, _) | (Some(DType::Bf16), HalfType::Bf16) | (Some(DType::F16), HalfType::F16) => false,
            (Some(_), _) => true,
        }
    }

    /// Where it lies in its slab, if its bytes can be copied there as they are.
    fn direct(&self, storage: HalfType) -> Option<Range<usize>> {
        if self.converts(storage) { None } else { self.layout.contiguous() }
    }
}

/// Makes up the plan.
struct Builder<'a> {
    config: &'a ModelConfig,
    source: Source<'a>,
    /// Of the matrices of products.
    layout: WeightLayout,
    slabs: Vec<Slab>,
    tensors: Vec<PlacedTensor>,
}

/// A stored linear layer and the rows that it takes of a fused one.
struct FusedPart {
    /// `NAME.weight`, `NAME.bias`.
    name: String,
    rows: usize,
    first: usize,
    groups: Groups,
}

/// A fused linear layer.
struct Fused {
    rows: usize,
    /// Stored columns, how they are spread, and the padded width.
    cols: usize,
    col_groups: Groups,
    width: usize,
    bias: bool,
}

impl Builder<'_> {
    fn decoder(&mut self, sizes: &Sizes) -> Result<Weights<usize>> {
        let config = self.config;
        let Sizes { hidden: d, hidden_padded: dp, vocab, .. } = *sizes;
        let (rows, layout) = (WeightLayout::Rows, self.layout);
        let tied = config.kind == ModelKind::CausalLm && config.tie_word_embeddings;
        let embedding = self.matrix(EMBEDDING, [vocab, d], dp, if tied { layout } else { rows })?;
        let layers = (0..sizes.layers).map(|i| self.layer(sizes, i)).collect::<Result<Vec<_>>>()?;
        let final_norm = self.vector("model.norm.weight", d, dp)?;
        let head = match config.kind {
            ModelKind::Reward => Head::Score(self.matrix(SCORE, [1, d], dp, rows)?),
            ModelKind::CausalLm if tied => Head::Tied,
            ModelKind::CausalLm => Head::Own(self.matrix(LM_HEAD, [vocab, d], dp, layout)?),
        };
        Ok(Weights { layout, head_order: head_order(layout, config), embedding, layers, final_norm, head })
    }

    fn layer(&mut self, sizes: &Sizes, index: usize) -> Result<Layer<usize>> {
        let config = self.config;
        let at = |part: &str| format!("model.layers.{index}.{part}");
        let Sizes { hidden: d, hidden_padded: dp, head: e, head_padded: ep, mlp: f, mlp_padded: fp, .. } = *sizes;
        let (h, g, ap) = (sizes.heads, sizes.kv_heads, sizes.attention_padded);
        let heads = |name: &str, count: usize, first: usize| FusedPart {
            name: at(name),
            rows: count * e,
            first: first * ep,
            groups: Groups::new(e, ep),
        };
        let order = head_order(self.layout, config);
        let turned = |name: &str, count: usize, first: usize| match order {
            HeadOrder::Halves => heads(name, count, first),
            HeadOrder::Pairs => FusedPart { groups: Groups::pairs(e, ep), ..heads(name, count, first) },
        };
        let rows = |name: &str, rows: usize, first: usize| FusedPart {
            name: at(name),
            rows,
            first,
            groups: Groups::plain(rows),
        };
        let hidden = |rows: usize, bias: bool| Fused { rows, cols: d, col_groups: Groups::plain(d), width: dp, bias };

        let attention_norm = self.vector(&at("input_layernorm.weight"), d, dp)?;
        let qkv =
            [turned("self_attn.q_proj", h, 0), turned("self_attn.k_proj", g, h), heads("self_attn.v_proj", g, h + g)];
        let (qkv, qkv_bias) = self.linear(&qkv, hidden(sizes.qkv, config.qkv_bias))?;
        let head_norms = match config.qk_norm {
            true => Some((
                self.vector(&at("self_attn.q_norm.weight"), e, ep)?,
                self.vector(&at("self_attn.k_norm.weight"), e, ep)?,
            )),
            false => None,
        };
        let fused = Fused { rows: dp, cols: h * e, col_groups: Groups::new(e, ep), width: ap, bias: config.o_bias };
        let (o, o_bias) = self.linear(&[rows("self_attn.o_proj", d, 0)], fused)?;
        let mlp_norm = self.vector(&at("post_attention_layernorm.weight"), d, dp)?;
        // In groups where an epilogue takes them.
        let (up, groups) = match gates_in_products(self.layout) {
            true => (GATES, Groups::new(GATES, 2 * GATES)),
            false => (fp, Groups::plain(f)),
        };
        let gates = |name: &str, first: usize| FusedPart { groups, ..rows(name, f, first) };
        let gate_up = [gates("mlp.gate_proj", 0), gates("mlp.up_proj", up)];
        let (gate_up, gate_up_bias) = self.linear(&gate_up, hidden(2 * fp, config.mlp_bias))?;
        let fused = Fused { rows: dp, cols: f, col_groups: Groups::plain(f), width: fp, bias: config.mlp_bias };
        let (down, down_bias) = self.linear(&[rows("mlp.down_proj", d, 0)], fused)?;
        Ok(Layer {
            attention_norm,
            qkv,
            qkv_bias,
            head_norms,
            o,
            o_bias,
            mlp_norm,
            gate_up,
            gate_up_bias,
            down,
            down_bias,
        })
    }

    /// Weight `[rows, width]` and bias `[rows]` of a fused layer.
    fn linear(&mut self, parts: &[FusedPart], fused: Fused) -> Result<(usize, Option<usize>)> {
        let weight = self.slab(self.layout.elements(fused.rows, fused.width));
        for part in parts {
            let layout = Layout {
                rows: part.rows,
                cols: fused.cols,
                width: fused.width,
                destination: self.layout,
                first_row: part.first,
                row_groups: part.groups,
                col_groups: fused.col_groups,
            };
            self.put(weight, format!("{}.weight", part.name), &[part.rows, fused.cols], layout)?;
        }
        if !fused.bias {
            return Ok((weight, None));
        }
        let bias = self.slab(fused.rows);
        for part in parts {
            let layout = Layout { first_row: part.first, row_groups: part.groups, ..Layout::corner(part.rows, 1, 1) };
            self.put(bias, format!("{}.bias", part.name), &[part.rows], layout)?;
        }
        Ok((weight, Some(bias)))
    }

    /// A stored `[rows, cols]` with rows padded to `width`.
    fn matrix(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        width: usize,
        destination: WeightLayout,
    ) -> Result<usize> {
        let slab = self.slab(destination.elements(rows, width));
        let layout = Layout { destination, ..Layout::corner(rows, cols, width) };
        self.put(slab, name.to_string(), &[rows, cols], layout)?;
        Ok(slab)
    }

    fn vector(&mut self, name: &str, len: usize, padded: usize) -> Result<usize> {
        let slab = self.slab(padded);
        self.put(slab, name.to_string(), &[len], Layout::corner(len, 1, 1))?;
        Ok(slab)
    }

    fn slab(&mut self, len: usize) -> usize {
        self.slabs.push(Slab { len, filled: 0 });
        self.slabs.len() - 1
    }

    fn put(&mut self, slab: usize, name: String, shape: &[usize], layout: Layout) -> Result<()> {
        let content = match self.source {
            Source::Stored(checkpoint) => {
                let (dtype, bytes) = checkpoint.load(&name, shape)?;
                Content::Stored(dtype, bytes)
            }
            Source::Drawn(seed) => {
                let inputs = shape.get(1).copied().unwrap_or(1);
                Content::Drawn(synthetic::draw(self.config, seed, &name, inputs))
            }
        };
        self.slabs[slab].filled += layout.rows * layout.cols;
        self.tensors.push(PlacedTensor { name, content, slab, layout });
        Ok(())
    }
}

/// A model on its way.
struct Loader<'a> {
    device: &'a Device,
    plan: &'a LoadPlan,
    slabs: Vec<Buffer<u16>>,
    /// Pieces that the `pad_convert` kernel moves on, one at a time: the stream runs copy and kernel in turn.
    staged: Buffer<u8>,
    /// Per tensor.
    changed: Buffer<Changed>,
    progress: &'a mut dyn FnMut(u64),
    done: u64,
}

/// Some bytes of a tensor.
struct TensorBytes<'a> {
    tensor: usize,
    start: usize,
    bytes: &'a [u8],
}

impl AsRef<[u8]> for TensorBytes<'_> {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

impl Loader<'_> {
    /// Brings some of the plan's tensors to their places.
    fn bring(&mut self, range: Range<usize>) -> Result<()> {
        let (device, plan) = (self.device, self.plan);
        let mut pieces = Vec::new();
        for tensor in range {
            if let Content::Drawn(from) = plan.tensors[tensor].content {
                self.draw(tensor, from)?;
            }
            // A slot holds whole elements.
            for (index, bytes) in plan.tensors[tensor].content.bytes().chunks(staging::SLOT).enumerate() {
                pieces.push(TensorBytes { tensor, start: index * staging::SLOT, bytes });
            }
        }
        staging::stream(device, &pieces, |index, filled| {
            let piece = &pieces[index];
            let tensor = &plan.tensors[piece.tensor];
            let Some(dtype) = tensor.content.dtype() else { return Ok(()) };
            let size = dtype.size();
            let (first, count) = (piece.start / size, piece.bytes.len() / size);
            let slab = &mut self.slabs[tensor.slab];
            match tensor.direct(plan.storage) {
                Some(place) => {
                    let start = place.start + first;
                    filled.copy_to(&mut slab.view_mut().slice(start..start + count).into_bytes())?;
                }
                None => {
                    filled.copy_to(&mut self.staged.view_mut().slice(0..filled.len()))?;
                    let bytes = self.staged.view().slice(0..filled.len());
                    let stored = Stored { bytes, dtype, first };
                    let changed = &mut self.changed.view_mut().slice_owned(piece.tensor..piece.tensor + 1);
                    pad_convert(device, plan.storage, &mut slab.view_mut(), stored, &tensor.layout, changed)?;
                }
            }
            self.done += filled.len() as u64;
            (self.progress)(self.done);
            Ok(())
        })
    }

    /// Makes a tensor's numbers in their places.
    fn draw(&mut self, index: usize, from: RandomFill) -> Result<()> {
        let (device, storage) = (self.device, self.plan.storage);
        let tensor = &self.plan.tensors[index];
        let slab = &mut self.slabs[tensor.slab];
        if let Some(place) = tensor.layout.contiguous() {
            return random_fill(device, storage, &mut slab.view_mut().slice(place), 0, from);
        }
        let dtype = match storage {
            HalfType::Bf16 => DType::Bf16,
            HalfType::F16 => DType::F16,
        };
        let most = self.staged.len() / dtype.size();
        for first in (0..tensor.elements()).step_by(most.max(1)) {
            let count = most.min(tensor.elements() - first);
            random_fill(device, storage, &mut self.staged.first_mut(2 * count).cast(), first, from)?;
            let stored = Stored { bytes: self.staged.first(2 * count), dtype, first };
            let changed = &mut self.changed.view_mut().slice_owned(index..index + 1);
            pad_convert(device, storage, &mut slab.view_mut(), stored, &tensor.layout, changed)?;
        }
        Ok(())
    }

    /// What became of the numbers so far.
    fn check(&self) -> Result<LoadReport> {
        let plan = self.plan;
        let mut report = LoadReport { bytes: self.done, ..LoadReport::default() };
        for (tensor, changed) in plan.tensors.iter().zip(self.changed.download(self.device)?) {
            let stored = tensor.content.dtype().map_or("drawn", DType::name);
            let (name, storage) = (&tensor.name, plan.storage.name());
            let some = |count: u64| format!("tensor `{name}`: {count} of {} elements ({stored})", tensor.elements());
            if changed.infinite > 0 {
                let message = format!("{} are beyond the range of {storage}", some(changed.infinite));
                return Err(Error::file(&plan.path, message));
            }
            if changed.rounded > 0 && !plan.asked {
                let (path, some) = (plan.path.display(), some(changed.rounded));
                let message = format!(
                    "{path}: {some} are not numbers of {storage}; ask for a storage type, bf16 or f16, to round them"
                );
                return Err(Error::Unsupported { message, remedies: vec![Remedy::StorageType] });
            }
            if tensor.converts(plan.storage) {
                report.converted += tensor.elements() as u64;
            }
            if changed.rounded > 0 {
                report.inexact += changed.rounded;
                report.first_inexact.get_or_insert_with(|| name.clone());
            }
        }
        Ok(report)
    }
}
