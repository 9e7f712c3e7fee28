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
const KV_PER_TOKEN: f64 = 131_072.0;
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
    /// All of it, from bytes and operations alone.
    limit: f64,
}

impl Seconds {
    fn sum(self) -> f64 {
        self.steps + self.rows + self.reward
    }

    fn add(&mut self, other: Seconds, times: f64) {
        self.steps += times * other.steps;
        self.rows += times * other.rows;
        self.reward += times * other.reward;
        self.limit += times * other.limit;
    }
}

/// Seconds of one reading of the weights, or of the products of so many tokens if that takes longer.
fn limit(weights: f64, requests: usize, tokens: usize) -> f64 {
    let kv = (requests * CONTEXT) as f64 * KV_PER_TOKEN;
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

/// The pair, and what batches of it cost that were there before.
struct Prices {
    pair: [ModelConfig; 2],
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
                _ => batch.gradient(family, card, &self.pair[1]),
            };
            time.sum() / 1e6
        })
    }
}

const STEP: usize = 0;
const SCORE: usize = 1;
const GRADIENT: usize = 2;

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

/// How it is decoded: candidates, width, run-ahead, drafts.
type How = (usize, SpeculationWidth, bool, Drafting);

/// Requests at the same time, the first of which has prompt number `first`; added to `out`.
fn run(model: &Model, prices: &Prices, prompts: std::ops::Range<u32>, how: How, out: &mut Run) {
    let (candidates, speculation, run_ahead, drafting) = how;
    let mut backend = Scripted::new(model, 4096);
    backend.free_batch_rows(128);
    let settings = Settings { speculation, run_ahead, drafting, row_cost: Some(ROW_COST), ..Settings::default() };
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
        let step = scheduler.plan(&mut backend);
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
    let prices = Prices { pair: synthetic::pair(MODEL).unwrap(), known: RefCell::default() };
    println!(
        "| requests | speculation | run-ahead | drafts | latency over greedy | text | waits | rows | reward | at the limit | \
         tokens a segment | candidates a segment | reward batches a segment | work not needed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut ratios = BTreeMap::new();
    use SpeculationWidth::{Auto, Fixed, Off};
    // One request is one answer; more of them say more about the mean.
    for group in [(1, 1), (1, 16), (8, 1), (64, 1)] {
        let greedy = runs(&model, &prices, group, (1, Off, false, Drafting::Off)).latency;
        let mut ways: Vec<_> = [Off, Fixed(2), Fixed(4), Fixed(8), Fixed(25), Auto]
            .map(|width| (8, width, width != Off, Drafting::Off))
            .into();
        ways.push((8, Auto, false, Drafting::Off));
        ways.push((8, Auto, true, Drafting::Ngram));
        for how @ (_, width, run_ahead, drafting) in ways {
            let run = runs(&model, &prices, group, how);
            let (over, latency) = (greedy.sum(), run.latency);
            println!(
                "| {} of {} | {width:?} | {run_ahead} | {drafting:?} | {:.2} | 1.00 | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.2} | {:.2} |",
                group.0,
                group.0 * group.1,
                latency.sum() / over,
                (latency.steps - over) / over,
                latency.rows / over,
                latency.reward / over,
                latency.limit / greedy.limit,
                run.tokens as f64 / run.segments as f64,
                run.candidates as f64 / run.segments as f64,
                run.passes as f64 / run.segments as f64,
                run.spare as f64 / run.needed as f64,
            );
            let key = (group, format!("{width:?}"), run_ahead, drafting == Drafting::Ngram);
            ratios.insert(key, latency.sum() / over);
        }
    }
    let at = |group, width: &str, run_ahead| ratios[&(group, width.to_string(), run_ahead, false)];
    assert!(at((1, 16), "Auto", true) < 0.6 * at((1, 16), "Off", false), "candidates side by side are worth it alone");
    assert!(at((1, 16), "Auto", true) <= at((1, 16), "Auto", false), "running ahead never costs a lone request");
    assert!(at((8, 1), "Auto", true) <= 1.05 * at((8, 1), "Fixed(8)", true));
    assert!(at((64, 1), "Auto", true) <= 1.1 * at((64, 1), "Off", false), "under load, no harm");
}
