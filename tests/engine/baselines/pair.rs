//! The methods on the demo pair: what the papers say, with every row and reward computed from scratch.

use super::naive::Naive;
use super::{Acceptance, Args, Baseline, Beam, BestOfPoisson, Blockwise, Cards, RejectionSampling};
use super::{SoftBestOfN, SpeculativeRejection, accounts};
use ggro::engine::{Engine, Settings, SpeculationWidth, search};
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::method::Options;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{ModelPair, PolicySpan, RewardSpan, Role, Span, TopK, Work};
use ggro::sampling::{CompletionSpec, Sampling};
use ggro::text::Prompt;
use std::cell::RefCell;
use std::sync::Arc;

const TOKENS: usize = 24;

/// One of each method, of which those with segments take several within the budget.
fn methods() -> Vec<Baseline> {
    vec![
        Baseline::RejectionSampling(RejectionSampling { max_tries: 4, ..RejectionSampling::new(3.0) }),
        Baseline::Cards(Cards { entropy_threshold: 1.5, max_rejections: 4, ..Cards::new(3.0) }),
        Baseline::Cards(Cards {
            entropy_threshold: 1.5,
            max_rejections: 3,
            max_segment: 8,
            acceptance: Acceptance::Hard,
            ..Cards::new(3.0)
        }),
        Baseline::SpeculativeRejection(SpeculativeRejection { n: 6, ..SpeculativeRejection::default() }),
        Baseline::Args(Args { k: 4, weight: 1.5 }),
        Baseline::Blockwise(Blockwise { k: 3, block: 8 }),
        Baseline::Beam(Beam { width: 2, successors: 2, chunk: 8 }),
        Baseline::SoftBestOfN(SoftBestOfN { n: 4, lambda: 1.0 }),
        Baseline::BestOfPoisson(BestOfPoisson { mu: 3.0 }),
    ]
}

fn spec(pair: &Pair, seed: u64) -> CompletionSpec {
    CompletionSpec {
        sampling: Sampling { temperature: 0.8, top_k: 40, seed, ..Sampling::default() },
        max_new_tokens: TOKENS,
        stop_ids: Options::for_pair(pair).unwrap().stop_ids,
        ..CompletionSpec::default()
    }
}

fn row(backend: &mut ModelPair, ids: &[u32]) -> Vec<f32> {
    let seq = backend.create(Role::Policy).unwrap();
    let span = PolicySpan { span: Span { seq, start: 0, ids }, floor: 0.0, top_k: TopK::Skip, before: &[] };
    backend.policy_step(&[span]).unwrap();
    let row = backend.logits_row(seq).unwrap();
    backend.release(seq);
    row
}

fn reward(backend: &mut ModelPair, ids: &[u32]) -> f32 {
    let seq = backend.create(Role::Reward).unwrap();
    let span = RewardSpan { span: Span { seq, start: 0, ids }, also_at: &[] };
    let reward = backend.reward_score(&[span]).unwrap()[0].reward;
    backend.release(seq);
    reward
}

#[test]
fn the_demo_pair_answers_as_the_papers_say() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let scratch = RefCell::new(cpu::open(pair.parts(), &LoadOptions::default()).unwrap());
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let reward_vocab = backend.config(Role::Reward).unwrap().vocab_size;
    for text in demo::prompts().iter().take(2) {
        let prompt = Prompt::of_message(&pair, text).unwrap().ids;
        for seed in [0, 1] {
            let spec = spec(&pair, seed);
            let mut naive = Naive {
                logits: Box::new(|ids| row(&mut scratch.borrow_mut(), ids)),
                reward: Box::new(|ids| reward(&mut scratch.borrow_mut(), ids)),
                prompt: &prompt,
                spec: &spec,
                twins_stop: false,
                reward_vocab,
                work: Work::default(),
            };
            for method in methods() {
                let expected = naive.answer(&method).unwrap();
                let settings = Settings::single(SpeculationWidth::Off);
                let before = backend.work();
                let found = search(&mut backend, &settings, &prompt, spec.clone(), &method, &mut ());
                let (got, stats) = found.unwrap();
                assert_eq!(got, expected, "{}", method.name());
                assert_eq!(backend.work() - before, got.work, "{}", method.name());
                accounts(&stats);
            }
        }
    }
}

/// Together in one engine, on several threads and beside GGRO: the same as alone.
#[test]
fn an_engine_answers_all_of_them_together() {
    let pair = Arc::new(Pair::load(&demo::policy(), &demo::reward()).unwrap());
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let prompt = Prompt::of_message(&pair, &demo::prompts()[0]).unwrap().ids;
    let options = Options {
        max_new_tokens: TOKENS,
        entropy_threshold: demo::ENTROPY_THRESHOLD,
        ..Options::for_pair(&pair).unwrap()
    };
    let opened = pair.clone();
    let engine =
        Engine::start(Settings::default(), move || cpu::open(opened.parts(), &LoadOptions::default())).unwrap();
    let guided = engine.generate(&prompt, &options).unwrap();
    let tickets: Vec<_> =
        methods().iter().map(|method| engine.search(&prompt, spec(&pair, 3), method).unwrap()).collect();
    for (ticket, method) in tickets.into_iter().zip(methods()) {
        let (got, stats) = ticket.wait().unwrap();
        let settings = Settings::single(SpeculationWidth::Fixed(4));
        let (alone, _) = search(&mut backend, &settings, &prompt, spec(&pair, 3), &method, &mut ()).unwrap();
        assert_eq!(got, alone, "{}", method.name());
        assert_eq!(stats.necessary, got.work);
        accounts(&stats);
    }
    guided.wait().unwrap();
}
