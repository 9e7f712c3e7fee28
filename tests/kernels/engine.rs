//! The engine on the emulated device: what requests say alone they say in company, bit for bit.

use crate::emulated::{Emulated, alone};
use ggro::engine::{Drafting, Settings, SpeculationWidth, score};
use ggro::files::pair::Parts;
use ggro::method::Options;
use ggro::model::Role;
use ggro::model::cuda::{self, CudaOptions};
use ggro::scoring::RewardQuery;
use ggro_emulator::{Config, Streams};
use ggro_testkit::backend::text;
use ggro_testkit::fixtures::{FIXTURES, parts};
use ggro_testkit::requests::{Request, requests, together};
use std::time::Instant;

/// The three shortest traces of every fixture that nudge: one after the other without speculation, then together, candidates
/// side by side, with room for all of them and with hardly room for one, and with guessed tokens.
#[test]
fn three_traces_of_every_fixture_in_company() {
    alone("engine::three_traces_of_every_fixture_in_company", || {
        let (mut preemptions, mut accepted) = (0, 0);
        for name in FIXTURES {
            let mut all: Vec<Request> = requests(name);
            all.retain(|request| request.options.max_candidates > 1);
            let len = |request: &Request| request.prompt.len() + request.options.max_new_tokens;
            all.sort_by_key(len);
            all.truncate(3);
            let longest = all.iter().map(len).max().unwrap();
            let all: Vec<&Request> = all.iter().collect();

            let began = Instant::now();
            let settings = |speculation, run_ahead| Settings { speculation, run_ahead, ..Settings::default() };
            let (mut expected, mut expected_short) = (Vec::new(), Vec::new());
            // All logits of a slot are there for the last row of a span alone, so nothing is guessed where they are
            // wanted.
            let short = |request: &&Request| {
                let options = Options { full_trace: false, ..request.options.clone() };
                Request { options, ..(*request).clone() }
            };
            let all_short: Vec<Request> = all.iter().map(short).collect();
            let all_short: Vec<&Request> = all_short.iter().collect();
            for (sequences, width, arrivals, drafting) in [
                (8, SpeculationWidth::Fixed(8), [0, 0, 3], Drafting::Off),
                (8, SpeculationWidth::Auto, [4, 0, 1], Drafting::Off),
                (1, SpeculationWidth::Fixed(3), [0, 1, 2], Drafting::Off),
                (8, SpeculationWidth::Fixed(3), [0, 1, 2], Drafting::Ngram),
                (1, SpeculationWidth::Off, [0, 0, 9], Drafting::Ngram),
            ] {
                // Late in company: what one model's stream took from the other's would not be there.
                let streams = if expected.is_empty() { Streams::Eager } else { Streams::Lazy };
                let Emulated { device, machine } = Emulated::new(Config { streams, ..Config::default() });
                let [policy, reward] = parts(name);
                let max_model_len = Some(longest);
                let options = CudaOptions { sequences, max_model_len, batch_tokens: 704, ..CudaOptions::default() };
                let parts = Parts::both((&policy.0, &policy.1), (&reward.0, &reward.1));
                let mut cuda = cuda::open(device, parts, &options, &mut |_| ()).unwrap().0;
                if expected.is_empty() {
                    let mut one = |request| {
                        together(&mut cuda, &settings(SpeculationWidth::Off, false), &[request], &[0]).responses
                    };
                    expected = all.iter().copied().flat_map(&mut one).collect();
                    expected_short = all_short.iter().copied().flat_map(&mut one).collect();
                }
                let settings = Settings { drafting, row_cost: Some(0.0), ..settings(width, true) };
                let how = format!("{name}, {width:?}, {sequences}, drafting {drafting:?}");
                let outcome = together(&mut cuda, &settings, &all, &arrivals[..all.len()]);
                assert!(outcome.responses == expected, "{how}: another answer in company");
                if drafting == Drafting::Ngram {
                    let outcome = together(&mut cuda, &settings, &all_short, &arrivals[..all.len()]);
                    assert!(outcome.responses == expected_short, "{how}: another answer in company");
                    accepted += outcome.totals.drafts.accepted();
                }
                preemptions += outcome.totals.preemptions;
                let faults = machine.faults();
                assert!(faults.is_empty(), "{name}: {faults:#?}");
            }
            let nudges: usize = expected.iter().map(|response| response.num_nudges).sum();
            println!("{name}: {} traces, {nudges} nudges, {:.1} s", all.len(), began.elapsed().as_secs_f64());
        }
        println!("{preemptions} preemptions, {accepted} guessed tokens were right");
        assert!(preemptions > 0, "nobody was preempted");
        assert!(accepted > 0, "no token was guessed");
    });
}

/// A third model on the device guesses beside the pair: the same answers, with room for its keys and values counted.
#[test]
fn a_draft_model_beside_a_pair() {
    alone("engine::a_draft_model_beside_a_pair", || {
        let name = "llama-gqa";
        let ([policy, reward], [draft, _]) = (parts(name), parts(name));
        let both = Parts::both((&policy.0, &policy.1), (&reward.0, &reward.1));
        let all = requests(name).into_iter().filter(|request| request.options.max_candidates > 1);
        let shortest = all.min_by_key(|request| request.prompt.len() + request.options.max_new_tokens).unwrap();
        let request = Request { options: Options { full_trace: false, ..shortest.options.clone() }, ..shortest };
        let options = CudaOptions { sequences: 2, batch_tokens: 704, ..CudaOptions::default() };
        let free = Some(0.0);
        let settings = Settings { drafting: Drafting::Model, row_cost: free, draft_cost: free, ..Settings::default() };
        let mut answers = Vec::new();
        for draft in [None, Some((&draft.0, &draft.1))] {
            let Emulated { device, machine } = Emulated::new(Config::default());
            let (mut cuda, opened) = cuda::open(device, Parts { draft, ..both }, &options, &mut |_| ()).unwrap();
            assert_eq!(opened.models.iter().map(|model| model.draft).filter(|&draft| draft).count(), answers.len());
            let weights = opened.budget.parts().iter().any(|(part, bytes)| *part == "draft weights" && *bytes > 0);
            assert_eq!(weights, draft.is_some());
            let found = together(&mut cuda, &settings, &[&request], &[0]);
            println!("{:?}", found.totals);
            assert_eq!(found.totals.drafts.model.accepted > 0, draft.is_some());
            answers.push(found.responses);
            let faults = machine.faults();
            assert!(faults.is_empty(), "{faults:#?}");
        }
        assert!(answers[0] == answers[1], "another answer with a draft model");
    });
}

/// Prompts of both models in pieces: the bits of whole ones, behind blocks that are full and behind ones that are not.
#[test]
fn prompts_in_pieces() {
    alone("engine::prompts_in_pieces", || {
        let Emulated { device, machine } = Emulated::new(Config::default());
        let name = "llama-gqa";
        let [policy, reward] = parts(name);
        let options = CudaOptions { sequences: 4, batch_tokens: 704, ..CudaOptions::default() };
        let parts = Parts::both((&policy.0, &policy.1), (&reward.0, &reward.1));
        let mut cuda = cuda::open(device, parts, &options, &mut |_| ()).unwrap().0;
        let cut = |batch_tokens| Settings { batch_tokens, cached_prompts: 0, ..Settings::default() };

        let all = requests(name).into_iter().filter(|request| request.options.max_candidates > 1);
        let request = all.min_by_key(|request| request.prompt.len() + request.options.max_new_tokens).unwrap();
        let expected = together(&mut cuda, &cut(usize::MAX), &[&request], &[0]).responses;
        for batch_tokens in [3, 16] {
            let found = together(&mut cuda, &cut(batch_tokens), &[&request], &[0]).responses;
            assert!(found == expected, "{}, in pieces of {batch_tokens}", request.name);
        }

        let ids = text(150, cuda.config(Role::Reward).unwrap().vocab_size, 1);
        for query in [
            RewardQuery { ids: ids.clone(), ..RewardQuery::default() },
            RewardQuery { ids, gradient_from: Some(140), ..RewardQuery::default() },
        ] {
            let expected = score(&mut cuda, &cut(usize::MAX), query.clone(), None).unwrap().0;
            for batch_tokens in [31, 64, 100] {
                let before = cuda.work();
                let found = score(&mut cuda, &cut(batch_tokens), query.clone(), None).unwrap().0;
                assert!(found == expected, "a text in pieces of {batch_tokens}");
                assert_eq!(cuda.work() - before, expected.work);
            }
        }
        let faults = machine.faults();
        assert!(faults.is_empty(), "{faults:#?}");
    });
}
