//! Two models made of closures, which hold their caller to the contract of the trait.

use ggro::files::config::{Family, ModelConfig, ModelKind, Rope};
use ggro::kv::{KvHandle, KvPool};
use ggro::model::{
    Gradient, GradientSpan, Logits, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, RowStats, Score, SeqId, Span,
    TopK, Work, top_k,
};
use ggro::{Error, Result};
use std::cell::{Ref, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// A function of the ids of a sequence.
pub type OfIds<T> = Rc<dyn Fn(&[u32]) -> T>;
/// A function of the ids of a sequence, the slot, and another id.
pub type OfSlot<T> = Rc<dyn Fn(&[u32], usize, u32) -> T>;

/// What the two models compute, as functions of ids.
#[derive(Clone)]
pub struct Model {
    pub policy_vocab: usize,
    pub reward_vocab: usize,
    /// Next-token logits after a sequence.
    pub logits: OfIds<Vec<f32>>,
    /// Reward at the last position of a sequence.
    pub reward: OfIds<f32>,
    /// `E_R[v] . dR/de_slot` of a sequence.
    pub dot: OfSlot<f32>,
    /// Whether the policy's embedding rows of two ids are equal.
    pub same: Rc<dyn Fn(u32, u32) -> bool>,
}

struct Held {
    ids: Vec<u32>,
    /// The rows that the last span reported that was run on this very sequence.
    rows: Vec<Vec<f32>>,
    kv: Option<KvHandle>,
}

/// The pair, and what the test says and asks about it. Breaking the contract is a panic, which fails the test.
pub struct Scripted {
    pair: ModelPair,
    state: Rc<RefCell<State>>,
}

/// What the two models share.
struct State {
    model: Model,
    max_len: usize,
    slots: Vec<(u32, Option<Held>)>,
    work: [Work; 2],
    most_held: usize,
    fail_at: Option<usize>,
    dead_from: Option<usize>,
    calls: usize,
    free_batch_rows: usize,
    span_rows: usize,
    /// Blocks of policy and reward model, where they are limited.
    pools: Option<[KvPool; 2]>,
}

/// One of the models.
struct Half {
    role: Role,
    config: ModelConfig,
    state: Rc<RefCell<State>>,
}

impl Scripted {
    pub fn new(model: &Model, max_len: usize) -> Scripted {
        let state = Rc::new(RefCell::new(State {
            model: model.clone(),
            max_len,
            slots: Vec::new(),
            work: [Work::default(); 2],
            most_held: 0,
            fail_at: None,
            dead_from: None,
            calls: 0,
            free_batch_rows: 24,
            span_rows: usize::MAX,
            pools: None,
        }));
        let half = |task, vocab| -> Option<Box<dyn ggro::model::Model>> {
            let config = config(task, vocab, max_len);
            Some(Box::new(Half { role: Role::of(task), config, state: state.clone() }))
        };
        let pair = ModelPair {
            policy: half(ModelKind::CausalLm, model.policy_vocab),
            reward: half(ModelKind::Reward, model.reward_vocab),
            draft: None,
        };
        Scripted { pair, state }
    }

    /// Takes the policy of another pair as the model that drafts. What is limited and failed of that pair still is.
    pub fn draft_with(&mut self, other: &mut Scripted) {
        self.pair.draft = other.pair.policy.take();
    }

    /// Gives each model so many blocks of keys and values.
    pub fn limit(&mut self, blocks: usize) {
        self.state.borrow_mut().pools = Some([KvPool::new(blocks), KvPool::new(blocks)]);
    }

    /// Fails the n-th operation on spans, counted from 0.
    pub fn fail_at(&mut self, call: Option<usize>) {
        self.state.borrow_mut().fail_at = call;
    }

    /// Fails every operation on spans from this one on.
    pub fn dead_from(&mut self, call: usize) {
        self.state.borrow_mut().dead_from = Some(call);
    }

    /// Lets so many rows cost no more than one.
    pub fn free_batch_rows(&mut self, rows: usize) {
        self.state.borrow_mut().free_batch_rows = rows;
    }

    /// Reports at most so many rows of a span.
    pub fn span_rows(&mut self, rows: usize) {
        self.state.borrow_mut().span_rows = rows;
    }

    /// Operations on spans so far.
    pub fn calls(&self) -> usize {
        self.state.borrow().calls
    }

    /// Sequences not released.
    pub fn held(&self) -> usize {
        self.state.borrow().held()
    }

    /// Most sequences of both models held at a time.
    pub fn most_held(&self) -> usize {
        self.state.borrow().most_held
    }
}

impl Deref for Scripted {
    type Target = ModelPair;
    fn deref(&self) -> &ModelPair {
        &self.pair
    }
}

impl DerefMut for Scripted {
    fn deref_mut(&mut self) -> &mut ModelPair {
        &mut self.pair
    }
}

impl State {
    fn pool(&mut self, role: Role) -> Option<&mut KvPool> {
        self.pools.as_mut().map(|pools| &mut pools[role as usize])
    }

    fn held(&self) -> usize {
        self.slots.iter().filter(|slot| slot.1.is_some()).count()
    }

    fn get(&self, seq: SeqId) -> &Held {
        let (generation, held) = &self.slots[seq.index as usize];
        assert_eq!(*generation, seq.generation, "a sequence that was released is used");
        held.as_ref().expect("a sequence that was released is used")
    }

    fn get_mut(&mut self, seq: SeqId) -> &mut Held {
        self.get(seq);
        self.slots[seq.index as usize].1.as_mut().unwrap()
    }

    fn insert(&mut self, role: Role, ids: Vec<u32>, kv: Option<KvHandle>) -> SeqId {
        // Slots of released sequences are used again, with another generation.
        let free = self.slots.iter().position(|slot| slot.1.is_none());
        let index = free.unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        self.slots[index].0 += 1;
        self.slots[index].1 = Some(Held { ids, rows: Vec::new(), kv });
        self.most_held = self.most_held.max(self.held());
        SeqId { role, index: index as u32, generation: self.slots[index].0 }
    }

    fn begin(&mut self) -> Result<()> {
        let call = self.calls;
        self.calls += 1;
        let dead = self.dead_from.is_some_and(|from| call >= from);
        if dead || self.fail_at == Some(call) { Err(Error::Backend("out of order".into())) } else { Ok(()) }
    }

    fn append(&mut self, span: &Span<'_>, role: Role, vocab: usize) -> Vec<u32> {
        assert_eq!(span.seq.role, role);
        assert!(!span.ids.is_empty(), "an empty span");
        assert!(span.ids.iter().all(|&id| (id as usize) < vocab), "{:?} of {vocab}", span.ids);
        let max_len = self.max_len;
        let held = self.get_mut(span.seq);
        assert_eq!(held.ids.len(), span.start, "a span's start");
        held.ids.extend_from_slice(span.ids);
        assert!(held.ids.len() <= max_len);
        let (ids, kv) = (held.ids.clone(), held.kv);
        if let (Some(pool), Some(kv)) = (self.pool(role), kv) {
            let _copy = pool.append(kv, span.ids.len()).expect("room for a span");
        }
        ids
    }

    fn score(&mut self, span: &RewardSpan<'_>) -> Score {
        let ids = self.append(&span.span, Role::Reward, self.model.reward_vocab);
        self.work[1].reward_forward += span.span.ids.len() as u64;
        let also = span.also_at.iter().map(|&at| {
            assert!(at >= span.span.start && at + 1 < ids.len(), "also at {at}");
            (self.model.reward)(&ids[..=at])
        });
        Score { also: also.collect(), reward: (self.model.reward)(&ids) }
    }
}

impl Half {
    fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }
}

impl ggro::model::Model for Half {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn max_len(&self) -> usize {
        self.state().max_len
    }
    fn create(&mut self) -> Result<SeqId> {
        let mut state = self.state.borrow_mut();
        let kv = state.pool(self.role).map(KvPool::create);
        Ok(state.insert(self.role, Vec::new(), kv))
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        let mut state = self.state.borrow_mut();
        let ids = &state.get(seq).ids;
        assert!(len <= ids.len(), "a fork beyond the sequence");
        let ids = ids[..len].to_vec();
        let from = state.get(seq).kv;
        let kv = match state.pool(seq.role).zip(from) {
            Some((pool, from)) => Some(pool.fork(from, len)?.0),
            None => None,
        };
        Ok(state.insert(seq.role, ids, kv))
    }
    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        let mut state = self.state.borrow_mut();
        let held = state.get_mut(seq);
        held.ids.truncate(len);
        held.rows.clear();
        let kv = held.kv;
        match state.pool(seq.role).zip(kv) {
            Some((pool, kv)) => pool.truncate(kv, len),
            None => Ok(()),
        }
    }
    fn release(&mut self, seq: SeqId) {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[seq.index as usize];
        if slot.0 == seq.generation
            && let Some(held) = slot.1.take()
            && let (Some(pool), Some(kv)) = (state.pool(seq.role), held.kv)
        {
            pool.release(kv);
        }
    }
    fn len(&self, seq: SeqId) -> usize {
        self.state().get(seq).ids.len()
    }
    fn step(&mut self, spans: &[PolicySpan<'_>], ids_below: usize, _: &mut dyn FnMut()) -> Result<Vec<PolicyRow>> {
        let mut state = self.state.borrow_mut();
        state.begin()?;
        let vocab = state.model.policy_vocab;
        assert_eq!(ids_below, vocab.min(state.model.reward_vocab));
        let mut rows = Vec::new();
        for span in spans {
            assert!(span.rows() <= span.span.ids.len(), "rows before the span");
            let ids = state.append(&span.span, Role::Policy, vocab);
            state.work[0].policy_forward += span.span.ids.len() as u64;
            let mut reported = Vec::new();
            for (asked, end) in span.asked().zip(ids.len() + 1 - span.rows()..) {
                let logits = (state.model.logits)(&ids[..end]);
                assert_eq!(logits.len(), vocab);
                let stats = RowStats::of(&logits, span.floor);
                let top = match asked {
                    TopK::Take(k) => top_k(&logits, k, ids_below),
                    TopK::TakeIf(k, threshold) if threshold.reached(&stats) => top_k(&logits, k, ids_below),
                    TopK::Skip | TopK::TakeIf(..) => Vec::new(),
                };
                reported.push(logits);
                rows.push(PolicyRow { stats, top });
            }
            state.get_mut(span.span.seq).rows = reported;
        }
        Ok(rows)
    }
    fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> Result<Vec<f32>> {
        self.logits_before(seq, 0, asked)
    }
    fn logits_before(&mut self, seq: SeqId, back: usize, asked: Logits<'_>) -> Result<Vec<f32>> {
        let row = self.state().get(seq).rows.iter().rev().nth(back).cloned();
        Ok(asked.of_row(row.expect("no row was computed on this sequence")))
    }
    fn score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        let mut state = self.state.borrow_mut();
        state.begin()?;
        Ok(spans.iter().map(|span| state.score(span)).collect())
    }
    fn gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        let mut state = self.state.borrow_mut();
        state.begin()?;
        let mut results = Vec::new();
        for span in spans {
            let score = state.score(&span.span);
            let ids = state.get(span.span.span.seq).ids.clone();
            assert!(span.slot >= span.span.span.start && span.slot < ids.len());
            assert!(!span.candidates.is_empty() && !span.rows);
            state.work[1].reward_backward += (ids.len() - span.slot) as u64;
            let model = &state.model;
            let dots = span.candidates.iter().map(|&v| {
                assert!((v as usize) < model.reward_vocab);
                (model.dot)(&ids, span.slot, v)
            });
            results.push(Gradient { dots: dots.collect(), score, norm: 1.0, rows: Vec::new() });
        }
        Ok(results)
    }
    fn same_embedding(&self, a: u32, b: u32) -> bool {
        (self.state().model.same)(a, b)
    }
    fn work(&self) -> Work {
        self.state().work[self.role as usize]
    }
    fn blocks_free(&self) -> usize {
        self.state().pools.as_ref().map_or(usize::MAX, |pools| pools[self.role as usize].blocks_free())
    }
    fn blocks_in_use(&self) -> usize {
        self.state().pools.as_ref().map_or(0, |pools| pools[self.role as usize].blocks_in_use())
    }
    fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        let state = self.state();
        let pools = state.pools.as_ref().zip(state.get(seq).kv);
        pools.map_or(0, |(pools, kv)| pools[seq.role as usize].blocks_needed(kv, count).unwrap())
    }
    fn free_batch_rows(&self) -> usize {
        self.state().free_batch_rows
    }
    fn span_rows(&self) -> usize {
        self.state().span_rows
    }
    fn keeps_span_rows(&self) -> bool {
        true
    }
    fn row_cost(&self) -> f64 {
        0.0
    }
}

fn config(kind: ModelKind, vocab_size: usize, max_len: usize) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        kind,
        hidden_size: 2,
        intermediate_size: 2,
        num_layers: 1,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 2,
        vocab_size,
        max_position_embeddings: max_len,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 1e4, llama3: None },
        windows: vec![None],
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        tie_word_embeddings: false,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        score_stem: "score",
        score_bias: false,
        notes: Vec::new(),
    }
}

/// Prompt of the scripted tests.
pub const PROMPT: [u32; 2] = [10, 11];
/// End-of-turn id of the scripted tests.
pub const FINISH: u32 = 0;
/// Another stop id.
pub const FOREIGN: u32 = 1;
/// Ids of the scripted models.
pub const VOCAB: usize = 12;

/// A model over [`VOCAB`] ids whose closures see the ids after [`PROMPT`] only.
pub fn script(
    logits: impl Fn(&[u32]) -> Vec<f32> + 'static,
    reward: impl Fn(&[u32]) -> f32 + 'static,
    dot: impl Fn(&[u32], u32) -> f32 + 'static,
) -> Model {
    Model {
        policy_vocab: VOCAB,
        reward_vocab: VOCAB,
        logits: Rc::new(move |ids| logits(after_prompt(ids))),
        reward: Rc::new(move |ids| reward(after_prompt(ids))),
        dot: Rc::new(move |ids, _, v| dot(after_prompt(ids), v)),
        same: Rc::new(|_, _| false),
    }
}

fn after_prompt(ids: &[u32]) -> &[u32] {
    &ids[PROMPT.len().min(ids.len())..]
}

/// A row that leaves no doubt.
pub fn sure(id: u32) -> Vec<f32> {
    let mut row = vec![0.0; VOCAB];
    row[id as usize] = 40.0;
    row
}

/// A row that hesitates between `ids`, the first one most likely.
pub fn torn(ids: &[u32]) -> Vec<f32> {
    let mut row = vec![-10.0; VOCAB];
    for (i, &id) in ids.iter().enumerate() {
        row[id as usize] = 5.0 - 0.125 * i as f32;
    }
    row
}
