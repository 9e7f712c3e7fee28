//! Prompts of the reward model in pieces: the bits of one piece, and room for others between them.

use ggro::answer::{Completions, Response, RewardReport};
use ggro::engine::{Event, RequestStats, Scheduler, Settings, SpeculationWidth, intervention, sampler, score};
use ggro::error::Limit;
use ggro::kv::BLOCK;
use ggro::method::Options;
use ggro::model::{ModelPair, Role, Work};
use ggro::rng::Uniforms;
use ggro::sampling::{CompletionSpec, Sampling};
use ggro::scoring::{RewardQuery, scorer};
use ggro::task::Request;
use ggro::{Error, Result};
use ggro_testkit::backend::{bits, text};
use ggro_testkit::fixtures::load;
use ggro_testkit::requests::requests;
use ggro_testkit::scripted::{FINISH, Model, Scripted, VOCAB};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::rc::Rc;

const LONGEST: usize = 2048;

/// Rewards are a hash of the ids, and no answer ends by itself.
fn model() -> Model {
    let hash = |ids: &[u32], salt: u64| {
        ids.iter().fold(salt, |hash, &id| {
            let z = (hash ^ u64::from(id)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z ^ (z >> 29)
        })
    };
    let number = move |ids: &[u32], salt: u64| ((hash(ids, salt) >> 20) % 4096) as f32 / 512.0;
    Model {
        policy_vocab: VOCAB,
        reward_vocab: VOCAB,
        logits: Rc::new(move |ids| {
            let last = &ids[ids.len() - 1..];
            let spread = if hash(ids, 7).is_multiple_of(5) { 0.25 } else { 4.0 };
            let logit = |v| if v == FINISH { -90.0 } else { spread * number(last, 2 + u64::from(v)) };
            (0..VOCAB as u32).map(logit).collect()
        }),
        reward: Rc::new(move |ids| number(ids, 1)),
        dot: Rc::new(move |ids, slot, v| number(ids, 3 + ((slot as u64) << 20) + u64::from(v)) - 4.0),
        same: Rc::new(|_, _| false),
    }
}

fn settings(batch_tokens: usize) -> Settings {
    Settings { batch_tokens, reward_batch_wait: Some(0), ..Settings::default() }
}

fn of(ids: &[u32]) -> RewardQuery {
    RewardQuery { ids: ids.to_vec(), ..RewardQuery::default() }
}

/// One sampled answer of so many tokens, scored or not.
fn answer(tokens: usize, n: usize, score: bool) -> CompletionSpec {
    let sampling = Sampling { temperature: if n > 1 { 1.0 } else { 0.0 }, seed: 5, ..Sampling::default() };
    CompletionSpec { sampling, n, score, max_new_tokens: tokens, ..CompletionSpec::default() }
}

/// What any request ends with.
#[derive(Debug, PartialEq)]
enum Output {
    Scored(RewardReport),
    Sampled(Completions),
    Guided(Box<Response>),
}

type AnyRequest = Box<dyn Request<Output = Output>>;

fn scored(backend: &ModelPair, query: RewardQuery) -> AnyRequest {
    Box::new(scorer(backend, query, None).unwrap().map(Output::Scored))
}

fn sampled(backend: &ModelPair, prompt: &[u32], spec: CompletionSpec) -> AnyRequest {
    Box::new(sampler(backend, prompt, spec).unwrap().map(Output::Sampled))
}

fn guided(backend: &ModelPair, prompt: &[u32], tokens: usize, offset: usize) -> AnyRequest {
    let options = Options {
        max_new_tokens: tokens,
        max_candidates: 4,
        top_k: 6,
        entropy_threshold: 2.0,
        first_offset: offset,
        ..Options::new(FINISH, vec![FINISH])
    };
    let request = intervention(backend, prompt, &options, Uniforms::Seeded(0)).unwrap();
    Box::new(request.map(|response| Output::Guided(Box::new(response))))
}

/// Steps until every request has ended; what became of each.
fn finish(scheduler: &mut Scheduler<Output>, backend: &mut ModelPair) -> BTreeMap<u64, (Result<Output>, RequestStats)> {
    let mut ended = BTreeMap::new();
    while scheduler.requests() > 0 {
        assert!(scheduler.step(backend), "stuck");
        for event in scheduler.events() {
            if let Event::Ended(id, outcome, stats) = event {
                assert!(ended.insert(id, (outcome, stats)).is_none());
            }
        }
    }
    ended
}

/// A request by itself, in one piece.
fn whole(model: &Model, request: impl Fn(&ModelPair) -> AnyRequest) -> Output {
    let mut backend = Scripted::new(model, LONGEST);
    let mut scheduler = Scheduler::new(Settings::single(SpeculationWidth::Off));
    scheduler.submit(request(&backend));
    finish(&mut scheduler, &mut backend).remove(&0).unwrap().0.unwrap()
}

fn free(backend: &ModelPair) -> [usize; 2] {
    [Role::Policy, Role::Reward].map(|role| backend.blocks_free(role))
}

fn all(work: Work) -> u64 {
    work.policy_forward + work.reward_forward + work.reward_backward
}

#[test]
fn pieces_give_the_bits_of_the_whole() {
    for (fixture, seed) in [("llama-gqa", 1), ("qwen3", 2), ("mistral", 3)] {
        let mut backend = load(fixture, None);
        let vocab = backend.config(Role::Reward).unwrap().vocab_size;
        let len = 230.min(backend.max_len());
        let ids = text(len, vocab, seed);
        let queries = [
            of(&ids),
            RewardQuery { every: true, ..of(&ids) },
            RewardQuery { gradient_from: Some(len - 20), ..of(&ids) },
            RewardQuery { scores: vec![(len - 9, vec![3, 5]), (len / 2, vec![8])], every: true, ..of(&ids) },
            RewardQuery { gradient_from: Some(0), ..of(&ids) },
        ];
        for query in queries {
            let before = backend.work();
            let single = Settings::single(SpeculationWidth::Off);
            let expected = score(&mut backend, &single, query.clone(), None).unwrap().0;
            let needed = backend.work() - before;
            for batch_tokens in [1, 7, 64, 100] {
                let before = backend.work();
                let settings = Settings { cached_prompts: 0, ..settings(batch_tokens) };
                let (found, stats) = score(&mut backend, &settings, query.clone(), None).unwrap();
                let numbers =
                    |report: &RewardReport| bits(&[&[report.reward], &report.every[..], &report.gradient].concat());
                assert_eq!(numbers(&found), numbers(&expected), "{fixture}, in pieces of {batch_tokens}");
                assert!(found == expected, "{fixture}, in pieces of {batch_tokens}");
                // No position twice.
                assert_eq!((backend.work() - before, stats.ran), (needed, needed));
            }
        }
    }
}

#[test]
fn answers_are_those_of_whole_prompts() {
    let mut backend = load("llama-gqa", None);
    let request = requests("llama-gqa").into_iter().max_by_key(|request| request.prompt.len()).unwrap();
    for n in [1, 3] {
        let run = |backend: &mut ModelPair, settings: &Settings| {
            ggro::engine::complete(backend, settings, &request.prompt, answer(12, n, true), &mut ()).unwrap().0
        };
        let expected = run(&mut backend, &Settings::single(SpeculationWidth::Off));
        for batch_tokens in [1, 5, 70] {
            assert_eq!(run(&mut backend, &settings(batch_tokens)), expected, "{n} in pieces of {batch_tokens}");
        }
    }
    let expected = request.alone(&mut backend);
    for (batch_tokens, speculation) in [1, 5, 70]
        .into_iter()
        .flat_map(|tokens| [(tokens, SpeculationWidth::Off), (tokens, SpeculationWidth::Fixed(6))])
    {
        let settings = Settings { speculation, ..settings(batch_tokens) };
        let outcome = ggro_testkit::requests::together(&mut backend, &settings, &[&request], &[0]);
        assert_eq!(outcome.responses[0], expected, "in pieces of {batch_tokens}");
        if speculation == SpeculationWidth::Off {
            assert_eq!(outcome.accounts[0].ran, outcome.accounts[0].necessary, "no position twice");
        }
    }
}

/// While a long text goes through the reward model, others decode, a token each step.
#[test]
fn others_decode_between_the_pieces() {
    let model = model();
    let ids = text(400, VOCAB, 3);
    let mut backend = Scripted::new(&model, LONGEST);
    let mut scheduler = Scheduler::new(settings(32));
    let long = scheduler.submit(scored(&backend, of(&ids)));
    let decoding = scheduler.submit(sampled(&backend, &ids[..5], answer(40, 1, false)));
    let (mut pieces, mut tokens) = (Vec::new(), 0);
    let mut ended = BTreeMap::new();
    while scheduler.requests() > 0 {
        let step = scheduler.plan(&mut backend);
        let of = |spans: &[ggro::engine::TaskSpan], id| -> usize {
            spans.iter().filter(|span| span.request() == id).map(|span| span.tokens()).sum()
        };
        let (piece, decoded) = (of(&step.reward, long), of(&step.policy, decoding));
        if piece > 0 {
            pieces.push(piece);
            assert!(decoded > 0, "nothing was decoded beside piece {}", pieces.len());
        }
        tokens += usize::from(decoded > 0);
        scheduler.run(&mut backend, step);
        for event in scheduler.events() {
            if let Event::Ended(id, outcome, _) = event {
                ended.insert(id, (outcome.unwrap(), tokens));
            }
        }
    }
    assert_eq!(pieces, [&[32; 12][..], &[16]].concat());
    assert_eq!(ended[&long].1, 13, "a step of the other in each of its steps");
    assert_eq!(ended[&decoding].1, 40);
    assert_eq!(ended[&long].0, whole(&model, |backend| scored(backend, of(&ids))));
    let reports = scheduler.stats();
    assert_eq!((reports.reward_batches, reports.reward_spans), (13, 13));
}

/// A segment that is short has its reward at once, however long the text is that an older request scores.
#[test]
fn a_short_text_does_not_wait_for_a_long_one() {
    let model = model();
    let (ids, other) = (text(1000, VOCAB, 4), text(40, VOCAB, 5));
    let mut backend = Scripted::new(&model, LONGEST);
    let mut scheduler = Scheduler::new(settings(100));
    let long = scheduler.submit(scored(&backend, of(&ids)));
    scheduler.step(&mut backend);
    let short = scheduler.submit(scored(&backend, of(&other)));
    // Its last span holds all of it, so that it is never cut, and rides along.
    let gradient = scheduler.submit(scored(&backend, RewardQuery { scores: vec![(0, vec![3])], ..of(&other[..30]) }));
    let step = scheduler.plan(&mut backend);
    let spans: Vec<_> = step.reward.iter().map(|span| (span.request(), span.tokens())).collect();
    assert_eq!(spans, [(long, 50), (short, 40), (gradient, 30)], "half of the room for what is behind it");
    scheduler.run(&mut backend, step);
    let ended = |scheduler: &mut Scheduler<Output>| {
        scheduler.events().into_iter().filter(|event| matches!(event, Event::Ended(..))).count()
    };
    assert_eq!(ended(&mut scheduler), 2);
    // Two texts of a kind: the older one first, the other one with half of the room.
    let same = scheduler.submit(scored(&backend, of(&text(1000, VOCAB, 6))));
    let step = scheduler.plan(&mut backend);
    let spans: Vec<_> = step.reward.iter().map(|span| (span.request(), span.tokens())).collect();
    assert_eq!(spans, [(long, 50), (same, 50)]);
    scheduler.run(&mut backend, step);
    finish(&mut scheduler, &mut backend);
}

/// A batch that is full does not wait for more, and one that is not does.
#[test]
fn full_batches_do_not_wait() {
    let model = model();
    let ids = text(70, VOCAB, 3);
    let mut backend = Scripted::new(&model, LONGEST);
    let mut scheduler = Scheduler::new(Settings { reward_batch_wait: Some(3), ..settings(32) });
    let long = scheduler.submit(scored(&backend, of(&ids)));
    scheduler.submit(sampled(&backend, &ids[..5], answer(40, 1, false)));
    let mut spans = Vec::new();
    while scheduler.requests() > 0 {
        let step = scheduler.plan(&mut backend);
        spans.push(step.reward.iter().filter(|span| span.request() == long).map(|span| span.tokens()).sum::<usize>());
        scheduler.run(&mut backend, step);
    }
    assert_eq!(spans[..7], [32, 32, 0, 0, 0, 6, 0]);
}

#[test]
fn a_request_that_is_cancelled_between_pieces_leaves_nothing_behind() {
    let model = model();
    let (ids, prompt) = (text(600, VOCAB, 3), text(300, VOCAB, 8));
    let best_of = |backend: &ModelPair| sampled(backend, &prompt, answer(20, 3, true));
    let expected = whole(&model, best_of);
    for steps in 1..12 {
        let mut backend = Scripted::new(&model, LONGEST);
        backend.limit(64);
        let before = free(&backend);
        let mut scheduler = Scheduler::new(Settings { cached_prompts: 0, ..settings(60) });
        let cancelled = scheduler.submit(scored(&backend, of(&ids)));
        for _ in 0..steps {
            scheduler.step(&mut backend);
        }
        let other = scheduler.submit(best_of(&backend));
        scheduler.step(&mut backend);
        if let Some(stats) = scheduler.cancel(&mut backend, cancelled) {
            assert!(
                stats.ran.reward_forward > 0 && stats.ran.reward_forward < 600 && stats.necessary == Work::default()
            );
            assert_eq!(stats.speculative(), stats.ran);
        }
        assert_eq!(finish(&mut scheduler, &mut backend).remove(&other).unwrap().0.unwrap(), expected);
        assert_eq!((free(&backend), backend.held()), (before, 0));
    }
}

#[test]
fn a_piece_that_fails_ends_its_request_alone() {
    let model = model();
    let (ids, prompt) = (text(300, VOCAB, 3), text(9, VOCAB, 8));
    let expected = whole(&model, |backend| sampled(backend, &prompt, answer(30, 1, false)));
    let whole = whole(&model, |backend| scored(backend, of(&ids)));
    // In each step the policy is called first, and the reward model second; a batch of one span is not tried again.
    for failing in 0..10 {
        let mut backend = Scripted::new(&model, LONGEST);
        backend.limit(64);
        let before = free(&backend);
        let mut scheduler = Scheduler::new(Settings { cached_prompts: 0, ..settings(30) });
        let long = scheduler.submit(scored(&backend, of(&ids)));
        let other = scheduler.submit(sampled(&backend, &prompt, answer(30, 1, false)));
        backend.fail_at(Some(2 * failing + 1));
        let mut ended = finish(&mut scheduler, &mut backend);
        let error = ended.remove(&long).unwrap().0.unwrap_err().to_string();
        assert!(error.contains("out of order"), "{error}");
        assert_eq!(ended.remove(&other).unwrap().0.unwrap(), expected);
        assert_eq!((free(&backend), backend.held()), (before, 0));
    }
    // Two texts in the batch: both are tried again, from where the batch began.
    let mut backend = Scripted::new(&model, LONGEST);
    let mut scheduler = Scheduler::new(Settings { cached_prompts: 0, ..settings(30) });
    let both = [0, 1].map(|_| scheduler.submit(scored(&backend, of(&ids))));
    backend.fail_at(Some(4));
    let mut ended = finish(&mut scheduler, &mut backend);
    for id in both {
        assert_eq!(ended.remove(&id).unwrap().0.unwrap(), whole);
    }
}

#[test]
fn blocks_are_taken_back_between_pieces() {
    let model = model();
    let (prompt, ids) = (text(5 * BLOCK, VOCAB, 2), text(9 * BLOCK, VOCAB, 3));
    // The older one scores its prompt once it has decoded: by then the younger one holds most of the blocks.
    let old = |backend: &ModelPair| sampled(backend, &prompt, answer(3, 1, true));
    let young = |backend: &ModelPair| scored(backend, of(&ids));
    let expected = [whole(&model, old), whole(&model, young)];
    let mut backend = Scripted::new(&model, LONGEST);
    backend.limit(10);
    let mut scheduler = Scheduler::new(Settings { cached_prompts: 0, ..settings(70) });
    let old = scheduler.submit(old(&backend));
    // Let in before the other one has its first block.
    let young = scheduler.submit(young(&backend));
    let mut ended = finish(&mut scheduler, &mut backend);
    let (response, stats) = ended.remove(&old).unwrap();
    assert_eq!(response.unwrap(), expected[0]);
    assert_eq!(stats.preemptions, 0);
    let (report, stats) = ended.remove(&young).unwrap();
    assert_eq!(report.unwrap(), expected[1]);
    assert!(stats.preemptions > 0 && stats.recomputed.reward_forward > 0, "{stats:?}");
    assert_eq!(stats.ran.reward_forward, 9 * BLOCK as u64 + stats.recomputed.reward_forward);
    assert_eq!((free(&backend), backend.held()), ([10, 10], 0));
}

#[test]
fn a_text_beyond_all_blocks_is_refused_before_its_first_piece() {
    let model = model();
    let ids = text(6 * BLOCK, VOCAB, 3);
    let mut backend = Scripted::new(&model, LONGEST);
    backend.limit(5);
    let mut scheduler = Scheduler::new(settings(50));
    let other = scheduler.submit(scored(&backend, of(&ids[..4 * BLOCK])));
    scheduler.step(&mut backend);
    let long = scheduler.submit(scored(&backend, of(&ids)));
    let mut ended = finish(&mut scheduler, &mut backend);
    let (refused, stats) = ended.remove(&long).unwrap();
    match refused.unwrap_err() {
        Error::TooLong { limit_of: Limit::Memory, found, limit, message } => {
            assert_eq!((found, limit), (6 * BLOCK, 5 * BLOCK));
            assert!(message.contains("needs 6 blocks of 64 tokens"), "{message}");
        }
        error => panic!("{error}"),
    }
    assert_eq!(stats, RequestStats::default());
    // The other one kept its blocks meanwhile.
    let (report, stats) = ended.remove(&other).unwrap();
    assert_eq!(report.unwrap(), whole(&model, |backend| scored(backend, of(&ids[..4 * BLOCK]))));
    assert_eq!((stats.ran.reward_forward, stats.preemptions), (4 * BLOCK as u64, 0));
}

/// Completions of one request that do not fit together are scored one after the other.
#[test]
fn completions_that_do_not_fit_together_wait_for_each_other() {
    let model = model();
    let prompt = text(2 * BLOCK + 3, VOCAB, 2);
    let request = |backend: &ModelPair| sampled(backend, &prompt, answer(2 * BLOCK, 3, true));
    let expected = whole(&model, request);
    for (blocks, batch_tokens) in [(6, 20), (6, 2048), (7, 100), (20, 20)] {
        let mut backend = Scripted::new(&model, LONGEST);
        backend.limit(blocks);
        let mut scheduler = Scheduler::new(Settings { cached_prompts: 0, ..settings(batch_tokens) });
        let id = scheduler.submit(request(&backend));
        let (response, _) = finish(&mut scheduler, &mut backend).remove(&id).unwrap();
        assert_eq!(response.unwrap(), expected, "{blocks} blocks, in pieces of {batch_tokens}");
        assert_eq!(free(&backend), [blocks, blocks]);
    }
}

#[test]
fn prompts_are_shared_in_whatever_pieces_they_were_run() {
    let model = model();
    let ids = text(5 * BLOCK + 10, VOCAB, 3);
    let (len, expected) = (ids.len() as u64, whole(&model, |backend| scored(backend, of(&ids))));
    for pause in 0..12 {
        let mut backend = Scripted::new(&model, LONGEST);
        let mut scheduler = Scheduler::new(settings(50));
        let first = scheduler.submit(scored(&backend, of(&ids)));
        let mut ended = BTreeMap::new();
        let mut ran = 0;
        for _ in 0..pause {
            let step = scheduler.plan(&mut backend);
            ran += step.reward.iter().map(|span| span.tokens() as u64).sum::<u64>();
            scheduler.run(&mut backend, step);
            for event in scheduler.events() {
                if let Event::Ended(id, outcome, stats) = event {
                    ended.insert(id, (outcome, stats));
                }
            }
        }
        let second = scheduler.submit(scored(&backend, of(&ids)));
        ended.append(&mut finish(&mut scheduler, &mut backend));
        // Beside the first one's last piece there is no room worth a piece: the second one waits, and has all of it.
        let had = if ran < BLOCK as u64 {
            0
        } else if ran < 300 {
            ran
        } else {
            len - 1
        };
        for (id, shared) in [(first, 0), (second, had)] {
            let (report, stats) = ended.remove(&id).unwrap();
            assert_eq!(report.unwrap(), expected, "after {pause} steps");
            assert_eq!((stats.shared.reward_forward, stats.ran.reward_forward), (shared, len - shared));
        }
        // The text is kept for the next request.
        let before = backend.work();
        scheduler.submit(scored(&backend, of(&ids)));
        assert_eq!(finish(&mut scheduler, &mut backend).len(), 1);
        assert_eq!((backend.work() - before).reward_forward, 1);
    }
}

/// Rewards of all beginnings are asked for in parts: none of them waits for a text of any length.
#[test]
fn all_beginnings_of_a_long_text() {
    let model = model();
    let ids = text(1300, VOCAB, 3);
    let query = RewardQuery { every: true, scores: vec![(1290, vec![4, 5]), (100, vec![6])], ..of(&ids) };
    let mut backend = Scripted::new(&model, LONGEST);
    let mut scheduler = Scheduler::new(settings(2048));
    let id = scheduler.submit(scored(&backend, query.clone()));
    let mut spans = Vec::new();
    let (outcome, stats) = loop {
        let step = scheduler.plan(&mut backend);
        spans.extend(step.reward.iter().map(|span| span.tokens()));
        scheduler.run(&mut backend, step);
        let ended = scheduler.events().into_iter().find_map(|event| match event {
            Event::Ended(found, outcome, stats) if found == id => Some((outcome, stats)),
            _ => None,
        });
        if let Some(ended) = ended {
            break ended;
        }
    };
    assert_eq!(spans, [512, 512, 276, 10, 1200]);
    let Output::Scored(report) = outcome.unwrap() else { panic!("another kind of output") };
    let expected: Vec<f32> = (1..=ids.len()).map(|len| (model.reward)(&ids[..len])).collect();
    assert_eq!(bits(&report.every), bits(&expected));
    assert_eq!((report.reward, report.work), (expected[1299], stats.necessary));
    let dots = [vec![(model.dot)(&ids, 1290, 4), (model.dot)(&ids, 1290, 5)], vec![(model.dot)(&ids, 100, 6)]];
    assert_eq!(report.scores, dots);
    assert_eq!(stats.ran, Work { reward_forward: 1300 + 10 + 1200, reward_backward: 10 + 1200, policy_forward: 0 });
    // The first number that is not finite is named.
    let at = 700;
    let broken = Model { reward: Rc::new(move |ids| if ids.len() > at { f32::NAN } else { 1.0 }), ..model };
    let mut backend = Scripted::new(&broken, LONGEST);
    let error = score(&mut backend, &settings(2048), query, None).unwrap_err();
    assert!(matches!(error, Error::NonFinite { position, .. } if position == at), "{error}");
}

#[derive(Clone, Debug)]
struct Arrival {
    turn: usize,
    kind: usize,
    len: usize,
    tokens: usize,
    at: usize,
    cancelled_after: Option<usize>,
}

impl Arrival {
    fn request(&self, backend: &ModelPair) -> AnyRequest {
        let ids: Vec<u32> = (0..self.len).map(|i| 2 + (i * (1 + self.len % 3) % 9) as u32).collect();
        let at = self.at % self.len;
        match self.kind {
            0 => scored(backend, of(&ids)),
            1 => scored(backend, RewardQuery { every: true, scores: vec![(at, vec![3])], ..of(&ids) }),
            2 => scored(backend, RewardQuery { scores: vec![(at, vec![4, 5]), (self.len - 1, vec![6])], ..of(&ids) }),
            3 | 4 => sampled(backend, &ids, answer(self.tokens, self.kind - 2, true)),
            _ => guided(backend, &ids, self.tokens, self.at % 6),
        }
    }
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let cancelled = prop::option::weighted(0.2, 0usize..40);
    let one = (0usize..30, 0usize..7, 1usize..200, 1usize..40, any::<prop::sample::Index>(), cancelled);
    let one = one.prop_map(|(turn, kind, len, tokens, at, cancelled_after)| Arrival {
        turn,
        kind,
        len,
        tokens,
        at: at.index(1000),
        cancelled_after,
    });
    prop::collection::vec(one, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Requests of every kind, few blocks, batches of any size: each ends as it does alone, in one piece.
    #[test]
    fn pieces_of_any_size_change_nothing(
        arrivals in arrivals(),
        spare in 0usize..10,
        batch_tokens in prop_oneof![1usize..12, 12usize..150],
        width in prop_oneof![Just(SpeculationWidth::Off), Just(SpeculationWidth::Auto), (1usize..9).prop_map(SpeculationWidth::Fixed)],
        reward_batch_wait in prop::option::of(0usize..4),
    ) {
        let model = model();
        let longest = arrivals.iter().map(|a| a.len + a.tokens).max().unwrap();
        let blocks = longest.div_ceil(BLOCK) + 1 + spare;
        let mut backend = Scripted::new(&model, LONGEST);
        backend.limit(blocks);
        let settings = Settings { speculation: width, batch_tokens, reward_batch_wait, cached_prompts: 2, ..Settings::default() };
        let mut scheduler = Scheduler::new(settings);
        let (mut ids, mut ended, mut accounts) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut turn = 0;
        while turn <= 30 || scheduler.requests() > 0 {
            for (index, arrival) in arrivals.iter().enumerate() {
                if arrival.turn == turn {
                    ids.insert(scheduler.submit(arrival.request(&backend)), index);
                }
                if arrival.cancelled_after.is_some_and(|after| arrival.turn + after + 1 == turn) {
                    let id = *ids.iter().find(|(_, i)| **i == index).unwrap().0;
                    if let Some(account) = scheduler.cancel(&mut backend, id) {
                        accounts.push(account);
                        prop_assert!(ended.insert(index, false).is_none());
                    }
                }
            }
            scheduler.step(&mut backend);
            turn += 1;
            prop_assert!(turn < 100_000, "no end");
            for event in scheduler.events() {
                let Event::Ended(id, outcome, account) = event else { continue };
                let index = ids[&id];
                prop_assert!(ended.insert(index, true).is_none(), "ended twice");
                let output = outcome.unwrap();
                prop_assert_eq!(&output, &whole(&model, |backend| arrivals[index].request(backend)));
                let RequestStats { ran, necessary, recomputed, shared, .. } = account;
                prop_assert!(all(ran) + all(shared) >= all(necessary) + all(recomputed), "{:?}", account);
                accounts.push(account);
            }
        }
        prop_assert_eq!(ended.len(), arrivals.len());
        scheduler.clear(&mut backend);
        prop_assert_eq!((backend.held(), free(&backend)), (0, [blocks, blocks]));
        let ran = accounts.iter().fold(Work::default(), |sum, account| sum + account.ran);
        prop_assert_eq!(ran, backend.work());
    }
}
