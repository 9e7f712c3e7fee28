//! What speculation is worth on a card, from the engine's own batches and a price per batch.
//!
//! The batches are real: every step of the scheduler, on scripted models whose segments and walks are as long as those of
//! trained ones. Only their time is computed, for Llama-3.1-8B in bf16 behind 1,024 tokens on an H200: once by the time
//! model of the kernels for Hopper, and once from bytes and operations alone (4.3 TB/s, 790 TFLOP/s), which is a limit.
//! Policy and reward batch run one after the other. So the ratios are what the schedule allows, not what a card was seen
//! to do.

use ggro::engine::{
    Drafting, Event, RequestStats, Scheduler, Settings, SpeculationWidth, Step, TaskSpan, intervention,
};
use ggro::files::config::ModelConfig;
use ggro::lab::time_model::{MODEL, card::CARDS, passes::Texts, products::ProductKernels};
use ggro::method::Options;
use ggro::model::{Work, synthetic};
use ggro::rng::Uniforms;
use ggro_testkit::scripted::{FINISH, Model, Scripted};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const BANDWIDTH: f64 = 4.3e12;
const FLOPS: f64 = 790e12;
const POLICY_WEIGHTS: f64 = 15.0e9;
const REWARD_WEIGHTS: f64 = 13.96e9;
const DRAFT_WEIGHTS: f64 = 2.47e9;
const KV_PER_TOKEN: f64 = 131_072.0;
const DRAFT_KV_PER_TOKEN: f64 = 32_768.0;
const CONTEXT: usize = 1024;
const IDS: usize = 40;
/// What a row of a guess costs on a device, as a part of a step.
const ROW_COST: f64 = 1.0 / 128.0;

/// Seconds, by what takes them. In relation to a step of greedy decoding.
#[derive(Clone, Copy, Default)]
struct Seconds {
    /// Steps of the policy, as if each request had one row in them.
    steps: f64,
    /// What further rows add to these.
    rows: f64,
    /// Passes of the reward model.
    reward: f64,
    /// Passes of the model that drafts.
    draft: f64,
    /// All of it, from bytes and operations alone.
    limit: f64,
}

impl Seconds {
    fn sum(self) -> f64 {
        self.steps + self.rows + self.reward + self.draft
    }

    fn add(&mut self, other: Seconds, times: f64) {
        self.steps += times * other.steps;
        self.rows += times * other.rows;
        self.reward += times * other.reward;
        self.draft += times * other.draft;
        self.limit += times * other.limit;
    }
}

/// Seconds of one reading of the weights, or of the products of so many tokens if that takes longer.
fn limit(weights: f64, requests: usize, tokens: usize) -> f64 {
    let kv = (requests * CONTEXT) as f64 * if weights == DRAFT_WEIGHTS { DRAFT_KV_PER_TOKEN } else { KV_PER_TOKEN };
    ((weights + kv) / BANDWIDTH).max(tokens as f64 * weights / FLOPS)
}

fn texts<'a>(spans: impl Iterator<Item = &'a TaskSpan>) -> Texts {
    let mut requests = BTreeSet::new();
    let (mut texts, mut tokens) = (0, 0);
    for span in spans {
        requests.insert(span.request());
        (texts, tokens) = (texts + 1, tokens + span.tokens());
    }
    Texts { requests: requests.len(), texts, tokens, before: CONTEXT }
}

/// The pair, a model that drafts for it, and what batches of them cost that were there before.
struct Prices {
    pair: [ModelConfig; 2],
    draft: ModelConfig,
    known: RefCell<BTreeMap<(usize, [usize; 3]), f64>>,
}

impl Prices {
    fn of(&self, kind: usize, batch: Texts) -> f64 {
        let key = (kind, [batch.requests, batch.texts, batch.tokens]);
        *self.known.borrow_mut().entry(key).or_insert_with(|| {
            let (family, card) = (ProductKernels::Sm90, CARDS[0]);
            let time = match kind {
                STEP => batch.step(family, card, &self.pair[0]),
                SCORE => batch.score(family, card, &self.pair[1]),
                DRAFT => batch.step(family, card, &self.draft),
                _ => batch.gradient(family, card, &self.pair[1]),
            };
            time.sum() / 1e6
        })
    }
}

const STEP: usize = 0;
const SCORE: usize = 1;
const GRADIENT: usize = 2;
const DRAFT: usize = 3;

/// What so many passes over so many tokens cost the model that drafts for requests.
fn draft_seconds(batches: u64, tokens: u64, requests: usize, prices: &Prices) -> Seconds {
    let Some(tokens) = tokens.checked_div(batches).map(|mean| mean as usize) else { return Seconds::default() };
    let batch = Texts { requests: requests.min(tokens), texts: tokens, tokens, before: CONTEXT };
    let passes = batches as f64;
    Seconds {
        draft: passes * prices.of(DRAFT, batch),
        limit: passes * limit(DRAFT_WEIGHTS, batch.requests, tokens),
        ..Seconds::default()
    }
}

/// What a batch costs. Rewards with and without gradients are passes of their own, as on a device.
fn seconds(step: &Step, prices: &Prices) -> Seconds {
    let mut out = Seconds::default();
    if !step.policy.is_empty() {
        let batch = texts(step.policy.iter());
        let alone = Texts { texts: batch.requests, tokens: batch.requests, ..batch };
        out.steps = prices.of(STEP, alone);
        out.rows = prices.of(STEP, batch) - out.steps;
        out.limit += limit(POLICY_WEIGHTS, batch.requests, batch.tokens);
    }
    let scored = texts(step.reward.iter().filter(|span| span.differentiated() == 0));
    if scored.texts > 0 {
        out.reward += prices.of(SCORE, scored);
    }
    let differentiated = texts(step.reward.iter().filter(|span| span.differentiated() > 0));
    if differentiated.texts > 0 {
        out.reward += prices.of(GRADIENT, differentiated);
    }
    if !step.reward.is_empty() {
        let all = texts(step.reward.iter());
        out.limit += limit(REWARD_WEIGHTS, all.requests, all.tokens);
        let differentiated: usize = step.reward.iter().map(|span| span.differentiated()).sum();
        if differentiated > 0 {
            out.limit += limit(REWARD_WEIGHTS, all.requests, differentiated);
        }
    }
    out
}

fn hash(ids: &[u32], salt: u64) -> u64 {
    let mut hash = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for &id in ids {
        hash = (hash ^ u64::from(id)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash ^= hash >> 29;
    }
    hash
}

fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// One token in sixteen is uncertain; gradients of the candidates of a segment are alike, as those of trained models.
fn model() -> Model {
    Model {
        policy_vocab: IDS,
        reward_vocab: IDS,
        logits: Rc::new(|ids| {
            let tail = &ids[ids.len().saturating_sub(6)..];
            let spread = if hash(tail, 1).is_multiple_of(16) { 0.5 } else { 60.0 };
            let logit =
                |v: usize| if v == FINISH as usize { -90.0 } else { (unit(hash(tail, 2 + v as u64)) * spread) as f32 };
            (0..IDS).map(logit).collect()
        }),
        reward: Rc::new(|ids| unit(hash(ids, 3)) as f32),
        dot: Rc::new(|ids, slot, v| {
            let common = unit(hash(&ids[..slot], 100 + u64::from(v)));
            (common + 0.35 * unit(hash(ids, 200 + u64::from(v)))) as f32
        }),
        same: Rc::new(|_, _| false),
    }
}

/// A model that drafts: of a hundred tokens, so many are the policy's. It is as sure of the others.
fn draft_model(right: u64) -> Model {
    let policy = model();
    let logits = policy.logits.clone();
    let logits = Rc::new(move |ids: &[u32]| {
        let mut row = logits(ids);
        let tail = &ids[ids.len().saturating_sub(6)..];
        if hash(tail, 9) % 100 >= right {
            row.rotate_right(1);
        }
        row
    });
    Model { logits, ..policy }
}

#[derive(Default)]
struct Run {
    /// Mean seconds from arrival to end.
    latency: Seconds,
    segments: usize,
    candidates: usize,
    tokens: usize,
    passes: u64,
    needed: u64,
    spare: u64,
}

/// How it is decoded: candidates, width, run-ahead, drafts, and how many tokens in a hundred a draft model guesses right.
type How = (usize, SpeculationWidth, bool, Drafting, u64);

/// Requests at the same time, the first of which has prompt number `first`; added to `out`.
fn run(model: &Model, prices: &Prices, prompts: std::ops::Range<u32>, how: How, out: &mut Run) {
    let (candidates, speculation, run_ahead, drafting, right) = how;
    let mut backend = Scripted::new(model, 4096);
    backend.free_batch_rows(128);
    if drafting == Drafting::Model {
        backend.draft_with(&mut Scripted::new(&draft_model(right), 4096));
    }
    let one = Texts { requests: 1, texts: 1, tokens: 1, before: CONTEXT };
    let draft_cost = Some(prices.of(DRAFT, one) / prices.of(STEP, one));
    let row_cost = Some(ROW_COST);
    let settings = Settings { speculation, run_ahead, drafting, row_cost, draft_cost, ..Settings::default() };
    let mut scheduler = Scheduler::new(settings);
    let requests = f64::from(prompts.end - prompts.start);
    for n in prompts {
        let prompt: Vec<u32> = (0..8).map(|i| 1 + (n * 7 + i * 5 + n / 5) % (IDS as u32 - 1)).collect();
        let options = Options {
            max_new_tokens: 192,
            max_candidates: candidates,
            probability_floor: 0.0,
            ..Options::new(FINISH, vec![FINISH])
        };
        let machine = intervention(&backend, &prompt, &options, Uniforms::Seeded(0)).unwrap();
        scheduler.submit(Box::new(machine));
    }
    let mut clock = Seconds::default();
    while scheduler.requests() > 0 {
        let before = scheduler.stats().draft_work;
        let step = scheduler.plan(&mut backend);
        let after = scheduler.stats().draft_work;
        let (batches, tokens) = (after.batches - before.batches, after.tokens - before.tokens);
        clock.add(draft_seconds(batches, tokens, scheduler.running(), prices), 1.0);
        clock.add(seconds(&step, prices), 1.0);
        scheduler.run(&mut backend, step);
        for event in scheduler.events() {
            if let Event::Ended(_, outcome, account) = event {
                let response = outcome.unwrap();
                out.latency.add(clock, 1.0 / requests);
                out.segments += response.segments.len();
                out.candidates += response.segments.iter().map(|s| s.candidates.len()).sum::<usize>();
                out.tokens += response.final_ids.len() - response.prompt_len;
                let RequestStats { necessary, .. } = account;
                let all = |w: Work| w.policy_forward + w.reward_forward + w.reward_backward;
                out.needed += all(necessary);
                out.spare += all(account.speculative());
            }
        }
    }
    out.passes += scheduler.stats().reward_batches;
}

/// The mean of all of these, which run one after the other.
fn runs(model: &Model, prices: &Prices, (requests, repeats): (u32, u32), how: How) -> Run {
    let mut out = Run::default();
    for n in 0..repeats {
        run(model, prices, n * requests..(n + 1) * requests, how, &mut out);
    }
    let sum = out.latency;
    out.latency = Seconds::default();
    out.latency.add(sum, 1.0 / f64::from(repeats));
    out
}

#[test]
fn latency_of_the_method_relative_to_greedy_decoding() {
    let model = model();
    let [draft, _] = synthetic::pair("llama-3.2-1b").unwrap();
    let prices = Prices { pair: synthetic::pair(MODEL).unwrap(), draft, known: RefCell::default() };
    println!(
        "| requests | candidates | speculation | run-ahead | drafts | latency over greedy | text | waits | rows | reward | draft | at the limit | \
         tokens a segment | candidates a segment | reward batches a segment | work not needed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut ratios = BTreeMap::new();
    use SpeculationWidth::{Auto, Fixed, Off};
    // One request is one answer; more of them say more about the mean.
    for group in [(1, 1), (1, 16), (8, 1), (64, 1)] {
        let greedy = runs(&model, &prices, group, (1, Off, false, Drafting::Off, 0)).latency;
        let mut ways: Vec<_> =
            [Off, Fixed(8), Fixed(25), Auto].map(|width| (8, width, width != Off, Drafting::Off, 0)).into();
        ways.push((8, Auto, false, Drafting::Off, 0));
        ways.extend([70, 80].map(|right| (8, Auto, true, Drafting::Model, right)));
        if group.0 < 64 {
            ways.extend([Fixed(2), Fixed(4)].map(|width| (8, width, true, Drafting::Off, 0)));
            ways.push((8, Auto, true, Drafting::Ngram, 0));
            ways.extend([70, 80].map(|right| (1, Off, false, Drafting::Model, right)));
        }
        for how @ (candidates, width, run_ahead, drafting, right) in ways {
            let run = runs(&model, &prices, group, how);
            let (over, latency) = (greedy.sum(), run.latency);
            println!(
                "| {} of {} | {candidates} | {width:?} | {run_ahead} | {drafting:?} {right} | {:.2} | 1.00 | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.2} | {:.2} |",
                group.0,
                group.0 * group.1,
                latency.sum() / over,
                (latency.steps - over) / over,
                latency.rows / over,
                latency.reward / over,
                latency.draft / over,
                latency.limit / greedy.limit,
                run.tokens as f64 / run.segments as f64,
                run.candidates as f64 / run.segments as f64,
                run.passes as f64 / run.segments as f64,
                run.spare as f64 / run.needed as f64,
            );
            if candidates > 1 && drafting != Drafting::Ngram {
                ratios.insert((group, format!("{width:?}"), run_ahead, right), latency.sum() / over);
            }
        }
    }
    let at = |group, width: &str, run_ahead| ratios[&(group, width.to_string(), run_ahead, 0)];
    let drafted = |group, right| ratios[&(group, "Auto".to_string(), true, right)];
    assert!(at((1, 16), "Auto", true) < 1.8, "twice greedy decoding is too much");
    assert!(drafted((1, 16), 80) < 1.56, "and a draft model of an eighth of the size helps");
    assert!(at((1, 16), "Auto", true) < 0.6 * at((1, 16), "Off", false), "candidates side by side are worth it alone");
    assert!(at((1, 16), "Auto", true) <= at((1, 16), "Auto", false), "running ahead never costs a lone request");
    assert!(at((8, 1), "Auto", true) <= 1.05 * at((8, 1), "Fixed(8)", true));
    assert!(at((64, 1), "Auto", true) <= 1.1 * at((64, 1), "Off", false), "under load, no harm");
}
