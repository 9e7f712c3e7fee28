//! Models of one's own behind the engine: `cargo run --release --example 05_own_backend`.
//!
//! A backend keeps sequences of both models and answers batches of spans, which are tokens appended to a sequence. A real one
//! keeps keys and values; this one keeps the ids, and its two models are functions of them.

use ggro::files::config::ModelConfig;
use ggro::model::{
    Backend, Gradient, GradientSpan, PolicyRow, PolicySpan, RewardSpan, Role, RowStats, Score, SeqId, Span, TopK, Work,
    synthetic, top_k,
};
use ggro::{Engine, Options, Result, Settings};

const WORDS: [&str; 6] = ["<end>", "the", "cat", "is", "sad", "happy"];
const HAPPY: u32 = 5;

/// The policy: what may follow the last word. After "is", sad is a little more likely than happy.
fn next_word(ids: &[u32]) -> [f32; 6] {
    match ids.last() {
        Some(1) => [0.0, 0.0, 9.0, 0.0, 0.0, 0.0],
        Some(2) => [0.0, 0.0, 0.0, 9.0, 0.0, 0.0],
        Some(3) => [0.0, 0.0, 0.0, 0.0, 9.0, 8.8],
        _ => [9.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    }
}

/// The reward model: how many words are happy.
fn reward(ids: &[u32]) -> f32 {
    ids.iter().filter(|&&id| id == HAPPY).count() as f32
}

struct Toy {
    configs: [ModelConfig; 2],
    sequences: Vec<Vec<u32>>,
}

impl Toy {
    fn new() -> Result<Toy> {
        // Shapes are for the engine's checks; only the vocabulary matters here.
        let configs = synthetic::pair("demo")?.map(|config| ModelConfig { vocab_size: WORDS.len(), ..config });
        Ok(Toy { configs, sequences: Vec::new() })
    }

    fn add(&mut self, role: Role, ids: Vec<u32>) -> SeqId {
        self.sequences.push(ids);
        SeqId { role, index: self.sequences.len() as u32 - 1, generation: 0 }
    }

    /// Runs a span: the sequence as it is afterwards.
    fn append(&mut self, span: &Span<'_>) -> &[u32] {
        let ids = &mut self.sequences[span.seq.index as usize];
        ids.extend_from_slice(span.ids);
        ids
    }

    fn score(&mut self, span: &RewardSpan<'_>) -> Score {
        let ids = self.append(&span.span);
        Score { reward: reward(ids), also: span.also_at.iter().map(|&at| reward(&ids[..=at])).collect() }
    }
}

impl Backend for Toy {
    fn config(&self, role: Role) -> &ModelConfig {
        &self.configs[role as usize]
    }
    fn max_len(&self) -> usize {
        64
    }
    fn create(&mut self, role: Role) -> Result<SeqId> {
        Ok(self.add(role, Vec::new()))
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        let ids = self.sequences[seq.index as usize][..len].to_vec();
        Ok(self.add(seq.role, ids))
    }
    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        self.sequences[seq.index as usize].truncate(len);
        Ok(())
    }
    fn release(&mut self, seq: SeqId) {
        self.sequences[seq.index as usize] = Vec::new();
    }
    fn len(&self, seq: SeqId) -> usize {
        self.sequences[seq.index as usize].len()
    }
    fn policy_step(&mut self, spans: &[PolicySpan<'_>]) -> Result<Vec<PolicyRow>> {
        let row = |span: &PolicySpan<'_>| {
            let logits = next_word(self.append(&span.span));
            let stats = RowStats::of(&logits, span.floor);
            let wanted = match span.top_k {
                TopK::Take(k) => k,
                TopK::TakeIf(k, threshold) if threshold.reached(&stats) => k,
                TopK::TakeIf(..) | TopK::Skip => 0,
            };
            PolicyRow { stats, top: top_k(&logits, wanted, WORDS.len()) }
        };
        Ok(spans.iter().map(row).collect())
    }
    fn logits_row(&mut self, seq: SeqId) -> Result<Vec<f32>> {
        Ok(next_word(&self.sequences[seq.index as usize]).to_vec())
    }
    fn reward_score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        Ok(spans.iter().map(|span| self.score(span)).collect())
    }
    fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        // The gradient's product with a word's embedding: what the word itself adds to the reward.
        let gradient = |span: &GradientSpan<'_>| Gradient {
            score: self.score(&span.span),
            dots: span.candidates.iter().map(|&id| reward(&[id])).collect(),
            norm: 1.0,
            rows: Vec::new(),
        };
        Ok(spans.iter().map(gradient).collect())
    }
    fn same_embedding(&self, a: u32, b: u32) -> bool {
        a == b
    }
    fn work(&self) -> Work {
        Work::default()
    }
}

fn main() -> Result<()> {
    let engine = Engine::start(Settings::default(), || Ok(Box::new(Toy::new()?) as Box<dyn Backend>))?;
    // Half a nat is enough to be uncertain; id 0 ends the answer.
    let options =
        Options { max_new_tokens: 16, entropy_threshold: 0.5, min_generated: 2, top_k: 3, ..Options::new(0, vec![0]) };
    let (response, _) = engine.generate(&[1], &options)?.wait()?;
    let words: Vec<&str> = response.final_ids.iter().map(|&id| WORDS[id as usize]).collect();
    println!("{} (reward {}, {} nudge)", words.join(" "), response.final_reward, response.num_nudges);
    Ok(())
}
