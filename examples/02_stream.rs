//! An answer as it is written, segment by segment: `cargo run --release --example 02_stream`.
//!
//! A segment is final once it is committed, so its text can be shown. In async code, `ticket.update().await` and
//! `ticket.await` say the same, on any runtime.

use ggro::files::demo;
use ggro::text::Prompt;
use ggro::{OpenOptions, Options, Pair, Progress, Settings, Update};
use std::io::Write;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pair = Arc::new(Pair::load(&demo::policy(), &demo::reward())?);
    let engine = ggro::start(&pair, &OpenOptions::default(), Settings::default())?;
    let options = Options { entropy_threshold: demo::ENTROPY_THRESHOLD, ..Options::for_pair(&pair)? };
    let prompt = Prompt::of_message(&pair, "Tell me a story about a brave cat.")?;

    for update in engine.generate(&prompt.ids, &options)? {
        match update {
            Update::Progress(Progress::Segment(segment, ids)) => {
                // The candidate that was kept; `forced` is the token that the reward model's gradient chose.
                let kept = &segment.candidates[segment.best];
                let mark = if kept.forced.is_some() { "*" } else { "|" };
                print!("{mark}{}", pair.tokenizer.decode(&ids)?);
                std::io::stdout().flush()?;
            }
            Update::Ended(result, stats) => {
                let response = result?;
                println!("\nreward {:.3}; {} policy tokens were run", response.final_reward, stats.ran.policy_forward);
            }
            Update::Accepted | Update::Started | Update::Progress(_) | Update::Cancelled(_) => {}
        }
    }
    Ok(())
}
