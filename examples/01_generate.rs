//! One answer, steered by the demo pair's reward model: `cargo run --release --example 01_generate`.

use ggro::files::demo;
use ggro::text::{self, Prompt};
use ggro::{OpenOptions, Options, Pair, Settings};
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pair = Arc::new(Pair::load(&demo::policy(), &demo::reward())?);
    let engine = ggro::start(&pair, &OpenOptions::default(), Settings::default())?;
    let options = Options { entropy_threshold: demo::ENTROPY_THRESHOLD, ..Options::for_pair(&pair)? };
    let prompt = Prompt::of_message(&pair, "Tell me a story about a lost kite.")?;
    let (response, _) = engine.generate(&prompt.ids, &options)?.wait()?;
    println!("{}", text::answer(&pair, &response)?);
    println!("reward {:.3}, {} nudges", response.final_reward, response.num_nudges);
    Ok(())
}
