//! Sixteen requests on the demo pair: together and one after the other.

use ggro::answer::Response;
use ggro::engine::{Engine, Progress, Settings, SpeculationWidth, Ticket, Update, intervention};
use ggro::files::chat::Message;
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::method::Options;
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
