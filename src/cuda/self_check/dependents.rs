//! Chains of kernels that may each begin before the one before it has ended. Their results are not known beforehand: the same kernels,
//! one after the other, give them.
//!
//! A chain is a small layer with what comes behind it, forward and backward, and then again: most of its kernels read what the one
//! before has just written, and all of them write where kernels before them read. Products share one workspace and one set of tickets.

use super::case::CheckRun;
use super::numbers::{halves, singles, stored, unwritten};
use crate::Result;
use crate::cuda::buffer::{Buffer, Element, View};
use crate::cuda::device::Device;
use crate::cuda::ops::attention::{self, Query, Sequence, attention};
use crate::cuda::ops::attention_backward::{self as back, attention_backward};
use crate::cuda::ops::candidate_scores::{self as scores, ScoreQuery, candidate_scores};
use crate::cuda::ops::copy_rows::copy_rows;
use crate::cuda::ops::gemm::{self, Operands, Output, Room, Shape, gemm};
use crate::cuda::ops::gemm_backward::{self as gradient, gemm_backward};
use crate::cuda::ops::kv::{KvLayout, KvRows};
use crate::cuda::ops::kv_copy::kv_copy;
use crate::cuda::ops::logits::{chosen_logits, log_probabilities};
use crate::cuda::ops::rmsnorm::{Delta, Norm, Upstream, rmsnorm, rmsnorm_backward};
use crate::cuda::ops::rope::{self, HeadNorms, Heads, rope, rope_backward};
use crate::cuda::ops::softmax_entropy::{
    self as softmax, RowStatsOut, TopKOut, TopKQuery, When, softmax_entropy, top_k,
};
use crate::cuda::ops::swiglu::{Gates, swiglu, swiglu_backward};
use crate::cuda::ops::weight_layout::WeightLayout;
use crate::dtype::HalfType;
use crate::kv::{BLOCK, BlockId};

/// Numbers of tokens: few and many.
const TOKENS: [usize; 2] = [5, 67];
/// How often a chain is queued, or its graph replayed. What one leaves, the next one takes.
const REPEATS: usize = 2;

/// Columns of the residual stream.
const WIDTH: usize = 64;
/// Units of the MLP: terms enough for two chunks.
const UNITS: usize = 1024;
/// Rows that have logits, and how many.
const ASKED: usize = 2;
const LOGITS: usize = 104;
/// How many of the largest of them.
const LARGEST: usize = 3;
const EPS: f32 = 1e-5;
const HEADS: Heads = Heads { heads: 2, kv_heads: 1, head: 64, padded: 64 };
const ATTENTION: attention::Shape =
    attention::Shape { heads: HEADS.heads, kv_heads: HEADS.kv_heads, head: HEADS.padded, scale: 0.125, window: None };
/// Positions of the one sequence, whose last ones are the tokens: two parts of attention.
const LEN: usize = 300;
/// Parts of one token.
const PARTS: usize = 2;
/// Its blocks, and one into which another is copied.
const BLOCKS: [BlockId; 5] = [BlockId(3), BlockId(0), BlockId(4), BlockId(1), BlockId(2)];
const COPY: u32 = 5;
const LAYOUT: KvLayout = KvLayout { layers: 1, kv_heads: HEADS.kv_heads, head: HEADS.padded };

/// One chain.
pub(super) struct ChainCase {
    storage: HalfType,
    tokens: usize,
}

pub(super) fn cases() -> Vec<ChainCase> {
    HalfType::ALL.into_iter().flat_map(|storage| TOKENS.map(|tokens| ChainCase { storage, tokens })).collect()
}

impl ChainCase {
    pub fn name(&self) -> String {
        format!("chain ({} {} tokens)", self.storage.name(), self.tokens)
    }

    /// The first number that differs where kernels may begin early.
    pub fn check(&self, run: &CheckRun<'_>) -> Result<Option<String>> {
        let [ordered, early] = [false, true].map(|on| run.device.clone().with_dependent_launches(on));
        let given = ChainInputs::new(&ordered, self)?;
        let queued = |device: &Device| {
            let mut chain = Chain::new(device, self, &given)?;
            (0..REPEATS).try_for_each(|_| chain.queue(device))?;
            chain.numbers(run)
        };
        let expected = queued(&ordered)?;
        // Differences would not show in what is no number.
        if !expected
            .iter()
            .all(|(_, bits, is_f32)| !is_f32 || bits.iter().all(|&bits| f32::from_bits(bits).is_finite()))
        {
            return Ok(Some("one after the other, kernels give what is no number".to_string()));
        }
        if let Some(what) = difference(&queued(&early)?, &expected) {
            return Ok(Some(what));
        }
        let mut chain = Chain::new(&early, self, &given)?;
        let mut graph = early.capture(|| chain.queue(&early))?;
        early.upload(&graph)?;
        for _ in 0..REPEATS {
            // SAFETY: the chain owns all memory that was lent while the graph was recorded, and lends none of it before the last replay
            // is queued.
            unsafe { early.replay(&mut graph)? };
        }
        let found = chain.numbers(run);
        if early.alive().is_err() {
            // The driver might wait for what never ends.
            std::mem::forget(graph);
        }
        Ok(difference(&found?, &expected).map(|what| format!("as a graph: {what}")))
    }
}

/// Outputs of a chain: their names, their bits, and whether those are of f32.
type ChainOutputs = Vec<(&'static str, Vec<u32>, bool)>;

fn difference(found: &ChainOutputs, expected: &ChainOutputs) -> Option<String> {
    found.iter().zip(expected).find_map(|((name, found, _), (_, expected, _))| {
        let at = found.iter().zip(expected).position(|(found, expected)| found != expected)?;
        let [found, expected] = [found, expected].map(|bits| bits[at]);
        Some(format!(
            "{name}, element {at}, is {found:#x} where kernels begin early, and {expected:#x} one after the other"
        ))
    })
}

/// Weights, as the device's products read them or in rows.
struct ChainWeights {
    elements: Buffer<u16>,
    layout: WeightLayout,
    n: usize,
    k: usize,
}

impl ChainWeights {
    fn new(device: &Device, storage: HalfType, layout: WeightLayout, name: &str, [n, k]: [usize; 2]) -> Result<Self> {
        let numbers = halves(name, n * k, 1.0 / (k as f32).sqrt());
        let bits: Vec<u16> = numbers.into_iter().map(|x| storage.round(x)).collect();
        Ok(ChainWeights { elements: Buffer::from_slice(device, &layout.arranged(&bits, n, k))?, layout, n, k })
    }

    fn room(&self) -> Room {
        Room::of(self.layout, &[(self.n, self.k), (self.k, self.n)])
    }
}

/// Products, which all have one scratch.
struct ChainProducts {
    storage: HalfType,
    scratch: gemm::Scratch,
}

impl ChainProducts {
    fn forward(&mut self, device: &Device, mut y: Output<'_>, x: View<'_, u16>, w: &ChainWeights) -> Result<()> {
        let &ChainWeights { ref elements, layout, n, k } = w;
        let operands = Operands { storage: self.storage, x, w: elements.view(), layout, bias: None };
        gemm(device, &mut y, operands, Shape { tokens: x.len() / k, n, k }, &mut self.scratch)
    }

    fn backward(&mut self, device: &Device, mut dx: Output<'_>, dy: View<'_, u16>, w: &ChainWeights) -> Result<()> {
        let &ChainWeights { ref elements, layout, n, k } = w;
        let gradients = gradient::Gradients { storage: self.storage, dy, w: elements.view(), layout };
        gemm_backward(device, &mut dx, gradients, Shape { tokens: dy.len() / n, n, k }, &mut self.scratch)
    }
}

/// All that the host copies to the device before the first kernel: behind a copy, a kernel would wait.
struct ChainInputs {
    norms: [Buffer<u16>; 3],
    head_norms: [Buffer<u16>; 2],
    /// Of the reward's one output.
    head: Buffer<u16>,
    qkv: ChainWeights,
    o: ChainWeights,
    gate_up: ChainWeights,
    down: ChainWeights,
    logits: ChainWeights,
    /// In rows in either family, as a reward model's head is.
    reward: ChainWeights,
    embeddings: Buffer<u16>,
    table: Buffer<[f32; 2]>,
    positions: Buffer<u32>,
    slots: Buffer<u32>,
    copies: Buffer<[u32; 3]>,
    floors: Buffer<f64>,
    asked: Buffer<TopKQuery>,
    pairs: Buffer<[u32; 2]>,
    picked: Buffer<[u32; 2]>,
    again: Buffer<[u32; 2]>,
    ids: Buffer<u32>,
    queries: Buffer<ScoreQuery>,
    plan: attention::Plan,
    words: Buffer<u32>,
    keys: back::Plan,
    key_words: Buffer<u32>,
    /// For the products.
    room: Room,
}

/// A chain and everything that it touches.
struct Chain<'a> {
    given: &'a ChainInputs,
    products: ChainProducts,
    parts: attention::Scratch,
    deltas: back::Scratch,
    softmax: softmax::Scratch,
    /// Whether the activation is the end of the product before it, where that can be.
    gated: bool,
    residual: Buffer<f32>,
    grad: Buffer<f32>,
    dx: Buffer<f32>,
    normed: Buffer<u16>,
    rounded: Buffer<u16>,
    delta: Buffer<u16>,
    picked: Buffer<u16>,
    qkv: Buffer<u16>,
    q: Buffer<u16>,
    pool: Buffer<u16>,
    out: Buffer<u16>,
    lse: Buffer<f32>,
    d_out: Buffer<u16>,
    dq: Buffer<f32>,
    dk: Buffer<f32>,
    dv: Buffer<f32>,
    d_qkv: Buffer<u16>,
    gate_up: Buffer<u16>,
    act: Buffer<u16>,
    d_act: Buffer<f32>,
    d_gate_up: Buffer<u16>,
    logits: Buffer<f32>,
    stats: Buffer<RowStatsOut>,
    log_probabilities: Buffer<f32>,
    chosen: Buffer<f32>,
    largest: Buffer<u32>,
    largest_logits: Buffer<f32>,
    found: Buffer<u32>,
    rewards: Buffer<f32>,
    norms: Buffer<f32>,
    scores: Buffer<f32>,
}

impl ChainInputs {
    fn new(device: &Device, case: &ChainCase) -> Result<Self> {
        let &ChainCase { storage, tokens } = case;
        let layout = device.weight_layout();
        let matrix = |name: &str, sizes| ChainWeights::new(device, storage, layout, &format!("chain {name}"), sizes);
        let vector = |name: &str, len: usize| -> Result<_> {
            let around_one: Vec<f32> = halves(&format!("chain {name}"), len, 0.25).iter().map(|x| 1.0 + x).collect();
            stored(device, storage, &around_one)
        };
        let (qkv, o) = (matrix("qkv", [HEADS.qkv(), WIDTH])?, matrix("o", [WIDTH, ATTENTION.width()])?);
        let (gate_up, down) = (matrix("gate_up", [2 * UNITS, WIDTH])?, matrix("down", [WIDTH, UNITS])?);
        let logits = matrix("logits", [LOGITS, WIDTH])?;
        let reward = ChainWeights::new(device, storage, WeightLayout::Rows, "chain reward", [1, WIDTH])?;
        let room = [&qkv, &o, &gate_up, &down, &logits].iter().fold(Room::default(), |room, w| room.and(w.room()));
        // Nothing multiplies with it backward.
        let room = room.and(Room::of(WeightLayout::Rows, &[(reward.n, reward.k)]));

        let start = LEN - tokens;
        let asked: Vec<Query> =
            (0..tokens as u32).map(|row| Query { row, out: row, position: start as u32 + row }).collect();
        let sequence = Sequence { blocks: &BLOCKS, queries: &asked };
        let limits = attention::Scratch::new(device, &[ATTENTION], PARTS * tokens)?.limits(device, &ATTENTION);
        let plan = attention::Plan::new(&ATTENTION, &[sequence], limits)?;
        let segment =
            back::KeySegment { blocks: &BLOCKS, start: start as u32, len: tokens as u32, row: 0, queries: &asked };
        let keys = back::Plan::new(&ATTENTION, &[segment])?;
        let slot = |position: usize| BLOCKS[position / BLOCK].0 * BLOCK as u32 + (position % BLOCK) as u32;
        let angle = |position: usize, pair: usize| position as f32 / 10_000f32.powf(pair as f32 / 32.0);
        let table: Vec<[f32; 2]> = (0..LEN)
            .flat_map(|position| (0..HEADS.head / 2).map(move |pair| angle(position, pair)))
            .map(|angle| [angle.cos(), angle.sin()])
            .collect();
        let last = tokens as u32 - 1;
        Ok(ChainInputs {
            norms: [vector("norm 1", WIDTH)?, vector("norm 2", WIDTH)?, vector("norm 3", WIDTH)?],
            head_norms: [vector("q norm", HEADS.padded)?, vector("k norm", HEADS.padded)?],
            head: vector("head", WIDTH)?,
            qkv,
            o,
            gate_up,
            down,
            logits,
            reward,
            embeddings: stored(device, storage, &halves("chain embeddings", LOGITS * WIDTH, 1.0))?,
            table: Buffer::from_slice(device, &table)?,
            positions: Buffer::from_slice(device, &(start as u32..LEN as u32).collect::<Vec<_>>())?,
            slots: Buffer::from_slice(device, &(start..LEN).map(slot).collect::<Vec<_>>())?,
            // The block of the last positions.
            copies: Buffer::from_slice(device, &[[BLOCKS[(LEN - 1) / BLOCK].0, COPY, (LEN % BLOCK) as u32]])?,
            floors: Buffer::from_slice(device, &[1e-9; ASKED])?,
            asked: Buffer::from_slice(device, &[TopKQuery::new(LARGEST, When::Always, 0.0); ASKED])?,
            pairs: Buffer::from_slice(device, &[[0, 7], [1, 100]])?,
            picked: Buffer::from_slice(device, &[[1, 0], [last, 1]])?,
            again: Buffer::from_slice(device, &[[0, last]])?,
            ids: Buffer::from_slice(device, &[3, 99, 41])?,
            queries: Buffer::from_slice(
                device,
                &[ScoreQuery { row: 1, first: 0, count: 2 }, ScoreQuery { row: last, first: 2, count: 1 }],
            )?,
            words: Buffer::from_slice(device, plan.words())?,
            plan,
            key_words: Buffer::from_slice(device, keys.words())?,
            keys,
            room,
        })
    }
}

impl<'a> Chain<'a> {
    fn new(device: &Device, case: &ChainCase, given: &'a ChainInputs) -> Result<Self> {
        let (&ChainCase { storage, tokens }, width) = (case, HEADS.heads * HEADS.padded);
        let (all, kv) = (tokens * WIDTH, tokens * HEADS.kv_heads * HEADS.padded);
        Ok(Chain {
            given,
            products: ChainProducts { storage, scratch: gemm::Scratch::new(device, given.room)? },
            parts: attention::Scratch::new(device, &[ATTENTION], PARTS * tokens)?,
            deltas: back::Scratch::new(device, HEADS.heads, tokens)?,
            softmax: softmax::Scratch::new(device, ASKED, LOGITS)?,
            gated: given.gate_up.layout == WeightLayout::Tiles && tokens == TOKENS[0],
            residual: Buffer::from_slice(device, &singles("chain residual", all, 1.0))?,
            grad: unwritten(device, all)?,
            dx: unwritten(device, all)?,
            normed: unwritten(device, all)?,
            rounded: unwritten(device, all)?,
            delta: unwritten(device, all)?,
            picked: unwritten(device, ASKED * WIDTH)?,
            qkv: unwritten(device, tokens * HEADS.qkv())?,
            q: unwritten(device, tokens * width)?,
            pool: stored(device, storage, &halves("chain pool", (COPY as usize + 1) * LAYOUT.block(), 1.0))?,
            out: unwritten(device, tokens * ATTENTION.width())?,
            lse: unwritten(device, tokens * HEADS.heads)?,
            d_out: unwritten(device, tokens * ATTENTION.width())?,
            dq: unwritten(device, tokens * width)?,
            dk: unwritten(device, kv)?,
            dv: unwritten(device, kv)?,
            d_qkv: unwritten(device, tokens * HEADS.qkv())?,
            gate_up: unwritten(device, tokens * 2 * UNITS)?,
            act: unwritten(device, tokens * UNITS)?,
            d_act: unwritten(device, tokens * UNITS)?,
            d_gate_up: unwritten(device, tokens * 2 * UNITS)?,
            logits: unwritten(device, ASKED * LOGITS)?,
            stats: unwritten(device, ASKED)?,
            log_probabilities: unwritten(device, ASKED * LOGITS)?,
            chosen: unwritten(device, 2)?,
            largest: unwritten(device, ASKED * LARGEST)?,
            largest_logits: unwritten(device, ASKED * LARGEST)?,
            found: unwritten(device, ASKED)?,
            rewards: unwritten(device, ASKED)?,
            norms: unwritten(device, 2)?,
            scores: unwritten(device, 3)?,
        })
    }

    /// Queues the kernels, some dozens.
    fn queue(&mut self, device: &Device) -> Result<()> {
        self.forward(device)?;
        self.ask(device)?;
        self.backward(device)
    }

    fn norm(weight: &Buffer<u16>) -> Norm<'_> {
        Norm { weight: weight.view(), columns: WIDTH, eps: EPS }
    }

    /// A layer and the final norm.
    fn forward(&mut self, device: &Device) -> Result<()> {
        let Chain { given, products, residual, normed, .. } = self;
        let st = products.storage;
        let [attention_norm, mlp_norm, final_norm] = given.norms.each_ref().map(Self::norm);
        rmsnorm(device, st, &mut normed.view_mut(), &mut residual.view_mut(), Delta::None, attention_norm)?;
        products.forward(device, Output::Half(self.qkv.view_mut()), normed.view(), &given.qkv)?;
        let mut kv = KvRows { pool: self.pool.view_mut(), layout: LAYOUT, layer: 0, slots: given.slots.view() };
        rope(device, st, &mut self.q.view_mut(), &mut kv, &turned(given, &self.qkv), HEADS)?;
        let (q, pool) = (self.q.view(), self.pool.view());
        let inputs = attention::Inputs { storage: st, q, pool, layout: LAYOUT, layer: 0 };
        let mut output = attention::Output { out: self.out.view_mut(), lse: Some(self.lse.view_mut()) };
        attention(device, &mut output, inputs, given.words.view(), &given.plan, &mut self.parts)?;
        products.forward(device, Output::Add(residual.view_mut()), self.out.view(), &given.o)?;
        rmsnorm(device, st, &mut normed.view_mut(), &mut residual.view_mut(), Delta::None, mlp_norm)?;
        let (gate_up, act) = (&mut self.gate_up, &mut self.act);
        if self.gated {
            let gated = Output::Gated { act: act.view_mut(), gate_up: Some(gate_up.view_mut()) };
            products.forward(device, gated, normed.view(), &given.gate_up)?;
        } else {
            products.forward(device, Output::Half(gate_up.view_mut()), normed.view(), &given.gate_up)?;
            let gates = if given.gate_up.layout == WeightLayout::Tiles { Gates::Grouped } else { Gates::Apart };
            swiglu(device, st, &mut act.view_mut(), gate_up.view(), UNITS, gates)?;
        }
        products.forward(device, Output::Half(self.delta.view_mut()), act.view(), &given.down)?;
        let delta = Delta::Half(self.delta.view());
        rmsnorm(device, st, &mut normed.view_mut(), &mut residual.view_mut(), delta, final_norm)
    }

    /// Logits of some rows with what is asked of them, and rewards.
    fn ask(&mut self, device: &Device) -> Result<()> {
        let Chain { given, products, picked, logits, stats, softmax, .. } = self;
        copy_rows(device, &mut picked.view_mut(), self.normed.view(), given.picked.view(), WIDTH)?;
        products.forward(device, Output::F32(logits.view_mut()), picked.view(), &given.logits)?;
        softmax_entropy(device, &mut stats.view_mut(), logits.view(), given.floors.view(), softmax)?;
        let mut out = TopKOut {
            ids: self.largest.view_mut(),
            logits: self.largest_logits.view_mut(),
            found: self.found.view_mut(),
            stride: LARGEST,
        };
        top_k(device, &mut out, logits.view(), stats.view(), given.asked.view(), LOGITS, softmax)?;
        log_probabilities(device, &mut self.log_probabilities.view_mut(), logits.view(), stats.view())?;
        chosen_logits(device, &mut self.chosen.view_mut(), logits.view(), given.pairs.view(), LOGITS)?;
        kv_copy(device, &mut self.pool.view_mut(), given.copies.view(), LAYOUT)?;
        products.forward(device, Output::F32(self.rewards.view_mut()), picked.view(), &given.reward)
    }

    /// The layer's gradient, a row of which goes where the next repeat begins.
    fn backward(&mut self, device: &Device) -> Result<()> {
        let Chain { given, products, residual, grad, rounded, dx, .. } = self;
        let st = products.storage;
        let [attention_norm, mlp_norm, final_norm] = given.norms.each_ref().map(Self::norm);
        let upstream = Upstream::Head(given.head.view(), 0.5);
        let copy = &mut rounded.view_mut();
        rmsnorm_backward(device, st, &mut grad.view_mut(), Some(copy), upstream, residual.view(), final_norm)?;
        let (gate_up, d_gate_up) = (self.gate_up.view(), &mut self.d_gate_up);
        if self.gated {
            let gated = Output::GatedGradients { d_gate_up: d_gate_up.view_mut(), gate_up };
            products.backward(device, gated, rounded.view(), &given.down)?;
        } else {
            products.backward(device, Output::F32(self.d_act.view_mut()), rounded.view(), &given.down)?;
            swiglu_backward(device, st, &mut d_gate_up.view_mut(), self.d_act.view(), gate_up, UNITS)?;
        }
        products.backward(device, Output::F32(dx.view_mut()), d_gate_up.view(), &given.gate_up)?;
        let (upstream, copy) = (Upstream::Rows(dx.view()), &mut rounded.view_mut());
        rmsnorm_backward(device, st, &mut grad.view_mut(), Some(copy), upstream, residual.view(), mlp_norm)?;
        products.backward(device, Output::Half(self.d_out.view_mut()), rounded.view(), &given.o)?;
        let inputs = back::Inputs {
            storage: st,
            q: self.q.view(),
            pool: self.pool.view(),
            layout: LAYOUT,
            layer: 0,
            out: self.out.view(),
            lse: self.lse.view(),
            d_out: self.d_out.view(),
        };
        let work = back::BackwardLists {
            queries: (&given.plan, given.words.view()),
            keys: (&given.keys, given.key_words.view()),
        };
        let mut output = back::Output { q: self.dq.view_mut(), k: self.dk.view_mut(), v: self.dv.view_mut() };
        attention_backward(device, &mut output, inputs, work, &mut self.parts, &mut self.deltas)?;
        let gradients = rope::Gradients { q: self.dq.view(), k: self.dk.view(), v: self.dv.view() };
        rope_backward(device, st, &mut self.d_qkv.view_mut(), &gradients, &turned(given, &self.qkv), HEADS)?;
        products.backward(device, Output::F32(dx.view_mut()), self.d_qkv.view(), &given.qkv)?;
        let upstream = Upstream::Rows(dx.view());
        rmsnorm_backward(device, st, &mut grad.view_mut(), None, upstream, residual.view(), attention_norm)?;
        let inputs = scores::Inputs {
            grads: grad.view(),
            table: given.embeddings.view(),
            ids: given.ids.view(),
            queries: given.queries.view(),
            d: WIDTH,
            scale: 1.0,
        };
        candidate_scores(device, st, &mut self.norms.view_mut(), &mut self.scores.view_mut(), &inputs)?;
        copy_rows(device, &mut residual.view_mut(), grad.view(), given.again.view(), WIDTH)
    }

    /// What was written, after everything that was queued.
    fn numbers(&self, run: &CheckRun<'_>) -> Result<ChainOutputs> {
        fn words<T: Element>(run: &CheckRun<'_>, buffer: &Buffer<T>) -> Result<Vec<u32>> {
            let elements = run.finished(buffer)?;
            // Elements of 16 bits one by one, larger ones word by word.
            Ok(bytemuck::cast_slice::<T, u8>(&elements).chunks(size_of::<T>().clamp(1, 4)).map(word).collect())
        }
        let f32s = [
            ("residual", &self.residual),
            ("grad", &self.grad),
            ("lse", &self.lse),
            ("dq", &self.dq),
            ("dk", &self.dk),
            ("dv", &self.dv),
            ("log_probabilities", &self.log_probabilities),
            ("chosen", &self.chosen),
            ("largest_logits", &self.largest_logits),
            ("rewards", &self.rewards),
            ("norms", &self.norms),
            ("scores", &self.scores),
        ];
        let halves = [
            ("normed", &self.normed),
            ("out", &self.out),
            ("pool", &self.pool),
            ("act", &self.act),
            ("d_gate_up", &self.d_gate_up),
            ("d_qkv", &self.d_qkv),
        ];
        let mut all = ChainOutputs::new();
        for (name, buffer) in f32s {
            all.push((name, words(run, buffer)?, true));
        }
        for (name, buffer) in halves {
            all.push((name, words(run, buffer)?, false));
        }
        all.push(("stats", words(run, &self.stats)?, false));
        all.push(("largest", words(run, &self.largest)?, false));
        Ok(all)
    }
}

/// Up to four bytes as a number.
fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// What the rotation reads.
fn turned<'a>(given: &'a ChainInputs, qkv: &'a Buffer<u16>) -> rope::Inputs<'a> {
    let [q, k] = given.head_norms.each_ref().map(Buffer::view);
    rope::Inputs {
        qkv: qkv.view(),
        turns: rope::Turns { positions: given.positions.view(), table: given.table.view() },
        norms: Some(HeadNorms { q, k, eps: EPS }),
        order: rope::HeadOrder::Halves,
    }
}
