//! A comparison as one self-contained page: it loads no script, style, font or image.

use super::tables::{Answers, Tables};
use crate::batch::output::Row;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The page, with its style and script; `"DATA"` is replaced.
const TEMPLATE: &str = include_str!("page.html");

/// The page of some tables, with the answers of each point's first seed to the prompts of these numbers. `about` has what was
/// compared, by names and texts.
pub fn page(tables: &Tables, about: &Map<String, Value>, prompts: &[usize], answers: &[Answers]) -> String {
    let mut first: BTreeMap<usize, (&Answers, BTreeMap<usize, &Row>)> = BTreeMap::new();
    for one in answers {
        first.entry(one.point).or_insert_with(|| (one, one.rows.iter().map(|row| (row.index, row)).collect()));
    }
    let answer = |one: &Answers, row: &Row| {
        let measured = (0..tables.measures.len()).map(|measure| one.measured(measure, row).map(rounded));
        json!({
            "x": row.response,
            "m": measured.collect::<Vec<_>>(),
            "k": row.new_tokens,
            "f": row.finish_reason,
            "no": row.skipped,
        })
    };
    let said = |index: usize| {
        let text = first.values().find_map(|(_, rows)| rows.get(&index)).map(|row| row.prompt.as_str());
        let all = (0..tables.points.len()).map(|point| {
            let (one, rows) = first.get(&point)?;
            Some(answer(one, rows.get(&index)?))
        });
        json!({ "i": index, "p": text, "a": all.collect::<Vec<Option<Value>>>() })
    };
    let prompts: Vec<Value> = prompts.iter().map(|&index| said(index)).collect();
    let data = json!({ "tables": tables, "about": about, "prompts": prompts });
    // Without `<`, nothing in the data can end the script element.
    TEMPLATE.replace("\"DATA\"", &data.to_string().replace('<', "\\u003c"))
}

fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::super::plan::{ComparePlan, Cost, PlanFile};
    use super::*;

    #[test]
    fn nothing_in_an_answer_ends_the_script() {
        let file: PlanFile = serde_json::from_value(json!({ "method": [{ "name": "greedy" }] })).unwrap();
        let row = json!({
            "index": 0, "prompt": "</script>", "answer": null, "metadata": null, "full_text": "", "response": "<b>",
            "reward": 1.0, "num_nudges": 0, "segment_boundaries": [1], "elapsed_seconds": 0.1,
        });
        let rows = vec![serde_json::from_value(row).unwrap()];
        let answers = [Answers { point: 0, seed: 0, rows, scores: Vec::new() }];
        let cost = Cost { reward_forward: 1.0, reward_backward: 1.0 };
        let tables = Tables::new(&ComparePlan::new(&file).unwrap(), &[0], cost, &answers, &[]);
        let page = page(&tables, &Map::new(), &[0], &answers);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.contains("\\u003c/script>") && page.contains("\\u003cb>") && !page.contains("\"DATA\""));
    }
}
