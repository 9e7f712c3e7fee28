//! Golden requests, and requests driven to their ends.

use crate::fixtures::fixture;
use ggro::answer::Response;
use ggro::engine::{Event, RequestStats, Scheduler, SchedulerStats, Settings, decode, intervention};
use ggro::method::{Options, Selection};
use ggro::model::{ModelPair, Role, Work};
use ggro::rng::Uniforms;
use serde_json::Value;
use std::collections::BTreeMap;

/// A request as a trace has it.
#[derive(Clone)]
pub struct Request {
    pub name: String,
    pub prompt: Vec<u32>,
    pub options: Options,
    pub uniforms: Uniforms,
}

impl Request {
    pub fn alone(&self, backend: &mut ModelPair) -> Response {
        decode(backend, &self.prompt, &self.options, self.uniforms.clone(), &mut ()).unwrap()
    }
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// The traces of a fixture as they are written.
pub fn traces(name: &str) -> Vec<Value> {
    let file = fixture(name).join("traces.json");
    let mut traces: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let Value::Array(traces) = traces["traces"].take() else { panic!("{name} has no traces") };
    assert!(!traces.is_empty());
    traces
}

/// Options of a trace, without a full record.
pub fn options(o: &Value) -> Options {
    let int = |name: &str| o[name].as_u64().unwrap() as usize;
    Options {
        max_new_tokens: int("max_new_tokens"),
        entropy_threshold: o["entropy_threshold"].as_f64().unwrap(),
        max_candidates: int("max_candidates"),
        top_k: int("top_k"),
        temperature: o["temperature"].as_f64().unwrap(),
        selection: if o["selection"] == "sample" { Selection::Sample } else { Selection::Greedy },
        first_offset: int("first_offset"),
        min_generated: int("min_generated"),
        damping: o["damping"].as_f64().unwrap(),
        probability_floor: o["probability_floor"].as_f64().unwrap(),
        reward_pad_id: o["reward_pad_id"].as_u64().map(|id| id as u32),
        ..Options::new(int("finish_id") as u32, ids(&o["stop_ids"]))
    }
}

/// The uniform numbers that a trace used.
pub fn uniforms(golden: &Value) -> Uniforms {
    Uniforms::Recorded(golden["uniforms_used"].as_array().unwrap().iter().map(|u| u.as_f64().unwrap()).collect())
}

/// Every trace of a fixture as a request for a full record.
pub fn requests(fixture: &str) -> Vec<Request> {
    let one = |golden: &Value| Request {
        name: format!("{fixture}/{}", golden["name"].as_str().unwrap()),
        prompt: ids(&golden["prompt_ids"]),
        options: Options { full_trace: true, ..options(&golden["options"]) },
        uniforms: uniforms(golden),
    };
    traces(fixture).iter().map(one).collect()
}

/// What became of requests, in their order.
pub struct Outcome {
    pub responses: Vec<Response>,
    pub accounts: Vec<RequestStats>,
    pub totals: SchedulerStats,
}

/// Runs requests together; the n-th arrives before turn `arrivals[n]`. Every block must be free again afterwards, and what was
/// run must be what the accounts say.
pub fn together(backend: &mut ModelPair, settings: &Settings, requests: &[&Request], arrivals: &[usize]) -> Outcome {
    together_on(backend, Scheduler::new(settings.clone()), requests, arrivals)
}

/// [`together`] on a scheduler that was prepared.
pub fn together_on(
    backend: &mut ModelPair,
    mut scheduler: Scheduler<Response>,
    requests: &[&Request],
    arrivals: &[usize],
) -> Outcome {
    let free = [Role::Policy, Role::Reward].map(|role| backend.blocks_free(role));
    let before = backend.work();
    let (mut numbers, mut ended) = (BTreeMap::new(), BTreeMap::new());
    let mut turn = 0;
    while ended.len() < requests.len() {
        for (index, request) in requests.iter().enumerate().filter(|(index, _)| arrivals[*index] == turn) {
            let Request { prompt, options, uniforms, .. } = *request;
            let machine = intervention(backend, prompt, options, uniforms.clone()).unwrap();
            numbers.insert(scheduler.submit(Box::new(machine)), index);
        }
        scheduler.step(backend);
        turn += 1;
        assert!(turn < 1_000_000, "no end");
        for event in scheduler.events() {
            if let Event::Ended(id, outcome, account) = event {
                let index = numbers[&id];
                let response = outcome;
                let response = response.unwrap_or_else(|e| panic!("{}: {e}", requests[index].name));
                assert!(ended.insert(index, (response, account)).is_none(), "ended twice");
            }
        }
    }
    let totals = scheduler.stats();
    scheduler.clear(backend);
    assert_eq!([Role::Policy, Role::Reward].map(|role| backend.blocks_free(role)), free, "blocks left behind");
    let (responses, accounts): (Vec<_>, Vec<RequestStats>) = ended.into_values().unzip();
    let ran = accounts.iter().fold(Work::default(), |sum, stats| sum + stats.ran);
    assert_eq!(ran, backend.work() - before, "what the accounts say was run");
    for account in &accounts {
        let RequestStats { ran, necessary, recomputed, shared, .. } = account;
        let parts: [fn(&Work) -> u64; 3] = [|w| w.policy_forward, |w| w.reward_forward, |w| w.reward_backward];
        for of in parts {
            assert!(of(ran) + of(shared) >= of(necessary) + of(recomputed), "{account:?}");
        }
    }
    Outcome { responses, accounts, totals }
}
