//! Every golden trace through the reference backend: ids, boundaries and walks exact, numbers within f32's reach, and the
//! work counted where it is done equal to the minimum.

use ggro::answer::{Candidate, CandidateStop, FinishReason, Response, WalkEnd};
use ggro::engine::decode;
use ggro::method::Options;
use ggro::model::Work;
use ggro_testkit::fixtures::load;
use ggro_testkit::requests::{ids, options, traces, uniforms};
use serde_json::Value;

/// The least work that yields this response: every kept prefix once, a forced candidate from its slot on.
fn minimum(response: &Response) -> Work {
    let prompt = response.prompt_len as u64;
    let mut work = Work { policy_forward: prompt, reward_forward: prompt, reward_backward: 0 };
    for segment in &response.segments {
        let offset = (segment.slot - segment.start) as u64;
        for c in &segment.candidates {
            let shared = if c.forced.is_some() { offset } else { 0 };
            work.policy_forward += c.entropies.len() as u64 - 1 - shared;
            work.reward_forward += c.ids.len() as u64 - shared;
            if c.slot.is_some() {
                work.reward_backward += c.ids.len() as u64 - offset;
            }
        }
    }
    work
}

fn stop(kind: CandidateStop) -> &'static str {
    match kind {
        CandidateStop::Finish => "finish",
        CandidateStop::StopId => "stop_id",
        CandidateStop::Length => "length",
        CandidateStop::Entropy => "entropy",
    }
}

fn close(found: f64, expected: &Value, absolute: f64, relative: f64, what: &str) {
    let expected = expected.as_f64().unwrap_or_else(|| panic!("{what}: found {found}, expected {expected}"));
    let error = (found - expected).abs();
    assert!(error <= absolute || error <= relative * expected.abs(), "{what}: {found} for {expected}");
}

fn compare_candidate(found: &Candidate, expected: &Value, what: &str) {
    assert_eq!(found.ids, ids(&expected["ids"]), "{what}: ids");
    assert_eq!(found.proposed.map(u64::from), expected["proposed"].as_u64(), "{what}: proposed");
    assert_eq!(found.forced.map(u64::from), expected["forced"].as_u64(), "{what}: forced");
    assert_eq!(found.dropped.map(u64::from), expected["dropped"].as_u64(), "{what}: dropped");
    assert_eq!(stop(found.stop), expected["stop"], "{what}: stop");
    for (name, values) in [("entropies", &found.entropies), ("entropies_exact", &found.entropies_exact)] {
        let golden = expected[name].as_array().unwrap();
        assert_eq!(values.len(), golden.len(), "{what}: {name}");
        values.iter().zip(golden).for_each(|(&v, g)| close(v, g, 1e-4, 0.0, what));
    }
    close(found.reward as f64, &expected["reward"], 1e-4, 0.0, what);
    let Some(slot) = &found.slot else { return };
    close(slot.gradient_norm.unwrap(), &expected["slot_gradient_norm"], 0.0, 1e-4, what);
    let top = &expected["top_k"];
    assert_eq!(slot.ids.len() as u64, top["count"], "{what}: candidates");
    let listed = ids(&top["ids"]);
    assert_eq!(slot.ids[..listed.len()], listed, "{what}: candidates");
    for (i, (logit, dot)) in slot.logits.iter().zip(&slot.dots).take(listed.len()).enumerate() {
        close(*logit as f64, &top["logits"][i], 1e-4, 0.0, what);
        close(*dot as f64, &top["dots"][i], 1e-5, 1e-4, what);
    }
}

fn compare(found: &Response, golden: &Value, what: &str) {
    assert_eq!(found.final_ids, ids(&golden["final_ids"]), "{what}: ids");
    let boundaries: Vec<u32> = found.segment_boundaries.iter().map(|&b| b as u32).collect();
    assert_eq!(boundaries, ids(&golden["segment_boundaries"]), "{what}: boundaries");
    assert_eq!(found.num_nudges as u64, golden["num_nudges"], "{what}: nudges");
    let reason = match found.finish_reason {
        FinishReason::Finish => "finish",
        FinishReason::Length => "length",
        FinishReason::Stalled => "stalled",
    };
    assert_eq!(reason, golden["finish_reason"], "{what}: finish reason");
    close(found.last_segment_reward as f64, &golden["last_segment_reward"], 1e-4, 0.0, what);
    close(found.final_reward as f64, &golden["final_reward"], 1e-4, 0.0, what);
    assert_eq!(found.final_pool_position as u64, golden["final_pool_position"], "{what}: pool position");
    let used = golden["uniforms_used"].as_array().unwrap();
    assert_eq!(found.uniforms_used.len(), used.len(), "{what}: uniforms");
    let segments = golden["segments"].as_array().unwrap();
    assert_eq!(found.segments.len(), segments.len(), "{what}: segments");
    for (i, (segment, expected)) in found.segments.iter().zip(segments).enumerate() {
        let what = format!("{what}, segment {i}");
        assert_eq!(segment.start as u64, expected["start"], "{what}");
        assert_eq!(segment.slot as u64, expected["slot"], "{what}");
        assert_eq!(segment.best as u64, expected["best"], "{what}");
        let end = match segment.walk_end {
            WalkEnd::Duplicate => "duplicate",
            WalkEnd::Budget => "budget",
            WalkEnd::NoSlot => "no_slot",
            WalkEnd::Exhausted => "exhausted",
        };
        assert_eq!(end, expected["walk_end"], "{what}");
        match segment.repeat {
            Some(repeat) => {
                assert_eq!(repeat.proposed as u64, expected["repeat"]["proposed"], "{what}");
                assert_eq!(repeat.same_as as u64, expected["repeat"]["same_as"], "{what}");
            }
            None => assert!(expected["repeat"].is_null(), "{what}"),
        }
        let candidates = expected["candidates"].as_array().unwrap();
        assert_eq!(segment.candidates.len(), candidates.len(), "{what}");
        for (j, (c, e)) in segment.candidates.iter().zip(candidates).enumerate() {
            compare_candidate(c, e, &format!("{what}, candidate {j}"));
        }
    }
}

fn replay(fixture: &str) {
    let mut backend = load(fixture, None);
    for golden in &traces(fixture) {
        let what = format!("{fixture}/{}", golden["name"]);
        let prompt = ids(&golden["prompt_ids"]);
        for full_trace in [false, true] {
            let options = Options { full_trace, ..options(&golden["options"]) };
            let before = backend.work();
            let found = decode(&mut backend, &prompt, &options, uniforms(golden), &mut ()).unwrap();
            compare(&found, golden, &what);
            assert_eq!(found.work, minimum(&found), "{what}: work, full trace {full_trace}");
            assert_eq!(backend.work() - before, found.work, "{what}: work done, full trace {full_trace}");
        }
    }
}

ggro_testkit::each_fixture!(replay);
