//! What speculation is worth on a card, from the engine's own batches and a cost per batch.
//!
//! The batches are real: every turn of the scheduler, on scripted models whose segments and walks are as long as those of
//! trained ones. Only their time is computed, from bytes and flops of Llama-3.1-8B in bf16 behind 1,024 tokens on an H200 with
//! 4.3 TB/s and 790 TFLOP/s: no launch overhead, no gap between kernels, policy and reward batch one after the other. So the
//! ratios are what the schedule allows, not what a card was seen to do.

use ggro::engine::{Event, RequestStats, Scheduler, Settings, SpeculationWidth, Step, intervention};
use ggro::method::Options;
use ggro::model::Work;
use ggro::rng::Uniforms;
use ggro_testkit::scripted::{FINISH, Model, Scripted};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const BANDWIDTH: f64 = 4.3e12;
const FLOPS: f64 = 790e12;
const POLICY_WEIGHTS: f64 = 15.0e9;
const REWARD_WEIGHTS: f64 = 13.96e9;
const KV_PER_TOKEN: f64 = 131_072.0;
const CONTEXT: f64 = 1024.0;
const IDS: usize = 40;

/// StepTime of one reading of the weights, or of the products of so many tokens if that takes longer.
fn pass(weights: f64, requests: usize, tokens: usize) -> f64 {
    let kv = requests as f64 * CONTEXT * KV_PER_TOKEN;
    ((weights + kv) / BANDWIDTH).max(tokens as f64 * weights / FLOPS)
}

fn seconds(turn: &Step) -> f64 {
    let requests = |spans: &[ggro::engine::TaskSpan]| spans.iter().map(|s| s.request()).collect::<BTreeSet<_>>().len();
    let mut total = 0.0;
    if !turn.policy.is_empty() {
        let tokens = turn.policy.iter().map(|s| s.tokens()).sum();
        total += pass(POLICY_WEIGHTS, requests(&turn.policy), tokens);
    }
    if !turn.reward.is_empty() {
        let tokens = turn.reward.iter().map(|s| s.tokens()).sum();
        total += pass(REWARD_WEIGHTS, requests(&turn.reward), tokens);
        let differentiated: usize = turn.reward.iter().map(|s| s.differentiated()).sum();
        if differentiated > 0 {
            total += pass(REWARD_WEIGHTS, requests(&turn.reward), differentiated);
        }
    }
    total
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

struct Run {
    /// Mean seconds from arrival to end.
    latency: f64,
    segments: usize,
    candidates: usize,
    tokens: usize,
    waste: f64,
}

fn run(model: &Model, requests: usize, candidates: usize, speculation: SpeculationWidth, run_ahead: bool) -> Run {
    let mut backend = Scripted::new(model, 4096);
    backend.free_batch_rows(128);
    let settings = Settings { speculation, run_ahead, ..Settings::default() };
    let mut scheduler = Scheduler::new(settings);
    for n in 0..requests as u32 {
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
    let mut out = Run { latency: 0.0, segments: 0, candidates: 0, tokens: 0, waste: 0.0 };
    let (mut clock, mut needed, mut spare) = (0.0, 0, 0);
    while scheduler.requests() > 0 {
        let turn = scheduler.plan(&mut backend);
        clock += seconds(&turn);
        scheduler.run(&mut backend, turn);
        for event in scheduler.events() {
            if let Event::Ended(_, outcome, account) = event {
                let response = outcome.unwrap();
                out.latency += clock / requests as f64;
                out.segments += response.segments.len();
                out.candidates += response.segments.iter().map(|s| s.candidates.len()).sum::<usize>();
                out.tokens += response.final_ids.len() - response.prompt_len;
                let RequestStats { necessary, .. } = account;
                let all = |w: Work| w.policy_forward + w.reward_forward + w.reward_backward;
                needed += all(necessary);
                spare += all(account.speculative());
            }
        }
    }
    out.waste = spare as f64 / needed as f64;
    out
}

#[test]
fn latency_of_the_method_relative_to_greedy_decoding() {
    let model = model();
    println!(
        "| requests | speculation | run-ahead | latency over greedy | tokens a segment | candidates a segment | work not needed |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut ratios = BTreeMap::new();
    for requests in [1, 8, 64] {
        let greedy = run(&model, requests, 1, SpeculationWidth::Off, false).latency;
        for width in [
            SpeculationWidth::Off,
            SpeculationWidth::Fixed(2),
            SpeculationWidth::Fixed(4),
            SpeculationWidth::Fixed(8),
            SpeculationWidth::Fixed(25),
            SpeculationWidth::Auto,
        ] {
            for run_ahead in [false, true] {
                if width == SpeculationWidth::Off && run_ahead {
                    continue;
                }
                // One request is one answer; more of them say more about the mean.
                let run = run(&model, requests, 8, width, run_ahead);
                let ratio = run.latency / greedy;
                println!(
                    "| {requests} | {width:?} | {run_ahead} | {ratio:.2} | {:.1} | {:.1} | {:.2} |",
                    run.tokens as f64 / run.segments as f64,
                    run.candidates as f64 / run.segments as f64,
                    run.waste
                );
                ratios.insert((requests, format!("{width:?}"), run_ahead), ratio);
            }
        }
    }
    let at = |requests, width: &str, run_ahead| ratios[&(requests, width.to_string(), run_ahead)];
    assert!(at(1, "Fixed(25)", true) < 0.6 * at(1, "Off", false), "candidates side by side are worth it alone");
    assert!(at(1, "Fixed(25)", true) <= at(1, "Fixed(25)", false), "running ahead never costs a lone request");
    assert!(at(1, "Auto", true) <= 1.05 * at(1, "Fixed(25)", true));
    assert!(at(64, "Auto", true) <= 1.1 * at(64, "Off", false), "under load, no harm");
}
