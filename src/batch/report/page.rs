//! The report as one self-contained page: it loads no script, style, font or image.

use super::{Summary, paired};
use crate::batch::output::{MIXED_IN, Row};
use serde_json::{Map, Value, json};

/// The page, with its style and script; `"DATA"` is replaced.
const TEMPLATE: &str = include_str!("page.html");

/// Options that the page says in other words, or that say nothing to a reader.
const NOT_LISTED: [&str; 5] = ["ggro", MIXED_IN, "prefill_attack", "system", "task_file"];

/// A page about some files of rows, each under its name and with the options of its run, where they are known. The others are
/// compared with the first.
pub fn page(files: &[(String, Vec<Row>)], options: &[Option<Map<String, Value>>]) -> String {
    let all = files.iter().enumerate();
    let data: Vec<Value> =
        all.map(|(at, (name, rows))| file(name, rows, &files[0].1, options.get(at).and_then(Option::as_ref))).collect();
    // Without `<`, nothing in the data can end the script element.
    let data = json!(data).to_string().replace('<', "\\u003c");
    TEMPLATE.replace("\"DATA\"", &data)
}

fn file(name: &str, rows: &[Row], base: &[Row], options: Option<&Map<String, Value>>) -> Value {
    let summary = Summary::new(name, rows);
    let lines = summary.lines().into_iter().filter_map(|(name, mean)| Some((name, mean?)));
    let lines = lines.map(|(name, mean)| json!([name, mean, summary.remark(name, &mean)]));
    let listed =
        options.into_iter().flatten().filter(|(name, value)| !value.is_null() && !NOT_LISTED.contains(&&***name));
    let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let text = |name: &str| options.and_then(|options| options.get(name)).and_then(Value::as_str);
    let listed = listed.map(|(name, value)| json!([name.replace('_', " "), words(value)]));
    // Of one kind the options say it.
    let several = summary.made_on.iter().filter(|_| summary.made_on.len() > 1);
    let several = several.map(|share| json!([format!("answers on {}", share.words()), share.rows.to_string()]));
    let drafts = summary.drafts().into_iter().map(|(source, said)| json!([format!("guessed {source}"), said]));
    json!({
        "options": listed.chain(several).chain(drafts).collect::<Vec<_>>(),
        "prefill": text("prefill_attack"),
        "system": text("system"),
        "skipped": summary.skipped,
        "name": name,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "lines": lines.collect::<Vec<_>>(),
        "paired": paired(base, rows),
    })
}

/// The row with short names, because a page may have hundreds.
fn row(row: &Row) -> Value {
    let segments = row.segments.iter().flatten().map(|segment| {
        let candidates =
            segment.candidates.iter().map(|tried| json!([rounded(tried.reward), tried.text, tried.forced]));
        let entropies = segment.entropies.iter().map(|entropy| entropy.map(|entropy| round(entropy, 2)));
        json!({
            "t": segment.tokens.iter().map(|token| spelled(token)).collect::<Vec<_>>(),
            "e": entropies.collect::<Vec<_>>(),
            "b": segment.best,
            "n": segment.nudged,
            "c": candidates.collect::<Vec<_>>(),
        })
    });
    json!({
        "i": row.index,
        "p": row.prompt,
        "a": row.answer,
        "x": row.response,
        "r": rounded(row.reward),
        "n": row.num_nudges,
        "g": row.prediction,
        "ok": row.correct,
        "f": row.finish_reason,
        "k": row.new_tokens,
        "s": segments.collect::<Vec<_>>(),
        "no": row.skipped,
    })
}

fn rounded(reward: Option<f32>) -> Option<f64> {
    reward.map(|reward| round(reward.into(), 3))
}

fn round(x: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (x * unit).round() / unit
}

/// A token as text: spaces and line breaks in place of the marks of byte-level and sentence-piece vocabularies.
fn spelled(token: &str) -> String {
    token.replace(['\u{120}', '\u{2581}'], " ").replace('\u{10a}', "\n").replace("<0x0A>", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_row_ends_the_script() {
        let row: Row = serde_json::from_value(json!({
            "index": 0, "prompt": "</script><script>alert(1)</script>", "answer": null, "metadata": null,
            "full_text": "", "response": "<b>", "reward": 1.0, "num_nudges": 0, "segment_boundaries": [1],
            "elapsed_seconds": 0.1,
        }))
        .unwrap();
        let options = json!({ "policy": "</script>", "system": "Be kind.", "prefill_attack": "Sure", "reward": null });
        let page = page(&[("a".to_string(), vec![row])], &[options.as_object().cloned()]);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.contains("\\u003c/script>") && !page.contains("\"DATA\""));
        assert!(page.contains(r#""options":[["policy","\u003c/script>"]],"prefill":"Sure""#), "{page}");
    }

    #[test]
    fn tokens_are_spelled_as_they_are_read() {
        assert_eq!(spelled("\u{120}the\u{10a}"), " the\n");
        assert_eq!(spelled("\u{2581}a<0x0A>"), " a\n");
    }
}
