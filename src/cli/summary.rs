//! The summary of `generate`: lines for people, or one JSON object.

use super::terminal::Style;
use super::words::counted;
use crate::answer::{FinishReason, Response};
use crate::engine::DraftStats;
use crate::model::Work;
use crate::trace::finish_reason_name;
use serde_json::{Value, json};
use std::time::Duration;

/// A decoded answer and how long it took.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response,
    pub text: String,
    pub elapsed: Duration,
    /// Speculative work that the answer did not need.
    pub speculative: Work,
    /// Tokens that were guessed.
    pub drafts: DraftStats,
    /// Whether prompt and answer, tokenised again, give the same ids.
    pub round_trip_stable: bool,
}

impl Answer {
    pub(super) fn new_tokens(&self) -> usize {
        self.response.final_ids.len() - self.response.prompt_len
    }

    fn candidates(&self) -> usize {
        self.response.segments.iter().map(|s| s.candidates.len()).sum()
    }

    fn tokens_per_second(&self) -> f64 {
        self.new_tokens() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The lines for people. `greedy` is plain greedy decoding of the same prompt.
    pub(super) fn lines(&self, greedy: Option<&Answer>, painted: bool) -> String {
        let r = &self.response;
        let mut out = format!("reward      {:.3}", r.final_reward);
        if let Some(greedy) = greedy {
            out += &format!(" (plain greedy decoding: {:.3})", greedy.response.final_reward);
        }
        out += &format!(
            "\nsegments    {}, {} nudged, {}",
            r.segments.len(),
            r.num_nudges,
            counted(self.candidates(), "candidate")
        );
        out += &format!(
            "\ntokens      {} behind a prompt of {}, ended by {}",
            self.new_tokens(),
            r.prompt_len,
            ending(r.finish_reason)
        );
        out += &format!(
            "\nwork        policy {} token-forwards; reward {} token-forwards, {} token-backwards",
            r.work.policy_forward, r.work.reward_forward, r.work.reward_backward
        );
        if self.speculative != Work::default() {
            let spare = self.speculative;
            out += &format!(
                "\nspeculative policy {} token-forwards; reward {} token-forwards, {} token-backwards",
                spare.policy_forward, spare.reward_forward, spare.reward_backward
            );
        }
        if self.drafts.drafted() > 0 {
            let DraftStats { siblings, text, model } = self.drafts;
            out += &format!(
                "\ndrafts      {} of {} tokens were right; {} of {} from other candidates, {} of {} from the text",
                self.drafts.accepted(),
                self.drafts.drafted(),
                siblings.accepted,
                siblings.drafted,
                text.accepted,
                text.drafted
            );
            if model.drafted > 0 {
                out += &format!(", {} of {} from the draft model", model.accepted, model.drafted);
            }
        }
        out += &format!("\ntime        {:.2} s, {:.1} tokens/s", self.elapsed.as_secs_f64(), self.tokens_per_second());
        if painted {
            out += &format!("\ncolours     {}, {}", Style::Nudged.paint("nudged"), Style::Uncertain.paint("uncertain"));
        }
        out
    }

    /// The JSON object.
    pub(super) fn json(&self, greedy: Option<&Answer>, device: &str) -> Value {
        let r = &self.response;
        let mut object = json!({
            "text": self.text,
            "finish_reason": finish_reason_name(r.finish_reason),
            "reward": r.final_reward,
            "last_segment_reward": r.last_segment_reward,
            "num_segments": r.segments.len(),
            "num_nudges": r.num_nudges,
            "num_candidates": self.candidates(),
            "prompt_tokens": r.prompt_len,
            "new_tokens": self.new_tokens(),
            "segment_boundaries": r.segment_boundaries,
            "final_ids": r.final_ids,
            "round_trip_stable": self.round_trip_stable,
            "work": r.work,
            "speculative_work": self.speculative,
            "elapsed_seconds": self.elapsed.as_secs_f64(),
            "tokens_per_second": self.tokens_per_second(),
            "device": device,
            "version": env!("CARGO_PKG_VERSION"),
        });
        if self.drafts.drafted() > 0 {
            object["drafts"] = json!(self.drafts);
        }
        object["greedy"] = greedy.map_or(Value::Null, |greedy| {
            json!({
                "text": greedy.text,
                "finish_reason": finish_reason_name(greedy.response.finish_reason),
                "reward": greedy.response.final_reward,
                "new_tokens": greedy.new_tokens(),
                "work": greedy.response.work,
                "elapsed_seconds": greedy.elapsed.as_secs_f64(),
            })
        });
        object
    }
}

fn ending(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Finish => "the end of turn",
        FinishReason::Length => "the budget",
        FinishReason::Stalled => "a stop id",
    }
}
