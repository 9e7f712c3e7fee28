//! Random small models: the driver agrees with the definition in every field, and never does more work than is needed.

use crate::naive::{Failure, decode_with};
use ggro::answer::{CandidateStop, Response, WalkEnd};
use ggro::method::entropy::SIGNALS;
use ggro::method::{Options, Proposals, Selection};
use ggro::rng::Uniforms;
use ggro_testkit::scripted::Model;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;
use std::rc::Rc;

fn hash(seed: u64, ids: &[u32], salt: u64) -> u64 {
    let mut h = seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for &id in ids {
        h = (h ^ u64::from(id).wrapping_add(0x632b_e59b_d9b4_e019)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 29;
    }
    h ^= h >> 32;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// A model whose every number is a hash of the ids, on a coarse grid so that ties of all kinds happen.
pub fn random_model(seed: u64, policy_vocab: usize, reward_vocab: usize, groups: u32, grid: u64) -> Model {
    let value = move |ids: &[u32], salt: u64| (hash(seed, ids, salt) % grid) as f32 / grid as f32;
    Model {
        policy_vocab,
        reward_vocab,
        logits: Rc::new(move |ids| {
            // Some rows are sharp and some flat, so that some reach the threshold.
            let scale = [0.5, 3.0, 12.0][(hash(seed, ids, 1) % 3) as usize];
            (0..policy_vocab as u64)
                .map(|v| match hash(seed, ids, 100 + v) % 9 {
                    0 if v > 0 => f32::NEG_INFINITY,
                    _ => scale * value(ids, 10_000 + v),
                })
                .collect()
        }),
        reward: Rc::new(move |ids| value(ids, 2) * 4.0 - 2.0),
        dot: Rc::new(move |ids, slot, v| value(ids, 50_000 + slot as u64 * 64 + u64::from(v)) - 0.6),
        same: Rc::new(move |a, b| a % groups == b % groups),
    }
}

/// A model, a prompt and options.
#[derive(Debug)]
struct Case {
    seed: u64,
    policy_vocab: usize,
    reward_vocab: usize,
    groups: u32,
    grid: u64,
    prompt: Vec<u32>,
    options: Options,
}

impl Case {
    fn decode(&self) -> Result<Response, Failure> {
        let Case { seed, policy_vocab, reward_vocab, groups, grid, prompt, options } = self;
        let model = random_model(*seed, *policy_vocab, *reward_vocab, *groups, *grid);
        decode_with(&model, prompt, options, &Uniforms::Seeded(*seed))
    }
}

prop_compose! {
    fn cases()(
        seed: u64,
        policy_vocab in 1usize..12,
        missing in prop_oneof![4 => Just(0usize), 1 => 1usize..4],
        groups in prop_oneof![3 => Just(1000u32), 2 => 2u32..6],
        grid in prop_oneof![Just(5u64), Just(1 << 20)],
        prompt_len in 1usize..5,
        max_new_tokens in 1usize..20,
        (max_candidates, top_k) in (1usize..6, 1usize..9),
        (first_offset, min_generated) in (prop_oneof![Just(0usize), 0usize..7], 2usize..6),
        threshold in 0.0f64..1.6,
        (sample, proposals) in (any::<bool>(), prop_oneof![
            4 => Just(Proposals::Gradient),
            1 => Just(Proposals::Random),
            1 => Just(Proposals::ShuffledGradient),
            2 => Just(Proposals::All),
        ]),
        logprob_weight in prop_oneof![2 => Just(0.0), 1 => Just(0.25), 1 => 0.0f64..3.0],
        (finish_id, mut stop_ids) in (0u32..12, prop::collection::vec(0u32..12, 0..3)),
        pad in prop::option::of(0u32..4),
        damping in prop_oneof![Just(1e-10), Just(0.0), Just(-0.5), Just(1.0), Just(0.3)],
        floor in prop_oneof![Just(0.0), Just(1e-9), Just(1e-2)],
        signal in 0usize..SIGNALS.len(),
        temperature in 0.05f64..2.0,
    ) -> Case {
        let reward_vocab = policy_vocab.saturating_sub(missing).max(1);
        let prompt = (0..prompt_len)
            .map(|i| (hash(seed, &[i as u32], 3) % reward_vocab as u64) as u32)
            .collect();
        stop_ids.push(finish_id);
        let signal = SIGNALS[signal];
        let options = Options {
            max_new_tokens,
            entropy_threshold: if signal.name() == "margin" { -threshold } else { threshold },
            signal,
            max_candidates,
            top_k,
            temperature,
            selection: if sample { Selection::Sample } else { Selection::Greedy },
            proposals,
            logprob_weight,
            first_offset,
            min_generated,
            damping,
            probability_floor: floor,
            reward_pad_id: pad,
            ..Options::new(finish_id, stop_ids)
        };
        Case { seed, policy_vocab, reward_vocab, groups, grid, prompt, options }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_driver_follows_the_definition(case in cases()) {
        let _ = case.decode();
    }
}

/// The property is worth something only if the random models do run into every corner of the definition.
#[test]
fn random_models_reach_every_corner() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut runner = TestRunner::deterministic();
    for _ in 0..2500 {
        let case = cases().new_tree(&mut runner).unwrap().current();
        let mut saw = |corner: String| *seen.entry(corner).or_default() += 1;
        let response = match case.decode() {
            Ok(response) => response,
            Err(failure) => {
                saw(format!("{failure:?}"));
                continue;
            }
        };
        saw(format!("reason {:?}", response.finish_reason));
        if response.final_pool_position + 1 < response.final_ids.len() {
            saw("pooled before the end".into());
        }
        if response.final_pool_position < response.prompt_len {
            saw("pooled in the prompt".into());
        }
        let count = response.segments.len();
        for (i, segment) in response.segments.iter().enumerate() {
            let offset = segment.slot - segment.start;
            let best = &segment.candidates[segment.best];
            saw(format!("walk {:?}", segment.walk_end));
            saw(format!("{} ends {:?}", case.options.proposals.name(), segment.walk_end));
            let nudged = if segment.best == 0 { "kept" } else { "nudged" };
            saw(format!("{} {nudged}", case.options.proposals.name()));
            if case.options.proposals == Proposals::All {
                if segment.candidates.iter().skip(1).rev().skip(1).any(|c| c.ids.len() <= offset) {
                    saw("all goes on behind a candidate without a slot".into());
                }
                if segment.candidates.len() > case.options.max_candidates {
                    saw("all is more than the most".into());
                }
                if segment.walk_end == WalkEnd::Exhausted
                    && segment.candidates.len() < case.options.top_k.min(case.reward_vocab)
                {
                    saw("all tries an embedding once".into());
                }
            }
            if segment.reward_margin == Some(0.0) {
                saw("equal rewards".into());
            }
            if best.ids.is_empty() && best.forced.is_some() {
                saw("a forced foreign stop wins and stalls".into());
            }
            if best.forced.is_some() && offset > 0 && best.ids.len() == offset && i + 1 < count {
                saw("a forced token is dropped, wins, and the response goes on".into());
            }
            for c in &segment.candidates {
                saw(format!("stop {:?}", c.stop));
                if c.forced.is_some() && c.ids.len() <= offset {
                    saw(format!("no slot after a forced token, {:?}", c.stop));
                }
                if c.forced != c.proposed {
                    saw("a twin is placed".into());
                }
                if c.margins.argmax == Some(0.0) {
                    saw("equal logits".into());
                }
                if c.margins.score == Some(0.0) {
                    saw("equal scores".into());
                }
                if c.stop == CandidateStop::StopId && c.dropped.is_none() {
                    saw("a stop id fills the budget".into());
                }
            }
        }
    }
    let corners = [
        "NoRewardRow",
        "a forced foreign stop wins and stalls",
        "a forced token is dropped, wins, and the response goes on",
        "a stop id fills the budget",
        "a twin is placed",
        "all ends Budget",
        "all ends Exhausted",
        "all ends NoSlot",
        "all goes on behind a candidate without a slot",
        "all is more than the most",
        "all kept",
        "all nudged",
        "all tries an embedding once",
        "equal logits",
        "equal rewards",
        "equal scores",
        "no slot after a forced token, StopId",
        "gradient ends Duplicate",
        "gradient nudged",
        "pooled before the end",
        "pooled in the prompt",
        "random ends Budget",
        "random ends Duplicate",
        "random ends NoSlot",
        "random nudged",
        "reason Finish",
        "reason Length",
        "reason Stalled",
        "shuffled-gradient ends Budget",
        "shuffled-gradient ends Duplicate",
        "shuffled-gradient ends NoSlot",
        "shuffled-gradient nudged",
        "stop Entropy",
        "stop Finish",
        "stop Length",
        "stop StopId",
        "walk Budget",
        "walk Duplicate",
        "walk NoSlot",
    ];
    for corner in corners {
        assert!(seen.contains_key(corner), "never: {corner}; seen: {seen:#?}");
    }
}
