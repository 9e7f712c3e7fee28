//! Two models made of closures, behind a backend that holds its caller to the trait's contract.

use ggro::files::config::{Family, ModelConfig, Rope, Task};
use ggro::kv::{KvHandle, KvPool};
use ggro::model::{
    Backend, Gradient, GradientSpan, PolicyRow, PolicySpan, RewardSpan, Role, RowStats, Score, SeqId, Span, TopK, Work,
    top_k,
};
use ggro::{Error, Result};

/// A function of the ids of a sequence.
pub type OfIds<T> = Box<dyn Fn(&[u32]) -> T>;
/// A function of the ids of a sequence, the slot, and another id.
pub type OfSlot<T> = Box<dyn Fn(&[u32], usize, u32) -> T>;

/// What the two models compute, as functions of ids.
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
    pub same: Box<dyn Fn(u32, u32) -> bool>,
}

struct Held {
    ids: Vec<u32>,
    /// The row after the last span that was run on this very sequence.
    row: Option<Vec<f32>>,
    kv: Option<KvHandle>,
}

/// The backend. Breaking the contract is a panic, which fails the test.
pub struct Scripted<'a> {
    model: &'a Model,
    max_len: usize,
    configs: [ModelConfig; 2],
    slots: Vec<(u32, Option<Held>)>,
    work: Work,
    /// Most sequences of one model held at a time.
    pub most_held: usize,
    /// Fails the n-th operation on spans, counted from 0.
    pub fail_at: Option<usize>,
    /// Fails every operation on spans from this one on.
    pub dead_from: Option<usize>,
    /// Operations on spans so far.
    pub calls: usize,
    /// Rows that cost no more than one.
    pub cheap_rows: usize,
    /// Blocks of policy and reward model, where they are limited.
    pools: Option<[KvPool; 2]>,
}

impl<'a> Scripted<'a> {
    pub fn new(model: &'a Model, max_len: usize) -> Scripted<'a> {
        Scripted {
            model,
            max_len,
            configs: [
                config(Task::CausalLm, model.policy_vocab, max_len),
                config(Task::Reward, model.reward_vocab, max_len),
            ],
            slots: Vec::new(),
            work: Work::default(),
            most_held: 0,
            fail_at: None,
            dead_from: None,
            calls: 0,
            cheap_rows: 24,
            pools: None,
        }
    }

    /// Gives each model so many blocks of keys and values.
    pub fn limit(&mut self, blocks: usize) {
        self.pools = Some([KvPool::new(blocks), KvPool::new(blocks)]);
    }

    fn pool(&mut self, role: Role) -> Option<&mut KvPool> {
        self.pools.as_mut().map(|pools| &mut pools[role as usize])
    }

    /// Sequences not released.
    pub fn held(&self) -> usize {
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
        self.slots[index].1 = Some(Held { ids, row: None, kv });
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
        self.work.reward_forward += span.span.ids.len() as u64;
        let also = span.also_at.iter().map(|&at| {
            assert!(at >= span.span.start && at + 1 < ids.len(), "also at {at}");
            (self.model.reward)(&ids[..=at])
        });
        Score { also: also.collect(), reward: (self.model.reward)(&ids) }
    }
}

impl Backend for Scripted<'_> {
    fn config(&self, role: Role) -> &ModelConfig {
        &self.configs[usize::from(role == Role::Reward)]
    }
    fn max_len(&self) -> usize {
        self.max_len
    }
    fn create(&mut self, role: Role) -> Result<SeqId> {
        let kv = self.pool(role).map(KvPool::create);
        Ok(self.insert(role, Vec::new(), kv))
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        let ids = &self.get(seq).ids;
        assert!(len <= ids.len(), "a fork beyond the sequence");
        let ids = ids[..len].to_vec();
        let from = self.get(seq).kv;
        let kv = match self.pool(seq.role).zip(from) {
            Some((pool, from)) => Some(pool.fork(from, len)?.0),
            None => None,
        };
        Ok(self.insert(seq.role, ids, kv))
    }
    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        let held = self.get_mut(seq);
        held.ids.truncate(len);
        held.row = None;
        let kv = held.kv;
        match self.pool(seq.role).zip(kv) {
            Some((pool, kv)) => pool.truncate(kv, len),
            None => Ok(()),
        }
    }
    fn release(&mut self, seq: SeqId) {
        let slot = &mut self.slots[seq.index as usize];
        if slot.0 == seq.generation
            && let Some(held) = slot.1.take()
            && let (Some(pool), Some(kv)) = (self.pool(seq.role), held.kv)
        {
            pool.release(kv);
        }
    }
    fn len(&self, seq: SeqId) -> usize {
        self.get(seq).ids.len()
    }
    fn policy_step(&mut self, spans: &[PolicySpan<'_>]) -> Result<Vec<PolicyRow>> {
        self.begin()?;
        let mut rows = Vec::new();
        for span in spans {
            let ids = self.append(&span.span, Role::Policy, self.model.policy_vocab);
            self.work.policy_forward += span.span.ids.len() as u64;
            let logits = (self.model.logits)(&ids);
            assert_eq!(logits.len(), self.model.policy_vocab);
            let stats = RowStats::of(&logits, span.floor);
            let top = |k| top_k(&logits, k, self.model.reward_vocab);
            let top = match span.top_k {
                TopK::Skip => Vec::new(),
                TopK::Take(k) => top(k),
                TopK::TakeIf(k, threshold) if threshold.reached(&stats) => top(k),
                TopK::TakeIf(..) => Vec::new(),
            };
            self.get_mut(span.span.seq).row = Some(logits);
            rows.push(PolicyRow { stats, top });
        }
        Ok(rows)
    }
    fn logits_row(&mut self, seq: SeqId) -> Result<Vec<f32>> {
        Ok(self.get(seq).row.clone().expect("no row was computed on this sequence"))
    }
    fn reward_score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        self.begin()?;
        Ok(spans.iter().map(|span| self.score(span)).collect())
    }
    fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        self.begin()?;
        let mut results = Vec::new();
        for span in spans {
            let score = self.score(&span.span);
            let ids = self.get(span.span.span.seq).ids.clone();
            assert!(span.slot >= span.span.span.start && span.slot < ids.len());
            assert!(!span.candidates.is_empty() && !span.rows);
            self.work.reward_backward += (ids.len() - span.slot) as u64;
            let dots = span.candidates.iter().map(|&v| {
                assert!((v as usize) < self.model.reward_vocab);
                (self.model.dot)(&ids, span.slot, v)
            });
            results.push(Gradient { dots: dots.collect(), score, norm: 1.0, rows: Vec::new() });
        }
        Ok(results)
    }
    fn same_embedding(&self, a: u32, b: u32) -> bool {
        (self.model.same)(a, b)
    }
    fn work(&self) -> Work {
        self.work
    }
    fn blocks_free(&self, role: Role) -> usize {
        self.pools.as_ref().map_or(usize::MAX, |pools| pools[role as usize].blocks_free())
    }
    fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        let pools = self.pools.as_ref().zip(self.get(seq).kv);
        pools.map_or(0, |(pools, kv)| pools[seq.role as usize].blocks_needed(kv, count).unwrap())
    }
    fn cheap_rows(&self) -> usize {
        self.cheap_rows
    }
}

fn config(task: Task, vocab_size: usize, max_len: usize) -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        task,
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
        logits: Box::new(move |ids| logits(after_prompt(ids))),
        reward: Box::new(move |ids| reward(after_prompt(ids))),
        dot: Box::new(move |ids, _, v| dot(after_prompt(ids), v)),
        same: Box::new(|_, _| false),
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
