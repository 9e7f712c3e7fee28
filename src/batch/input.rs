//! Prompts from a file: one JSON value per line, or one row of a Parquet file.
//!
//! A line is a string; an array of chat messages; or an object with `prompt` (a string) or `messages`, and optionally `tools`,
//! `answer` and `metadata`. Tasks read their datasets' own rows, of several files if they have several splits
//! ([`tasks`](super::tasks)). Empty lines are no prompts and have no number; every other line is a prompt or an error.

use super::parquet;
use super::record::{PromptRecord, answer, kind, messages, wrong};
use super::tasks::{PlacedRow, Task};
use crate::files::checkpoint::read_whole_text;
use crate::files::json::in_line;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Reads files of prompts.
///
/// # Errors
/// A file cannot be read, or a line is not JSON or has another form. The message names the file and the line.
pub fn read(paths: &[PathBuf], task: Option<&Task>) -> Result<Vec<PromptRecord>> {
    let Some(task) = task else {
        let mut all = Vec::new();
        for path in paths {
            for (place, row) in rows(path)? {
                all.push(prompt(&row).map_err(|what| Error::file(path, format!("{place}: {what}")))?);
            }
        }
        return Ok(all);
    };
    let mut files = Vec::new();
    for path in paths {
        let mut rows = rows(path)?;
        if let [_, _, ..] = paths {
            // The rows of all files are put in one order, so each has to say where it comes from.
            rows.iter_mut().for_each(|(place, _)| *place = format!("{}: {place}", path.display()));
        }
        files.push(rows);
    }
    let prompts = task.prompts(files);
    match paths {
        [path] => prompts.map_err(|message| Error::file(path, message)),
        _ => prompts.map_err(Error::invalid),
    }
}

/// Reads the text of a file of JSON lines.
///
/// # Errors
/// A line is not JSON or has another form, which the message names; or there is no prompt.
pub fn parse(text: &str, task: Option<&Task>) -> std::result::Result<Vec<PromptRecord>, String> {
    let rows = placed(lines(text), "line")?;
    match task {
        Some(task) => task.prompts(vec![rows]),
        None => rows.iter().map(|(place, row)| prompt(row).map_err(|what| format!("{place}: {what}"))).collect(),
    }
}

/// The rows of a file, with their places.
fn rows(path: &Path) -> Result<Vec<PlacedRow>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let fail = |message| Error::file(path, message);
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) {
        let rows = parquet::rows(file).map_err(fail)?;
        return placed(rows.into_iter().map(|row| Some(Ok(row))), "row").map_err(fail);
    }
    placed(lines(&read_whole_text(path, file)?), "line").map_err(fail)
}

/// The values of JSON lines, without those of empty lines.
fn lines(text: &str) -> impl Iterator<Item = Option<std::result::Result<Value, String>>> {
    // Files that were joined have byte order marks within.
    text.lines().map(|line| match line.trim_start_matches('\u{feff}').trim() {
        "" => None,
        line => Some(serde_json::from_str(line).map_err(|e| format!("expected JSON: {}", in_line(&e)))),
    })
}

fn placed(
    values: impl Iterator<Item = Option<std::result::Result<Value, String>>>,
    unit: &str,
) -> std::result::Result<Vec<PlacedRow>, String> {
    let mut rows = Vec::new();
    for (number, value) in values.enumerate() {
        let place = format!("{unit} {}", number + 1);
        if let Some(value) = value {
            let value = value.map_err(|what| format!("{place}: {what}"))?;
            rows.push((place, value));
        }
    }
    if rows.is_empty() {
        return Err(format!("expected a prompt per {unit}, found none"));
    }
    Ok(rows)
}

fn prompt(value: &Value) -> std::result::Result<PromptRecord, String> {
    let prompt = match value {
        Value::String(text) => Ok(PromptRecord::of_text(text.clone())),
        Value::Array(list) => conversation(list, None),
        Value::Object(row) => {
            let mut prompt = match (row.get("prompt"), row.get("messages")) {
                (Some(Value::String(text)), _) => PromptRecord::of_text(text.clone()),
                (Some(Value::Array(list)), _) | (None, Some(Value::Array(list))) => {
                    conversation(list, row.get("tools"))?
                }
                (Some(other), _) => return Err(wrong("prompt", "a string or an array of messages", other)),
                (None, Some(other)) => return Err(wrong("messages", "an array", other)),
                (None, None) => return Err("expected `prompt` or `messages`, found neither".to_string()),
            };
            prompt.answer = answer(row)?;
            prompt.metadata = row.get("metadata").cloned().unwrap_or(Value::Null);
            Ok(prompt)
        }
        other => Err(format!("expected a string, messages or an object, found {}", kind(other))),
    }?;
    if prompt.text.trim().is_empty() { Err("the prompt is empty".to_string()) } else { Ok(prompt) }
}

/// Chat messages that end with what is to be answered: the user's, or a tool's.
fn conversation(list: &[Value], tools: Option<&Value>) -> std::result::Result<PromptRecord, String> {
    let (messages, whole) = messages(list, tools)?;
    let text = match messages.last() {
        Some(last) if ["assistant", "system"].contains(&last.role.as_str()) => {
            return Err(format!("the last message is the {}'s, expected a user's", last.role));
        }
        last => last.map(|last| last.content.clone()).unwrap_or_default(),
    };
    Ok(PromptRecord { text, messages, whole, answer: None, metadata: Value::Null })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tasks::Dataset;

    #[test]
    fn lines_of_every_form() {
        let text = "\"one\"\n\n{\"prompt\": \"two\", \"answer\": 4, \"metadata\": {\"a\": 1}}\n\
                    [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"three\"}]\n\
                    {\"messages\": [{\"role\": \"user\", \"content\": \"four\"}]}";
        let all = parse(text, None).unwrap();
        assert_eq!(all.iter().map(|prompt| prompt.text.as_str()).collect::<Vec<_>>(), ["one", "two", "three", "four"]);
        assert_eq!((all[1].answer.as_deref(), all[1].metadata["a"].as_u64()), (Some("4"), Some(1)));
        assert_eq!(all[2].messages.len(), 2);
        assert!(all.iter().all(|prompt| prompt.whole.is_none()));
        // Of two files with byte order marks, joined.
        let joined = parse("\u{feff}\"one\"\n\u{feff}\"two\"\n\u{feff}\n", None).unwrap();
        assert_eq!(joined.iter().map(|prompt| prompt.text.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn messages_as_the_server_takes_them() {
        let call = r#"{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}}]}"#;
        let parts = r#"{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}"#;
        let text = format!(
            r#"[{{"role": "developer", "content": "s"}}, {parts}]
               {{"messages": [{parts}, {call}, {{"role": "tool", "tool_call_id": "x", "content": "7"}}], "tools": [{{"name": "f"}}]}}
               [{{"role": "user", "content": "q"}}, {{"role": "function", "name": "f", "content": "7"}}]"#
        );
        let all = parse(&text, None).unwrap();
        let said = |prompt: &PromptRecord| -> Vec<(String, String)> {
            prompt.messages.iter().map(|one| (one.role.clone(), one.content.clone())).collect()
        };
        let pair = |role: &str, content: &str| (role.to_string(), content.to_string());
        assert_eq!(said(&all[0]), [pair("system", "s"), pair("user", "a\nb")]);
        assert_eq!(all[0].whole, None);
        assert_eq!(said(&all[1]), [pair("user", "a\nb"), pair("assistant", ""), pair("tool", "7")]);
        let whole = all[1].whole.as_ref().unwrap();
        assert_eq!(whole.messages[1]["tool_calls"][0]["function"]["arguments"]["a"], 1);
        assert_eq!((&whole.messages[2]["tool_call_id"], whole.tools.is_some()), (&Value::from("x"), true));
        assert_eq!(all[2].whole.as_ref().unwrap().messages[1]["name"], "f");
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn the_feature_that_reads_parquet_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mmlu.parquet");
        std::fs::write(&path, "PAR1").unwrap();
        let message = read(std::slice::from_ref(&path), None).unwrap_err().to_string();
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
        let all = read(std::slice::from_ref(&path), Some(&Task::new(Dataset::MmluPro))).unwrap();
        assert!(all[0].text.starts_with("Why?\n\n(A) x\n(B) y\n"), "{}", all[0].text);
        assert!(all[1].text.contains("(A) z") && all[1].answer.as_deref() == Some("A"));
        let message = read(std::slice::from_ref(&path), None).unwrap_err().to_string();
        assert!(message.contains("row 1: expected `prompt` or `messages`"), "{message}");

        // Damaged anywhere: an error or other rows, and no more.
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x15;
            std::fs::write(&path, &bad).unwrap();
            let _ = read(std::slice::from_ref(&path), Some(&Task::new(Dataset::MmluPro)));
        }
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(read(std::slice::from_ref(&path), None).unwrap_err().to_string().contains("expected a Parquet file"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("\"a\"\n{\"prompt\"", "line 2: expected JSON"),
            ("\"a\"\n\n3", "line 3: expected a string, messages or an object, found a number"),
            ("\"a\"\nnull\n\"b\"", "line 2: expected a string, messages or an object, found null"),
            ("null", "line 1: expected a string, messages or an object, found null"),
            ("\"a\"\n{}", "line 2: expected `prompt` or `messages`, found neither"),
            ("\"a\"\n{\"prompt\": null}", "line 2: `prompt`: expected a string or an array of messages, found null"),
            ("[\"a\"]", "line 1: message 0: expected an object, found a string"),
            (
                "[{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]",
                "line 1: message 0: `content`: part 0: expected a part of the type \"text\"",
            ),
            ("[{\"role\": \"developer\", \"content\": \"x\"}]", "line 1: the last message is the system's"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": 3}", "line 1: `tools`: expected"),
            ("{\"prompt\": 3}", "line 1: `prompt`: expected a string or an array of messages, found a number"),
            ("{\"text\": \"x\"}", "line 1: expected `prompt` or `messages`, found neither"),
            ("\"  \"", "line 1: the prompt is empty"),
            ("[]", "line 1: no messages"),
            (
                "[{\"role\": \"\", \"content\": \"\"}]",
                "line 1: message 0: `role`: expected a name such as user or assistant, found none",
            ),
            ("[{\"role\": \"assistant\", \"content\": \"x\"}]", "line 1: the last message is the assistant's"),
            ("{\"prompt\": \"a\", \"answer\": []}", "line 1: `answer`: expected a string, found an array"),
            ("\n\n", "expected a prompt per line, found none"),
        ] {
            let message = parse(text, None).unwrap_err();
            assert!(message.starts_with(expected), "{text}: {message}");
            assert_eq!(message.matches("line").count(), 1, "{message}");
        }
        // Rows of datasets too, before any of them is put into another order or left out.
        for dataset in Dataset::ALL {
            for (line, found) in [("null", "null"), ("3", "a number"), ("[]", "an array")] {
                let message = parse(&format!("\n{line}"), Some(&Task::new(dataset))).unwrap_err();
                assert!(message.starts_with("line 2: expected ") && message.ends_with(found), "{message}");
            }
        }
    }
}
