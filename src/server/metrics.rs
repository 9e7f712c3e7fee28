//! Metrics in the text format of Prometheus.
//!
//! Names follow vLLM's, under `ggro_`; a router that scrapes vLLM's own names gets them too with `--metrics-compat vllm`.

use super::error::ApiError;
use super::generate::Usage;
use crate::answer::{CandidateStop, Segment, WalkEnd};
use crate::engine::{DraftStats, Status};
use crate::model::Role;
use axum::http::StatusCode;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

type Labels = Vec<(&'static str, String)>;
type Seconds = Counter<f64, AtomicU64>;
type Level = Gauge<f64, AtomicU64>;

/// Every metric.
pub struct Metrics {
    running: Gauge,
    waiting: Gauge,
    cache_usage: Family<Labels, Level>,
    main_cache_usage: Level,
    blocks: Family<Labels, Gauge>,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    success: Family<Labels, Counter>,
    failure: Family<Labels, Counter>,
    aborted: Counter,
    corrupted: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    first_token: Histogram,
    next_token: Histogram,
    whole: Histogram,
    queued: Histogram,
    prefill: Histogram,
    decode: Histogram,
    request_prompt: Histogram,
    request_generation: Histogram,
    segments: Counter,
    refinements: Family<Labels, Counter>,
    nudges: Counter,
    segment_tokens: Histogram,
    segment_reward: Histogram,
    entropy_at_break: Histogram,
    phases: Family<Labels, Seconds>,
    work: Family<Labels, Counter>,
    turns: Counter,
    policy_steps: Counter,
    drafted: Family<Labels, Counter>,
    accepted: Family<Labels, Counter>,
    http: Family<Labels, Counter>,
    /// The models that there are.
    roles: Vec<Role>,
    registry: Mutex<(Registry, Status)>,
}

/// A registry, and the prefix of its names.
struct Names<'a> {
    registry: &'a mut Registry,
    prefix: &'a str,
}

impl Names<'_> {
    fn add(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.registry.register(format!("{}{name}", self.prefix), help, metric);
    }
}

/// A label.
fn label(name: &'static str, value: impl ToString) -> Labels {
    vec![(name, value.to_string())]
}

fn latencies() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
    ])
}

fn counts() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 18))
}

impl Metrics {
    /// Metrics of models of these roles under this name; with `vllm` also under vLLM's names.
    pub fn new(model: &str, roles: Vec<Role>, vllm: bool) -> Metrics {
        let metrics = Metrics {
            running: Gauge::default(),
            waiting: Gauge::default(),
            cache_usage: Family::default(),
            main_cache_usage: Gauge::default(),
            blocks: Family::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            success: Family::default(),
            failure: Family::default(),
            aborted: Counter::default(),
            corrupted: Counter::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            preemptions: Counter::default(),
            first_token: latencies(),
            next_token: latencies(),
            whole: latencies(),
            queued: latencies(),
            prefill: latencies(),
            decode: latencies(),
            request_prompt: counts(),
            request_generation: counts(),
            segments: Counter::default(),
            refinements: Family::default(),
            nudges: Counter::default(),
            segment_tokens: counts(),
            segment_reward: Histogram::new([
                -40.0, -20.0, -10.0, -5.0, -2.0, -1.0, 0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0,
            ]),
            entropy_at_break: Histogram::new([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0]),
            phases: Family::default(),
            work: Family::default(),
            turns: Counter::default(),
            policy_steps: Counter::default(),
            drafted: Family::default(),
            accepted: Family::default(),
            http: Family::default(),
            roles,
            registry: Mutex::default(),
        };
        let named = [(Cow::from("model_name"), Cow::from(model.to_string()))];
        let mut registry = Registry::with_labels(named.into_iter());
        metrics.register(&mut registry, "ggro_", true);
        if vllm {
            metrics.register(&mut registry, "vllm:", false);
        }
        *metrics.registry.lock().unwrap_or_else(PoisonError::into_inner) = (registry, Status::default());
        metrics
    }

    fn register(&self, registry: &mut Registry, prefix: &str, own: bool) {
        let mut names = Names { registry, prefix };
        names.add("num_requests_running", "Requests that run", self.running.clone());
        names.add("num_requests_waiting", "Requests that wait for room", self.waiting.clone());
        if own {
            let help = "Share of the blocks of keys and values that are held, by model";
            names.add("kv_cache_usage_perc", help, self.cache_usage.clone());
        } else {
            let model = if self.roles.contains(&Role::Policy) { "policy" } else { "reward model" };
            let help = format!("Share of the {model}'s blocks of keys and values that are held");
            names.add("kv_cache_usage_perc", &help, self.main_cache_usage.clone());
        }
        names.add("prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        names.add("generation_tokens", "Tokens of answers", self.generation_tokens.clone());
        names.add("request_success", "Answers, by how they ended", self.success.clone());
        names.add("corrupted_requests", "Requests ended by a number that is not finite", self.corrupted.clone());
        let help = "Tokens of prompts that were looked up among those run before";
        names.add("prefix_cache_queries", help, self.prefix_queries.clone());
        names.add("prefix_cache_hits", "Of them, those that were found", self.prefix_hits.clone());
        names.add("num_preemptions", "Requests whose blocks were taken back", self.preemptions.clone());
        let help = "From the arrival of a request to its first token, or first segment";
        names.add("time_to_first_token_seconds", help, self.first_token.clone());
        let help = "Between pieces of an answer: tokens, or segments of the method";
        names.add("inter_token_latency_seconds", help, self.next_token.clone());
        let help = "From the arrival of a request to its end";
        names.add("e2e_request_latency_seconds", help, self.whole.clone());
        names.add("request_queue_time_seconds", "From arrival until it runs", self.queued.clone());
        let help = "From then until the first token, or segment";
        names.add("request_prefill_time_seconds", help, self.prefill.clone());
        names.add("request_decode_time_seconds", "From then until the end", self.decode.clone());
        names.add("request_prompt_tokens", "Tokens of a request's prompts", self.request_prompt.clone());
        names.add("request_generation_tokens", "Tokens of a request's answers", self.request_generation.clone());
        if !own {
            return;
        }
        let help = "Blocks of keys and values that are held, kept prompts among them, by model";
        names.add("kv_blocks_in_use", help, self.blocks.clone());
        names.add("request_failure", "Requests ended by an error, by status", self.failure.clone());
        names.add("request_aborted", "Requests whose client went away", self.aborted.clone());
        names.add("segments", "Committed segments", self.segments.clone());
        let help = "Refinements: improved the segment, kept the best before, or would have repeated one";
        names.add("refinements", help, self.refinements.clone());
        let help = "Segments in which another than the policy's own candidate was kept";
        names.add("nudges_accepted", help, self.nudges.clone());
        names.add("segment_tokens", "Tokens of a segment", self.segment_tokens.clone());
        names.add("segment_reward", "Reward at the end of a segment", self.segment_reward.clone());
        let help = "Entropy that ended a segment, in nats";
        names.add("entropy_at_break", help, self.entropy_at_break.clone());
        let help = "Seconds spent: decode, reward_fwd, reward_bwd, select (everything on the host)";
        names.add("phase_seconds", help, self.phases.clone());
        names.add("forwarded_tokens", "Token positions that went through the models", self.work.clone());
        names.add("turns", "Turns of the scheduler", self.turns.clone());
        names.add("policy_steps", "Batches of the policy", self.policy_steps.clone());
        names.add("draft_tokens", "Tokens that were guessed, by source", self.drafted.clone());
        names.add("accepted_draft_tokens", "Of them, those that were right", self.accepted.clone());
        names.add("http_requests", "Requests, by route and status", self.http.clone());
    }

    /// The text, with the engine's state at this moment.
    pub fn text(&self, status: Option<Status>) -> String {
        let mut guard = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let (registry, last) = &mut *guard;
        if let Some(status) = status {
            self.engine(&status, last);
            *last = status;
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, registry);
        text
    }

    /// Adds what the engine has done since the last call.
    fn engine(&self, now: &Status, last: &Status) {
        let level = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.running.set(level(now.running));
        self.waiting.set(level(now.waiting));
        for &role in &self.roles {
            let (index, model) = (role as usize, role.name());
            let (free, all) = (now.blocks_free[index], now.blocks[index]);
            // A backend that allocates on demand has no fixed number of blocks.
            let bounded = all > 0 && all < u32::MAX as usize;
            let usage = if bounded { 1.0 - free as f64 / all as f64 } else { 0.0 };
            self.cache_usage.get_or_create(&label("model", model)).set(usage);
            self.blocks.get_or_create(&label("model", model)).set(level(now.blocks_in_use[index]));
            if self.roles.first() == Some(&role) {
                self.main_cache_usage.set(usage);
            }
        }
        self.turns.inc_by(now.scheduler.steps.saturating_sub(last.scheduler.steps));
        self.preemptions.inc_by(now.scheduler.preemptions.saturating_sub(last.scheduler.preemptions));
        let work = [
            ("policy_forward", now.work.policy_forward, last.work.policy_forward),
            ("reward_forward", now.work.reward_forward, last.work.reward_forward),
            ("reward_backward", now.work.reward_backward, last.work.reward_backward),
        ];
        for (kind, now, last) in work {
            self.work.get_or_create(&label("kind", kind)).inc_by(now.saturating_sub(last));
        }
        let drafts = |status: &Status| {
            let DraftStats { siblings, text, model } = status.scheduler.drafts;
            [("siblings", siblings), ("text", text), ("model", model)]
        };
        self.policy_steps.inc_by(now.scheduler.policy_batches.saturating_sub(last.scheduler.policy_batches));
        for ((source, now), (_, last)) in drafts(now).into_iter().zip(drafts(last)) {
            let label = label("source", source);
            self.drafted.get_or_create(&label).inc_by(now.drafted.saturating_sub(last.drafted));
            self.accepted.get_or_create(&label).inc_by(now.accepted.saturating_sub(last.accepted));
        }
        let host = |status: &Status| {
            let seconds = status.seconds;
            (status.step_seconds - seconds.policy - seconds.score - seconds.gradient - seconds.draft).max(0.0)
        };
        let phases = [
            ("decode", now.seconds.policy, last.seconds.policy),
            ("reward_fwd", now.seconds.score, last.seconds.score),
            ("reward_bwd", now.seconds.gradient, last.seconds.gradient),
            ("draft", now.seconds.draft, last.seconds.draft),
            ("select", host(now), host(last)),
        ];
        for (phase, now, last) in phases {
            self.phases.get_or_create(&label("phase", phase)).inc_by((now - last).max(0.0));
        }
    }

    /// An answer's first token came after this time.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// Another token came after this time.
    pub fn next_token(&self, after: Duration) {
        self.next_token.observe(after.as_secs_f64());
    }

    /// A segment was committed.
    pub fn segment(&self, segment: &Segment) {
        self.segments.inc();
        self.nudges.inc_by(u64::from(segment.best != 0));
        let count = |outcome: &str| self.refinements.get_or_create(&label("outcome", outcome)).inc();
        let mut best = f32::NEG_INFINITY;
        for (index, candidate) in segment.candidates.iter().enumerate() {
            let improved = candidate.reward > best;
            best = best.max(candidate.reward);
            if index > 0 {
                count(if improved { "improved" } else { "kept" });
            }
        }
        if segment.walk_end == WalkEnd::Duplicate {
            count("repeat");
        }
        if let Some(kept) = segment.candidates.get(segment.best) {
            self.segment_tokens.observe(kept.ids.len() as f64);
            self.segment_reward.observe(f64::from(kept.reward));
            if let Some(&entropy) = kept.entropies.last().filter(|_| kept.stop == CandidateStop::Entropy) {
                self.entropy_at_break.observe(entropy);
            }
        }
    }

    /// A request was answered.
    pub fn answered<'a>(
        &self,
        usage: &Usage,
        reasons: impl Iterator<Item = &'a str>,
        queued: Duration,
        prefill: Duration,
        decode: Duration,
        all: Duration,
    ) {
        self.prompt_tokens.inc_by(usage.prompt as u64);
        self.prefix_queries.inc_by(usage.prompt as u64);
        self.prefix_hits.inc_by(usage.cached.min(usage.prompt) as u64);
        self.generation_tokens.inc_by(usage.completion as u64);
        self.request_prompt.observe(usage.prompt as f64);
        self.request_generation.observe(usage.completion as f64);
        for reason in reasons {
            self.success.get_or_create(&label("finished_reason", reason)).inc();
        }
        for (histogram, time) in
            [(&self.queued, queued), (&self.prefill, prefill), (&self.decode, decode), (&self.whole, all)]
        {
            histogram.observe(time.as_secs_f64());
        }
    }

    /// A request was ended by an error.
    pub fn failed(&self, error: &ApiError) {
        self.failure.get_or_create(&label("status", error.status.as_u16())).inc();
        self.corrupted.inc_by(u64::from(error.code == Some("non_finite")));
    }

    /// A client disconnected before its answer was complete.
    pub fn aborted(&self) {
        self.aborted.inc();
    }

    /// A response was begun.
    pub fn http(&self, route: &str, status: StatusCode) {
        let labels = vec![("route", route.to_string()), ("status", status.as_u16().to_string())];
        self.http.get_or_create(&labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_differences() {
        let metrics = Metrics::new("demo", vec![Role::Policy, Role::Reward], true);
        let mut status = Status { running: 3, blocks: [10, 0], blocks_free: [4, 0], ..Status::default() };
        status.scheduler.steps = 7;
        let text = metrics.text(Some(status.clone()));
        for line in [
            "ggro_num_requests_running{model_name=\"demo\"} 3",
            "vllm:num_requests_running{model_name=\"demo\"} 3",
            "vllm:kv_cache_usage_perc{model_name=\"demo\"} 0.6",
            "ggro_turns_total{model_name=\"demo\"} 7",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        status.scheduler.steps = 9;
        let text = metrics.text(Some(status));
        assert!(text.contains("ggro_turns_total{model_name=\"demo\"} 9"));
        assert!(!Metrics::new("demo", Vec::new(), false).text(None).contains("vllm:"));
    }
}
