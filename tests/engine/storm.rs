//! The scheduler in bad weather: random arrivals and cancellations, few blocks, a backend that fails.

use ggro::answer::Response;
use ggro::engine::decode;
use ggro::engine::{Drafting, Event, Scheduler, Settings, SpeculationWidth, Submitter, intervention};
use ggro::kv::BLOCK;
use ggro::method::{Intervention, Options, PROPOSALS, Proposals};
use ggro::model::{ModelPair, Role, Work};
use ggro::rng::Uniforms;
use ggro_testkit::scripted::{FINISH, Model, Scripted, VOCAB};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::rc::Rc;

const LONGEST: usize = 256;

fn mix(ids: &[u32], salt: u64) -> u64 {
    ids.iter().fold(salt ^ 0x0051_7cc1_b727_220a, |hash, &id| {
        let z = (hash ^ u64::from(id)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 29)
    })
}

fn number(hash: u64) -> f32 {
    ((hash >> 20) % 4096) as f32 / 512.0
}

fn logits(seed: u64, ids: &[u32]) -> Vec<f32> {
    let sure = !mix(ids, seed).is_multiple_of(4);
    let logit = |v: u32| {
        let z = number(mix(ids, seed ^ (u64::from(v) << 32)));
        match v {
            FINISH => z - 3.0,
            _ if sure => 4.0 * z,
            _ => z * 0.25,
        }
    };
    (0..VOCAB as u32).map(logit).collect()
}

/// What really comes after `ids`, but for the token at one place, and but for what is forced at a slot; now and then
/// more ids than were asked for, or ids that do not exist.
fn guess(seed: u64, salt: u64, wrong: Option<usize>, ids: &[u32], most: usize) -> Vec<u32> {
    let dice = mix(ids, salt);
    let mut text = ids.to_vec();
    for place in 0..(most + (dice % 3) as usize).min(dice as usize >> 8 & 7) {
        let row = logits(seed, &text);
        let best = (0..VOCAB).fold(0, |best, v| if row[v] > row[best] { v } else { best }) as u32;
        text.push(match wrong {
            Some(at) if at == place && dice.is_multiple_of(5) => 1 << 20,
            Some(at) if at == place => (best + 1) % VOCAB as u32,
            _ => best,
        });
        if text.contains(&(1 << 20)) {
            break;
        }
    }
    text.split_off(ids.len())
}

/// Everything is a hash of the ids.
fn model(seed: u64) -> Model {
    Model {
        policy_vocab: VOCAB,
        reward_vocab: VOCAB,
        logits: Rc::new(move |ids| logits(seed, ids)),
        reward: Rc::new(move |ids| number(mix(ids, seed ^ 1))),
        dot: Rc::new(move |ids, slot, v| number(mix(ids, seed ^ ((slot as u64) << 40) ^ u64::from(v))) - 4.0),
        same: Rc::new(|_, _| false),
    }
}

#[derive(Clone, Debug, Default)]
struct Arrival {
    turn: usize,
    prompt: Vec<u32>,
    tokens: usize,
    candidates: usize,
    cancelled_after: Option<usize>,
    proposals: Proposals,
    logprob_weight: f64,
}

impl Arrival {
    fn options(&self) -> Options {
        Options {
            max_new_tokens: self.tokens,
            entropy_threshold: 2.0,
            max_candidates: self.candidates,
            top_k: 6,
            proposals: self.proposals,
            logprob_weight: self.logprob_weight,
            ..Options::new(FINISH, vec![FINISH])
        }
    }

    fn machine(&self, backend: &ModelPair) -> Box<Intervention> {
        Box::new(intervention(backend, &self.prompt, &self.options(), Uniforms::Seeded(3)).unwrap())
    }

    fn alone(&self, model: &Model) -> Response {
        let mut backend = Scripted::new(model, LONGEST);
        decode(&mut backend, &self.prompt, &self.options(), Uniforms::Seeded(3), &mut ()).unwrap()
    }
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let prompt = prop_oneof![
        prop::collection::vec(2u32..VOCAB as u32, 1..100),
        // The same long prompts again and again.
        (70usize..140).prop_map(|len| (0..len).map(|i| 2 + (i % 9) as u32).collect()),
    ];
    let way = (prop_oneof![3 => Just(0usize), 2 => 1..PROPOSALS.len()], prop_oneof![Just(0.0), Just(0.5)]);
    let one = (0usize..60, prompt, 1usize..60, 1usize..6, prop::option::weighted(0.25, 0usize..80), way);
    let one = one.prop_map(|(turn, prompt, tokens, candidates, cancelled_after, (way, logprob_weight))| Arrival {
        turn,
        prompt,
        tokens,
        candidates,
        cancelled_after,
        proposals: PROPOSALS[way],
        logprob_weight,
    });
    prop::collection::vec(one, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_once_and_every_block_comes_back(
        seed in 0u64..1000,
        arrivals in arrivals(),
        spare in 0usize..14,
        width in prop_oneof![Just(SpeculationWidth::Off), Just(SpeculationWidth::Auto), (1usize..12).prop_map(SpeculationWidth::Fixed)],
        run_ahead: bool,
        max_requests in 1usize..8,
        reward_batch_wait in prop::option::of(0usize..6),
        drafting in prop_oneof![Just(Drafting::Off), Just(Drafting::Ngram), Just(Drafting::Model)],
        drafter in prop::option::of((0u64..3, 0usize..9, prop::collection::btree_map(0usize..400, 0usize..3, 0..12))),
        row_cost in prop::option::of(0.0f64..1.0),
        span_rows in prop_oneof![Just(1usize), 2usize..5, Just(usize::MAX)],
        guesses in prop::option::of((any::<u64>(), prop::option::of(0usize..6))),
        batch_tokens in prop_oneof![Just(1usize), Just(17), Just(2048)],
        faults in prop_oneof![Just(BTreeMap::new()), prop::collection::btree_map(0usize..400, 0usize..3, 0..12)],
    ) {
        let model = model(seed);
        let longest = arrivals.iter().map(|a| a.prompt.len() + a.tokens).max().unwrap();
        let blocks = longest.div_ceil(BLOCK) + 1 + spare;
        let mut backend = Scripted::new(&model, LONGEST);
        backend.limit(blocks);
        backend.span_rows(span_rows);
        // A model that drafts: the same, or another one, with a few blocks of its own and days of its own.
        let mut drafter = drafter.map(|(other, blocks, days)| {
            let mut drafter = Scripted::new(&self::model(seed + other), LONGEST);
            drafter.limit(blocks);
            backend.draft_with(&mut drafter);
            (drafter, blocks, days)
        });
        let settings = Settings {
            speculation: width, run_ahead, max_requests, batch_tokens, cached_prompts: 3, reward_batch_wait, drafting,
            row_cost, draft_cost: Some(0.0),
        };
        let mut scheduler = Scheduler::new(settings);
        if let Some((salt, wrong)) = guesses {
            scheduler.guess_with(move |ids, most| guess(seed, salt, wrong, ids, most));
        }
        let (mut ids, mut ended) = (BTreeMap::new(), BTreeMap::new());
        let (mut turn, mut ran) = (0, Work::default());
        while turn <= 60 || scheduler.requests() > 0 {
            for (index, arrival) in arrivals.iter().enumerate() {
                if arrival.turn == turn {
                    // Who shares a place with whom, and who a prompt, is as mixed as the rest.
                    let submitter = Submitter {
                        group: (index % 3 > 0).then_some(index as u64 % 3),
                        cache_salt: index as u64 % 2,
                        whole_blocks: index % 5 == 0,
                        drafting: [None, None, Some(Drafting::Off), Some(Drafting::Ngram)][index % 4],
                    };
                    ids.insert(scheduler.submit_for(submitter, arrival.machine(&backend)), index);
                }
                if arrival.cancelled_after.is_some_and(|after| arrival.turn + after + 1 == turn) {
                    let id = *ids.iter().find(|(_, i)| **i == index).unwrap().0;
                    if let Some(stats) = scheduler.cancel(&mut backend, id) {
                        ran += stats.ran;
                        prop_assert!(ended.insert(index, false).is_none());
                    }
                }
            }
            // The turn's first, second or third call: rewards may have been run when gradients fail.
            backend.fail_at(faults.get(&turn).map(|nth| backend.calls() + nth));
            if let Some((drafter, _, days)) = &mut drafter {
                drafter.fail_at(days.get(&turn).map(|nth| drafter.calls() + nth));
            }
            scheduler.step(&mut backend);
            turn += 1;
            // Nobody starves: alone, each takes less than so many turns, cut prompts included.
            prop_assert!(turn < 60 + arrivals.len() * 2500, "no end");
            for event in scheduler.events() {
                let Event::Ended(id, outcome, account) = event else { continue };
                let index = ids[&id];
                prop_assert!(ended.insert(index, true).is_none(), "ended twice");
                ran += account.ran;
                match outcome {
                    Ok(response) => {
                        prop_assert_eq!(&response, &arrivals[index].alone(&model));
                        prop_assert_eq!(account.necessary, response.work);
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
        if let Some((drafter, blocks, _)) = &drafter {
            prop_assert_eq!(drafter.held(), 0, "sequences of the draft model");
            prop_assert_eq!(backend.draft.as_ref().map(|draft| draft.blocks_free()), Some(*blocks));
        }
        prop_assert_eq!(backend.blocks_free(Role::Policy), blocks);
        prop_assert_eq!(backend.blocks_free(Role::Reward), blocks);
    }
}

/// The property is worth something only if the weather is bad.
#[test]
fn the_weather_is_bad() {
    let model = model(5);
    let mut backend = Scripted::new(&model, LONGEST);
    backend.limit(12);
    let settings = Settings { speculation: SpeculationWidth::Fixed(12), cached_prompts: 3, ..Settings::default() };
    let mut scheduler = Scheduler::new(settings);
    let mut expected = BTreeMap::new();
    for n in 0..12usize {
        let prompt = (0..40 + 9 * n).map(|i| 2 + (i * (n + 1) % 9) as u32).collect();
        let arrival = Arrival { prompt, tokens: 60, candidates: 5, ..Arrival::default() };
        expected.insert(scheduler.submit(arrival.machine(&backend)), arrival.alone(&model));
    }
    while scheduler.step(&mut backend) {
        for event in scheduler.events() {
            if let Event::Ended(id, outcome, _) = event {
                let response = outcome.unwrap();
                assert_eq!(response, expected.remove(&id).unwrap());
            }
        }
    }
    assert!(expected.is_empty(), "{} never ended", expected.len());
    let totals = scheduler.stats();
    println!("{totals:?}");
    assert!(totals.preemptions > 3 && totals.given_up > 0, "{totals:?}");
    scheduler.clear(&mut backend);
    assert_eq!(backend.held(), 0);
}

/// Whenever the device is lost, every request in flight ends with its words, and nothing is left behind.
#[test]
fn a_lost_device_ends_every_request() {
    let model = model(9);
    let arrival = |n: usize| Arrival {
        prompt: (0..20 + 30 * n).map(|i| 2 + (i * (n + 1) % 9) as u32).collect(),
        tokens: 40,
        candidates: 4,
        ..Arrival::default()
    };
    for (dead_from, blocks) in (0..150).flat_map(|n| [(n, 5), (n, 40)]) {
        let mut backend = Scripted::new(&model, LONGEST);
        backend.limit(blocks);
        backend.dead_from(dead_from);
        let mut scheduler = Scheduler::new(Settings { speculation: SpeculationWidth::Fixed(5), ..Settings::default() });
        for n in 0..4 {
            scheduler.submit(arrival(n).machine(&backend));
        }
        let (mut ended, mut failed) = (0, 0);
        while scheduler.requests() > 0 {
            scheduler.step(&mut backend);
            for event in scheduler.events() {
                let Event::Ended(_, outcome, _) = event else { continue };
                ended += 1;
                failed += usize::from(outcome.is_err_and(|error| error.to_string().contains("out of order")));
            }
        }
        assert_eq!(ended, 4, "dead from {dead_from}");
        assert!(failed > 0 || backend.calls() <= dead_from);
        scheduler.clear(&mut backend);
        assert_eq!(backend.held(), 0);
    }
}

/// A row that is needed is in every turn, also behind an older request whose long prompt fills the batch piece by piece.
#[test]
fn no_one_waits_for_an_older_prompt() {
    let model = model(4);
    let arrival = |len: u32, tokens: usize| Arrival {
        prompt: (0..len).map(|i| 2 + i % 9).collect(),
        tokens,
        candidates: 1,
        ..Arrival::default()
    };
    let mut backend = Scripted::new(&model, LONGEST);
    let settings = Settings { batch_tokens: 8, reward_batch_wait: Some(0), ..Settings::default() };
    let mut scheduler = Scheduler::new(settings);
    let old = scheduler.submit(arrival(200, 4).machine(&backend));
    let young = scheduler.submit(arrival(2, 6).machine(&backend));
    let mut turns = 0;
    let mut ended = Vec::new();
    while scheduler.requests() > 0 {
        let turn = scheduler.plan(&mut backend);
        assert!(turn.policy.iter().map(|span| span.tokens()).sum::<usize>() <= 8);
        scheduler.run(&mut backend, turn);
        turns += 1;
        ended.extend(scheduler.events().into_iter().filter_map(|event| match event {
            Event::Ended(id, ..) => Some((id, turns)),
            Event::Started(_) | Event::Progress(..) => None,
        }));
    }
    assert_eq!((ended[0].0, ended[1].0), (young, old));
    // Two turns for its prompt, one a token, and a reward pass for each segment.
    assert!(ended[0].1 <= 16, "the younger one ended after {} turns", ended[0].1);
}

/// However many requests one client's request makes, another one gets in, and its share of every step.
#[test]
fn a_group_of_requests_takes_turns_with_others() {
    let model = model(3);
    let arrival = |len: u32, tokens: usize| Arrival {
        prompt: (0..len).map(|i| 2 + i % 9).collect(),
        tokens,
        candidates: 1,
        ..Arrival::default()
    };
    let mut backend = Scripted::new(&model, LONGEST);
    let settings = Settings {
        batch_tokens: 8,
        reward_batch_wait: Some(0),
        max_requests: 8,
        cached_prompts: 0,
        ..Settings::default()
    };
    let mut scheduler = Scheduler::new(settings);
    for salt in 0..20 {
        let group = Submitter { group: Some(1), cache_salt: salt, whole_blocks: false, drafting: None };
        scheduler.submit_for(group, arrival(200, 30).machine(&backend));
    }
    for _ in 0..3 {
        scheduler.step(&mut backend);
    }
    assert_eq!(scheduler.running(), 6, "the last quarter of the places is left free");
    let small = scheduler.submit(arrival(4, 3).machine(&backend));
    let mut steps = 0;
    while !scheduler.events().iter().any(|event| matches!(event, Event::Ended(id, ..) if *id == small)) {
        scheduler.step(&mut backend);
        steps += 1;
        // Its prompt, three tokens, and a reward pass for each segment.
        assert!(steps <= 12, "{steps} steps for three tokens");
    }
    while scheduler.step(&mut backend) {}
    assert_eq!(scheduler.requests(), 0);
}
