//! Verified drafts: whatever is guessed, and wherever it is wrong, the answer is the one of plain decoding.

use ggro::answer::{Completions, Response};
use ggro::engine::{
    DraftStats, Drafting, Engine, Scheduler, Settings, SpeculationWidth, complete, decode_with, intervention,
};
use ggro::files::chat::Message;
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::kv::BLOCK;
use ggro::method::Options;
use ggro::model::cpu::{self, LoadOptions};
use ggro::rng::Uniforms;
use ggro::sampling::{CompletionSpec, Sampling};
use ggro_testkit::fixtures::load;
use ggro_testkit::requests::{Outcome, Request, requests, together, together_on};
use std::collections::BTreeSet;
use std::sync::Arc;

fn settings(speculation: SpeculationWidth) -> Settings {
    Settings { speculation, drafting: Drafting::Ngram, row_cost: Some(0.0), ..Settings::default() }
}

/// Every text that a response's candidates were, with what was dropped of them.
fn texts(responses: &[Response]) -> BTreeSet<Vec<u32>> {
    let mut texts = BTreeSet::new();
    for response in responses {
        for segment in &response.segments {
            for candidate in &segment.candidates {
                let dropped = candidate.dropped.as_slice();
                texts.insert([&response.final_ids[..segment.start], &candidate.ids, dropped].concat());
            }
        }
        texts.insert(response.final_ids.clone());
    }
    texts
}

/// What comes after a text by one of the known ones, with the token at one place exchanged, another place each time.
/// `wrong`: at none.
fn oracle(texts: Arc<BTreeSet<Vec<u32>>>, wrong: bool) -> impl FnMut(&[u32], usize) -> Vec<u32> + Send + 'static {
    let mut turn = 0;
    move |text, most| {
        // The first text from this one on begins with it, if any does.
        let longer = texts.range(text.to_vec()..).find(|known| known.len() > text.len());
        let Some(known) = longer.filter(|known| known.starts_with(text)) else { return vec![3; most.min(2)] };
        let mut ids = known[text.len()..].to_vec();
        ids.truncate(most.min(9));
        turn += 1;
        let count = ids.len();
        if wrong && turn % (count + 1) < count {
            let id = &mut ids[turn % (count + 1)];
            *id = if *id == 5 { 6 } else { 5 };
        }
        ids
    }
}

pub(crate) fn same(outcome: &Outcome, expected: &[Response], requests: &[Request], how: &str) {
    for ((response, expected), request) in outcome.responses.iter().zip(expected).zip(requests) {
        assert!(response == expected, "{} {how}: another answer", request.name);
    }
}

fn fixture(name: &str) {
    let requests = requests(name);
    let all: Vec<&Request> = requests.iter().collect();
    let mut backend = load(name, None);
    let expected: Vec<Response> = requests.iter().map(|request| request.alone(&mut backend)).collect();
    let known = Arc::new(texts(&expected));
    let arrivals: Vec<usize> = (0..all.len()).map(|n| n * 7 % 30).collect();
    let longest = requests.iter().map(|r| r.prompt.len() + r.options.max_new_tokens).max().unwrap();
    let least = longest.div_ceil(BLOCK) + 1;
    let (mut drafts, mut preemptions) = (DraftStats::default(), 0);
    for width in [SpeculationWidth::Off, SpeculationWidth::Fixed(3), SpeculationWidth::Fixed(25)] {
        let settings = settings(width);
        let plain = Settings { drafting: Drafting::Off, ..settings.clone() };
        let before = together(&mut backend, &plain, &all, &arrivals);
        assert_eq!(before.totals.drafts, DraftStats::default());
        let found = together(&mut backend, &settings, &all, &arrivals);
        same(&found, &expected, &requests, &format!("with guesses, {width:?}"));
        // Candidates side by side end in another order with guesses, and so a step more may come of it.
        let most = before.totals.policy_batches + u64::from(width != SpeculationWidth::Off) * 2;
        assert!(found.totals.policy_batches <= most, "{name} {width:?}: {most}");
        drafts += found.totals.drafts;
        for wrong in [false, true] {
            for blocks in [None, Some(least), Some(least + 5)] {
                let mut backend = load(name, blocks);
                let mut scheduler = Scheduler::new(plain.clone());
                scheduler.guess_with(oracle(known.clone(), wrong));
                let found = together_on(&mut backend, scheduler, &all, &arrivals);
                let how =
                    format!("with guesses that are {}, {width:?}, {blocks:?}", if wrong { "wrong" } else { "right" });
                same(&found, &expected, &requests, &how);
                let sum: u64 = found.accounts.iter().map(|account| account.drafts.drafted()).sum();
                assert_eq!(sum, found.totals.drafts.drafted());
                assert!(found.totals.drafts.accepted() > 0, "{name} {how}");
                preemptions += found.totals.preemptions;
                if blocks.is_none() && !wrong {
                    assert!(found.totals.policy_batches < before.totals.policy_batches, "{name} {how}");
                }
            }
        }
    }
    println!("{name}: {drafts:?}, {preemptions} preemptions");
    assert!(preemptions > 0, "{name}: nobody was preempted");
}

ggro_testkit::each_fixture!(fixture);

/// Draws depend on the seed and the place alone, so a sampled token can be guessed as well as a likely one.
#[test]
fn sampled_tokens_can_be_guessed() {
    let all = requests("llama-gqa");
    let mut backend = load("llama-gqa", None);
    for (request, temperature, n) in [(&all[0], 1.0, 1), (&all[1], 0.7, 3), (&all[2], 0.0, 1), (&all[0], 0.0, 2)] {
        let spec = CompletionSpec {
            sampling: Sampling {
                temperature,
                seed: 11,
                logprobs: Some(2),
                repetition_penalty: 1.1,
                ..Sampling::default()
            },
            n,
            score: true,
            max_new_tokens: 24,
            stop_ids: request.options.stop_ids.clone(),
            prompt_logprobs: n == 1,
            ..CompletionSpec::default()
        };
        let run = |backend: &mut _, settings: &Settings| {
            complete(backend, settings, &request.prompt, spec.clone(), &mut ()).unwrap()
        };
        let (expected, _) = run(&mut backend, &Settings::single(SpeculationWidth::Off));
        let (found, stats) = run(&mut backend, &settings(SpeculationWidth::Off));
        assert_eq!(found, expected);
        println!("temperature {temperature}, {n}: {:?}", stats.drafts);
        // The same again, with every token known.
        let known = expected.all.iter().map(|one| [&request.prompt[..], &one.ids].concat());
        let known = Arc::new(known.collect::<BTreeSet<_>>());
        for wrong in [false, true] {
            let mut scheduler = Scheduler::<Completions>::new(Settings::default());
            scheduler.guess_with(oracle(known.clone(), wrong));
            let sampler = ggro::engine::sampler(&backend, &request.prompt, spec.clone()).unwrap();
            scheduler.submit(Box::new(sampler));
            let mut ended = None;
            while scheduler.step(&mut backend) {
                for event in scheduler.events() {
                    if let ggro::engine::Event::Ended(_, outcome, stats) = event {
                        ended = Some((outcome.unwrap(), stats));
                    }
                }
            }
            let (found, stats) = ended.unwrap();
            assert_eq!(found, expected);
            assert!(stats.drafts.accepted() > 0, "{:?}", stats.drafts);
            scheduler.clear(&mut backend);
        }
    }
}

pub fn demo_requests(pair: &Pair, count: usize, tokens: usize) -> Vec<Request> {
    let request = |text: &String| {
        let messages = [Message { role: "user".into(), content: text.to_string() }];
        let prompt = pair.tokenizer.encode(&pair.chat().unwrap().render(&messages, true).unwrap()).unwrap();
        let options = Options {
            max_new_tokens: tokens,
            entropy_threshold: demo::ENTROPY_THRESHOLD,
            ..Options::for_pair(pair).unwrap()
        };
        Request { name: text.to_string(), prompt, options, uniforms: Uniforms::Seeded(0) }
    };
    demo::prompts().iter().take(count).map(request).collect()
}

/// How many steps of the policy an answer takes, and what is guessed for that.
#[test]
fn passes_on_the_demo_pair() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let guided = demo_requests(&pair, 4, 64);
    let greedy: Vec<Request> = guided
        .iter()
        .map(|request| {
            let options = Options { max_candidates: 1, entropy_threshold: f64::MAX, ..request.options.clone() };
            Request { options, ..request.clone() }
        })
        .collect();
    for (what, requests, width) in [
        ("greedy", &greedy, SpeculationWidth::Off),
        ("one candidate after the other", &guided, SpeculationWidth::Off),
        ("candidates side by side", &guided, SpeculationWidth::Fixed(25)),
    ] {
        let expected: Vec<Response> = requests.iter().map(|request| request.alone(&mut backend)).collect();
        let tokens: usize = expected.iter().map(|response| response.final_ids.len() - response.prompt_len).sum();
        let mut passes = Vec::new();
        for (drafting, row_cost) in [
            (Drafting::Off, None),
            (Drafting::Ngram, Some(0.0)),
            (Drafting::Ngram, Some(0.15)),
            (Drafting::Ngram, None),
        ] {
            let settings = Settings { drafting, row_cost, ..Settings::single(width) };
            let (mut batches, mut drafts) = (0, DraftStats::default());
            for (request, expected) in requests.iter().zip(&expected) {
                let outcome = together(&mut backend, &settings, &[request], &[0]);
                assert!(outcome.responses[0] == *expected, "{}", request.name);
                batches += outcome.totals.policy_batches;
                drafts += outcome.totals.drafts;
            }
            let mean = batches as f64 / tokens as f64;
            println!(
                "{what}, {drafting:?}, a row costs {row_cost:?}: {mean:.3} policy passes a token, {drafts:?} for {tokens} tokens"
            );
            passes.push(mean);
        }
        assert!(passes[1] < passes[0] && passes[2] < passes[0], "{what}: {passes:?}");
        // The pair's weights stay in a cache, where a row is no cheaper than a step: it is worth a guess only beside rows that
        // are hardly of use.
        match width {
            SpeculationWidth::Off => assert_eq!(passes[3], passes[0], "{what}"),
            _ => assert!(passes[3] < passes[0], "{what}: {passes:?}"),
        }
    }
}

/// The engine's thread and the smallest engine, as they are asked for it.
#[test]
fn the_setting_reaches_the_engine() {
    let pair = Arc::new(Pair::load(&demo::policy(), &demo::reward()).unwrap());
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let request = demo_requests(&pair, 1, 48).remove(0);
    let Request { prompt, options, uniforms, .. } = request.clone();
    let expected = request.alone(&mut backend);
    let settings = Settings { drafting: "ngram".parse().unwrap(), row_cost: Some(0.1), ..Settings::default() };
    assert!("often".parse::<Drafting>().is_err() && "off".parse::<Drafting>() == Ok(Drafting::Off));
    let (found, stats) = decode_with(&mut backend, &settings, &prompt, &options, uniforms.clone(), &mut ()).unwrap();
    assert!(found == expected && stats.drafts.drafted() > 0);
    let parts = pair.clone();
    let engine = Engine::start(settings, move || cpu::open(parts.parts(), &LoadOptions::default())).unwrap();
    let ticket = engine.submit(move |backend| intervention(backend, &prompt, &options, uniforms)).unwrap();
    let (found, told) = ticket.wait().unwrap();
    assert!(found == expected);
    assert_eq!(told.drafts, stats.drafts);
    assert_eq!(engine.status().scheduler.drafts, stats.drafts);
}
