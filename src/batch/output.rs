//! The file of rows: one JSON object per line. `FILE.config.json` beside it holds the parameters of the run.
//!
//! A row is added by one write that ends in a line break. If the process is killed during a write, the incomplete row is cut off
//! when the file is opened again; complete rows are kept, and their prompts are not answered again. Rows are added as answers end.
//! When all are there, they are written in the order of their prompts to a second file, which then replaces the first.

use crate::model::Work;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One answer. The first eleven fields are the official code's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Number of the prompt in its file, from 0.
    pub index: usize,
    /// The prompt's text.
    pub prompt: String,
    /// The right answer, where there is one.
    pub answer: Option<String>,
    /// The `metadata` of the prompt's line.
    pub metadata: Value,
    /// Prompt and answer as the models saw them.
    pub full_text: String,
    /// The answer.
    pub response: String,
    /// Its reward; `None` without a reward model.
    pub reward: Option<f32>,
    /// Segments whose first token was nudged.
    pub num_nudges: usize,
    /// Absolute length after each segment, in tokens.
    pub segment_boundaries: Vec<usize>,
    /// Seconds from the request to its end, with others running beside it.
    pub elapsed_seconds: f64,
    /// The choice that the answer names, for tasks with right answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<String>,
    /// Whether that choice is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
    /// Why it ended.
    #[serde(default)]
    pub finish_reason: String,
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    #[serde(default)]
    pub new_tokens: usize,
    /// Tokens that had to go through the models for it.
    #[serde(default)]
    pub work: Work,
    /// Its segments.
    #[serde(default)]
    pub segments: Vec<RowSegment>,
    /// Whether `full_text`, tokenised again, gives the ids that were decoded. The official code does this between segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_stable: Option<bool>,
}

/// A segment of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowSegment {
    /// The kept tokens, as the vocabulary spells them.
    pub tokens: Vec<String>,
    /// Entropy at each token, in nats; `None` where the token was not decoded.
    pub entropies: Vec<Option<f64>>,
    /// Index of the token that the gradient chose, if it chose one.
    #[serde(default)]
    pub nudged: Option<usize>,
    /// Index of the kept candidate.
    pub best: usize,
    /// All candidates.
    pub candidates: Vec<RowCandidate>,
}

/// A candidate of a segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowCandidate {
    /// Its reward; `None` without a reward model.
    pub reward: Option<f32>,
    /// Its text.
    pub text: String,
    /// Whether its first token was chosen by the gradient.
    pub forced: bool,
}

/// A line of such a file.
pub trait Record: Serialize + for<'a> Deserialize<'a> {
    /// Number of the prompt.
    fn index(&self) -> usize;
    /// The prompt's text.
    fn prompt(&self) -> &str;
}

impl Record for Row {
    fn index(&self) -> usize {
        self.index
    }

    fn prompt(&self) -> &str {
        &self.prompt
    }
}

/// A file of rows that is being added to. No other process can open it meanwhile.
#[derive(Debug)]
pub struct Rows {
    path: PathBuf,
    file: File,
    there: BTreeSet<usize>,
}

impl Rows {
    /// Opens a file, or creates it. `config` holds all that an answer depends on besides its prompt; `prompts` are the prompts' texts.
    ///
    /// # Errors
    /// The file cannot be read or written, another process has it open, its rows were made with another configuration, a line is
    /// not a row, or a row answers another prompt than the one of its number.
    pub fn open<R: Record>(path: &Path, config: &Map<String, Value>, prompts: &[String]) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        if path.is_dir() {
            return Err(Error::file(path, "is a directory"));
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(Error::file(path, "is not a regular file; rows need one to go on from"));
        }
        if file.try_lock().is_err() {
            return Err(Error::file(path, "is in use by another run"));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            // An incomplete row.
            file.set_len(whole as u64).map_err(failed)?;
            text.truncate(whole);
        }
        check_config(path, config, whole > 0)?;
        let mut there = BTreeSet::new();
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let wrong = |what: String| Error::file(path, format!("line {}: {what}", number + 1));
            let row: R = serde_json::from_slice(line).map_err(|e| wrong(format!("expected a row: {e}")))?;
            let index = row.index();
            match prompts.get(index) {
                Some(prompt) if prompt == row.prompt() => {}
                Some(_) => return Err(wrong(format!("row {index} answers another prompt than the input's"))),
                None => return Err(wrong(format!("row {index}: the input has {} prompts", prompts.len()))),
            }
            if !there.insert(index) {
                return Err(wrong(format!("row {index} is there twice")));
            }
        }
        Ok(Rows { path: path.to_path_buf(), file, there })
    }

    /// Whether a prompt has been answered.
    pub fn has(&self, index: usize) -> bool {
        self.there.contains(&index)
    }

    /// Prompts that have been answered.
    pub fn len(&self) -> usize {
        self.there.len()
    }

    /// Whether no prompt has been answered.
    pub fn is_empty(&self) -> bool {
        self.there.is_empty()
    }

    /// Adds a row.
    ///
    /// # Errors
    /// It cannot be written; the file is then as it was.
    pub fn add(&mut self, row: &impl Record) -> Result<()> {
        let failed = |e| Error::io(&self.path, e);
        let mut line = serde_json::to_vec(row).map_err(|e| Error::file(&self.path, e.to_string()))?;
        line.push(b'\n');
        let before = self.file.metadata().map_err(failed)?.len();
        if let Err(error) = self.file.write_all(&line) {
            // A full disk may have taken a part of it.
            let _ = self.file.set_len(before);
            return Err(failed(error));
        }
        self.there.insert(row.index());
        Ok(())
    }

    /// Puts the rows in order.
    ///
    /// # Errors
    /// The rows cannot be read or written; the file is then as it was.
    pub fn finish(mut self) -> Result<()> {
        let failed = |e| Error::io(&self.path, e);
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.file.read_to_string(&mut text).map_err(failed)?;
        let index = |line: &str| serde_json::from_str::<Numbered>(line).map_or(usize::MAX, |row| row.index);
        let mut lines: Vec<(usize, &str)> = text.lines().map(|line| (index(line), line)).collect();
        if lines.is_sorted_by_key(|(index, _)| *index) {
            return Ok(());
        }
        lines.sort_by_key(|(index, _)| *index);
        let sorted: String = lines.iter().flat_map(|(_, line)| [line, "\n"]).collect();
        let beside = self.path.with_added_extension("part");
        let moved = std::fs::write(&beside, sorted).and_then(|()| std::fs::rename(&beside, &self.path));
        moved.map_err(|e| {
            let _ = std::fs::remove_file(&beside);
            failed(e)
        })
    }
}

#[derive(Deserialize)]
struct Numbered {
    index: usize,
}

/// Reads a file of rows.
///
/// # Errors
/// The file cannot be read, is empty, or a line is not a row; the message names the line.
pub fn read<R: Record>(path: &Path) -> Result<Vec<R>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let text = crate::files::checkpoint::read_whole_text(path, file)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(number, line)| {
        serde_json::from_str(line)
            .map_err(|e| Error::file(path, format!("line {}: expected a row of `ggro run`: {e}", number + 1)))
    });
    let rows: Vec<R> = rows.collect::<Result<_>>()?;
    if rows.is_empty() {
        return Err(Error::file(path, "expected rows of `ggro run`, found none"));
    }
    Ok(rows)
}

/// The path of a file's configuration.
pub fn config_path(path: &Path) -> PathBuf {
    path.with_added_extension("config.json")
}

/// The configuration that the rows of a file were made with; `None` if it has no rows yet.
///
/// # Errors
/// The configuration cannot be read, or is no JSON object.
pub fn config(path: &Path) -> Result<Option<Map<String, Value>>> {
    // A row that was not written to its end does not count.
    let rows = || -> std::io::Result<bool> {
        let mut row = Vec::new();
        if std::fs::metadata(path)?.is_file() {
            BufReader::new(File::open(path)?).read_until(b'\n', &mut row)?;
        }
        Ok(row.ends_with(b"\n"))
    };
    if !rows().unwrap_or(false) {
        return Ok(None);
    }
    let beside = config_path(path);
    match std::fs::read(&beside) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::file(&beside, format!("expected the options of a run: {e}"))),
        // Opening the rows says what is wrong.
        Err(_) => Ok(Some(Map::new())),
    }
}

/// Compares the configuration with the one that the rows were made with, or writes it if there are no rows.
fn check_config(path: &Path, config: &Map<String, Value>, rows: bool) -> Result<()> {
    let beside = config_path(path);
    let found = match std::fs::read(&beside) {
        Ok(text) if rows => text,
        Err(error) if rows => {
            return Err(Error::file(&beside, format!("{error}; without it nothing says how the rows came about")));
        }
        _ => {
            let text = serde_json::to_vec_pretty(config).map_err(|e| Error::file(&beside, e.to_string()))?;
            let part = beside.with_added_extension("part");
            let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &beside));
            return written.map_err(|e| Error::io(&beside, e));
        }
    };
    let found: Map<String, Value> =
        serde_json::from_slice(&found).map_err(|e| Error::file(&beside, format!("expected a JSON object: {e}")))?;
    let names: BTreeSet<&String> = found.keys().chain(config.keys()).collect();
    let differs = names.into_iter().filter(|name| found.get(*name) != config.get(*name));
    let differs: Vec<String> = differs
        .map(|name| {
            let word = |map: &Map<String, Value>| map.get(name).map_or_else(|| "nothing".to_string(), Value::to_string);
            format!("`{name}` was {}, is {}", word(&found), word(config))
        })
        .collect();
    if differs.is_empty() {
        return Ok(());
    }
    Err(Error::file(
        path,
        format!(
            "its rows came about in another way: {}; use the same options, or another output file",
            differs.join("; ")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(index: usize) -> Row {
        Row {
            index,
            prompt: format!("p{index}"),
            answer: None,
            metadata: Value::Null,
            full_text: String::new(),
            response: "a \"quoted\"\nline".to_string(),
            reward: Some(1.5),
            num_nudges: 0,
            segment_boundaries: vec![3],
            elapsed_seconds: 0.5,
            prediction: None,
            correct: None,
            finish_reason: "finish".to_string(),
            prompt_tokens: 2,
            new_tokens: 1,
            work: Work::default(),
            segments: Vec::new(),
            round_trip_stable: None,
        }
    }

    fn config(threshold: f64) -> Map<String, Value> {
        let Value::Object(map) = json!({"entropy_threshold": threshold, "seed": 0}) else { unreachable!() };
        map
    }

    #[test]
    fn rows_survive_and_halves_are_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let prompts: Vec<String> = (0..4).map(|i| format!("p{i}")).collect();
        let mut rows = Rows::open::<Row>(&path, &config(1.5), &prompts).unwrap();
        assert!(Rows::open::<Row>(&path, &config(1.5), &prompts).unwrap_err().to_string().contains("another run"));
        rows.add(&row(2)).unwrap();
        rows.add(&row(0)).unwrap();
        drop(rows);
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"index\": 1, \"pro");
        std::fs::write(&path, text).unwrap();
        let mut rows = Rows::open::<Row>(&path, &config(1.5), &prompts).unwrap();
        assert!(rows.has(0) && !rows.has(1) && rows.has(2) && rows.len() == 2);
        rows.add(&row(1)).unwrap();
        rows.finish().unwrap();
        let indices: Vec<usize> = read::<Row>(&path).unwrap().iter().map(|row| row.index).collect();
        assert_eq!(indices, [0, 1, 2]);

        let message = Rows::open::<Row>(&path, &config(2.0), &prompts).unwrap_err().to_string();
        assert!(message.contains("`entropy_threshold` was 1.5, is 2.0") && !message.contains("seed"), "{message}");
        let other: Vec<String> = prompts.iter().map(|prompt| prompt.to_uppercase()).collect();
        let message = Rows::open::<Row>(&path, &config(1.5), &other).unwrap_err().to_string();
        assert!(message.contains("line 1: row 0 answers another prompt"), "{message}");
        let message = Rows::open::<Row>(&path, &config(1.5), &prompts[..2]).unwrap_err().to_string();
        assert!(message.contains("line 3: row 2: the input has 2 prompts"), "{message}");
        std::fs::remove_file(config_path(&path)).unwrap();
        assert!(Rows::open::<Row>(&path, &config(1.5), &prompts).is_err());
    }
}
