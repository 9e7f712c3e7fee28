//! One golden trace replayed and compared, decision by decision and number by number.

use super::{ABSOLUTE, Check, DOT_ABSOLUTE, DOT_RELATIVE, GRADIENT};
use crate::answer::{Margins, Response};
use crate::engine::decode;
use crate::method::entropy::signal;
use crate::method::{Options, Selection};
use crate::model::{ModelPair, Work};
use crate::rng::Uniforms;
use crate::trace::{Trace, TraceCandidate, TraceOptions, TraceTopK};
use crate::{Error, Result};

/// Replays a trace with its own options and uniform numbers, and compares everything. A second, lean replay, without the
/// numbers that no decision needs, must decide the same, and its work must be the least possible.
///
/// # Errors
/// The trace names an unknown signal. A failure to decode is a difference, not an error.
pub fn trace(backend: &mut ModelPair, golden: &Trace) -> Result<Check> {
    let mut check = Check::new(&golden.name);
    check.extent = format!(
        "{} ids, {} segments, {} candidates",
        golden.final_ids.len(),
        golden.segments.len(),
        golden.segments.iter().map(|s| s.candidates.len()).sum::<usize>()
    );
    match replay(backend, golden, true)? {
        Ok(found) => {
            decisions(&mut check, golden, &found, true);
            numbers(&mut check, golden, &found);
        }
        Err(error) => check.differs(|| format!("not decoded: {error}")),
    }
    match replay(backend, golden, false)? {
        Ok(found) => {
            decisions(&mut check, golden, &found, false);
            let expected = expected_work(golden);
            check.same(|| "work".into(), &expected, &found.work.unwrap_or(expected));
        }
        Err(error) => check.differs(|| format!("not decoded without full records: {error}")),
    }
    Ok(check)
}

/// The outer error is the trace's, the inner one the engine's.
fn replay(backend: &mut ModelPair, golden: &Trace, full: bool) -> Result<Result<Trace>> {
    let options = options(&golden.options, full)?;
    let uniforms = Uniforms::Recorded(golden.uniforms_used.clone());
    let before = backend.work();
    let response = decode(backend, &golden.prompt_ids, &options, uniforms, &mut ());
    // What the backend did, and not what the response says it took.
    let work = backend.work() - before;
    Ok(response.and_then(|r| Trace::from_response(&golden.name, None, &options, &Response { work, ..r }, None)))
}

fn options(options: &TraceOptions, full_trace: bool) -> Result<Options> {
    let name = options.signal.as_deref().unwrap_or(crate::trace::ENTROPY);
    let signal = signal(name).ok_or_else(|| Error::invalid(format!("the trace's signal {name:?} is not known")))?;
    Ok(Options {
        max_new_tokens: options.max_new_tokens,
        entropy_threshold: options.entropy_threshold,
        signal,
        max_candidates: options.max_candidates,
        top_k: options.top_k,
        temperature: options.temperature,
        selection: options.selection,
        proposals: options.proposals,
        logprob_weight: options.logprob_weight,
        first_offset: options.first_offset,
        min_generated: options.min_generated,
        finish_id: options.finish_id,
        stop_ids: options.stop_ids.clone(),
        damping: options.damping,
        probability_floor: options.probability_floor,
        reward_pad_id: options.reward_pad_id,
        max_segments: None,
        full_trace,
    })
}

/// The least work that decides this trace: every token once, `P + sum(|g| - 1 - [f] o)` policy forwards,
/// `P + sum(|k| - [f] o)` reward forwards, and `sum(|k| - o)` backwards over the candidates whose gradient is used, if any is.
pub fn expected_work(trace: &Trace) -> Work {
    let prompt = trace.prompt_ids.len() as u64;
    let mut work = Work { policy_forward: prompt, reward_forward: prompt, reward_backward: 0 };
    for segment in &trace.segments {
        let offset = segment.slot.saturating_sub(segment.start) as u64;
        for (index, candidate) in segment.candidates.iter().enumerate() {
            let kept = candidate.ids.len() as u64;
            let generated = kept + u64::from(candidate.dropped.is_some());
            let shared = if candidate.forced.is_some() { offset } else { 0 };
            work.policy_forward += generated.saturating_sub(1 + shared);
            work.reward_forward += kept.saturating_sub(shared);
            if trace.options.proposals.differentiates() && index + 1 < trace.options.max_candidates {
                work.reward_backward += kept.saturating_sub(offset);
            }
        }
    }
    work
}

/// Everything discrete. `full`: also the proposal after the last candidate, which no decision needs.
fn decisions(check: &mut Check, golden: &Trace, found: &Trace, full: bool) {
    // Segments first: what differs there explains what differs in the whole.
    for (number, (golden_segment, segment)) in golden.segments.iter().zip(&found.segments).enumerate() {
        let at = |what: &str| format!("segment {number}: {what}");
        check.same(|| at("start"), &golden_segment.start, &segment.start);
        check.same(|| at("slot"), &golden_segment.slot, &segment.slot);
        let pairs = golden_segment.candidates.iter().zip(&segment.candidates);
        for (index, (expected, found)) in pairs.enumerate() {
            let at = |what: &str| format!("segment {number} candidate {index}: {what}");
            check.same(|| at("proposed"), &expected.proposed, &found.proposed);
            check.same(|| at("forced"), &expected.forced, &found.forced);
            check.same_list(|| at("ids"), &expected.ids, &found.ids);
            check.same(|| at("dropped"), &expected.dropped, &found.dropped);
            check.same(|| at("stop"), &expected.stop, &found.stop);
            if full {
                check.same(|| at("next proposal"), &expected.next_proposal, &found.next_proposal);
            }
        }
        let (expected, count) = (golden_segment.candidates.len(), segment.candidates.len());
        check.same(|| at("number of candidates"), &expected, &count);
        check.same(|| at("repeat"), &golden_segment.repeat, &segment.repeat);
        check.same(|| at("walk end"), &golden_segment.walk_end, &segment.walk_end);
        check.same(|| at("best"), &golden_segment.best, &segment.best);
    }
    check.same_list(|| "final ids".into(), &golden.final_ids, &found.final_ids);
    check.same_list(|| "new ids".into(), &golden.new_ids, &found.new_ids);
    let boundaries = &golden.segment_boundaries;
    check.same_list(|| "boundaries".into(), boundaries, &found.segment_boundaries);
    check.same(|| "segments".into(), &golden.segments.len(), &found.segments.len());
    check.same(|| "finish reason".into(), &golden.finish_reason, &found.finish_reason);
    check.same(|| "nudges".into(), &golden.num_nudges, &found.num_nudges);
    let pool = &golden.final_pool_position;
    check.same(|| "pool position".into(), pool, &found.final_pool_position);
    check.same_list(|| "uniforms".into(), &golden.uniforms_used, &found.uniforms_used);
}

fn numbers(check: &mut Check, golden: &Trace, found: &Trace) {
    for (number, (golden_segment, segment)) in golden.segments.iter().zip(&found.segments).enumerate() {
        let pairs = golden_segment.candidates.iter().zip(&segment.candidates);
        for (index, (expected, found)) in pairs.enumerate() {
            let last = index + 1 == golden.options.max_candidates;
            let TraceOptions { proposals, selection, .. } = &golden.options;
            let drawn = !(last && proposals.draws(*selection == Selection::Sample));
            candidate(check, &format!("segment {number} candidate {index}"), expected, found, drawn);
        }
        let what = || format!("segment {number}: reward margin");
        let margin = (golden_segment.reward_margin, segment.reward_margin);
        if let (Some(expected), Some(found)) = margin {
            // The difference of two rewards, each within its bound.
            check.near("reward margin", what, expected, found, 2.0 * ABSOLUTE);
        } else {
            let (expected, found) = (margin.0.is_some(), margin.1.is_some());
            check.same(|| format!("{} present", what()), &expected, &found);
        }
    }
    let expected = golden.last_segment_reward;
    let what = || "last segment's reward".to_string();
    check.near("reward", what, expected, found.last_segment_reward, ABSOLUTE);
    let what = || "final reward".to_string();
    check.near("reward", what, golden.final_reward, found.final_reward, ABSOLUTE);
    margins(check, &golden.min_margins, &found.min_margins, true);
}

fn candidate(check: &mut Check, name: &str, expected: &TraceCandidate, found: &TraceCandidate, drawn: bool) {
    let lists = [
        ("entropies", &expected.entropies, &found.entropies),
        ("exact entropies", &expected.entropies_exact, &found.entropies_exact),
    ];
    for (what, expected, found) in lists {
        check.same(|| format!("{name}: number of {what}"), &expected.len(), &found.len());
        for (token, (&expected, &found)) in expected.iter().zip(found).enumerate() {
            let what = || format!("{name}: {what}, token {token}");
            check.near("entropy", what, expected, found, ABSOLUTE);
        }
    }
    check.near("reward", || format!("{name}: reward"), expected.reward, found.reward, ABSOLUTE);
    match (expected.slot_gradient_norm, found.slot_gradient_norm) {
        (Some(expected), Some(found)) => {
            let deviation = (expected - found).abs();
            let relative = if deviation == 0.0 { 0.0 } else { deviation / expected };
            if !check.note("gradient norm", relative, Some(GRADIENT)) {
                check.differs(|| format!("{name}: gradient norm {expected:.9} expected, {found:.9} found"));
            }
        }
        (expected, found) => check.same(|| format!("{name}: gradient norm"), &expected, &found),
    }
    match (&expected.top_k, &found.top_k) {
        (Some(expected), Some(found)) => top_k(check, name, expected, found, drawn),
        (expected, found) => {
            check.same(|| format!("{name}: top-k present"), &expected.is_some(), &found.is_some());
        }
    }
    margins(check, &expected.margins, &found.margins, drawn);
}

/// Two ids whose logits are closer than the bound may change places; the edge of the list is clear in every fixture.
fn top_k(check: &mut Check, name: &str, expected: &TraceTopK, found: &TraceTopK, drawn: bool) {
    check.same(|| format!("{name}: top-k count"), &expected.count, &found.count);
    check.same(|| format!("{name}: top-k length"), &expected.ids.len(), &found.ids.len());
    let weights = expected.probs.as_ref().map_or(expected.ids.len(), Vec::len);
    let scored = !(expected.dots.is_empty() && found.dots.is_empty());
    let dots = if scored { expected.dots.len() } else { expected.ids.len() };
    if [expected.logits.len(), dots, weights].iter().any(|&len| len != expected.ids.len()) {
        check.differs(|| format!("{name}: the lists of the trace's top-k have different lengths"));
        return;
    }
    let whole = expected.ids.len() == expected.count;
    for (rank, (&id, &logit)) in expected.ids.iter().zip(&expected.logits).enumerate() {
        let Some(place) = found.ids.iter().position(|&other| other == id) else {
            // A list that was cut may lose its last entries to equals behind the cut.
            let edge = expected.logits.last().is_some_and(|&last| logit - last <= 2.0 * ABSOLUTE);
            if whole || !edge {
                check.differs(|| format!("{name}: top-k lacks id {id} (rank {rank})"));
            }
            continue;
        };
        let at = |what: &str| format!("{name}: {what} of top-k id {id}");
        check.near("logit", || at("logit"), logit, found.logits[place], ABSOLUTE);
        if place != rank && (logit - expected.logits.get(place).unwrap_or(&logit)).abs() > 2.0 * ABSOLUTE {
            check.differs(|| format!("{name}: top-k id {id} at rank {place}, {rank} expected"));
        }
        if scored {
            let (dot, found_dot) = (expected.dots[rank], found.dots.get(place).copied().unwrap_or(f64::NAN));
            let bound = DOT_ABSOLUTE.max(DOT_RELATIVE * dot.abs());
            check.near("dot", || at("dot"), dot, found_dot, bound);
        }
        let probabilities = (expected.probs.as_ref(), found.probs.as_ref());
        if let (Some(expected), Some(found)) = probabilities {
            check.note("sampling weight", (expected[rank] - found[place]).abs(), None);
        } else if drawn {
            let (expected, found) = (expected.probs.is_some(), found.probs.is_some());
            check.same(|| at("sampling weights present"), &expected, &found);
        }
    }
}

/// Margins decide nothing; how far they are off is for information. The score's means nothing where nothing was drawn.
fn margins(check: &mut Check, expected: &Margins, found: &Margins, drawn: bool) {
    let pairs = [
        (expected.argmax, found.argmax),
        (expected.entropy, found.entropy),
        (expected.score.filter(|_| drawn), found.score),
        (expected.top_k_edge, found.top_k_edge),
        (expected.reward, found.reward),
        (expected.tied_embedding, found.tied_embedding),
    ];
    for (expected, found) in pairs {
        if let (Some(expected), Some(found)) = (expected, found) {
            check.note("margin", (expected - found).abs(), None);
        }
    }
}
