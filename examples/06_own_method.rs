//! A method of one's own beside those of the library: `cargo run --release --example 06_own_method`.
//!
//! The better of two blocks is kept, block after block. A method says which texts it wants and looks at their rewards. The engine
//! caches, batches and counts, and runs other requests beside it.

use ggro::answer::SearchCounts;
use ggro::baselines::{Answer, Growth, Strategy, TextId, Texts};
use ggro::engine::searcher;
use ggro::files::demo;
use ggro::sampling::Sampling;
use ggro::text::Prompt;
use ggro::{CompletionSpec, OpenOptions, Options, Pair, Result, Settings};
use std::sync::Arc;

#[derive(Default)]
struct BetterOfTwo {
    blocks: Vec<TextId>,
    counts: SearchCounts,
}

impl Strategy for BetterOfTwo {
    /// Is called at first, and whenever all that it asked for is known.
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
        let mut text = texts.prompt();
        if !self.blocks.is_empty() {
            text = self.blocks[texts.best(&self.blocks)?];
            texts.keep(&[text]);
            self.counts.rounds += 1;
            if texts.stop(text).is_some() {
                return Ok(Some(Answer { all: vec![text], best: 0, counts: self.counts }));
            }
        }
        let stream = 2 * self.counts.rounds;
        let block = |stream| Growth::Sampled { stream, tokens: 12, until: None };
        self.blocks = vec![texts.extend(text, block(stream)), texts.extend(text, block(stream + 1))];
        self.blocks.iter().for_each(|&block| texts.score(block));
        self.counts.proposals += 2;
        self.counts.rejected += 1;
        Ok(None)
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let pair = Arc::new(Pair::load(&demo::policy(), &demo::reward())?);
    let engine = ggro::start(&pair, &OpenOptions::default(), Settings::default())?;
    let prompt = Prompt::of_message(&pair, "Tell me a story about a small boat.")?.ids;
    let spec = CompletionSpec {
        sampling: Sampling { temperature: 0.8, seed: 1, ..Sampling::default() },
        max_new_tokens: 64,
        stop_ids: Options::for_pair(&pair)?.stop_ids,
        ..CompletionSpec::default()
    };
    let ticket = engine.submit(move |backend| searcher(backend, &prompt, spec, Box::new(BetterOfTwo::default())))?;
    let (completions, _) = ticket.wait()?;
    let answer = &completions.all[completions.best];
    println!("{}", pair.tokenizer.decode(&answer.ids)?);
    let blocks = completions.search.map_or(0, |counts| counts.rounds);
    println!("reward {:.3} after {blocks} blocks", answer.reward.unwrap_or(f32::NAN));
    Ok(())
}
