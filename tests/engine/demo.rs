//! Sixteen requests on the demo pair: together and one after the other.

use ggro::engine::{Engine, Generation, Make, Settings, Ticket, Update, Width, intervention};
use ggro::files::chat::Message;
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::method::Options;
use ggro::model::Backend;
use ggro::model::cpu::{LoadOptions, Reference};
use ggro::rng::Uniforms;
use ggro_testkit::requests::{Request, together};
use std::time::Instant;

fn sixteen(pair: &Pair, tokens: usize) -> Vec<Request> {
    let request = |text: &String| {
        let messages = [Message { role: "user".into(), content: text.to_string() }];
        let prompt = pair.tokenizer.encode(&pair.chat.as_ref().unwrap().render(&messages, true).unwrap()).unwrap();
        let options = Options {
            max_new_tokens: tokens,
            entropy_threshold: demo::ENTROPY_THRESHOLD,
            reward_pad_id: pair.reward_pad_id,
            ..Options::new(pair.finish_id, pair.stop_ids.clone())
        };
        Request { name: text.to_string(), prompt, options, uniforms: Uniforms::Seeded(0) }
    };
    demo::prompts().iter().take(16).map(request).collect()
}

fn machine(backend: &dyn Backend, request: &Request) -> ggro::Result<Box<dyn Generation>> {
    let Request { prompt, options, uniforms, .. } = request;
    Ok(Box::new(intervention(backend, prompt, options, uniforms.clone())?))
}

#[test]
fn sixteen_together_say_what_each_says_alone() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let mut backend = Reference::load(&pair, &LoadOptions::default()).unwrap();
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
        for width in [Width::Auto, Width::Fixed(4)] {
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
        let mut backend = Reference::load(&pair, &LoadOptions::default()).unwrap();
        requests[0].alone(&mut backend)
    };
    let engine = Engine::start(Settings::default(), move || {
        Ok(Box::new(Reference::load(&pair, &LoadOptions::default())?) as Box<dyn Backend>)
    })
    .unwrap();
    let submit = |request: &Request| -> Ticket {
        let request = request.clone();
        let make: Make = Box::new(move |backend| machine(backend, &request));
        engine.submit(make).unwrap()
    };
    let first = submit(&requests[0]);
    let dropped: Vec<Ticket> = requests[1..6].iter().map(&submit).collect();
    let second = submit(&requests[0]);
    drop(dropped);
    let bad = submit(&Request { prompt: Vec::new(), ..requests[0].clone() });
    let message = bad.wait().unwrap_err().to_string();
    assert!(message.contains("the prompt is empty"), "{message}");

    let mut segments = 0;
    loop {
        match first.next() {
            Some(Update::Ended(outcome, _)) => {
                let response = outcome.unwrap().response().unwrap();
                assert_eq!(response, expected);
                assert_eq!(segments, response.segments.len());
                break;
            }
            Some(Update::Progress(ggro::engine::Progress::Segment(..))) => segments += 1,
            Some(Update::Accepted | Update::Started | Update::Progress(_)) => {}
            Some(Update::Cancelled(_)) => panic!("nobody cancelled it"),
            None => panic!("the engine has ended"),
        }
    }
    let (finished, _) = second.wait().unwrap();
    assert_eq!(finished.response().unwrap(), expected);
    let (totals, requests) = engine.totals().unwrap();
    assert_eq!(requests, 0);
    assert!(totals.turns > 0);

    let failed = Engine::start(Settings::default(), || Err(ggro::Error::invalid("no such device")));
    assert_eq!(failed.err().unwrap().to_string(), "no such device");
}

/// An engine may go before its tickets: what is in flight ends there, and they hear of it.
#[test]
fn an_engine_that_is_dropped_waits_for_no_ticket() {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let requests = sixteen(&pair, 200);
    let engine = Engine::start(Settings::default(), move || {
        Ok(Box::new(Reference::load(&pair, &LoadOptions::default())?) as Box<dyn Backend>)
    })
    .unwrap();
    let request = requests[0].clone();
    let ticket = engine.submit(Box::new(move |backend| machine(backend, &request))).unwrap();
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
