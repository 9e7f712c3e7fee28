//! The next token to try at a slot: chosen by first-order scores, drawn, or the next one of the list.

use super::{Intervention, internal};
use crate::Result;
use crate::answer::Slot;
use crate::method::gradient;
use crate::method::nudge::{self, Shortlist};
use crate::method::{Options, Proposals, Selection};
use crate::profile::{self, Phase};
use crate::rng::Uniforms;
use crate::task::PolicyOutput;

impl Intervention {
    /// Scores the shortlist and chooses from it. The choice is left out where it is neither used nor free of charge: a
    /// uniform number is drawn only for a proposal that will be used.
    pub(super) fn propose(
        &mut self,
        shortlist: &Shortlist,
        dots: Vec<f32>,
        norm: f32,
        current: u32,
        used: bool,
    ) -> Result<(Slot, Option<f64>)> {
        let _range = profile::range(Phase::Nudge, shortlist.ids.len());
        let options = &self.decoding.options;
        let shuffles = options.proposals == Proposals::ShuffledGradient;
        let shuffled = match shuffles && used {
            true => Some(nudge::shuffled(&dots, next_uniform(&self.uniforms, &mut self.uniforms_used)?)?),
            false => None,
        };
        let products = shuffled.as_deref().unwrap_or(&dots);
        let scores = first_order(options, shortlist, products, current, self.branches[0].at_slot.as_ref())?;
        let (weights, choice) = match options.selection {
            // The order that would have been chosen from is not known.
            _ if shuffles && !used => (Vec::new(), None),
            Selection::Greedy => (Vec::new(), nudge::greedy(&scores)),
            Selection::Sample => {
                let weights = nudge::weights(&scores, options.temperature);
                let choice = if used {
                    let u = next_uniform(&self.uniforms, &mut self.uniforms_used)?;
                    nudge::sampled(&weights, u)
                } else {
                    None
                };
                (weights, choice)
            }
        };
        // Gradients of the candidates of one segment are alike: what scores high now is likely to be proposed later.
        if !shuffles {
            sort_places(&mut self.proposal_order, &scores);
        }
        let slot = Slot {
            gradient_norm: Some(f64::from(norm)),
            dots,
            weights,
            next_proposal: choice.map(|choice| shortlist.ids[choice.index]),
            ..unscored(shortlist)
        };
        Ok((slot, choice.and_then(|choice| choice.margin)))
    }

    /// Draws from the shortlist, whatever the reward model would say. A number is drawn only for a proposal that will be used.
    pub(super) fn draw(&mut self, shortlist: &Shortlist, used: bool) -> Result<(Slot, Option<f64>)> {
        let choice = match used {
            true => nudge::uniform(shortlist.ids.len(), next_uniform(&self.uniforms, &mut self.uniforms_used)?),
            false => None,
        };
        let next_proposal = choice.map(|choice| shortlist.ids[choice.index]);
        Ok((Slot { next_proposal, ..unscored(shortlist) }, choice.and_then(|choice| choice.margin)))
    }

    /// The next id of the shortlist that makes a candidate of its own: not the unforced one's, and the first of those with its
    /// embedding.
    pub(super) fn next_untried(&mut self, shortlist: &Shortlist, same: &dyn Fn(u32, u32) -> bool) -> Option<u32> {
        let unforced = self.branches[0].state.generated().get(self.offset).copied();
        let rest = shortlist.ids.iter().copied().enumerate().skip(self.passed);
        let next = rest.filter(|&(_, id)| Some(id) != unforced).find(|&(_, id)| shortlist.placed(id, same) == id);
        self.passed = next.map_or(shortlist.ids.len(), |(place, _)| place + 1);
        next.map(|(_, id)| id)
    }

    /// Places of the shortlist that the next uniform numbers draw, until one would close the walk.
    pub(super) fn upcoming(&self, shortlist: &Shortlist) -> Vec<usize> {
        let unforced = self.branches[0].state.generated().get(self.offset);
        let mut places: Vec<usize> = Vec::new();
        for n in 0..self.walk.most().saturating_sub(1) {
            // Recorded numbers may run out; if the walk comes to need that one, it says so.
            let Ok(u) = self.uniforms.nth(self.uniforms_used.len() + n) else { break };
            let Some(choice) = nudge::uniform(shortlist.ids.len(), u) else { break };
            if places.contains(&choice.index) || shortlist.ids.get(choice.index) == unforced {
                break;
            }
            places.push(choice.index);
        }
        places
    }
}

/// What each of a list is worth to first order, as the options have it.
pub(super) fn first_order(
    options: &Options,
    shortlist: &Shortlist,
    products: &[f32],
    current: u32,
    at_slot: Option<&PolicyOutput>,
) -> Result<Vec<f64>> {
    let mut scores = gradient::scores(&shortlist.ids, products, current, options.damping);
    if options.logprob_weight > 0.0 {
        let row = at_slot.ok_or_else(|| internal("the row at a slot"))?;
        gradient::add_logprobs(&mut scores, &shortlist.logits, row.row.stats.log_sum_exp, options.logprob_weight);
    }
    Ok(scores)
}

/// Places of a list in descending order of their scores.
pub(super) fn sort_places(places: &mut [usize], scores: &[f64]) {
    let score = |place: usize| scores.get(place).copied().unwrap_or(f64::NEG_INFINITY);
    places.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
}

/// The next number of a request, recorded.
fn next_uniform(uniforms: &Uniforms, used: &mut Vec<f64>) -> Result<f64> {
    let u = uniforms.nth(used.len())?;
    used.push(u);
    Ok(u)
}

/// The record of a slot whose proposals have no scores.
pub(super) fn unscored(shortlist: &Shortlist) -> Slot {
    Slot {
        gradient_norm: None,
        ids: shortlist.ids.clone(),
        logits: shortlist.logits.clone(),
        dots: Vec::new(),
        weights: Vec::new(),
        next_proposal: None,
    }
}
