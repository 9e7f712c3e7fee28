//! What a pass of a model takes: its launches, in the order of `model::cuda::decoder` and `model::cuda::backward`.

use super::card::{
    ATTENTION, ATTENTION_OPERATIONS, ATTENTION_STREAM, ATTENTION_STREAM_WHOLE, BACKWARD_PAGE, CLOCK, Card, FACTORS,
    GATED, GATED_GRADIENTS, HEADS, HOST, LAUNCH, MULTIPROCESSORS, NEXT_NORM, NORM, OPERATIONS, OVERLAP, ROPE,
    SHARED_OVERHEAD, SMALL, START, SWIGLU, WGMMA_PAGE,
};
use super::products::{Product, ProductKernels, Products, products};
use crate::files::config::ModelConfig;
use crate::lab::bench::cost::{self, Cost};
use crate::model::cuda::{GATED_ROWS, NORMED_ROWS, TURNED_ROWS};

/// What a pass takes, by what takes it, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Time {
    /// Products with weights.
    pub products: f64,
    /// Attention.
    pub attention: f64,
    /// Small kernels and the host.
    pub rest: f64,
}

impl Time {
    fn products(time: f64) -> Self {
        Time { products: time, ..Time::default() }
    }

    fn attention(time: f64) -> Self {
        Time { attention: time, ..Time::default() }
    }

    fn rest(time: f64) -> Self {
        Time { rest: time, ..Time::default() }
    }

    fn times(self, count: usize) -> Self {
        let count = count as f64;
        Time { products: count * self.products, attention: count * self.attention, rest: count * self.rest }
    }

    /// Microseconds.
    pub fn sum(&self) -> f64 {
        self.products + self.attention + self.rest
    }
}

impl std::ops::Add for Time {
    type Output = Time;

    fn add(self, other: Time) -> Time {
        Time {
            products: self.products + other.products,
            attention: self.attention + other.attention,
            rest: self.rest + other.rest,
        }
    }
}

/// A pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassPhase {
    /// A token of each of `rows` sequences that share nothing.
    Decode {
        /// Sequences.
        rows: usize,
        /// Positions of each.
        context: usize,
    },
    /// A prompt of so many tokens.
    Prefill(usize),
    /// Segments behind a prefix that they share, scored and differentiated.
    Gradient {
        /// Segments.
        segments: usize,
        /// Tokens of each.
        tokens: usize,
        /// Positions before them.
        prefix: usize,
    },
}

impl std::fmt::Display for PassPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PassPhase::Decode { rows: 1, context } => write!(f, "decode, 1 row, {context} before it"),
            PassPhase::Decode { rows, context } => write!(f, "decode, {rows} rows, {context} before each"),
            PassPhase::Prefill(tokens) => write!(f, "prefill {tokens}"),
            PassPhase::Gradient { segments, tokens, prefix } => {
                write!(f, "reward with gradient, {segments} x {tokens} behind {prefix}")
            }
        }
    }
}

impl PassPhase {
    /// What it moves and computes at least.
    pub fn cost(&self, pair: &[ModelConfig; 2]) -> Cost {
        match *self {
            PassPhase::Decode { rows, context } => cost::decode(&pair[0], rows, context, 0),
            PassPhase::Prefill(tokens) => cost::prefill(&pair[0], tokens),
            PassPhase::Gradient { segments, tokens, prefix } => cost::gradient(&pair[1], segments, tokens, prefix),
        }
    }

    /// The least that it takes on a card, in microseconds.
    pub fn limit(&self, card: Card, pair: &[ModelConfig; 2]) -> f64 {
        card.limits().seconds(self.cost(pair)) * 1e6
    }

    /// What it takes with one family of products.
    pub fn time(&self, family: ProductKernels, card: Card, pair: &[ModelConfig; 2]) -> Time {
        match *self {
            PassPhase::Decode { rows, context } => Pass::new(family, card, &pair[0], true).decode(rows, context),
            PassPhase::Prefill(tokens) => Pass::new(family, card, &pair[0], false).prefill(tokens),
            PassPhase::Gradient { segments, tokens, prefix } => {
                // A graph, too, where its shape was there before. The kernels of the study were launched one by one.
                let pass = Pass::new(family, card, &pair[1], family != ProductKernels::OfReference);
                pass.gradient(Texts { requests: 1, texts: segments, tokens: segments * tokens, before: prefix })
            }
        }
    }
}

/// Texts of several requests in a batch. Those of a request share the positions before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Texts {
    /// Requests.
    pub requests: usize,
    /// Texts of all requests.
    pub texts: usize,
    /// Tokens of all texts.
    pub tokens: usize,
    /// Positions before each text.
    pub before: usize,
}

impl Texts {
    /// A step of the policy, with statistics of every token's logits.
    pub fn step(&self, family: ProductKernels, card: Card, config: &ModelConfig) -> Time {
        let pass = Pass::new(family, card, config, true);
        let Texts { requests, tokens: rows, before, .. } = *self;
        let (positions, pairs) = ((requests * before + rows) as f64, (rows * before) as f64);
        Time::rest(HOST) + pass.layers(rows, rows, Attention { positions, pairs, alone: rows }, false) + pass.head(rows)
    }

    /// Rewards at the ends of the texts.
    pub fn score(&self, family: ProductKernels, card: Card, config: &ModelConfig) -> Time {
        let pass = Pass::new(family, card, config, false);
        Time::rest(HOST)
            + pass.layers(self.tokens, self.texts, self.attention(), false)
            + pass.small(NORM, self.texts, 18 * config.hidden_size)
            + pass.product(&pass.scoring(), self.texts)
    }

    /// Rewards and gradients of the texts.
    pub fn gradient(&self, family: ProductKernels, card: Card, config: &ModelConfig) -> Time {
        Pass::new(family, card, config, family != ProductKernels::OfReference).gradient(*self)
    }

    /// Pairs of a query and a key before the texts, and in them.
    fn pairs(&self) -> (f64, f64) {
        let (rows, tokens) = (self.tokens as f64, self.tokens as f64 / self.texts as f64);
        ((self.tokens * self.before) as f64, rows * (tokens + 1.0) / 2.0)
    }

    fn attention(&self) -> Attention {
        let (before, own) = self.pairs();
        let positions = (self.requests * self.before + self.tokens) as f64;
        Attention { positions, pairs: before + own, alone: 0 }
    }
}

/// A pass of a model with a family of products on a card.
struct Pass<'a> {
    family: ProductKernels,
    card: Card,
    config: &'a ModelConfig,
    products: Products,
    /// What every launch costs beyond what the constants of its kernel have.
    launch: f64,
}

/// Bytes and operations of a launch of attention.
#[derive(Clone, Copy)]
struct Attention {
    /// Positions whose keys and values come from memory.
    positions: f64,
    /// Pairs of a query and a key.
    pairs: f64,
    /// Queries, of as many sequences.
    alone: usize,
}

/// Operations a microsecond of attention by wgmma where items have two tiles of 64 rows, of heads with so many elements.
fn wgmma_operations(head: usize) -> f64 {
    const TILES: f64 = 2.0;
    let (rows, keys, warps) = (64.0, 64.0, 4.0);
    let page = TILES * 4.0 * rows * keys * head as f64;
    let tensor = page * f64::from(MULTIPROCESSORS) / OPERATIONS;
    // Four schedulers issue an instruction in a cycle each.
    let issue = TILES * warps * WGMMA_PAGE / 4.0 / CLOCK;
    // Keys and values are copied once and read by each tile; a chunk of four pages reads and writes the sums, in f32.
    let plane = 2.0 * keys * head as f64;
    let bytes = 2.0 * plane + TILES * (2.0 * plane + 2.0 * 4.0 * rows * head as f64 / 4.0);
    let shared = bytes / 128.0 * SHARED_OVERHEAD / CLOCK;
    let time = tensor.max(issue).max(shared) / OVERLAP;
    page * f64::from(MULTIPROCESSORS) / time
}

/// Operations a microsecond of attention's backward pass over queries: three products of a page where the forward pass has two.
fn backward_operations(head: usize) -> f64 {
    let page = 6.0 * 64.0 * 64.0 * head as f64;
    let time = BACKWARD_PAGE * head as f64 / 128.0 * SHARED_OVERHEAD / CLOCK / OVERLAP;
    page * f64::from(MULTIPROCESSORS) / time
}

impl<'a> Pass<'a> {
    fn new(family: ProductKernels, card: Card, config: &'a ModelConfig, graph: bool) -> Self {
        // Kernels that begin early begin at their turn.
        let start = if family == ProductKernels::OfReference { 0.0 } else { START };
        let launch = if graph { -start } else { LAUNCH - start };
        Pass { family, card, config, products: Products::new(family, card, config), launch }
    }

    /// A small kernel that moves so many bytes for each of so many rows.
    fn small(&self, least: f64, rows: usize, bytes: usize) -> Time {
        Time::rest(self.launch + least + (rows * bytes) as f64 / self.card.copy)
    }

    fn product(&self, product: &Product, rows: usize) -> Time {
        // Its own constants know of its start.
        let start = if self.family == ProductKernels::OfReference { 0.0 } else { START };
        Time::products(self.launch + start + self.products.time(product, rows))
    }

    /// Whether norms are at the ends of products.
    fn is_deferred(&self, rows: usize) -> bool {
        self.family == ProductKernels::Sm90 && rows <= NORMED_ROWS
    }

    /// A product that adds to the residual stream, and, where it can, makes the next norm's part.
    fn adding(&self, product: &Product, rows: usize) -> Time {
        match self.is_deferred(rows) {
            // The residual stream, and 16 bits of what the norm leaves.
            true => self.product(&Product { output: product.output + 2, finish: NEXT_NORM, ..*product }, rows),
            false => self.product(product, rows),
        }
    }

    /// A norm, and the product behind it, which asks for weights meanwhile.
    fn normed(&self, rows: usize, product: Time) -> Time {
        if self.is_deferred(rows) {
            // Warps that copy nothing find the rows' factors meanwhile, twelve at once.
            let factors = rows.div_ceil(12) as f64 * FACTORS;
            return Time { products: product.products.max(factors), ..product };
        }
        let norm = self.small(NORM, rows, 6 * self.config.hidden_size);
        let ahead = self.products.ahead(rows, norm.rest);
        norm + Time { products: product.products - ahead, ..product }
    }

    /// Bytes of the keys and values of a position in a layer.
    fn kv(&self) -> f64 {
        cost::kv_bytes(self.config) / self.config.num_layers as f64
    }

    /// Operations of a query and a key in a layer, of the two products of the forward pass.
    fn pair(&self) -> f64 {
        (4 * self.config.num_heads * self.config.head_dim) as f64
    }

    fn attention(&self, work: Attention) -> Time {
        let whole = self.family != ProductKernels::OfReference
            && work.alone * self.config.num_kv_heads >= 2 * MULTIPROCESSORS as usize;
        let stream = if whole { ATTENTION_STREAM_WHOLE } else { ATTENTION_STREAM };
        let bytes = work.positions * self.kv() / (self.card.copy * stream);
        let operations = match self.family {
            ProductKernels::Sm90 => wgmma_operations(self.config.head_dim),
            _ => ATTENTION_OPERATIONS,
        };
        Time::attention(self.launch + ATTENTION + bytes.max(work.pairs * self.pair() / operations))
    }

    /// Gates, ups and the activation; with a tape gates and ups are kept.
    fn gated(&self, gate_up: &Product, rows: usize, taped: bool) -> Time {
        let f = self.config.intermediate_size;
        if self.family == ProductKernels::Sm90 && rows <= GATED_ROWS {
            // Of two outputs one number is stored, and both if they are kept.
            return self.product(&Product { output: if taped { 3 } else { 1 }, finish: GATED, ..*gate_up }, rows);
        }
        self.product(gate_up, rows) + self.small(SWIGLU, rows, 6 * f)
    }

    /// Queries, keys and values, turned and kept.
    fn heads(&self, qkv: &Product, rows: usize) -> (Time, Time) {
        if self.family == ProductKernels::Sm90 && rows <= TURNED_ROWS {
            return (self.product(&Product { finish: HEADS, ..*qkv }, rows), Time::default());
        }
        (self.product(qkv, rows), self.small(ROPE, rows, 4 * qkv.n))
    }

    /// A layer of `rows` rows, of which `live` go on beyond keys and values.
    fn layer(&self, rows: usize, live: usize, attention: Attention, taped: bool) -> Time {
        let ([qkv, o, gate_up, down], ..) = products(self.config);
        let (heads, rope) = self.heads(&qkv, rows);
        self.normed(rows, heads)
            + rope
            + self.attention(attention)
            + self.adding(&o, live)
            + self.normed(live, self.gated(&gate_up, live, taped))
            + self.adding(&down, live)
    }

    /// All layers, from the embeddings to the final norm of the live rows.
    fn layers(&self, rows: usize, live: usize, attention: Attention, taped: bool) -> Time {
        let d = self.config.hidden_size;
        let last = Attention { pairs: attention.pairs * live as f64 / rows as f64, ..attention };
        // Before the first layer and in the last there is no product to make a norm's part.
        let norms = [rows, live].into_iter().filter(|&rows| self.is_deferred(rows));
        let norms = norms.map(|rows| self.small(NORM, rows, 6 * d)).fold(Time::default(), |sum, norm| sum + norm);
        norms
            + self.small(SMALL, rows, 6 * d)
            + self.layer(rows, rows, attention, taped).times(self.config.num_layers - 1)
            + self.layer(rows, live, last, taped)
            + self.small(SMALL, live, 8 * d)
            + self.small(NORM, live, 6 * d)
    }

    /// Logits, their statistics, and the hidden states that are kept.
    fn head(&self, rows: usize) -> Time {
        let (.., head) = products(self.config);
        self.small(SMALL, rows, 4 * self.config.hidden_size)
            + self.product(&head, rows)
            + self.small(SMALL, rows, 4 * self.config.vocab_size)
            + self.small(SMALL, rows, 0)
    }

    fn decode(&self, rows: usize, context: usize) -> Time {
        let seen = (rows * context) as f64;
        Time::rest(HOST)
            + self.layers(rows, rows, Attention { positions: seen, pairs: seen, alone: rows }, false)
            + self.head(rows)
    }

    fn prefill(&self, tokens: usize) -> Time {
        let n = tokens as f64;
        Time::rest(HOST)
            + self.layers(tokens, 1, Attention { positions: n, pairs: n * (n + 1.0) / 2.0, alone: 0 }, false)
            + self.head(1)
    }

    /// The head of a reward model.
    fn scoring(&self) -> Product {
        Product { name: "score", n: 1, k: self.config.hidden_size, output: 4, finish: 0.0 }
    }

    /// Scored is the last row of every segment, and the gradient of its first row is wanted.
    fn gradient(&self, batch: Texts) -> Time {
        let (rows, segments) = (batch.tokens, batch.texts);
        let ((before, own), tokens) = (batch.pairs(), rows as f64 / segments as f64);
        let (d, layers) = (self.config.hidden_size, self.config.num_layers);
        // The kernels of the study copied the residual stream of both norms to the tape; now products leave it there.
        let copies = if self.family == ProductKernels::OfReference { 2 * layers } else { 0 };
        let taped = self.small(SMALL, rows, 8 * d).times(copies);
        let score = self.product(&self.scoring(), segments);
        let backward = self.layer_backward([rows; 3], before, own).times(layers - 2)
            + self.layer_backward([rows, segments, rows], before / tokens, own / tokens)
            + self.layer_backward([rows, rows, segments], before, own);
        // The final norm; rows copied and set to zero at the top and at the bottom; candidates' scores.
        let ends = self.small(NORM, segments, 18 * d) + self.small(SMALL, rows, 4 * d).times(10);
        Time::rest(HOST) + self.layers(rows, segments, batch.attention(), true) + taped + score + backward + ends
    }

    /// A layer backward: rows of the batch, those that have a gradient above, and those whose gradient goes on below.
    fn layer_backward(&self, [rows, above, below]: [usize; 3], before: f64, own: f64) -> Time {
        let (d, f) = (self.config.hidden_size, self.config.intermediate_size);
        let (_, [down, gate_up, o, qkv], _) = products(self.config);
        // Scores, dp and dq against all keys; dk and dv against the segment's own.
        let rate = match self.family {
            ProductKernels::OfReference => ATTENTION_OPERATIONS,
            _ => backward_operations(self.config.head_dim),
        };
        let operations = |pairs: f64| pairs * self.pair() / rate;
        let attention = 2.0 * (self.launch + ATTENTION) + operations(1.5 * (before + own)) + operations(2.0 * own);
        // Gates and ups are read, and their gradients stored, 16 bits each.
        let down = match self.family {
            ProductKernels::Sm90 => self.product(&Product { output: 8, finish: GATED_GRADIENTS, ..down }, above),
            _ => self.product(&down, above) + self.small(SWIGLU, above, 12 * f),
        };
        down + self.product(&gate_up, above)
            + self.small(NORM, above, 18 * d)
            + self.product(&o, above)
            + Time::attention(attention)
            + self.small(ROPE, rows, 6 * qkv.k)
            + self.product(&qkv, below)
            + self.small(NORM, below, 18 * d)
    }
}
