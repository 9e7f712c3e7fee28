//! The methods that GGRO is compared with: what their papers say, with the least possible work, alone and in company.

mod ahead;
mod company;
mod edges;
mod naive;
mod pair;

use self::naive::{Found, Naive};
use ggro::answer::Completions;
use ggro::baselines::{Acceptance, Args, Baseline, Beam, BestOfPoisson, Blockwise, Cards, RejectionSampling};
use ggro::baselines::{SoftBestOfN, SpeculativeRejection};
use ggro::engine::{Observer, RequestStats, Settings, SpeculationWidth, search};
use ggro::model::Work;
use ggro::sampling::{CompletionSpec, Sampling, StopCheck};
use ggro_testkit::scripted::{Model, Scripted};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

fn hash(seed: u64, ids: &[u32], salt: u64) -> u64 {
    let mut h = seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for &id in ids {
        h = (h ^ u64::from(id).wrapping_add(0x632b_e59b_d9b4_e019)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 29;
    }
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// A pair whose every number is a hash of the ids, on a grid so coarse that ties happen.
fn random_model(seed: u64, vocab: usize, reward_vocab: usize, grid: u64) -> Model {
    let value = move |ids: &[u32], salt: u64| (hash(seed, ids, salt) % grid) as f32 / grid as f32;
    Model {
        policy_vocab: vocab,
        reward_vocab,
        logits: Rc::new(move |ids| {
            let scale = [0.5, 3.0, 12.0][(hash(seed, ids, 1) % 3) as usize];
            let logit = |v: u64| match hash(seed, ids, 100 + v) % 9 {
                0 if v > 0 => f32::NEG_INFINITY,
                _ => scale * value(ids, 10_000 + v),
            };
            (0..vocab as u64).map(logit).collect()
        }),
        reward: Rc::new(move |ids| value(ids, 2) * 4.0 - 2.0),
        dot: Rc::new(|_, _, _| 0.0),
        same: Rc::new(|a, b| a == b),
    }
}

/// Ends a text where an id comes twice in a row.
fn twins() -> StopCheck {
    let mut last = None;
    Box::new(move |id| last.replace(id) == Some(id))
}

/// A pair of models, a request and a method.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    vocab: usize,
    reward_vocab: usize,
    grid: u64,
    prompt: Vec<u32>,
    temperature: f64,
    top_k: usize,
    penalty: f64,
    max_new_tokens: usize,
    stop_ids: Vec<u32>,
    twins_stop: bool,
    method: Baseline,
}

impl Case {
    fn model(&self) -> Model {
        random_model(self.seed, self.vocab, self.reward_vocab, self.grid)
    }

    fn spec(&self) -> CompletionSpec {
        CompletionSpec {
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                presence_penalty: self.penalty,
                seed: self.seed,
                ..Sampling::default()
            },
            max_new_tokens: self.max_new_tokens,
            stop_ids: self.stop_ids.clone(),
            stop_check: self.twins_stop.then(|| -> Arc<dyn Fn() -> StopCheck + Send + Sync> { Arc::new(twins) }),
            ..CompletionSpec::default()
        }
    }

    fn naive(&self) -> Found {
        let (model, spec) = (self.model(), self.spec());
        let mut naive = Naive {
            logits: Box::new(|ids| (model.logits)(ids)),
            reward: Box::new(|ids| (model.reward)(ids)),
            prompt: &self.prompt,
            spec: &spec,
            twins_stop: self.twins_stop,
            reward_vocab: self.reward_vocab,
            work: Work::default(),
        };
        naive.answer(&self.method)
    }

    fn longest(&self) -> usize {
        self.prompt.len() + self.max_new_tokens
    }

    /// By the engine, and everything that must hold of it.
    fn check(&self) -> Found {
        let expected = self.naive();
        for (width, batch_tokens, blocks) in [(1, usize::MAX, None), (2, 3, None), (9, 2048, Some(2)), (3, 1, Some(3))]
        {
            let speculation = if width == 1 { SpeculationWidth::Off } else { SpeculationWidth::Fixed(width) };
            let settings = Settings { batch_tokens, ..Settings::single(speculation) };
            let mut backend = Scripted::new(&self.model(), self.longest());
            if let Some(blocks) = blocks {
                backend.limit(blocks);
            }
            let got = search(&mut backend, &settings, &self.prompt, self.spec(), &self.method, &mut ());
            assert_eq!(backend.held(), 0, "sequences left behind");
            match (got, &expected) {
                (Ok((got, stats)), Ok(expected)) => {
                    assert_eq!(&got, expected, "width {width}, {batch_tokens} tokens a batch, {blocks:?} blocks");
                    assert_eq!(stats.necessary, got.work);
                    assert_eq!(stats.ran, backend.work(), "what was run");
                    accounts(&stats);
                    if width == 1 && blocks.is_none() {
                        assert_eq!(backend.work(), got.work, "work done, and the least possible");
                    }
                }
                (Err(error), Err(_)) => assert!(error.is_invalid_input(), "{error}"),
                (got, expected) => panic!("{got:?}\nand not\n{expected:?}"),
            }
        }
        expected
    }
}

/// `ran + shared = necessary + speculative + recomputed`, and no part is negative.
fn accounts(stats: &RequestStats) {
    let RequestStats { ran, necessary, recomputed, shared, .. } = *stats;
    assert_eq!(ran + shared, necessary + stats.speculative() + recomputed, "{stats:?}");
}

fn methods() -> impl Strategy<Value = Baseline> {
    let target = -2.5f64..2.5;
    let beta = prop_oneof![Just(0.7), 0.05f64..2.0];
    let rejection = (target.clone(), beta.clone(), 1usize..7)
        .prop_map(|(target_reward, beta, max_tries)| RejectionSampling { target_reward, beta, max_tries });
    let cards = (target, beta, 0.0f64..=1.0, 0.0f64..2.4, (1usize..6, 0usize..8), 0usize..5, any::<bool>()).prop_map(
        |(target_reward, beta, alpha, entropy_threshold, (min_segment, more), max_rejections, hard)| Cards {
            target_reward,
            alpha,
            beta,
            entropy_threshold,
            min_segment,
            max_segment: min_segment + more,
            max_rejections,
            acceptance: if hard { Acceptance::Hard } else { Acceptance::Soft },
        },
    );
    let speculative =
        (1usize..9, 0.05f64..0.95, prop::option::weighted(0.8, 0usize..60)).prop_map(|(n, alpha, room)| {
            // The longest prompt has 4 tokens.
            SpeculativeRejection { n, alpha, kv_budget: room.map(|room| 4 + n + room) }
        });
    let blocks = (1usize..5, 1usize..7);
    prop_oneof![
        rejection.prop_map(Baseline::RejectionSampling),
        cards.prop_map(Baseline::Cards),
        speculative.prop_map(Baseline::SpeculativeRejection),
        (1usize..6, -2.0f64..4.0).prop_map(|(k, weight)| Baseline::Args(Args { k, weight })),
        blocks.clone().prop_map(|(k, block)| Baseline::Blockwise(Blockwise { k, block })),
        (blocks, 1usize..4).prop_map(|((successors, chunk), width)| Baseline::Beam(Beam { width, successors, chunk })),
        (1usize..7, 0.05f64..2.0).prop_map(|(n, lambda)| Baseline::SoftBestOfN(SoftBestOfN { n, lambda })),
        (0.0f64..6.0).prop_map(|mu| Baseline::BestOfPoisson(BestOfPoisson { mu })),
    ]
}

prop_compose! {
    fn cases()(
        seed: u64,
        vocab in 2usize..12,
        missing in prop_oneof![9 => Just(0usize), 1 => 1usize..3],
        grid in prop_oneof![Just(4u64), Just(1 << 20)],
        prompt_len in 1usize..5,
        temperature in prop_oneof![1 => Just(0.0), 4 => 0.3f64..1.6],
        top_k in prop_oneof![Just(0usize), 1usize..5],
        penalty in prop_oneof![3 => Just(0.0), 1 => 0.1f64..1.0],
        max_new_tokens in 1usize..20,
        stop_ids in prop::collection::vec(0u32..24, 0..3),
        twins_stop in prop::bool::weighted(0.2),
        method in methods(),
    ) -> Case {
        let reward_vocab = vocab.saturating_sub(missing).max(1);
        let prompt = (0..prompt_len).map(|i| (hash(seed, &[i as u32], 3) % reward_vocab as u64) as u32).collect();
        Case {
            seed, vocab, reward_vocab, grid, prompt, temperature, top_k, penalty, max_new_tokens, stop_ids, twins_stop, method,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_method_follows_its_paper(case in cases()) {
        let _ = case.check();
    }
}

/// The property is worth something only if the random cases run into every corner.
#[test]
fn random_cases_reach_every_corner() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut runner = TestRunner::deterministic();
    for _ in 0..4000 {
        let case = cases().new_tree(&mut runner).unwrap().current();
        let name = case.method.name();
        let mut saw = |corner: &str| *seen.entry(format!("{name}: {corner}")).or_default() += 1;
        let Ok(Completions { all, best, search, .. }) = case.naive() else {
            saw("an id that cannot be read");
            continue;
        };
        let (counts, answer) = (search.unwrap(), &all[best]);
        saw(&format!("{:?}", answer.reason));
        if all.len() > 1 && best > 0 {
            saw("not the first");
        }
        if all.iter().enumerate().any(|(i, other)| i > best && other.reward == answer.reward) {
            saw("a tie");
        }
        match &case.method {
            Baseline::RejectionSampling(p) => {
                saw(if counts.rejected as usize == p.max_tries { "none accepted" } else { "accepted" });
            }
            Baseline::Cards(p) => {
                if counts.rejected > 0 && counts.rejected < counts.rounds * p.max_rejections as u64 {
                    saw("rejected and accepted");
                }
                if p.max_rejections > 0 && counts.rejected == counts.rounds * p.max_rejections as u64 {
                    saw("never accepted");
                }
                saw(if counts.rounds > 1 { "several segments" } else { "one segment" });
            }
            Baseline::SpeculativeRejection(p) => {
                saw(&format!("{} rankings", counts.rounds.min(3)));
                if counts.rounds > 0 && counts.rejected == 0 {
                    saw("nothing dropped");
                }
                if counts.rejected > 0 && all.len() + 1 < p.n {
                    saw("several dropped");
                }
            }
            _ => {
                if counts.rounds > 2 {
                    saw("several rounds");
                }
            }
        }
    }
    for name in Baseline::NAMES {
        for corner in ["Stop", "Length", "an id that cannot be read"] {
            // ARGS has no candidates that cannot be read, and id 0 is always one.
            let never = name == "args" && corner == "an id that cannot be read";
            let found = seen.contains_key(&format!("{name}: {corner}"));
            assert!(found != never, "{name}: {corner}: {found}; seen: {seen:#?}");
        }
    }
    for corner in [
        "args: several rounds",
        "beam: a tie",
        "beam: several rounds",
        "best-of-poisson: a tie",
        "best-of-poisson: not the first",
        "blockwise: several rounds",
        "cards: never accepted",
        "cards: one segment",
        "cards: rejected and accepted",
        "cards: several segments",
        "rejection-sampling: a tie",
        "rejection-sampling: accepted",
        "rejection-sampling: none accepted",
        "rejection-sampling: not the first",
        "soft-best-of-n: not the first",
        "speculative-rejection: 0 rankings",
        "speculative-rejection: 1 rankings",
        "speculative-rejection: 2 rankings",
        "speculative-rejection: 3 rankings",
        "speculative-rejection: nothing dropped",
        "speculative-rejection: several dropped",
    ] {
        assert!(seen.contains_key(corner), "never {corner}; seen: {seen:#?}");
    }
}

/// Collects the tokens that are shown.
#[derive(Default)]
struct Shown {
    ids: Vec<u32>,
    tokens: usize,
    /// How many were shown when half of the answer's tokens had been decoded.
    early: usize,
}

impl Observer for Shown {
    fn token(&mut self) {
        self.tokens += 1;
        self.early = self.ids.len();
    }
    fn completion_token(&mut self, completion: usize, token: &ggro::answer::TokenLogprob) -> ggro::Result<()> {
        assert_eq!(completion, 0);
        assert!(token.logprob <= 0.0 || token.logprob.is_nan());
        self.ids.push(token.id);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is shown is the answer, and is never taken back; to show it changes nothing.
    #[test]
    fn what_is_streamed_is_the_answer(case in cases(), width in 1usize..5) {
        if let Ok(expected) = case.naive() {
            let settings = Settings::single(SpeculationWidth::Fixed(width));
            let spec = CompletionSpec { stream_tokens: true, ..case.spec() };
            let mut backend = Scripted::new(&case.model(), case.longest());
            let mut shown = Shown::default();
            let (got, _) = search(&mut backend, &settings, &case.prompt, spec, &case.method, &mut shown).unwrap();
            prop_assert_eq!(&got, &expected);
            prop_assert_eq!(&shown.ids, &got.all[got.best].ids);
            prop_assert!(shown.tokens >= shown.ids.len());
            let commits = matches!(case.method, Baseline::Args(_) | Baseline::Blockwise(_));
            if commits && got.search.unwrap().rounds > 2 {
                prop_assert!(shown.early > 0, "tokens that were committed are shown at once");
            }
        }
    }
}
