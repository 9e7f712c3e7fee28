//! All methods beside each other, with GGRO and plain sampling, in bad weather: the same answers as alone.

use super::{Case, accounts, cases, random_model};
use ggro::answer::{Completions, Response};
use ggro::engine::{
    Drafting, Event, Request as _, Scheduler, Settings, SpeculationWidth, baseline, complete, decode, intervention,
    sampler,
};
use ggro::kv::BLOCK;
use ggro::method::Options;
use ggro::model::{ModelPair, Role, Work};
use ggro::rng::Uniforms;
use ggro::sampling::CompletionSpec;
use ggro_testkit::scripted::Scripted;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What one of the requests ends with.
#[derive(Debug, PartialEq)]
enum Output {
    Searched(Completions),
    Sampled(Completions),
    Guided(Box<Response>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Search,
    Sample,
    Guide,
}

#[derive(Clone, Debug)]
struct Arrival {
    kind: Kind,
    turn: usize,
    case: Case,
    cancelled_after: Option<usize>,
}

const VOCAB: usize = 9;

impl Arrival {
    fn options(&self) -> Options {
        Options {
            max_new_tokens: self.case.max_new_tokens,
            entropy_threshold: 1.0,
            top_k: 4,
            ..Options::new(0, vec![0])
        }
    }

    fn sampled(&self) -> CompletionSpec {
        CompletionSpec { n: 3, score: true, ..self.case.spec() }
    }

    fn submit(&self, backend: &ModelPair, scheduler: &mut Scheduler<Output>) -> u64 {
        let Case { prompt, method, .. } = &self.case;
        scheduler.submit(match self.kind {
            Kind::Search => {
                Box::new(baseline(backend, prompt, self.case.spec(), method).unwrap().map(Output::Searched))
            }
            Kind::Sample => Box::new(sampler(backend, prompt, self.sampled()).unwrap().map(Output::Sampled)),
            Kind::Guide => {
                let request = intervention(backend, prompt, &self.options(), Uniforms::Seeded(0)).unwrap();
                Box::new(request.map(|response| Output::Guided(Box::new(response))))
            }
        })
    }

    fn alone(&self) -> Output {
        let (prompt, settings) = (&self.case.prompt, Settings::single(SpeculationWidth::Off));
        let mut backend = Scripted::new(&self.case.model(), self.case.longest());
        match self.kind {
            Kind::Search => Output::Searched(self.case.naive().unwrap()),
            Kind::Sample => {
                Output::Sampled(complete(&mut backend, &settings, prompt, self.sampled(), &mut ()).unwrap().0)
            }
            Kind::Guide => {
                let response = decode(&mut backend, prompt, &self.options(), Uniforms::Seeded(0), &mut ());
                Output::Guided(Box::new(response.unwrap()))
            }
        }
    }
}

impl Output {
    fn work(&self) -> Work {
        match self {
            Output::Searched(completions) | Output::Sampled(completions) => completions.work,
            Output::Guided(response) => response.work,
        }
    }
}

/// Requests on one pair, whose prompts are as long as several blocks, and often alike.
fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let kind = prop_oneof![6 => Just(Kind::Search), 1 => Just(Kind::Sample), 1 => Just(Kind::Guide)];
    let prompt = (1usize..150, prop_oneof![Just(1usize), 1usize..6]);
    let one = (kind, 0usize..40, cases(), prompt, 1usize..70, prop::option::weighted(0.15, 0usize..60));
    let one = one.prop_map(|(kind, turn, case, (len, step), max_new_tokens, cancelled_after)| {
        let prompt = (0..len).map(|i| (i * step % VOCAB) as u32).collect();
        let mut case = Case { vocab: VOCAB, reward_vocab: VOCAB, prompt, max_new_tokens, ..case };
        if let super::Baseline::SpeculativeRejection(parameters) = &mut case.method {
            parameters.kv_budget = parameters.kv_budget.map(|room| len + room);
        }
        Arrival { kind, turn, case, cancelled_after }
    });
    prop::collection::vec(one, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn company_changes_nothing(
        seed in 0u64..1000,
        grid in prop_oneof![Just(4u64), Just(1 << 20)],
        mut arrivals in arrivals(),
        spare in 0usize..14,
        width in prop_oneof![Just(SpeculationWidth::Off), Just(SpeculationWidth::Auto), (1usize..12).prop_map(SpeculationWidth::Fixed)],
        max_requests in 1usize..8,
        reward_batch_wait in prop::option::of(0usize..6),
        batch_tokens in prop_oneof![Just(1usize), Just(17), Just(2048)],
        drafting in prop_oneof![2 => Just(Drafting::Ngram), 1 => Just(Drafting::Model)],
        drafter in prop::option::of(0u64..2),
        faults in prop_oneof![3 => Just(BTreeMap::new()), 1 => prop::collection::btree_map(0usize..400, 0usize..3, 0..8)],
    ) {
        for arrival in &mut arrivals {
            // One pair of models for all of them; seeds of the draws stay different only by the model's.
            (arrival.case.seed, arrival.case.grid) = (seed, grid);
        }
        let longest = arrivals.iter().map(|arrival| arrival.case.longest()).max().unwrap();
        let mut backend = Scripted::new(&random_model(seed, VOCAB, VOCAB, grid), longest);
        let blocks = longest.div_ceil(BLOCK) + 1 + spare;
        backend.limit(blocks);
        if let Some(other) = drafter {
            let mut drafter = Scripted::new(&random_model(seed + other, VOCAB, VOCAB, grid), longest);
            backend.draft_with(&mut drafter);
        }
        let settings = Settings {
            speculation: width, run_ahead: true, max_requests, batch_tokens, cached_prompts: 3, reward_batch_wait,
            drafting, row_cost: None, draft_cost: Some(0.0),
        };
        let mut scheduler = Scheduler::new(settings);
        let (mut numbers, mut ended) = (BTreeMap::new(), BTreeMap::new());
        let mut ran = Work::default();
        let mut turn = 0;
        while turn <= 40 || scheduler.requests() > 0 {
            for (index, arrival) in arrivals.iter().enumerate() {
                if arrival.turn == turn {
                    numbers.insert(arrival.submit(&backend, &mut scheduler), index);
                }
                if arrival.cancelled_after.is_some_and(|after| arrival.turn + after + 1 == turn) {
                    let id = *numbers.iter().find(|(_, number)| **number == index).unwrap().0;
                    if let Some(stats) = scheduler.cancel(&mut backend, id) {
                        ran += stats.ran;
                        prop_assert!(ended.insert(index, ()).is_none());
                    }
                }
            }
            backend.fail_at(faults.get(&turn).map(|nth| backend.calls() + nth));
            scheduler.step(&mut backend);
            turn += 1;
            prop_assert!(turn < 400_000, "no end");
            for event in scheduler.events() {
                let Event::Ended(id, outcome, stats) = event else { continue };
                let index = numbers[&id];
                prop_assert!(ended.insert(index, ()).is_none(), "ended twice");
                ran += stats.ran;
                match outcome {
                    Ok(got) => {
                        prop_assert_eq!(stats.necessary, got.work());
                        prop_assert_eq!(&got, &arrivals[index].alone());
                        accounts(&stats);
                    }
                    Err(error) => {
                        prop_assert!(!faults.is_empty() && error.to_string().contains("out of order"), "{}", error);
                    }
                }
            }
        }
        prop_assert_eq!(ended.len(), arrivals.len());
        if faults.is_empty() {
            prop_assert_eq!(ran, backend.work(), "what the accounts say was run");
        }
        scheduler.clear(&mut backend);
        prop_assert_eq!(backend.held(), 0);
        prop_assert_eq!(backend.blocks_free(Role::Policy), blocks);
        prop_assert_eq!(backend.blocks_free(Role::Reward), blocks);
    }
}

/// The property is worth something only if the weather is bad, and speculation worth something only if it is used.
#[test]
fn the_weather_is_bad() {
    use super::{Baseline, Beam, Blockwise, Cards, RejectionSampling, SpeculativeRejection};
    let methods = [
        Baseline::RejectionSampling(RejectionSampling { max_tries: 6, ..RejectionSampling::new(2.5) }),
        Baseline::Cards(Cards { entropy_threshold: 1.5, max_rejections: 5, ..Cards::new(2.5) }),
        Baseline::SpeculativeRejection(SpeculativeRejection { n: 8, ..SpeculativeRejection::default() }),
        Baseline::Blockwise(Blockwise { k: 4, block: 8 }),
        Baseline::Beam(Beam { width: 2, successors: 2, chunk: 8 }),
    ];
    let arrival = |index: usize| Arrival {
        kind: Kind::Search,
        turn: 0,
        case: Case {
            seed: 5,
            vocab: VOCAB,
            reward_vocab: VOCAB,
            grid: 1 << 20,
            prompt: (0..60 + 9 * index).map(|i| (i * (index + 1) % VOCAB) as u32).collect(),
            temperature: 1.0,
            top_k: 0,
            penalty: 0.0,
            max_new_tokens: 60,
            stop_ids: Vec::new(),
            twins_stop: false,
            method: methods[index % methods.len()].clone(),
        },
        cancelled_after: None,
    };
    let mut backend = Scripted::new(&random_model(5, VOCAB, VOCAB, 1 << 20), 256);
    backend.limit(14);
    let settings = Settings { speculation: SpeculationWidth::Fixed(4), cached_prompts: 3, ..Settings::default() };
    let mut scheduler = Scheduler::new(settings);
    let mut expected = BTreeMap::new();
    for index in 0..10 {
        let arrival = arrival(index);
        expected.insert(arrival.submit(&backend, &mut scheduler), arrival.alone());
    }
    let mut ahead = 0;
    while scheduler.step(&mut backend) {
        for event in scheduler.events() {
            if let Event::Ended(id, outcome, stats) = event {
                assert_eq!(outcome.unwrap(), expected.remove(&id).unwrap());
                ahead += stats.speculative().policy_forward;
            }
        }
    }
    assert!(expected.is_empty(), "{} never ended", expected.len());
    let totals = scheduler.stats();
    println!("{totals:?}, {ahead} tokens ahead of need");
    assert!(totals.preemptions > 3 && totals.given_up > 0 && ahead > 0, "{totals:?}");
    scheduler.clear(&mut backend);
    assert_eq!(backend.held(), 0);
}
