//! Prompts from a file: one JSON value per line, or one row of a Parquet file.
//!
//! A line is a string; an array of chat messages; or an object with `prompt` (a string) or `messages`, and optionally `answer`
//! and `metadata`. Tasks read their datasets' own rows ([`tasks`](super::tasks)). Empty lines are left out.

use super::parquet;
use super::record::{PromptRecord, answer, kind, messages, wrong};
use super::tasks::Dataset;
use crate::files::checkpoint::read_whole_text;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Reads a file of prompts.
///
/// # Errors
/// The file cannot be read, or a line is not JSON or has another form. The message names the file and the line.
pub fn read(path: &Path, task: Option<Dataset>) -> Result<Vec<PromptRecord>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
        let prompts = parquet::rows(file).and_then(|rows| prompts(rows.into_iter().map(Ok), "row", task));
        return prompts.map_err(|message| Error::file(path, message));
    }
    parse(&read_whole_text(path, file)?, task).map_err(|message| Error::file(path, message))
}

/// Reads the text of a file of JSON lines.
///
/// # Errors
/// A line is not JSON or has another form, which the message names; or there is no prompt.
pub fn parse(text: &str, task: Option<Dataset>) -> std::result::Result<Vec<PromptRecord>, String> {
    let value = |line| match str::trim(line) {
        "" => Ok(Value::Null),
        line => serde_json::from_str(line).map_err(|e| format!("expected JSON: {e}")),
    };
    // Null stands for an empty line; it is no prompt either way.
    prompts(text.lines().map(value), "line", task)
}

fn prompts(
    values: impl Iterator<Item = std::result::Result<Value, String>>,
    unit: &str,
    task: Option<Dataset>,
) -> std::result::Result<Vec<PromptRecord>, String> {
    let mut all = Vec::new();
    for (number, value) in values.enumerate() {
        let named = |what: String| format!("{unit} {}: {what}", number + 1);
        let value = value.map_err(named)?;
        if value.is_null() {
            continue;
        }
        let prompt = match task {
            Some(task) => task.prompt(&value),
            None => prompt(value),
        };
        let prompt = prompt.map_err(named)?;
        if prompt.text.trim().is_empty() {
            return Err(named("the prompt is empty".to_string()));
        }
        all.push(prompt);
    }
    if all.is_empty() {
        return Err(format!("expected a prompt per {unit}, found none"));
    }
    Ok(all)
}

fn prompt(value: Value) -> std::result::Result<PromptRecord, String> {
    match value {
        Value::String(text) => Ok(PromptRecord::of_text(text)),
        Value::Array(list) => conversation(&list),
        Value::Object(mut row) => {
            let mut prompt = match (row.get("prompt"), row.get("messages")) {
                (Some(Value::String(text)), _) => PromptRecord::of_text(text.clone()),
                (Some(Value::Array(list)), _) | (None, Some(Value::Array(list))) => conversation(list)?,
                (Some(other), _) => return Err(wrong("prompt", "a string or an array of messages", other)),
                (None, Some(other)) => return Err(wrong("messages", "an array", other)),
                (None, None) => return Err("expected `prompt` or `messages`, found neither".to_string()),
            };
            prompt.answer = answer(&row)?;
            prompt.metadata = row.shift_remove("metadata").unwrap_or(Value::Null);
            Ok(prompt)
        }
        other => Err(format!("expected a string, messages or an object, found {}", kind(&other))),
    }
}

/// Chat messages that end with the user's.
fn conversation(list: &[Value]) -> std::result::Result<PromptRecord, String> {
    let messages = messages(list)?;
    let text = match messages.last() {
        Some(last) if last.role != "user" => {
            return Err(format!("the last message is the {}'s, expected a user's", last.role));
        }
        last => last.map(|last| last.content.clone()).unwrap_or_default(),
    };
    Ok(PromptRecord { text, messages, answer: None, metadata: Value::Null })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_form() {
        let text = "\"one\"\n\n{\"prompt\": \"two\", \"answer\": 4, \"metadata\": {\"a\": 1}}\n\
                    [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"three\"}]\n\
                    {\"messages\": [{\"role\": \"user\", \"content\": \"four\"}]}";
        let all = parse(text, None).unwrap();
        assert_eq!(all.iter().map(|prompt| prompt.text.as_str()).collect::<Vec<_>>(), ["one", "two", "three", "four"]);
        assert_eq!((all[1].answer.as_deref(), all[1].metadata["a"].as_u64()), (Some("4"), Some(1)));
        assert_eq!(all[2].messages.len(), 2);
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn the_feature_that_reads_parquet_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mmlu.parquet");
        std::fs::write(&path, "PAR1").unwrap();
        let message = read(&path, None).unwrap_err().to_string();
        assert!(message.contains("mmlu.parquet") && message.contains("--features parquet"), "{message}");
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn rows_of_a_parquet_file() {
        use ::parquet::data_type::{ByteArray, ByteArrayType};
        use ::parquet::file::writer::SerializedFileWriter;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mmlu.parquet");
        let schema =
            "message m { required binary question (UTF8); required group options (LIST) { repeated group list {
                      required binary element (UTF8); } } required binary answer (UTF8); }";
        let schema = std::sync::Arc::new(::parquet::schema::parser::parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        type Column<'a> = (&'a [&'a str], Option<&'a [i16]>, Option<&'a [i16]>);
        let columns: [Column<'_>; 3] = [
            (&["Why?", "How?"], None, None),
            (&["x", "y", "z"], Some(&[1, 1, 1]), Some(&[0, 1, 0])),
            (&["B", "A"], None, None),
        ];
        for (values, definitions, repetitions) in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = values.iter().map(|&value| ByteArray::from(value)).collect();
            column.typed::<ByteArrayType>().write_batch(&values, definitions, repetitions).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let all = read(&path, Some(Dataset::MmluPro)).unwrap();
        assert!(all[0].text.starts_with("Why?\n\n(A) x\n(B) y\n"), "{}", all[0].text);
        assert!(all[1].text.contains("(A) z") && all[1].answer.as_deref() == Some("A"));
        let message = read(&path, None).unwrap_err().to_string();
        assert!(message.contains("row 1: expected `prompt` or `messages`"), "{message}");

        // Damaged anywhere: an error or other rows, and no more.
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x15;
            std::fs::write(&path, &bad).unwrap();
            let _ = read(&path, Some(Dataset::MmluPro));
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(read(&path, None).unwrap_err().to_string().contains("expected a Parquet file"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("\"a\"\n{\"prompt\"", "line 2: expected JSON"),
            ("\"a\"\n\n3", "line 3: expected a string, messages or an object, found a number"),
            ("{\"prompt\": 3}", "line 1: `prompt`: expected a string or an array of messages, found a number"),
            ("{\"text\": \"x\"}", "line 1: expected `prompt` or `messages`, found neither"),
            ("\"  \"", "line 1: the prompt is empty"),
            ("[]", "line 1: no messages"),
            (
                "[{\"role\": \"tool\", \"content\": \"\"}]",
                "line 1: message 0: `role`: expected system, user or assistant",
            ),
            ("[{\"role\": \"assistant\", \"content\": \"x\"}]", "line 1: the last message is the assistant's"),
            ("{\"prompt\": \"a\", \"answer\": []}", "line 1: `answer`: expected a string, found an array"),
            ("\n\n", "expected a prompt per line, found none"),
        ] {
            let message = parse(text, None).unwrap_err();
            assert!(message.starts_with(expected), "{text}: {message}");
        }
    }
}
