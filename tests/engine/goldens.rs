//! Golden requests through the engine, bit for bit what they are one after the other.

use ggro::answer::Response;
use ggro::engine::{Settings, SpeculationWidth};
use ggro::kv::BLOCK;
use ggro::model::Work;
use ggro_testkit::fixtures::load;
use ggro_testkit::random::XorShift;
use ggro_testkit::requests::{Outcome, Request, requests, together};

const WIDTHS: [SpeculationWidth; 5] = [
    SpeculationWidth::Off,
    SpeculationWidth::Fixed(2),
    SpeculationWidth::Fixed(8),
    SpeculationWidth::Fixed(25),
    SpeculationWidth::Auto,
];

fn settings(speculation: SpeculationWidth, run_ahead: bool) -> Settings {
    Settings { speculation, run_ahead, ..Settings::default() }
}

/// An order and arrival turns that differ from seed to seed.
fn scatter(count: usize, seed: u64, spread: usize) -> (Vec<usize>, Vec<usize>) {
    let mut random = XorShift::new(seed);
    let mut next = move || (random.next_u64() >> 33) as usize;
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, next() % (i + 1));
    }
    (order, (0..count).map(|_| next() % spread).collect())
}

fn same(outcome: &Outcome, order: &[usize], expected: &[Response], requests: &[Request], how: &str) {
    for (response, &index) in outcome.responses.iter().zip(order) {
        assert!(*response == expected[index], "{} {how}: another answer", requests[index].name);
    }
}

fn fixture(name: &str) {
    let requests = requests(name);
    let mut backend = load(name, None);
    let expected: Vec<Response> = requests.iter().map(|request| request.alone(&mut backend)).collect();
    for (width, run_ahead) in WIDTHS.into_iter().flat_map(|width| [(width, false), (width, true)]) {
        let settings = settings(width, run_ahead);
        for (index, request) in requests.iter().enumerate() {
            let outcome = together(&mut backend, &settings, &[request], &[0]);
            same(&outcome, &[index], &expected, &requests, &format!("{width:?}, run-ahead {run_ahead}"));
            if width == SpeculationWidth::Off {
                let account = outcome.accounts[0];
                assert_eq!(account.ran, account.necessary, "{}", request.name);
            }
        }
        let (order, arrivals) = scatter(requests.len(), 1 + u64::from(run_ahead), 40);
        let shuffled: Vec<&Request> = order.iter().map(|&i| &requests[i]).collect();
        let outcome = together(&mut backend, &settings, &shuffled, &arrivals);
        same(&outcome, &order, &expected, &requests, &format!("among others, {width:?}, run-ahead {run_ahead}"));
    }

    // So few blocks that requests have to make room for each other.
    let longest = requests.iter().map(|r| r.prompt.len() + r.options.max_new_tokens).max().unwrap();
    let least = longest.div_ceil(BLOCK) + 1;
    let (mut preemptions, mut given_up) = (0, 0);
    let tight = [
        (0, SpeculationWidth::Off),
        (0, SpeculationWidth::Fixed(8)),
        (6, SpeculationWidth::Fixed(2)),
        (12, SpeculationWidth::Fixed(25)),
    ];
    for (seed, (spare, width)) in tight.into_iter().enumerate() {
        let mut backend = load(name, Some(least + spare));
        let (order, arrivals) = scatter(requests.len(), 7 + seed as u64, 6);
        let shuffled: Vec<&Request> = order.iter().map(|&i| &requests[i]).collect();
        let outcome = together(&mut backend, &settings(width, true), &shuffled, &arrivals);
        same(&outcome, &order, &expected, &requests, &format!("in {least} + {spare} blocks, {width:?}"));
        preemptions += outcome.totals.preemptions;
        given_up += outcome.totals.given_up;
    }
    println!("{name}: {preemptions} preemptions, {given_up} speculative lines given up");
    assert!(preemptions > 0, "{name}: nobody was preempted");
}

ggro_testkit::each_fixture!(fixture);

#[test]
fn batches_become_fewer_with_width_and_fuller_with_company() {
    let requests: Vec<Request> =
        requests("llama-gqa").into_iter().filter(|r| r.options.max_candidates >= 5 && r.prompt.len() < 100).collect();
    let mut backend = load("llama-gqa", None);
    let mut per_segment = Vec::new();
    for width in
        [SpeculationWidth::Off, SpeculationWidth::Fixed(2), SpeculationWidth::Fixed(8), SpeculationWidth::Fixed(25)]
    {
        let (mut batches, mut segments, mut waste, mut needed) = (0, 0, 0, 0);
        for request in &requests {
            let outcome = together(&mut backend, &settings(width, true), &[request], &[0]);
            batches += outcome.totals.policy_batches;
            segments += outcome.responses[0].segments.len() as u64;
            waste += outcome.accounts[0].speculative().policy_forward;
            needed += outcome.accounts[0].necessary.policy_forward;
        }
        let mean = batches as f64 / segments as f64;
        println!("{width:?}: {mean:.1} policy batches a segment, {waste} tokens ahead of time for {needed} needed");
        per_segment.push(mean);
    }
    assert!(per_segment.windows(2).all(|pair| pair[1] < pair[0]), "{per_segment:?}");

    let mut fill = Vec::new();
    for count in [1, 2, requests.len()] {
        let some: Vec<&Request> = requests.iter().take(count).collect();
        let outcome = together(&mut backend, &settings(SpeculationWidth::Off, false), &some, &vec![0; count]);
        fill.push(outcome.totals.policy_spans as f64 / outcome.totals.policy_batches as f64);
    }
    println!("spans a policy batch with 1, 2 and {} requests: {fill:.2?}", requests.len());
    assert!(fill.windows(2).all(|pair| pair[1] > pair[0]), "{fill:?}");
}

#[test]
fn equal_prompts_are_run_once() {
    let request = requests("llama-gqa").into_iter().max_by_key(|r| r.prompt.len()).unwrap();
    assert!(request.prompt.len() > 2 * BLOCK, "a prompt worth sharing");
    let mut backend = load("llama-gqa", None);
    let expected = request.alone(&mut backend);
    let prompt = request.prompt.len() as u64;
    // While the first one runs, and after it has ended.
    for arrivals in [[0, 1, 2], [0, 900, 10_000]] {
        let outcome = together(&mut backend, &settings(SpeculationWidth::Fixed(4), true), &[&request; 3], &arrivals);
        assert!(outcome.responses.iter().all(|response| *response == expected));
        let shared: Vec<Work> = outcome.accounts.iter().map(|account| account.shared).collect();
        assert_eq!(shared[0], Work::default());
        for shared in &shared[1..] {
            assert!(shared.policy_forward >= prompt - 1 && shared.reward_forward > 0, "{shared:?} of {prompt}");
        }
    }
}

#[test]
fn long_prompts_are_cut_and_nobody_waits_for_them() {
    let all = requests("llama-gqa");
    let long = all.iter().max_by_key(|r| r.prompt.len()).unwrap();
    let short = all.iter().min_by_key(|r| r.prompt.len()).unwrap();
    let mut backend = load("llama-gqa", None);
    let expected = [short.alone(&mut backend), long.alone(&mut backend)];
    for batch_tokens in [2, 7, 64] {
        let settings = Settings { batch_tokens, ..settings(SpeculationWidth::Off, false) };
        let outcome = together(&mut backend, &settings, &[short, long], &[0, 3]);
        assert!(outcome.responses == expected, "in pieces of {batch_tokens}");
    }
}
