//! Sampled completions and the best of several.

use ggro::answer::{Completions, Response, StopReason};
use ggro::baselines::{Baseline, SoftBestOfN};
use ggro::engine::{
    Event, Request as _, Scheduler, Settings, SpeculationWidth, baseline, complete, intervention, run_all, sampler,
};
use ggro::kv::BLOCK;
use ggro::method::Options;
use ggro::model::{ModelPair, RewardSpan, Role, Span};
use ggro::sampling::{CompletionSpec, Sampling, StopCheck};
use ggro_testkit::fixtures::load;
use ggro_testkit::requests::{Request, requests};
use ggro_testkit::scripted::{Scripted, script, torn};
use std::sync::Arc;

fn plan(request: &Request, temperature: f64, n: usize, score: bool) -> CompletionSpec {
    CompletionSpec {
        sampling: Sampling { temperature, seed: 11, ..Sampling::default() },
        n,
        score,
        max_new_tokens: 24,
        stop_ids: request.options.stop_ids.clone(),
        ..CompletionSpec::default()
    }
}

fn alone(backend: &mut ModelPair, request: &Request, plan: CompletionSpec) -> Completions {
    complete(backend, &Settings::single(SpeculationWidth::Off), &request.prompt, plan, &mut ()).unwrap().0
}

fn request() -> Request {
    requests("llama-gqa").remove(0)
}

#[test]
fn best_of_one_is_sampling_and_the_best_of_more_has_the_largest_reward() {
    let (request, mut backend) = (request(), load("llama-gqa", None));
    let sampled = alone(&mut backend, &request, plan(&request, 1.0, 1, false));
    let one = alone(&mut backend, &request, plan(&request, 1.0, 1, true));
    assert_eq!(one.all[0].ids, sampled.all[0].ids);
    let before = backend.work();
    let best = alone(&mut backend, &request, plan(&request, 1.0, 6, true));
    assert_eq!(backend.work() - before, best.work, "the prompt once, every token once");
    assert_eq!(best.all[0].ids, sampled.all[0].ids, "the first of several is the only one of one");
    assert!(best.all.windows(2).any(|pair| pair[0].ids != pair[1].ids));
    for completion in &best.all {
        assert!(completion.reward <= best.all[best.best].reward);
        let seq = backend.create(Role::Reward).unwrap();
        let ids = [&request.prompt[..], &completion.ids].concat();
        let span = RewardSpan { span: Span { seq, start: 0, ids: &ids }, also_at: &[] };
        assert_eq!(Some(backend.reward_score(&[span]).unwrap()[0].reward), completion.reward);
        backend.release(seq);
    }
}

#[test]
fn one_candidate_is_greedy_decoding() {
    let mut backend = load("llama-gqa", None);
    for request in requests("llama-gqa") {
        let greedy = alone(&mut backend, &request, plan(&request, 0.0, 1, false)).all.remove(0);
        let options = Options { max_candidates: 1, max_new_tokens: 24, ..request.options.clone() };
        let ours = Request { options, ..request.clone() }.alone(&mut backend);
        let ours = &ours.final_ids[request.prompt.len()..];
        // A stop id that is not the end of turn is no part of an answer of the method, unless it fills the budget.
        let foreign = *greedy.ids.last().unwrap() != request.options.finish_id && greedy.ids.len() < 24;
        assert_eq!(ours, &greedy.ids[..greedy.ids.len() - usize::from(foreign)], "{}", request.name);
    }
}

/// Requests of two kinds in one scheduler.
enum Output {
    Sampled(Completions),
    Guided(Box<Response>),
}

#[test]
fn what_runs_beside_it_changes_nothing() {
    let all = requests("llama-gqa");
    let mut backend = load("llama-gqa", None);
    let plans = [plan(&all[0], 1.0, 3, true), plan(&all[1], 0.7, 2, false), plan(&all[0], 0.0, 1, false)];
    let expected: Vec<Completions> =
        plans.iter().enumerate().map(|(i, plan)| alone(&mut backend, &all[i % 2], plan.clone())).collect();
    let guided = all[2].alone(&mut backend);
    for blocks in [None, Some(12)] {
        let mut backend = load("llama-gqa", blocks);
        let mut scheduler = Scheduler::new(Settings { speculation: SpeculationWidth::Fixed(4), ..Settings::default() });
        for (i, plan) in plans.iter().enumerate() {
            let request = sampler(&backend, &all[i % 2].prompt, plan.clone()).unwrap();
            scheduler.submit(Box::new(request.map(Output::Sampled)));
        }
        let Request { prompt, options, uniforms, .. } = &all[2];
        let request = intervention(&backend, prompt, options, uniforms.clone()).unwrap();
        scheduler.submit(Box::new(request.map(|response| Output::Guided(Box::new(response)))));
        let mut ended = 0;
        while scheduler.step(&mut backend) {
            for event in scheduler.events() {
                let Event::Ended(id, outcome, account) = event else { continue };
                ended += 1;
                match outcome.unwrap() {
                    Output::Sampled(found) => {
                        assert_eq!(found, expected[id as usize]);
                        assert_eq!(account.necessary, found.work);
                    }
                    Output::Guided(found) => {
                        assert_eq!(id as usize, expected.len());
                        assert_eq!(*found, guided);
                    }
                }
            }
        }
        assert_eq!(ended, 4);
        scheduler.clear(&mut backend);
    }
}

/// After its blocks were taken back, a request runs the prompt of its samples once, not once for each of them.
#[test]
fn a_prompt_is_run_again_once_for_all_samples() {
    const PROMPT_LEN: usize = 200;
    const SAMPLES: usize = 6;
    const TOKENS: usize = 20;
    let model = script(|_| torn(&[5, 6, 7]), |ids| ids.iter().filter(|&&id| id == 6).count() as f32, |_, _| 0.0);
    let spec = |max_new_tokens, n| CompletionSpec {
        sampling: Sampling { temperature: 1.0, seed: 3, ..Sampling::default() },
        n,
        score: n > 1,
        max_new_tokens,
        ..CompletionSpec::default()
    };
    let (older, younger): (Vec<u32>, Vec<u32>) = (vec![2; 60], (0..PROMPT_LEN as u32).map(|i| i % 9 + 2).collect());
    let soft = Baseline::SoftBestOfN(SoftBestOfN { n: SAMPLES, lambda: 1.0 });
    let settings = Settings { speculation: SpeculationWidth::Off, cached_prompts: 0, ..Settings::default() };
    for searches in [false, true] {
        let make = |backend: &ModelPair| -> Box<dyn ggro::engine::Request<Output = Completions>> {
            match searches {
                true => Box::new(baseline(backend, &younger, spec(TOKENS, SAMPLES), &soft).unwrap()),
                false => Box::new(sampler(backend, &younger, spec(TOKENS, SAMPLES)).unwrap()),
            }
        };
        let mut free = Scripted::new(&model, 300);
        let requests = vec![make(&free)];
        let (alone, _) = run_all(&mut free, &settings, requests, &mut ()).unwrap().results.remove(0);
        // Room for both prompts and a block for each sample; then the older request needs another one. One sample of a
        // search goes on on the prompt's own sequence.
        let mut backend = Scripted::new(&model, 300);
        backend.limit(1 + PROMPT_LEN.div_ceil(BLOCK) + SAMPLES - usize::from(searches));
        let first = sampler(&backend, &older, spec(40, 1)).unwrap();
        let requests: Vec<Box<dyn ggro::engine::Request<Output = Completions>>> = vec![Box::new(first), make(&backend)];
        let (got, stats) = run_all(&mut backend, &settings, requests, &mut ()).unwrap().results.remove(1);
        assert_eq!((&got, stats.preemptions, stats.necessary), (&alone, 1, alone.work));
        let again = stats.recomputed;
        let most = (PROMPT_LEN + SAMPLES * TOKENS) as u64;
        assert!((PROMPT_LEN as u64..=most).contains(&again.policy_forward), "{again:?}, searches: {searches}");
        assert!((PROMPT_LEN as u64..=most).contains(&again.reward_forward), "{again:?}, searches: {searches}");
        assert_eq!(stats.ran + stats.shared, stats.necessary + stats.speculative() + again);
    }
}

#[test]
fn stops_and_logprobs() {
    let (request, mut backend) = (request(), load("llama-gqa", None));
    let free = alone(&mut backend, &request, plan(&request, 1.0, 1, false)).all.remove(0);
    assert!(free.ids.len() > 4);
    let third = || -> StopCheck {
        let mut seen = 0;
        Box::new(move |_| {
            seen += 1;
            seen == 3
        })
    };
    let watched = CompletionSpec { stop_check: Some(Arc::new(third)), ..plan(&request, 1.0, 1, false) };
    let stopped = alone(&mut backend, &request, watched).all.remove(0);
    assert_eq!((&stopped.ids[..], stopped.reason), (&free.ids[..3], StopReason::Stop));
    let mut asked = plan(&request, 1.0, 1, false);
    asked.sampling.logprobs = Some(3);
    let told = alone(&mut backend, &request, asked).all.remove(0);
    assert_eq!(told.ids, free.ids);
    assert_eq!(told.logprobs.len(), told.ids.len());
    for (id, chosen) in told.ids.iter().zip(&told.logprobs) {
        assert!(chosen.id == *id && chosen.logprob <= 0.0 && chosen.top.len() == 3);
    }
}

#[test]
fn unusable_plans_say_why() {
    let (request, backend) = (request(), load("llama-gqa", None));
    let refused = |change: fn(&mut CompletionSpec)| {
        let mut plan = plan(&request, 1.0, 1, false);
        change(&mut plan);
        sampler(&backend, &request.prompt, plan).err().unwrap().to_string()
    };
    assert!(refused(|plan| plan.n = 0).starts_with("n must be 1 to 128"));
    assert!(refused(|plan| plan.n = 129).starts_with("n must be"));
    assert!(refused(|plan| plan.max_new_tokens = 0).starts_with("max_new_tokens"));
    assert!(refused(|plan| plan.max_new_tokens = 1 << 40).contains("exceed the longest sequence"));
    assert!(refused(|plan| plan.sampling.top_p = 2.0).starts_with("top_p"));
}
