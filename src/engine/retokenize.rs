//! The official code's habit of reading a response as text between its segments.
//!
//! It decodes every kept segment to text and tokenises the whole text again before it goes on. Where another sequence of ids
//! spells the same text, the policy then sees that one. For reproduction only: each segment is a request of its own.

use crate::answer::{FinishReason, Margins, Respell, Response};
use crate::method::Options;
use crate::{Error, Result};

/// Decodes a response, tokenised again after every segment. `text` decodes ids and encodes their text; `run` decodes a
/// response; `score` gives the reward of a text, which is needed where the last segment is spelled otherwise.
///
/// Segments are recorded as they were decoded; boundaries, like the final ids, are those of the text tokenised again. The prompt
/// is tokenised again as well, so its length may be another. The response's `prompt_len` and its text are what `text` says of
/// the final ids.
///
/// # Errors
/// Nudges are to be drawn: the official code's numbers are not known. Otherwise those of `text` and the two functions.
pub fn decode_retokenized(
    prompt: &[u32],
    options: &Options,
    text: &mut dyn Respell,
    run: &mut dyn FnMut(&[u32], &Options) -> Result<Response>,
    score: &mut dyn FnMut(&[u32]) -> Result<f32>,
) -> Result<Response> {
    if options.draws() {
        return Err(Error::invalid("a response can be retokenized only if its nudge tokens are chosen greedily"));
    }
    let end = prompt.len().saturating_add(options.max_new_tokens);
    let mut ids = text.respell(prompt, false)?;
    let mut whole: Option<Response> = None;
    loop {
        let first_offset = if whole.is_none() { options.first_offset } else { 0 };
        let max_new_tokens = end.saturating_sub(ids.len()).max(1);
        let segment = run(&ids, &Options { max_new_tokens, first_offset, max_segments: Some(1), ..options.clone() })?;
        let mut respelled = text.respell(&segment.final_ids, true)?;
        let finished = segment.finish_reason == FinishReason::Finish;
        // The official code takes an end of turn off the text of a segment that has none: where the first segment keeps nothing,
        // that is the prompt's.
        if !finished {
            respelled.pop_if(|last| *last == options.finish_id);
        }
        // A segment that filled the budget may be spelled with fewer ids, and then there is room for another.
        let goes_on = !finished && !segment.segments.is_empty() && respelled.len() < end && respelled != ids;
        let boundary = respelled.len() - usize::from(finished && !respelled.is_empty());
        let mut sum = match whole.take() {
            None => Response { segment_boundaries: Vec::new(), segments: Vec::new(), ..segment.clone() },
            Some(mut sum) => {
                sum.work += segment.work;
                sum.num_nudges += segment.num_nudges;
                sum.min_margins = least(sum.min_margins, segment.min_margins);
                sum
            }
        };
        sum.segments.extend(segment.segments);
        sum.segment_boundaries.push(boundary);
        sum.finish_reason = match finished {
            true => FinishReason::Finish,
            false if respelled.len() >= end => FinishReason::Length,
            false => FinishReason::Stalled,
        };
        sum.last_segment_reward = segment.last_segment_reward;
        (sum.final_reward, sum.final_pool_position) = (segment.final_reward, segment.final_pool_position);
        if !goes_on {
            if respelled != segment.final_ids {
                sum.final_reward = score(&respelled)?;
                sum.final_pool_position = crate::task::pool_position(&respelled, &[], options.reward_pad_id);
            }
            let answer = text.answer(&respelled)?;
            sum.prompt_len = answer.prompt_len.min(respelled.len());
            sum.respelled = Some(answer.text);
            sum.final_ids = respelled;
            return Ok(sum);
        }
        ids = respelled;
        whole = Some(sum);
    }
}

/// The smaller of each margin.
fn least(a: Margins, b: Margins) -> Margins {
    let of = |pick: fn(&Margins) -> Option<f64>| [pick(&a), pick(&b)].into_iter().flatten().min_by(f64::total_cmp);
    Margins {
        argmax: of(|margins| margins.argmax),
        entropy: of(|margins| margins.entropy),
        score: of(|margins| margins.score),
        top_k_edge: of(|margins| margins.top_k_edge),
        reward: of(|margins| margins.reward),
        tied_embedding: of(|margins| margins.tied_embedding),
    }
}
