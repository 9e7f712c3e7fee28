//! What the reward model says of a given text: its reward, the reward of each beginning, and the gradient with respect to the
//! input embeddings: `cargo run --release --example 04_reward_gradient`.

use ggro::files::demo;
use ggro::{OpenOptions, Pair, RewardQuery, Settings};
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pair = Arc::new(Pair::load(&demo::policy(), &demo::reward())?);
    let engine = ggro::start(&pair, &OpenOptions::default(), Settings::default())?;
    let reward = pair.reward()?;
    let (tokenizer, pad, hidden) = (&pair.tokenizer, reward.pad_id, reward.config.hidden_size);

    let ids = tokenizer.encode("Once upon a time there was a sad little dog. He found a new friend and was happy.")?;
    // First-order scores too: how much the reward would change if another token stood at position 8.
    let others = tokenizer.encode(" big red old happy")?;
    let query =
        RewardQuery { ids: ids.clone(), every: true, gradient_from: Some(0), scores: vec![(8, others.clone())] };
    let (report, _) = engine.score(query, pad)?.wait()?;

    println!("reward {:.3} at position {}", report.reward, report.pooled_at);
    for ((id, reward), row) in ids.iter().zip(&report.every).zip(report.gradient.chunks(hidden)) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        println!("{:>12}  reward so far {reward:>7.3}  gradient norm {norm:.4}", tokenizer.decode(&[*id])?);
    }
    for (id, score) in others.iter().zip(&report.scores[0]) {
        println!("{:>12}  score {score:+.4} at position 8", tokenizer.decode(&[*id])?);
    }
    Ok(())
}
