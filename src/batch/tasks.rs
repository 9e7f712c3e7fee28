//! The official code's tasks: the prompt of a dataset's row, and the choice that an answer names.
//!
//! The parameters stand in [`presets`](crate::presets). Wording of multiple-choice prompts and the
//! reading of answers are ours: the question, its options by letter, and a request to end with "The answer is (X)".

use super::record::{PromptRecord, answer, kind, string};
use crate::files::chat::Message;
use crate::presets::Published;
use serde_json::Value;

/// A dataset that the official code evaluates on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dataset {
    /// Harmful instructions: `prompt`, `instruction` or `goal`, or a plain string.
    HexPhi,
    /// Safe prompts that look unsafe, and unsafe ones: `prompt`.
    Xstest,
    /// Dialogues: `chosen`, of which the last answer is left out, or `prompt`.
    HhRlhf,
    /// Grade-school science: `question`, `choices` with `text` and `label`, `answerKey`.
    ArcChallenge,
    /// Professional questions: `question`, `options`, `answer`.
    MmluPro,
}

impl Dataset {
    /// Every task.
    pub const ALL: [Dataset; 5] =
        [Dataset::HexPhi, Dataset::Xstest, Dataset::HhRlhf, Dataset::ArcChallenge, Dataset::MmluPro];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Dataset::HexPhi => "hex-phi",
            Dataset::Xstest => "xstest",
            Dataset::HhRlhf => "hh-rlhf",
            Dataset::ArcChallenge => "arc-challenge",
            Dataset::MmluPro => "mmlu-pro",
        }
    }

    /// The published parameters that apply to it.
    pub fn published(self) -> Published {
        match self {
            Dataset::HexPhi | Dataset::Xstest => Published::Safety,
            Dataset::HhRlhf => Published::Helpfulness,
            Dataset::ArcChallenge => Published::Reasoning,
            Dataset::MmluPro => Published::Knowledge,
        }
    }

    /// Whether its rows have right answers.
    pub fn has_answers(self) -> bool {
        matches!(self, Dataset::ArcChallenge | Dataset::MmluPro)
    }

    /// The prompt of a dataset's row.
    ///
    /// # Errors
    /// A field is missing or of another type; the message names it.
    pub fn prompt(self, row: &Value) -> Result<PromptRecord, String> {
        if let (Dataset::HexPhi | Dataset::Xstest | Dataset::HhRlhf, Value::String(text)) = (self, row) {
            return Ok(PromptRecord::of_text(text.clone()));
        }
        if !row.is_object() {
            return Err(format!("expected an object, found {}", kind(row)));
        }
        let metadata = |names: &[&str]| {
            let named = names.iter().filter_map(|&name| row.get(name).map(|value| (name.to_string(), value.clone())));
            Value::Object(named.collect())
        };
        match self {
            Dataset::HexPhi => {
                let name = ["prompt", "instruction", "goal"].into_iter().find(|name| row.get(name).is_some());
                let text = string(row, name.unwrap_or("prompt"))?.to_string();
                Ok(PromptRecord { metadata: metadata(&["category"]), ..PromptRecord::of_text(text) })
            }
            Dataset::Xstest => {
                let text = string(row, "prompt")?.to_string();
                Ok(PromptRecord {
                    metadata: metadata(&["id", "type", "label", "focus", "note"]),
                    ..PromptRecord::of_text(text)
                })
            }
            Dataset::HhRlhf => match row.get("prompt") {
                Some(_) => Ok(PromptRecord::of_text(string(row, "prompt")?.to_string())),
                None => dialogue(string(row, "chosen")?),
            },
            Dataset::ArcChallenge => {
                let choices = row.get("choices").ok_or("expected `choices`, found none")?;
                let (texts, labels) = (strings(choices, "text")?, strings(choices, "label")?);
                if texts.len() != labels.len() || texts.is_empty() {
                    return Err(format!("`choices`: {} texts and {} labels", texts.len(), labels.len()));
                }
                let text = choice(string(row, "question")?, labels.iter().copied().zip(texts));
                let answer = string(row, "answerKey")?.to_string();
                Ok(PromptRecord { answer: Some(answer), metadata: metadata(&["id"]), ..PromptRecord::of_text(text) })
            }
            Dataset::MmluPro => {
                let options = strings(row, "options")?;
                if options.is_empty() || options.len() > LETTERS.len() {
                    return Err(format!("`options`: expected 1 to {}, found {}", LETTERS.len(), options.len()));
                }
                let letters = LETTERS.iter().copied();
                let text = choice(string(row, "question")?, letters.zip(options));
                let answer = answer(row.as_object().ok_or("expected an object")?)?;
                let answer = answer.ok_or("expected `answer`, found none")?;
                let metadata = metadata(&["question_id", "category", "src"]);
                Ok(PromptRecord { answer: Some(answer), metadata, ..PromptRecord::of_text(text) })
            }
        }
    }

    /// The choice that an answer names; `None` if it names none, or the task has no right answers.
    pub fn prediction(self, text: &str) -> Option<String> {
        if !self.has_answers() {
            return None;
        }
        // The last statement of an answer, else the last letter in brackets.
        let lower = text.to_ascii_lowercase();
        let said = ["answer is", "answer:"].iter().flat_map(|words| lower.match_indices(words));
        let said: Option<usize> = said.map(|(at, words)| at + words.len()).max();
        said.and_then(|at| letter(&text[at..])).or_else(|| {
            let brackets = text.match_indices('(').filter_map(|(at, _)| {
                let mut rest = text[at + 1..].chars();
                rest.next().filter(|&c| is_choice(c) && rest.next() == Some(')'))
            });
            brackets.map(String::from).next_back()
        })
    }
}

const LETTERS: [&str; 10] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

fn is_choice(c: char) -> bool {
    // ARC labels some of its choices 1 to 4.
    c.is_ascii_uppercase() && c <= 'J' || ('1'..='5').contains(&c)
}

/// The first choice that stands alone, within a few words.
fn letter(text: &str) -> Option<String> {
    let near = text.chars().take(24).collect::<String>();
    let mut words = near.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let found = words.find(|word| word.len() == 1 && word.chars().all(is_choice))?;
    Some(found.to_string())
}

fn choice<'a>(question: &str, options: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = format!("{question}\n\n");
    for (label, option) in options {
        text += &format!("({label}) {option}\n");
    }
    text + "\nThink step by step, and end with \"The answer is (X)\", where X is the letter of your choice."
}

fn strings<'a>(row: &'a Value, name: &str) -> Result<Vec<&'a str>, String> {
    let list = match row.get(name) {
        Some(Value::Array(list)) => list,
        Some(other) => return Err(format!("`{name}`: expected an array, found {}", kind(other))),
        None => return Err(format!("expected `{name}`, found none")),
    };
    list.iter()
        .map(|item| item.as_str().ok_or_else(|| format!("`{name}`: expected strings, found {}", kind(item))))
        .collect()
}

/// Reads `\n\nHuman: ...\n\nAssistant: ...`; the last answer is left out.
fn dialogue(text: &str) -> Result<PromptRecord, String> {
    let mut messages: Vec<Message> = Vec::new();
    let mut rest = text.trim_start();
    const SPEAKERS: [(&str, &str); 2] = [("Human:", "user"), ("Assistant:", "assistant")];
    while !rest.is_empty() {
        let Some((mark, role)) = SPEAKERS.into_iter().find(|(mark, _)| rest.starts_with(mark)) else {
            return Err("`chosen`: expected turns that begin with Human: or Assistant:".to_string());
        };
        let body = &rest[mark.len()..];
        let end = SPEAKERS.iter().filter_map(|(mark, _)| body.find(&format!("\n\n{mark}"))).min().unwrap_or(body.len());
        messages.push(Message { role: role.to_string(), content: body[..end].trim().to_string() });
        rest = body[end..].trim_start();
    }
    while messages.last().is_some_and(|last| last.role == "assistant") {
        messages.pop();
    }
    let text = messages.last().map(|last| last.content.clone()).ok_or("`chosen`: no turn of a human")?;
    Ok(PromptRecord { text, messages, answer: None, metadata: Value::Null })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_of_every_dataset() {
        let arc = json!({"id": "x", "question": "Why?", "answerKey": "B",
                         "choices": {"text": ["one", "two"], "label": ["A", "B"]}});
        let prompt = Dataset::ArcChallenge.prompt(&arc).unwrap();
        assert!(prompt.text.contains("Why?\n\n(A) one\n(B) two\n") && prompt.answer.as_deref() == Some("B"));
        let mmlu = json!({"question": "Why?", "options": ["x", "y", "z"], "answer": "C", "category": "law"});
        let prompt = Dataset::MmluPro.prompt(&mmlu).unwrap();
        assert!(prompt.text.contains("(C) z") && prompt.metadata["category"] == "law");
        let hh = json!({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant: Well"});
        let prompt = Dataset::HhRlhf.prompt(&hh).unwrap();
        assert_eq!((prompt.messages.len(), prompt.text.as_str()), (3, "And?"));
        assert_eq!(Dataset::HexPhi.prompt(&json!("do it")).unwrap().text, "do it");
        assert_eq!(Dataset::Xstest.prompt(&json!({"prompt": "p", "type": "t"})).unwrap().metadata["type"], "t");
        for (task, row, expected) in [
            (Dataset::ArcChallenge, json!({"question": "q"}), "expected `choices`, found none"),
            (Dataset::MmluPro, json!({"question": "q", "options": [1]}), "`options`: expected strings, found a number"),
            (Dataset::MmluPro, json!("q"), "expected an object, found a string"),
            (Dataset::HhRlhf, json!({"chosen": "nobody"}), "`chosen`: expected turns"),
            (Dataset::Xstest, json!({}), "expected `prompt`, found none"),
        ] {
            let message = task.prompt(&row).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn answers_are_read_where_they_are_said() {
        for (text, expected) in [
            ("So the answer is (B).", Some("B")),
            ("The answer is A? No: the answer is C", Some("C")),
            ("Answer: D", Some("D")),
            ("I think (A) is wrong, it must be (E)", Some("E")),
            ("The answer is that nobody knows", None),
            ("", None),
        ] {
            assert_eq!(Dataset::MmluPro.prediction(text).as_deref(), expected, "{text}");
        }
        assert_eq!(Dataset::HexPhi.prediction("The answer is (B)"), None);
        assert_eq!(Dataset::HhRlhf.published().preset(3_200_000_000).num_refinement_steps, 3);
        assert_eq!(Dataset::ArcChallenge.published().preset(8_000_000_000).num_refinement_steps, 8);
    }
}
