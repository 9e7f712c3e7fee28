//! Many requests at once share batches, and each gets the answer that it would get by itself:
//! `cargo run --release --example 03_many`.

use ggro::files::demo;
use ggro::sampling::Sampling;
use ggro::text::Prompt;
use ggro::{CompletionSpec, OpenOptions, Options, Pair, Settings};
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pair = Arc::new(Pair::load(&demo::policy(), &demo::reward())?);
    let engine = ggro::start(&pair, &OpenOptions::default(), Settings::default())?;
    let options =
        Options { entropy_threshold: demo::ENTROPY_THRESHOLD, max_new_tokens: 48, ..Options::for_pair(&pair)? };
    let prompts = demo::prompts().into_iter().take(6).map(|message| Prompt::of_message(&pair, &message));
    let prompts = prompts.collect::<Result<Vec<_>, _>>()?;

    // Hand all of them in, then wait: the engine decodes them together.
    let guided = prompts.iter().map(|prompt| engine.generate(&prompt.ids, &options)).collect::<Result<Vec<_>, _>>()?;
    // Best of eight samples by the reward model, beside them in the same batches.
    let spec = CompletionSpec {
        sampling: Sampling { temperature: 1.0, seed: 1, ..Sampling::default() },
        n: 8,
        score: true,
        max_new_tokens: options.max_new_tokens,
        stop_ids: options.stop_ids.clone(),
        ..CompletionSpec::default()
    };
    let sampled =
        prompts.iter().map(|prompt| engine.sample(&prompt.ids, spec.clone())).collect::<Result<Vec<_>, _>>()?;
    for (index, (guided, sampled)) in guided.into_iter().zip(sampled).enumerate() {
        let ((response, _), (completions, _)) = (guided.wait()?, sampled.wait()?);
        let best = completions.all[completions.best].reward.unwrap_or(f32::NAN);
        println!("prompt {index}: reward {:.3} guided, {best:.3} best of 8", response.final_reward);
    }
    let status = engine.status().scheduler;
    println!("{} policy batches for {} sequences in them", status.policy_batches, status.policy_spans);
    Ok(())
}
