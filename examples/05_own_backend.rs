//! Models of one's own behind the engine: `cargo run --release --example 05_own_backend`.
//!
//! A model keeps sequences and answers batches of spans, which are tokens appended to a sequence. A real one keeps keys and
//! values. The two here keep the ids, and what they compute is a function of them.

use ggro::files::config::ModelConfig;
use ggro::model::{
    Gradient, GradientSpan, Logits, Model, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, RowStats, Score, SeqId,
    Span, TopK, Work, synthetic, top_k,
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

/// Either of the two: the engine asks the policy for steps and the reward model for scores and gradients.
struct Toy {
    role: Role,
    config: ModelConfig,
    sequences: Vec<Vec<u32>>,
}

impl Toy {
    fn add(&mut self, ids: Vec<u32>) -> SeqId {
        self.sequences.push(ids);
        SeqId { role: self.role, index: self.sequences.len() as u32 - 1, generation: 0 }
    }

    /// Runs a span: the sequence as it is afterwards.
    fn append(&mut self, span: &Span<'_>) -> &[u32] {
        let ids = &mut self.sequences[span.seq.index as usize];
        ids.extend_from_slice(span.ids);
        ids
    }

    fn score_of(&mut self, span: &RewardSpan<'_>) -> Score {
        let ids = self.append(&span.span);
        Score { reward: reward(ids), also: span.also_at.iter().map(|&at| reward(&ids[..=at])).collect() }
    }
}

impl Model for Toy {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn max_len(&self) -> usize {
        64
    }
    fn create(&mut self) -> Result<SeqId> {
        Ok(self.add(Vec::new()))
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        let ids = self.sequences[seq.index as usize][..len].to_vec();
        Ok(self.add(ids))
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
    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        ids_below: usize,
        _meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<PolicyRow>> {
        let row = |span: &PolicySpan<'_>| {
            let logits = next_word(self.append(&span.span));
            let stats = RowStats::of(&logits, span.floor);
            let wanted = match span.top_k {
                TopK::Take(k) => k,
                TopK::TakeIf(k, threshold) if threshold.reached(&stats) => k,
                TopK::TakeIf(..) | TopK::Skip => 0,
            };
            PolicyRow { stats, top: top_k(&logits, wanted, ids_below) }
        };
        Ok(spans.iter().map(row).collect())
    }
    fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> Result<Vec<f32>> {
        Ok(asked.of_row(next_word(&self.sequences[seq.index as usize]).to_vec()))
    }
    fn score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        Ok(spans.iter().map(|span| self.score_of(span)).collect())
    }
    fn gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        // The gradient's product with a word's embedding: what the word itself adds to the reward.
        let gradient = |span: &GradientSpan<'_>| Gradient {
            score: self.score_of(&span.span),
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

fn models() -> Result<ModelPair> {
    // Shapes are for the engine's checks; only the vocabulary matters here.
    let [policy, reward] = synthetic::pair("demo")?.map(|config| ModelConfig { vocab_size: WORDS.len(), ..config });
    let toy = |role, config| -> Option<Box<dyn Model>> { Some(Box::new(Toy { role, config, sequences: Vec::new() })) };
    Ok(ModelPair { policy: toy(Role::Policy, policy), reward: toy(Role::Reward, reward), draft: None })
}

fn main() -> Result<()> {
    let engine = Engine::start(Settings::default(), models)?;
    // Half a nat is enough to be uncertain; id 0 ends the answer.
    let options =
        Options { max_new_tokens: 16, entropy_threshold: 0.5, min_generated: 2, top_k: 3, ..Options::new(0, vec![0]) };
    let (response, _) = engine.generate(&[1], &options)?.wait()?;
    let words: Vec<&str> = response.final_ids.iter().map(|&id| WORDS[id as usize]).collect();
    println!("{} (reward {}, {} nudge)", words.join(" "), response.final_reward, response.num_nudges);
    Ok(())
}
