//! `ggro bench ggro`.

use super::{Common, Ready, Turns, positive};
use crate::cli::args::Draft;
use crate::cli::say;
use crate::engine::{Drafting, SpeculationWidth};
use crate::lab::bench::{Asked, responses};
use crate::text::Prompt;
use crate::{Error, Result};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Length of the prompt in tokens; the tokens are arbitrary
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = positive())]
    prompt: usize,

    /// A message to answer instead, laid out with the pair's chat template
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt", "synthetic"])]
    message: Option<String>,

    /// New tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 96, value_parser = positive())]
    tokens: usize,

    /// Mean length of a segment in tokens; the threshold is chosen for it
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = positive())]
    segment: usize,

    /// Entropy threshold in nats, instead of a chosen one
    #[arg(long, value_name = "NATS", conflicts_with = "segment", allow_negative_numbers = true)]
    entropy_threshold: Option<f64>,

    /// Most candidates of a segment
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive())]
    candidates: usize,

    /// Speculation widths to measure: off, auto, or a number of parallel candidates
    #[arg(long, value_name = "WIDTH,...", value_delimiter = ',', default_value = "off,8,auto")]
    speculation: Vec<SpeculationWidth>,

    /// Guessed tokens to measure with: off, ngram, or a model that guesses (as for ggro generate); one model at most
    #[arg(long, value_name = "HOW,...", value_delimiter = ',', default_value = "off")]
    draft: Vec<Draft>,

    /// Samples of Best-of-N; 0 skips it
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=128))]
    best_of: usize,

    #[command(flatten)]
    turns: Turns,

    #[command(flatten)]
    common: Common,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Args { common, prompt, tokens, segment, candidates, best_of, .. } = args;
    common.pair.needs_policy("bench ggro")?;
    common.pair.needs_reward("bench ggro")?;
    let before = common.before()?;
    if args.entropy_threshold.is_some_and(|threshold| !threshold.is_finite()) {
        return Err(Error::invalid("--entropy-threshold: expected a finite number").into());
    }
    let mut models = args.draft.iter().filter_map(Draft::model);
    let draft = models.next();
    if models.any(|other| Some(other) != draft) {
        return Err(Error::invalid("--draft: all measurements have the same models; name one that guesses").into());
    }
    let ids = args.message.as_deref().map(|text| laid_out(common, text)).transpose()?;
    let asked = Asked {
        prompt: *prompt,
        tokens: *tokens,
        segment: *segment,
        candidates: *candidates,
        widths: args.speculation.clone(),
        drafts: args.draft.iter().map(Draft::drafting).collect(),
        best_of: *best_of,
        ids,
        threshold: args.entropy_threshold,
        runs: common.runs.runs,
        warmup: common.runs.warmup,
    };
    let Ready { mut opened, header, .. } = common.open_with(&format!("ggro {asked:?}"), draft)?;
    let drafting = asked.drafts.iter().filter(|&&drafting| drafting != Drafting::Off).count();
    let cases = 1 + drafting + asked.drafts.len() * asked.widths.len() + usize::from(asked.best_of > 0);
    let mut sink = common.sink.begin(&header, before, cases)?;
    let all =
        responses(opened.backend(), &asked, &mut |number| args.turns.before(number), &mut |row| sink.row(row.clone()))?;
    let code = sink.finish()?;
    // The answer never depends on what is run ahead; if it does, no figure means anything.
    for phase in ["greedy", "ggro"] {
        let mut answers = all.iter().filter(|row| row.phase == phase).map(|row| &row.ids);
        let first = answers.next();
        if answers.any(|ids| Some(ids) != first) {
            say("error: the answers differ between speculations");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(code)
}

/// Ids of a message, as `ggro generate` makes them.
fn laid_out(common: &Common, text: &str) -> Result<Vec<u32>> {
    Ok(Prompt::of_message(&*common.pair.load()?, text)?.ids)
}
