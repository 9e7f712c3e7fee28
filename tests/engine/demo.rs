//! Sixteen requests on the demo pair: together and one after the other.

use ggro::answer::{Response, WalkEnd};
use ggro::engine::{Engine, Progress, Settings, SpeculationWidth, Ticket, Update, decode, intervention};
use ggro::files::chat::Message;
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::method::{Options, PROPOSALS, Proposals};
use ggro::model::cpu::{self, LoadOptions};
use ggro::rng::Uniforms;
use ggro_testkit::requests::{Request, together};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

fn sixteen(pair: &Pair, tokens: usize) -> Vec<Request> {
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
    demo::prompts().iter().take(16).map(request).collect()
}

fn submit(engine: &Engine, request: &Request) -> Ticket<Response> {
    let Request { prompt, options, uniforms, .. } = request.clone();
    engine.submit(move |backend| intervention(backend, &prompt, &options, uniforms)).unwrap()
}

#[test]
fn sixteen_together_say_what_each_says_alone() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let requests = sixteen(&pair, 64);
    let all: Vec<&Request> = requests.iter().collect();
    let settings = |speculation| Settings { speculation, ..Settings::default() };

    // Once to warm up; then both in turn, three times.
    let expected: Vec<_> = requests.iter().map(|request| request.alone(&mut backend)).collect();
    for _ in 0..3 {
        let began = Instant::now();
        let answers: Vec<_> = requests.iter().map(|request| request.alone(&mut backend)).collect();
        let sequence = began.elapsed().as_secs_f64();
        assert!(answers == expected);
        for width in [SpeculationWidth::Auto, SpeculationWidth::Fixed(4)] {
            let began = Instant::now();
            let outcome = together(&mut backend, &settings(width), &all, &[0; 16]);
            let company = began.elapsed().as_secs_f64();
            assert!(outcome.responses == expected);
            let rows = outcome.totals.policy_spans as f64 / outcome.totals.policy_batches as f64;
            println!(
                "16 requests: {sequence:.2} s one after the other, {company:.2} s together ({width:?}), ratio {:.2}, {rows:.1} \
                 rows a policy batch",
                company / sequence
            );
        }
    }
}

/// The method and its controls: each alone, ahead of need and beside the others, with the work that it takes and no more.
#[test]
fn every_way_to_propose() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let plain = sixteen(&pair, 40).remove(3);
    let weighted = [(Proposals::Gradient, 0.5), (Proposals::ShuffledGradient, 0.5)];
    let ways = PROPOSALS.into_iter().map(|proposals| (proposals, 0.0)).chain(weighted);
    let requests: Vec<Request> = ways
        .map(|(proposals, logprob_weight)| {
            let options = Options { proposals, logprob_weight, ..plain.options.clone() };
            Request { options, uniforms: Uniforms::Seeded(7), ..plain.clone() }
        })
        .collect();
    let expected: Vec<Response> = requests
        .iter()
        .map(|request| {
            let before = backend.work();
            let response = request.alone(&mut backend);
            assert_eq!(backend.work() - before, response.work);
            let proposals = request.options.proposals;
            assert_eq!(response.work.reward_backward > 0, proposals.differentiates());
            assert_eq!(response.uniforms_used.is_empty(), !request.options.draws());
            response
        })
        .collect();
    for (i, response) in expected.iter().enumerate() {
        assert!(expected[..i].iter().all(|other| other.segments != response.segments), "way {i} is another one's");
    }
    assert_eq!(expected[0], plain.alone(&mut backend), "the method has no use for a seed");
    let all: Vec<&Request> = requests.iter().collect();
    for width in [SpeculationWidth::Off, SpeculationWidth::Fixed(4), SpeculationWidth::Fixed(25)] {
        let settings = Settings { speculation: width, ..Settings::default() };
        let outcome = together(&mut backend, &settings, &all, &[0, 0, 3, 3, 9, 20]);
        assert!(outcome.responses == expected, "{width:?}");
        for (account, response) in outcome.accounts.iter().zip(&expected) {
            assert_eq!(account.necessary, response.work);
        }
    }
    // Draws are known ahead, so nothing that is run for them is in vain, but for what a walk ends before.
    let random = Settings { run_ahead: false, ..Settings::single(SpeculationWidth::Fixed(25)) };
    let account = together(&mut backend, &random, &all[1..2], &[0]).accounts[0];
    assert!(account.speculative().policy_forward < account.necessary.policy_forward / 4, "{account:?}");
    // With one candidate every way is greedy decoding.
    let greedy = |request: &Request| {
        let options = Options { max_candidates: 1, ..request.options.clone() };
        Request { options, ..request.clone() }.alone(&mut backend)
    };
    let greedy: Vec<Response> = requests.iter().map(greedy).collect();
    assert!(greedy.iter().all(|response| *response == greedy[0]));
}

/// Behind every prefix of an answer by the gradient: whatever the gradient tried is among all that can be tried, with the same
/// reward, and so the best of all is no worse.
#[test]
fn trying_all_finds_what_the_gradient_finds() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let (mut tried, mut better) = (0, 0);
    for request in sixteen(&pair, 64).iter().take(3) {
        let guided = request.alone(&mut backend);
        let end = request.prompt.len() + request.options.max_new_tokens;
        for segment in &guided.segments {
            let options = Options {
                proposals: Proposals::All,
                max_segments: Some(1),
                max_new_tokens: end - segment.start,
                ..request.options.clone()
            };
            let prefix = &guided.final_ids[..segment.start];
            let response = decode(&mut backend, prefix, &options, Uniforms::Seeded(0), &mut ()).unwrap();
            let all = &response.segments[0];
            for candidate in &segment.candidates {
                let same = all.candidates.iter().find(|other| other.ids == candidate.ids);
                assert_eq!(same.map(|same| same.reward), Some(candidate.reward));
            }
            let (best, found) = (all.candidates[all.best].reward, segment.candidates[segment.best].reward);
            assert!(best >= found);
            assert!(all.walk_end == WalkEnd::Exhausted && all.candidates.len() <= options.top_k, "{:?}", all.walk_end);
            tried += all.candidates.len();
            better += usize::from(best > found);
        }
    }
    println!("{tried} candidates, {better} segments with a better one than the gradient's walk found");
    assert!(tried > 100);
}

/// The engine's own thread: tickets are told what happens, a bad request hears why, one that is dropped is forgotten.
#[test]
fn tickets() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let requests = sixteen(&pair, 24);
    let expected = {
        let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
        requests[0].alone(&mut backend)
    };
    let engine = Engine::start(Settings::default(), move || cpu::open(pair.parts(), &LoadOptions::default())).unwrap();
    let mut first = submit(&engine, &requests[0]);
    let dropped: Vec<Ticket<Response>> = requests[1..6].iter().map(|request| submit(&engine, request)).collect();
    let second = engine.generate(&requests[0].prompt, &requests[0].options).unwrap();
    drop(dropped);
    let bad = submit(&engine, &Request { prompt: Vec::new(), ..requests[0].clone() });
    let message = bad.wait().unwrap_err().to_string();
    assert!(message.contains("the prompt is empty"), "{message}");
    let cancelled = submit(&engine, &requests[7]);
    cancelled.cancel();
    assert_eq!(cancelled.wait().unwrap_err().to_string(), "the request was cancelled");

    let (mut segments, mut ended) = (0, false);
    for update in first.by_ref() {
        match update {
            Update::Ended(outcome, _) => {
                assert_eq!(outcome.unwrap(), expected);
                ended = true;
            }
            Update::Progress(Progress::Segment(..)) => segments += 1,
            Update::Accepted | Update::Started | Update::Progress(_) => {}
            Update::Cancelled(_) => panic!("nobody cancelled it"),
        }
    }
    assert!(ended && first.next().is_none());
    assert_eq!(segments, expected.segments.len());
    assert_eq!(second.wait().unwrap().0, expected);
    let status = engine.status();
    assert_eq!((status.running, status.waiting), (0, 0));
    assert!(status.scheduler.steps > 0);

    let failed = Engine::start(Settings::default(), || Err(ggro::Error::invalid("no such device")));
    assert_eq!(failed.err().unwrap().to_string(), "no such device");
}

/// An engine may go before its tickets: what is in flight ends there, and they hear of it.
#[test]
fn an_engine_that_is_dropped_waits_for_no_ticket() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let requests = sixteen(&pair, 200);
    let engine = Engine::start(Settings::default(), move || cpu::open(pair.parts(), &LoadOptions::default())).unwrap();
    let ticket = submit(&engine, &requests[0]);
    let idle = Engine::start(Settings::default(), || Err(ggro::Error::invalid("none")));
    assert!(idle.is_err());
    let (told, dropped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(engine);
        told.send(()).unwrap();
    });
    let waited = dropped.recv_timeout(std::time::Duration::from_secs(20));
    assert!(waited.is_ok(), "the engine waits for its ticket");
    assert_eq!(ticket.wait().unwrap_err().to_string(), "the engine has ended");
}

/// The smallest executor.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let (mut future, mut context) = (std::pin::pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// A ticket can be awaited, and its updates too, by any runtime.
#[test]
fn tickets_can_be_awaited() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let requests = sixteen(&pair, 24);
    let engine = Engine::start(Settings::default(), move || cpu::open(pair.parts(), &LoadOptions::default())).unwrap();
    let expected = submit(&engine, &requests[0]).wait().unwrap().0;
    block_on(async {
        let (mut watched, awaited) = (submit(&engine, &requests[0]), submit(&engine, &requests[0]));
        let (mut segments, mut last) = (0, None);
        while let Some(update) = watched.update().await {
            segments += usize::from(matches!(update, Update::Progress(Progress::Segment(..))));
            last = Some(update);
        }
        assert_eq!(segments, expected.segments.len());
        assert!(matches!(last, Some(Update::Ended(Ok(response), _)) if response == expected));
        assert_eq!(awaited.await.unwrap().0, expected);
        drop(engine);
        assert!(watched.update().await.is_none());
    });
}
