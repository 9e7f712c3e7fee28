//! Where the tokens that are tried at a slot come from: the gradient, or one of its controls.
//!
//! What the gradient contributes to the method is seen by leaving it out and changing nothing else. Shortlist, walk, rewards
//! and commitment are those of the method in every mode.
//!
//! | name | the next token to try | gradients | uniform numbers a proposal |
//! |---|---|---|---|
//! | `gradient` | the one with the best first-order score, greedily or sampled | one a candidate | 0, sampled 1 |
//! | `random` | one of the shortlist, each as likely as the others | none | 1 |
//! | `shuffled-gradient` | as with `gradient`, with the gradient's products dealt out to the wrong ids | one a candidate | 1, sampled 2 |
//! | `all` | the next one of the shortlist, until none is left | none | 0 |

use serde::{Deserialize, Serialize};

/// Where proposals come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proposals {
    /// The method as published (arXiv 2606.09635): the first-order scores of the shortlist decide.
    #[default]
    Gradient,
    /// A control: a place of the shortlist is drawn, uniformly, by one uniform number. No gradient is taken. What is proposed may
    /// be a token that was tried before, which closes the walk as it does with a gradient.
    Random,
    /// A control: the gradient is taken, and its products with the shortlist's embeddings are permuted among the ids
    /// ([`nudge::shuffled`](super::nudge::shuffled)) by one uniform number before anything else is made of them. Scores
    /// have the sizes that they have with [`Gradient`](Proposals::Gradient), and say nothing.
    ShuffledGradient,
    /// What the gradient saves: every id of the shortlist is tried, most likely first. Ids with one policy embedding count once.
    /// No gradient is taken, `max_candidates` does not bound the walk (1 is greedy decoding all the same), and a
    /// candidate that keeps no token at the slot does not end it, unless it is the unforced one.
    All,
}

/// Every way, the default first.
pub const PROPOSALS: [Proposals; 4] =
    [Proposals::Gradient, Proposals::Random, Proposals::ShuffledGradient, Proposals::All];

impl Proposals {
    /// Name on the command line, in requests and in records.
    pub fn name(self) -> &'static str {
        match self {
            Proposals::Gradient => "gradient",
            Proposals::Random => "random",
            Proposals::ShuffledGradient => "shuffled-gradient",
            Proposals::All => "all",
        }
    }

    /// The one of a name.
    pub fn of(name: &str) -> Option<Proposals> {
        PROPOSALS.into_iter().find(|proposals| proposals.name() == name)
    }

    /// The control that a method's name stands for: `ggro-random`, `ggro-shuffled-gradient` or `ggro-all`.
    pub fn of_method(name: &str) -> Option<Proposals> {
        Proposals::of(name.strip_prefix("ggro-")?).filter(|&proposals| proposals != Proposals::Gradient)
    }

    /// Whether the reward model is differentiated.
    pub fn differentiates(self) -> bool {
        matches!(self, Proposals::Gradient | Proposals::ShuffledGradient)
    }

    /// Whether answers depend on a seed; `sampled` says whether a choice between scores is.
    pub fn draws(self, sampled: bool) -> bool {
        match self {
            Proposals::Gradient => sampled,
            Proposals::Random | Proposals::ShuffledGradient => true,
            Proposals::All => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_proposals() {
        for proposals in PROPOSALS {
            assert_eq!(Proposals::of(proposals.name()), Some(proposals));
            assert_eq!(serde_json::to_value(proposals).unwrap(), proposals.name());
        }
        assert_eq!((Proposals::of("Random"), PROPOSALS[0]), (None, Proposals::default()));
    }

    #[test]
    fn what_is_drawn_and_what_is_differentiated() {
        let draws = PROPOSALS.map(|proposals| [false, true].map(|sampled| proposals.draws(sampled)));
        assert_eq!(draws, [[false, true], [true, true], [true, true], [false, false]]);
        assert_eq!(PROPOSALS.map(Proposals::differentiates), [true, false, true, false]);
    }
}
