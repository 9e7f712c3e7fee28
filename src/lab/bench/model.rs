//! What phases cost at least, computed and not run: bytes, operations, and the time that a card's limits allow.

use super::cost::{self, Cost, Roofline};
use super::latency::Depths;
use super::report::Row;
use crate::files::config::ModelConfig;

/// A card by its data sheet: bytes a second, and dense bf16 operations a second with f32 sums.
pub const CARDS: [(&str, Roofline); 7] = [
    ("h200", Roofline { bytes: 4.8e12, flops: 989e12 }),
    ("h100", Roofline { bytes: 3.35e12, flops: 989e12 }),
    ("h100-pcie", Roofline { bytes: 2.0e12, flops: 756e12 }),
    ("a100-80gb", Roofline { bytes: 2.039e12, flops: 312e12 }),
    ("a100-40gb", Roofline { bytes: 1.555e12, flops: 312e12 }),
    ("l40s", Roofline { bytes: 0.864e12, flops: 362e12 }),
    ("rtx-4090", Roofline { bytes: 1.008e12, flops: 165e12 }),
];

/// The limits of a card.
pub fn card(name: &str) -> Option<Roofline> {
    CARDS.iter().find(|(card, _)| *card == name).map(|&(_, limits)| limits)
}

/// A row per pass of the models that are given, under the names that [`latency`](super::latency()) gives them: its seconds are the least there are.
pub fn rows(policy: Option<&ModelConfig>, reward: Option<&ModelConfig>, depths: &Depths, limits: Roofline) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut push = |phase: &str, case: String, batch: Option<usize>, positions: usize, cost: Cost| {
        let row = Row::new(phase, case, vec![limits.seconds(cost)]).costing(cost, positions).against(Some(limits));
        rows.push(Row { rows: batch, runs: 0, ..row });
    };
    if let Some(policy) = policy {
        for &tokens in &depths.prefill {
            for &prompts in &depths.prompts {
                let case = super::latency::prefill_case(prompts, tokens);
                push("prefill", case, None, prompts * tokens, cost::prefills(policy, prompts, tokens));
            }
        }
        for &context in &depths.context {
            for &batch in &depths.rows {
                let case = super::latency::decode_case(batch, context);
                push("decode", case, Some(batch), batch, cost::decode(policy, batch, context, 0));
            }
        }
    }
    let Depths { segment, prefix, .. } = *depths;
    if let Some(reward) = reward {
        for &candidates in &depths.candidates {
            let case = super::latency::reward_case(candidates, segment, prefix);
            let positions = candidates * segment;
            push("reward", case.clone(), None, positions, cost::score(reward, candidates, segment, prefix));
            push("gradient", case, None, positions, cost::gradient(reward, candidates, segment, prefix));
        }
    }
    rows
}

/// Whether bytes or operations are what a cost waits for.
pub fn bound(cost: Cost, limits: Roofline) -> &'static str {
    if cost.bytes / limits.bytes >= cost.flops / limits.flops { "bytes" } else { "operations" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic;

    #[test]
    fn rows_are_at_the_limit() {
        let [policy, reward] = synthetic::pair("llama-3.1-8b").unwrap();
        let depths = Depths {
            rows: vec![1, 256],
            context: vec![1024],
            prefill: vec![2048],
            prompts: vec![1],
            candidates: vec![8],
            segment: 16,
            prefix: 1024,
            runs: 1,
            warmup: 0,
        };
        let limits = card("h200").unwrap();
        let rows = rows(Some(&policy), Some(&reward), &depths, limits);
        assert_eq!(rows.len(), 5);
        assert!(rows.iter().all(|row| (row.percent.unwrap() - 100.0).abs() < 1e-9));
        // A decode step reads 15 GB of weights; a prompt computes.
        let bounds: Vec<&str> = rows.iter().map(|row| bound(row.cost.unwrap(), limits)).collect();
        assert_eq!(bounds, ["operations", "bytes", "bytes", "bytes", "bytes"]);
        assert!((rows[1].cost.unwrap().bytes / 1e9 - 15.2).abs() < 0.1, "{:?}", rows[1].cost);
        assert!(card("tpu").is_none());
    }
}
