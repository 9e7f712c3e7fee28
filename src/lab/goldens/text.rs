//! What needs no model: tokenizer and template cases, and the statistics of single rows of logits.

use super::tensors::TensorFile;
use super::{Check, SOFTMAX};
use crate::files::chat::Message;
use crate::files::checkpoint::read_whole_text;
use crate::files::pair::Pair;
use crate::files::tokenizer::TextStream;
use crate::model::{RowStats, top_k};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Cases {
    encode: Vec<Encode>,
    chat: Vec<GoldenChat>,
}

#[derive(Deserialize)]
struct Encode {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct GoldenChat {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: String,
    ids: Vec<u32>,
}

/// Replays `tokenizer_cases.json`: text to ids and back, in one piece and token by token, and the chat template.
///
/// # Errors
/// The file cannot be read, or the tokenizer fails.
pub fn tokenizer(pair: &Pair, path: &Path) -> Result<Check> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let text = read_whole_text(path, file)?;
    let cases: Cases =
        serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not a file of tokenizer cases: {e}")))?;
    let mut check = Check::new("tokenizer");
    check.extent = format!("{} texts, {} conversations", cases.encode.len(), cases.chat.len());
    for case in &cases.encode {
        let ids = pair.tokenizer.encode(&case.text)?;
        check.same_list(|| format!("ids of {:?}", case.text), &case.ids, &ids);
        let decoded = pair.tokenizer.decode(&case.ids)?;
        check.same(|| format!("text of the ids of {:?}", case.text), &case.decoded, &decoded);
        let mut stream = TextStream::new(&*pair.tokenizer, &[]);
        let mut streamed = String::new();
        for &id in &case.ids {
            streamed += &stream.push(id)?;
        }
        streamed += &stream.finish()?;
        check.same(|| format!("streamed text of {:?}", case.text), &case.decoded, &streamed);
    }
    for case in &cases.chat {
        let Some(template) = pair.chat() else {
            check.differs(|| "the policy has no chat template".to_string());
            break;
        };
        let rendered = template.render(&case.messages, case.add_generation_prompt)?;
        check.same(|| "rendered conversation".to_string(), &case.text, &rendered);
        let ids = pair.tokenizer.encode(&rendered)?;
        check.same_list(|| format!("ids of {rendered:?}"), &case.ids, &ids);
    }
    Ok(check)
}

/// A statistic: its name in the file, the probability floor it is computed with, and where it is found.
type Statistic = (&'static str, f64, fn(&RowStats) -> f64);

/// Replays `softmax_cases.safetensors`: every statistic of every row.
///
/// # Errors
/// The file cannot be read.
pub fn softmax(path: &Path) -> Result<Check> {
    let file = TensorFile::read(path)?;
    let tensors = file.tensors()?;
    let mut check = Check::new("softmax rows");
    let mut sizes: Vec<usize> =
        tensors.names().iter().filter_map(|name| name.strip_suffix(".logits")?.parse().ok()).collect();
    sizes.sort_unstable();
    let mut rows = 0;
    for &size in &sizes {
        let get = |what: &str| tensors.f64(&format!("{size}.{what}"));
        let logits = tensors.f32(&format!("{size}.logits"))?;
        let argmax = tensors.ids(&format!("{size}.argmax"))?;
        let top25 = tensors.ids(&format!("{size}.top25"))?;
        let statistics: [Statistic; 7] = [
            ("logsumexp", 0.0, |s| s.log_sum_exp),
            ("entropy", 0.0, |s| s.entropy),
            ("entropy_floor_1e-9", 1e-9, |s| s.entropy_floored),
            ("entropy_floor_1e-3", 1e-3, |s| s.entropy_floored),
            ("max_probability", 0.0, |s| s.max_probability),
            ("margin", 0.0, |s| s.margin.into()),
            ("varentropy", 0.0, |s| s.varentropy),
        ];
        let expected = statistics.iter().map(|(name, ..)| get(name)).collect::<Result<Vec<Vec<f64>>>>()?;
        for (row, logits) in logits.chunks_exact(size.max(1)).enumerate() {
            let what = |name: &str| format!("{name} of row {row} of {size} logits");
            rows += 1;
            for ((name, floor, read), expected) in statistics.iter().zip(&expected) {
                let stats = RowStats::of(logits, *floor);
                let expected = expected.get(row).copied().unwrap_or(f64::NAN);
                let bound = SOFTMAX * expected.abs().clamp(1.0, f64::MAX);
                check.near(name, || what(name), expected, read(&stats), bound);
            }
            let stats = RowStats::of(logits, 0.0);
            check.same(|| what("argmax"), &argmax.get(row), &Some(&stats.argmax));
            let k = size.min(25);
            let ids: Vec<u32> = top_k(logits, k, size).into_iter().map(|(id, _)| id).collect();
            let expected = top25.get(row * k..(row + 1) * k).unwrap_or_default();
            check.same_list(|| what("top-k"), expected, &ids);
        }
    }
    check.extent = format!("{rows} rows of {} vocabulary sizes", sizes.len());
    if rows == 0 {
        check.differs(|| format!("{} holds no rows", path.display()));
    }
    Ok(check)
}
