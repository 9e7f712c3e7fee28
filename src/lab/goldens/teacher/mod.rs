//! Teacher-forced comparison: at every decision of a trace a device is given the trace's own history.
//!
//! A device that rounds to 16 bits cannot repeat every decision of an exact engine, and one decision turned changes the rest of
//! the answer. So nothing runs freely here. Every candidate of every segment is fed its own tokens, and each decision is
//! taken from what the device then says: the next token, the stop, the ids that may be proposed, the proposal, the candidate
//! kept. Three backends are asked the same: the exact reference, which gives the distance of every decision from its
//! tipping point (its *margin*); the rounding simulation, whose error in the numbers that decide, times
//! [`FORWARD`] or [`BACKWARD`], is what a device may be off; and the device. Where the margin
//! exceeds that, the device must decide as the trace does. Elsewhere it may part, in [`PARTED`] of all decisions at most.
//!
//! The numbers behind the decisions are compared too, as [`passes`](super::Passes) are.

mod candidates;
mod decisions;
mod lockstep;

pub use decisions::DecisionKind;

use super::errors::{BACKWARD, Errors, FLOOR, FORWARD};
use super::{Check, worse};
use crate::model::ModelPair;
use crate::trace::Trace;
use crate::{Error, Result};
use candidates::{Tried, candidates};
use decisions::{BackendOutputs, Decision, Questions, proposals};

/// Largest share of decisions that may part, within their margins.
pub const PARTED: f64 = 0.02;

/// An error of the simulation may be small by chance: it counts as that many times the root mean square at least. Errors have
/// long tails, because rows differ in how sensitive they are: the simulation's largest is ten times its root mean square.
const LUCK: f64 = 3.0;

/// Most likely tokens whose logits say how far off a row of the simulation is.
const CONTENDERS: usize = 32;

/// Fewer decisions than this say nothing about the size of errors.
const FEW: usize = 16;

/// Decisions of one kind.
#[derive(Clone, Copy, Debug)]
pub struct DecisionCounts {
    /// What was decided.
    pub kind: DecisionKind,
    /// How often.
    pub decisions: usize,
    /// As in the trace.
    pub agreed: usize,
    /// Otherwise, where the margin is within what the device may be off.
    pub parted: usize,
    /// Otherwise, where it is not.
    pub wrong: usize,
    /// Of all: those whose margin is within what the device may be off, so that they could part.
    pub within: usize,
}

/// How a device did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// In words, with the errors of all quantities.
    pub check: Check,
    /// Per kind of decision that occurred.
    pub tallies: Vec<DecisionCounts>,
}

impl Outcome {
    /// All kinds together: decisions, agreed, parted within margin, wrong.
    pub fn total(&self) -> [usize; 4] {
        self.tallies.iter().fold([0; 4], |[d, a, p, w], t| [d + t.decisions, a + t.agreed, p + t.parted, w + t.wrong])
    }
}

/// Traces with what the exact reference and the simulation say to them: prepared once, for any number of devices.
pub struct Lesson<'a> {
    traces: &'a [Trace],
    list: Vec<Tried<'a>>,
    proposals: Vec<Vec<u32>>,
    twins: Vec<(u32, u32)>,
    scales: Vec<f64>,
    gradients: bool,
    exact: BackendOutputs,
    simulated: BackendOutputs,
}

impl<'a> Lesson<'a> {
    /// Asks the exact reference and the simulation. Without `gradients` nothing needs a backward pass, and what it decides is
    /// left out.
    ///
    /// # Errors
    /// A trace contradicts itself, or a backend's own.
    pub fn prepare(
        traces: &'a [Trace],
        exact: &mut ModelPair,
        simulated: &mut ModelPair,
        gradients: bool,
    ) -> Result<Lesson<'a>> {
        let list = candidates(traces)?;
        let rows = lockstep::policy(exact, traces, &list, CONTENDERS)?;
        let proposals = proposals(traces, &list, &rows);
        let twins = twins(exact, &proposals);
        let ask = |backend: &mut ModelPair, rows| -> Result<BackendOutputs> {
            let (answers, pooled) = lockstep::reward(backend, traces, &list, &proposals, gradients)?;
            Ok(BackendOutputs { rows, answers, pooled })
        };
        let exact = ask(exact, rows)?;
        let rows = lockstep::policy(simulated, traces, &list, CONTENDERS)?;
        let simulated = ask(simulated, rows)?;
        let scales = exact.answers.iter().map(|a| if a.norm > 0.0 { a.norm } else { 1.0 }).collect();
        Ok(Lesson { traces, list, proposals, twins, scales, gradients, exact, simulated })
    }

    /// Asks a device, and compares.
    ///
    /// # Errors
    /// The device's own, or a trace names an unknown signal.
    pub fn examine(&self, name: &str, device: &mut ModelPair) -> Result<Outcome> {
        let rows = lockstep::policy(device, self.traces, &self.list, 0)?;
        let (answers, pooled) = lockstep::reward(device, self.traces, &self.list, &self.proposals, self.gradients)?;
        let said = BackendOutputs { rows, answers, pooled };
        let same = |a, b| self.twins.contains(&(a, b));
        let questions = Questions {
            traces: self.traces,
            list: &self.list,
            proposals: &self.proposals,
            same: &same,
            scales: &self.scales,
            gradients: self.gradients,
        };
        let mut check = Check::new(name);
        let numbers = [&self.exact, &self.simulated, &said].map(|said| questions.numbers(said));
        for (exact, (simulated, device)) in numbers[0].iter().zip(numbers[1].iter().zip(&numbers[2])) {
            let factor = if matches!(exact.0, "score" | "gradient norm") { BACKWARD } else { FORWARD };
            check.within(
                exact.0,
                Errors::between(&device.1, &exact.1),
                Errors::between(&simulated.1, &exact.1),
                factor,
            );
        }
        let [exact, simulated, device] = [&self.exact, &self.simulated, &said].map(|said| questions.decide(said));
        let tallies = self.count(&mut check, &exact?, &simulated?, &device?)?;
        let outcome = Outcome { check, tallies };
        Ok(outcome.with_verdict())
    }

    fn count(
        &self,
        check: &mut Check,
        exact: &[Decision],
        simulated: &[Decision],
        device: &[Decision],
    ) -> Result<Vec<DecisionCounts>> {
        if exact.len() != device.len() || exact.len() != simulated.len() {
            return Err(Error::Backend("the device answers another number of questions".to_string()));
        }
        if let Some(wrong) = exact.iter().find(|decision| !decision.agrees()) {
            check.differs(|| format!("the reference itself parts from the trace: {}", self.words(wrong)));
        }
        let mut tallies = Vec::new();
        for kind in DecisionKind::ALL {
            let errors = |said: &[Decision], counts: &dyn Fn(DecisionKind) -> bool| {
                let pairs = exact.iter().zip(said).filter(|(exact, _)| counts(exact.kind));
                Errors::of(pairs.map(|(exact, said)| said.error(exact)))
            };
            let factor = if kind.of_gradient() { BACKWARD } else { FORWARD };
            let typical = LUCK * errors(simulated, &|other| other.same_numbers(kind)).typical();
            let mut tally = DecisionCounts { kind, decisions: 0, agreed: 0, parted: 0, wrong: 0, within: 0 };
            for ((exact, simulated), device) in exact.iter().zip(simulated).zip(device) {
                if exact.kind != kind {
                    continue;
                }
                let own = worse(simulated.error(exact), self.spread(exact));
                let allowance = worse(factor * worse(own, typical), FLOOR);
                let within = exact.lead <= allowance;
                tally.decisions += 1;
                tally.within += usize::from(within);
                if device.agrees() {
                    tally.agreed += 1;
                } else if within {
                    tally.parted += 1;
                } else {
                    tally.wrong += 1;
                    check.differs(|| {
                        let (what, lead) = (self.words(device), exact.lead);
                        format!("{what}; the trace decides it by {lead:.3e}, {allowance:.1e} may be off")
                    });
                }
            }
            if tally.decisions >= FEW {
                let own = |other| other == kind;
                check.within(kind.name(), errors(device, &own), errors(simulated, &own), factor);
            }
            if tally.decisions > 0 {
                tallies.push(tally);
            }
        }
        Ok(tallies)
    }

    /// Decisions between logits: the simulation's largest error among the row's contenders. How far apart two of them are by
    /// chance says less.
    fn spread(&self, decision: &Decision) -> f64 {
        if !decision.kind.same_numbers(DecisionKind::Token) {
            return 0.0;
        }
        let [exact, simulated] =
            [&self.exact, &self.simulated].map(|said| said.row(&self.list, decision.candidate, decision.token));
        let (Some(exact), Some(simulated)) = (exact, simulated) else { return f64::NAN };
        let contenders = exact.top.iter().filter_map(|&(id, logit)| {
            let other = simulated.top.iter().find(|entry| entry.0 == id)?;
            Some((f64::from(logit) - f64::from(other.1)).abs())
        });
        contenders.fold(0.0, worse)
    }

    /// A decision in words.
    fn words(&self, decision: &Decision) -> String {
        let Tried { trace, segment, candidate, .. } = self.list[decision.candidate];
        let Decision { kind, token, expected, found, .. } = decision;
        let name = &self.traces[trace].name;
        format!(
            "trace {name}, segment {segment} candidate {candidate} token {token}: {} {expected} expected, {found} found",
            kind.name()
        )
    }
}

impl Outcome {
    fn with_verdict(mut self) -> Self {
        let [decisions, agreed, parted, wrong] = self.total();
        let share = parted as f64 / f64::max(decisions as f64, 1.0);
        self.check.extent = format!(
            "{decisions} decisions, {agreed} agreed, {parted} parted within margin ({:.2} %), {wrong} wrong",
            100.0 * share,
        );
        if share > PARTED {
            self.check
                .differs(|| format!("{:.2} % of the decisions parted, {:.2} % allowed", 100.0 * share, 100.0 * PARTED));
        }
        self
    }
}

/// Pairs of proposable ids of one segment whose embeddings are equal.
fn twins(backend: &ModelPair, proposals: &[Vec<u32>]) -> Vec<(u32, u32)> {
    let mut pairs = Vec::new();
    for ids in proposals {
        for &a in ids {
            pairs.extend(ids.iter().filter(|&&b| a != b && backend.same_embedding(a, b)).map(|&b| (a, b)));
        }
    }
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}
