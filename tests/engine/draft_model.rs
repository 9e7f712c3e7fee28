//! A small model that drafts: whatever it guesses, and however often it fails, answers are those of plain decoding.

use crate::drafts::same;
use ggro::Error;
use ggro::answer::{Completions, Response};
use ggro::engine::{
    DraftStats, Drafting, Event, Scheduler, Settings, SpeculationWidth, Submitter, complete, intervention, sampler,
};
use ggro::files::config::ModelConfig;
use ggro::files::demo;
use ggro::files::pair::{Pair, Parts};
use ggro::kv::BLOCK;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{Logits, Model, ModelPair, PolicyRow, PolicySpan, SeqId, Work};
use ggro::sampling::{CompletionSpec, Sampling};
use ggro_testkit::fixtures::{load, parts};
use ggro_testkit::requests::{Request, requests, together};
use std::cell::Cell;
use std::rc::Rc;

fn settings(speculation: SpeculationWidth) -> Settings {
    let free = Some(0.0);
    Settings { speculation, drafting: Drafting::Model, row_cost: free, draft_cost: free, ..Settings::default() }
}

/// A fixture with the policy of another one, or its own, as the model that drafts.
fn with_draft(name: &str, draft: &str, kv_blocks: Option<usize>) -> ModelPair {
    let ([policy, reward], [draft, _]) = (parts(name), parts(draft));
    let all =
        Parts { draft: Some((&draft.0, &draft.1)), ..Parts::both((&policy.0, &policy.1), (&reward.0, &reward.1)) };
    cpu::open(all, &LoadOptions { kv_blocks, ..LoadOptions::default() }).unwrap()
}

/// What is free of the draft model's blocks, and what it holds.
fn blocks(backend: &ModelPair) -> [usize; 2] {
    let draft = backend.draft.as_ref().unwrap();
    [draft.blocks_free(), draft.blocks_in_use()]
}

fn fixture(name: &str) {
    let requests = requests(name);
    let all: Vec<&Request> = requests.iter().collect();
    let mut plain = load(name, None);
    let expected: Vec<Response> = requests.iter().map(|request| request.alone(&mut plain)).collect();
    let arrivals: Vec<usize> = (0..all.len()).map(|n| n * 7 % 30).collect();
    let longest = requests.iter().map(|r| r.prompt.len() + r.options.max_new_tokens).max().unwrap();
    let least = longest.div_ceil(BLOCK) + 1;
    // Most of them know all ids; that of qwen3 does not.
    let other = match name {
        "qwen2" | "qwen2-sharded" | "mistral" => "llama-gqa",
        "llama-gqa" | "llama-twins" | "llama-mha-tied" => "qwen2",
        _ => "llama-mha-tied",
    };
    let (mut right, mut wrong, mut preemptions) = (DraftStats::default(), DraftStats::default(), 0);
    for width in [SpeculationWidth::Off, SpeculationWidth::Fixed(25)] {
        let before = together(&mut plain, &Settings { drafting: Drafting::Off, ..settings(width) }, &all, &arrivals);
        for (draft, few) in [(name, None), (name, Some(least + 3)), (other, None), (other, Some(least))] {
            let mut backend = with_draft(name, draft, few);
            let free = blocks(&backend);
            let found = together(&mut backend, &settings(width), &all, &arrivals);
            let how = format!("with {draft} drafting, {width:?}, {few:?} blocks");
            same(&found, &expected, &requests, &how);
            assert_eq!(blocks(&backend), free, "{name} {how}: blocks left behind");
            let sum: u64 = found.accounts.iter().map(|account| account.drafts.drafted()).sum();
            assert_eq!(sum, found.totals.drafts.drafted());
            let tokens = found.totals.draft_work.tokens;
            assert_eq!(tokens, backend.draft.as_ref().unwrap().work().policy_forward, "{name} {how}");
            preemptions += found.totals.preemptions;
            if draft == name {
                right += found.totals.drafts;
            } else {
                wrong += found.totals.drafts;
            }
            if few.is_none() && draft == name {
                assert!(found.totals.drafts.model.accepted > 0, "{name} {how}: {:?}", found.totals);
                assert!(found.totals.policy_batches < before.totals.policy_batches, "{name} {how}");
            }
        }
    }
    println!("{name}: itself {right:?}, another {wrong:?}, {preemptions} preemptions");
    assert!(preemptions > 0, "{name}: nobody was preempted");
    assert!(wrong.model.drafted < right.model.drafted, "{name}: {wrong:?}");
}

ggro_testkit::each_fixture!(fixture);

/// How a draft model fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Every pass.
    Always,
    /// Every pass of this number's multiples.
    Every(usize),
    /// Its logits are not finite.
    NotFinite,
    /// It has no sequences.
    NoSequences,
    /// Ids beyond every vocabulary.
    Beyond,
}

/// A draft model that fails.
struct Faulty {
    inner: Box<dyn Model>,
    fault: Fault,
    calls: Rc<Cell<usize>>,
}

fn broken<T>() -> ggro::Result<T> {
    Err(Error::Backend("out of order".to_string()))
}

impl Model for Faulty {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }
    fn max_len(&self) -> usize {
        self.inner.max_len()
    }
    fn create(&mut self) -> ggro::Result<SeqId> {
        if self.fault == Fault::NoSequences { broken() } else { self.inner.create() }
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> ggro::Result<SeqId> {
        if self.fault == Fault::Every(3) { broken() } else { self.inner.fork(seq, len) }
    }
    fn truncate(&mut self, seq: SeqId, len: usize) -> ggro::Result<()> {
        self.inner.truncate(seq, len)
    }
    fn release(&mut self, seq: SeqId) {
        self.inner.release(seq);
    }
    fn len(&self, seq: SeqId) -> usize {
        self.inner.len(seq)
    }
    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        ids_below: usize,
        meanwhile: &mut dyn FnMut(),
    ) -> ggro::Result<Vec<PolicyRow>> {
        self.calls.set(self.calls.get() + 1);
        let mut rows = self.inner.step(spans, ids_below, meanwhile)?;
        match self.fault {
            Fault::Always => return broken(),
            Fault::Every(nth) if self.calls.get().is_multiple_of(nth) => return broken(),
            Fault::NotFinite => rows.iter_mut().for_each(|row| row.stats.finite = false),
            Fault::Beyond => rows.iter_mut().for_each(|row| row.stats.argmax = u32::MAX),
            _ => {}
        }
        Ok(rows)
    }
    fn logits(&mut self, _: SeqId, _: Logits<'_>) -> ggro::Result<Vec<f32>> {
        broken()
    }
    fn same_embedding(&self, _: u32, _: u32) -> bool {
        false
    }
    fn work(&self) -> Work {
        self.inner.work()
    }
    fn blocks_free(&self) -> usize {
        self.inner.blocks_free()
    }
    fn blocks_in_use(&self) -> usize {
        self.inner.blocks_in_use()
    }
    fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        self.inner.blocks_needed(seq, count)
    }
}

#[test]
fn a_draft_model_that_fails_fails_no_request() {
    let requests = requests("llama-gqa");
    let all: Vec<&Request> = requests.iter().collect();
    let mut plain = load("llama-gqa", None);
    let expected: Vec<Response> = requests.iter().map(|request| request.alone(&mut plain)).collect();
    let arrivals: Vec<usize> = (0..all.len()).map(|n| n * 5 % 17).collect();
    for fault in [Fault::Always, Fault::Every(2), Fault::Every(3), Fault::NotFinite, Fault::NoSequences, Fault::Beyond]
    {
        let mut backend = with_draft("llama-gqa", "llama-gqa", None);
        let calls = Rc::new(Cell::new(0));
        let inner = backend.draft.take().unwrap();
        backend.draft = Some(Box::new(Faulty { inner, fault, calls: calls.clone() }));
        let free = blocks(&backend);
        let found = together(&mut backend, &settings(SpeculationWidth::Fixed(3)), &all, &arrivals);
        same(&found, &expected, &requests, &format!("{fault:?}"));
        assert_eq!(blocks(&backend), free, "{fault:?}");
        let drafts = found.totals.drafts.model;
        match fault {
            Fault::Always => {
                assert_eq!(drafts.drafted, 0);
                // It is asked less and less often.
                assert!((1..=12).contains(&calls.get()), "{} calls", calls.get());
            }
            Fault::NotFinite | Fault::NoSequences | Fault::Beyond => assert_eq!(drafts.drafted, 0, "{fault:?}"),
            Fault::Every(_) => {}
        }
    }
}

/// A request that is cancelled, waiting or running, gives the draft model's blocks back; each request says whether it is
/// drafted for.
#[test]
fn requests_choose_and_leave_nothing_behind() {
    let requests = requests("llama-gqa");
    let mut backend = with_draft("llama-gqa", "llama-gqa", None);
    let free = blocks(&backend);
    let mut scheduler = Scheduler::<Response>::new(Settings { max_requests: 2, ..settings(SpeculationWidth::Off) });
    let mut numbers = Vec::new();
    for request in requests.iter().take(3) {
        let machine = intervention(&backend, &request.prompt, &request.options, request.uniforms.clone()).unwrap();
        numbers.push(scheduler.submit(Box::new(machine)));
    }
    for _ in 0..4 {
        scheduler.step(&mut backend);
    }
    assert!(blocks(&backend)[1] > 0, "nothing was drafted");
    for number in numbers {
        scheduler.cancel(&mut backend, number);
    }
    assert_eq!(blocks(&backend), free);
    let mut drafted = Vec::new();
    for drafting in [None, Some(Drafting::Off), Some(Drafting::Ngram), Some(Drafting::Model)] {
        let request = &requests[0];
        let machine = intervention(&backend, &request.prompt, &request.options, request.uniforms.clone()).unwrap();
        scheduler.submit_for(Submitter { drafting, ..Submitter::default() }, Box::new(machine));
        while scheduler.step(&mut backend) {
            for event in scheduler.events() {
                if let Event::Ended(_, outcome, stats) = event {
                    outcome.unwrap();
                    drafted.push(stats.drafts);
                }
            }
        }
        assert_eq!(blocks(&backend), free, "{drafting:?}");
    }
    println!("{drafted:?}");
    assert!(drafted[0].model.drafted > 0 && drafted[3].model.drafted > 0);
    assert_eq!(drafted[1], DraftStats::default());
    assert_eq!(drafted[2].model.drafted, 0);
}

/// The draft model guesses greedily; a draw is a function of seed and place.
#[test]
fn sampled_answers_are_drafted_for() {
    let request = &requests("llama-gqa")[0];
    let spec = |temperature: f64, n: usize| CompletionSpec {
        sampling: Sampling { temperature, seed: 11, logprobs: Some(2), ..Sampling::default() },
        n,
        score: true,
        max_new_tokens: 24,
        stop_ids: request.options.stop_ids.clone(),
        ..CompletionSpec::default()
    };
    for (temperature, n) in [(0.0, 1), (0.7, 3), (0.0, 2)] {
        let plain = Settings::single(SpeculationWidth::Off);
        let (expected, _) =
            complete(&mut load("llama-gqa", None), &plain, &request.prompt, spec(temperature, n), &mut ()).unwrap();
        let mut backend = with_draft("llama-gqa", "llama-gqa", None);
        let free = blocks(&backend);
        // In pieces, a long prompt has no guess until the draft model has read it.
        for batch_tokens in [usize::MAX, 3] {
            let settings = Settings { batch_tokens, ..settings(SpeculationWidth::Off) };
            let mut scheduler = Scheduler::<Completions>::new(settings);
            let sampled = sampler(&backend, &request.prompt, spec(temperature, n)).unwrap();
            scheduler.submit(Box::new(sampled));
            let mut ended = None;
            while scheduler.step(&mut backend) {
                for event in scheduler.events() {
                    if let Event::Ended(_, outcome, stats) = event {
                        ended = Some((outcome.unwrap(), stats));
                    }
                }
            }
            let (found, stats) = ended.unwrap();
            scheduler.clear(&mut backend);
            assert!(found == expected, "{temperature}, {n}, {batch_tokens}: another answer");
            println!("temperature {temperature}, {n}, {batch_tokens}: {:?}", stats.drafts);
            assert!(stats.drafts.model.accepted > 0 || temperature > 0.0, "{:?}", stats.drafts);
            assert_eq!(blocks(&backend), free);
        }
    }
}

/// How many steps of the policy an answer takes at best: the policy guesses for itself, at no price.
#[test]
fn passes_on_the_demo_pair() {
    let mut pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    pair.add_draft(&demo::policy()).unwrap();
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    assert_eq!(backend.draft_cost(), Some(1.0));
    let guided = super::drafts::demo_requests(&pair, 2, 48);
    for (what, candidates, width) in [
        ("greedy", 1, SpeculationWidth::Off),
        ("one candidate after the other", 8, SpeculationWidth::Off),
        ("candidates side by side", 8, SpeculationWidth::Fixed(25)),
    ] {
        let (mut passes, mut tokens, mut drafts) = ([0; 3], 0, DraftStats::default());
        for request in &guided {
            let mut request = request.clone();
            request.options.max_candidates = candidates;
            let expected = request.alone(&mut backend);
            tokens += expected.final_ids.len() - expected.prompt_len;
            let ways = [(Drafting::Off, 0.0), (Drafting::Model, 0.0), (Drafting::Model, 0.1)];
            for (passes, (drafting, draft_cost)) in passes.iter_mut().zip(ways) {
                let (row_cost, draft_cost) = (Some(draft_cost / 2.0), Some(draft_cost));
                let settings = Settings { drafting, row_cost, draft_cost, ..Settings::single(width) };
                let found = together(&mut backend, &settings, &[&request], &[0]);
                assert!(found.responses[0] == expected, "{}", request.name);
                *passes += found.totals.policy_batches;
                drafts += found.totals.drafts;
            }
        }
        let each = passes.map(|passes| passes as f64 / tokens as f64);
        println!("{what}: {each:.3?} policy passes a token, {drafts:?} for {tokens} tokens");
        assert!(passes[1] < passes[0] && passes[2] < passes[0], "{what}: {passes:?}");
    }
    // At its real price a model of the policy's size guesses nothing.
    let request = &guided[0];
    let expected = request.alone(&mut backend);
    let settings = Settings { drafting: Drafting::Model, row_cost: Some(0.01), ..Settings::default() };
    let found = together(&mut backend, &settings, &[request], &[0]);
    assert!(found.responses[0] == expected && found.totals.drafts.model.drafted == 0);
    assert_eq!(found.totals.draft_work.tokens, 0);
}
