//! How an engine runs its requests. Nothing here changes an answer.

/// Candidates of a segment at the same time, at most, where the width follows the load.
pub const MAX_WIDTH: usize = 25;

/// Steps for which rewards wait for each other, where a shared batch pays.
pub const REWARD_BATCH_WAIT: usize = 4;

/// Candidates of a segment at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpeculationWidth {
    /// One: nothing is run before it is needed.
    Off,
    /// This many.
    Fixed(usize),
    /// As many as share one reading of the weights, divided by the requests that run.
    Auto,
}

impl std::str::FromStr for SpeculationWidth {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<SpeculationWidth, String> {
        match text {
            "off" => Ok(SpeculationWidth::Off),
            "auto" => Ok(SpeculationWidth::Auto),
            _ => match text.parse() {
                Ok(width) if width >= 1 => Ok(SpeculationWidth::Fixed(width)),
                _ => Err(format!("expected auto, off or a number of at least 1, not {text}")),
            },
        }
    }
}

/// Whether tokens are guessed and run before they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafting {
    /// They are not.
    #[default]
    Off,
    /// From what followed elsewhere in the request's texts, where a step can verify several tokens of a text and this
    /// pays.
    Ngram,
    /// So, and by the draft model where it is likelier to be right. Without one this is [`Ngram`](Drafting::Ngram).
    Model,
}

impl std::str::FromStr for Drafting {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Drafting, String> {
        match text {
            "off" => Ok(Drafting::Off),
            "ngram" => Ok(Drafting::Ngram),
            "model" => Ok(Drafting::Model),
            _ => Err(format!("expected off, ngram or model, not {text}")),
        }
    }
}

/// How an engine runs its requests. Nothing here changes an answer.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Candidates of a segment at the same time.
    pub speculation: SpeculationWidth,
    /// Whether the next two segments are decoded behind candidates that may win, while others are decoded and scored.
    pub run_ahead: bool,
    /// Requests that run at the same time, at most; others wait.
    pub max_requests: usize,
    /// Tokens of one batch of either model, at most: longer prompts are cut. What a reward and its gradient are asked for goes in one
    /// span, however long.
    pub batch_tokens: usize,
    /// Prompts of each model whose keys and values are kept for later requests, at most.
    pub cached_prompts: usize,
    /// Steps for which rewards may wait for each other; `None`: [`REWARD_BATCH_WAIT`] where batches share one reading of the weights.
    pub reward_batch_wait: Option<usize>,
    /// Whether tokens are guessed and run before they are known, for requests that do not say so themselves
    /// ([`Submitter::drafting`](super::Submitter::drafting)).
    pub drafting: Drafting,
    /// What a row of a guess costs, as a part of a step of one row; `None`: what the policy says.
    pub row_cost: Option<f64>,
    /// What a step of the draft model costs, as a part of a step of the policy; `None`: what their weights say.
    pub draft_cost: Option<f64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            speculation: SpeculationWidth::Auto,
            run_ahead: true,
            max_requests: 256,
            batch_tokens: 2048,
            cached_prompts: 64,
            reward_batch_wait: None,
            drafting: Drafting::Off,
            row_cost: None,
            draft_cost: None,
        }
    }
}

impl Settings {
    /// For one request at a time: no prompt is kept for later ones, and none is cut.
    pub fn single(speculation: SpeculationWidth) -> Settings {
        Settings { speculation, cached_prompts: 0, batch_tokens: usize::MAX, ..Settings::default() }
    }
}
