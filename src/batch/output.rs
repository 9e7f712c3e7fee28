//! The file of rows: one JSON object per line. `FILE.config.json` beside it holds the parameters of the run.
//!
//! A row is added by one write that ends in a line break. If the process is killed during a write, the incomplete row
//! is cut off when the file is opened again; complete rows are kept, and their prompts are not answered again. Rows are
//! added as answers end. When all are there, they are written in the order of their prompts to a second file, which
//! then replaces the first.
//!
//! Where the file is a symbolic link, rows and configuration are those of the file that it leads to.

use super::record::{PromptRecord, kind};
use crate::answer::SearchCounts;
use crate::engine::DraftStats;
use crate::files::checkpoint::read_whole_text;
use crate::files::json::in_line;
use crate::files::place::{behind_links, replace};
use crate::model::Work;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One answer. The first eleven fields are the official code's; what its rows lack of the others is missing, not zero.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// Tokens of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<usize>,
    /// Tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_tokens: Option<usize>,
    /// Tokens that had to go through the models for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Tokens that were guessed for it, where any were. What was wrong is not in `work`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drafts: Option<DraftStats>,
    /// What was tried, by a method that GGRO is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchCounts>,
    /// Its segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<RowSegment>>,
    /// Whether `full_text`, tokenised again, gives the ids that were decoded. The official code does this between
    /// segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_stable: Option<bool>,
    /// Prompts that were answered at the same time, at most: `elapsed_seconds` is a time among so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// The kind of device that it was made on, as [`MadeOn::device`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The kernels that it was made by, as [`MadeOn::kernels`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<String>,
    /// Why the prompt was not answered, if it was passed over. There is no answer then, and `response` is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// On what answers are made. The last bits of all numbers depend on it, and so may answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MadeOn {
    /// The kind of device: `cpu`, or `cuda 9.0` with the compute capability.
    pub device: String,
    /// The family of kernels that multiplies with weights, as in `sm90`; none on the CPU.
    pub kernels: Option<String>,
}

/// In words.
impl fmt::Display for MadeOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kernels {
            Some(kernels) => write!(f, "{} with kernels {kernels}", self.device),
            None => f.write_str(&self.device),
        }
    }
}

impl MadeOn {
    /// What an object says, an options file or a row; `None` if it does not.
    fn of(options: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| options.get(name).and_then(Value::as_str).map(str::to_string);
        Some(MadeOn { device: text("device")?, kernels: text("kernels") })
    }

    /// Writes it into the options of a run.
    pub fn record(&self, config: &mut Map<String, Value>) {
        config.insert("device".to_string(), Value::from(self.device.as_str()));
        config.insert("kernels".to_string(), self.kernels.as_deref().map_or(Value::Null, Value::from));
    }

    /// As an entry of a list.
    fn entry(&self) -> Value {
        let mut entry = Map::new();
        self.record(&mut entry);
        Value::Object(entry)
    }

    /// Whether it is the CPU or CUDA, of whatever kind.
    fn backend(&self) -> &str {
        self.device.split(' ').next().unwrap_or_default()
    }
}

impl Row {
    /// The row of a prompt that is passed over.
    pub fn skipped(index: usize, record: &PromptRecord, why: String) -> Self {
        Row {
            index,
            prompt: record.text.clone(),
            answer: record.answer.clone(),
            metadata: record.metadata.clone(),
            full_text: String::new(),
            response: String::new(),
            reward: None,
            num_nudges: 0,
            segment_boundaries: Vec::new(),
            elapsed_seconds: 0.0,
            prediction: None,
            correct: None,
            finish_reason: None,
            prompt_tokens: None,
            new_tokens: None,
            work: None,
            drafts: None,
            search: None,
            segments: None,
            round_trip_stable: None,
            concurrency: None,
            device: None,
            kernels: None,
            skipped: Some(why),
        }
    }
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
    /// What messages call one.
    const NOUN: &'static str;
    /// The command that writes them.
    const COMMAND: &'static str;

    /// Number of the prompt.
    fn index(&self) -> usize;

    /// The kind of device that it was made on, if it says so.
    fn device(&self) -> Option<&str>;
}

impl Record for Row {
    const NOUN: &'static str = "row";
    const COMMAND: &'static str = "ggro run";

    fn index(&self) -> usize {
        self.index
    }

    fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }
}

/// The option that lists what a file was gone on with on, besides the device and the kernels that it was begun with:
/// objects with `device` and `kernels`. Files that nothing was mixed into do not have it.
pub(super) const MIXED_IN: &str = "mixed_in";

/// The option that says which command writes a file; files of `ggro run` and `ggro guard` do not have it.
pub const WRITTEN_BY: &str = "command";

/// What every row begins with.
const BEGINNING: &[u8] = b"{\"index\":";

/// A file of rows that is being added to. No other process can open it meanwhile.
#[derive(Debug)]
pub struct Rows {
    /// As the user calls it.
    name: PathBuf,
    /// Behind symbolic links.
    path: PathBuf,
    file: File,
    there: BTreeSet<usize>,
    /// The options with what is mixed in now, until the first row of it is added.
    mixed: Option<Map<String, Value>>,
}

impl Rows {
    /// Opens a file, or creates it. `config` holds all that an answer depends on besides its prompt; with `mix_devices`
    /// its rows may have been made on another kind of device; the options then list this one too, once it has a row.
    /// `fits` says what is wrong with a row beside the input, as the end of a sentence that begins with the row.
    ///
    /// # Errors
    /// The file cannot be read or written, another process has it open, its rows were made with another configuration,
    /// a line is not a row, or a row does not fit. The file is then as it was.
    pub fn open<R: Record>(
        name: &Path,
        config: &Map<String, Value>,
        mix_devices: bool,
        fits: &dyn Fn(&R) -> std::result::Result<(), String>,
    ) -> Result<Self> {
        let (path, failed) = (behind_links(name), |e| Error::io(name, e));
        if path.is_dir() {
            return Err(Error::file(name, "is a directory"));
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(Error::file(name, "is not a regular file; rows need one to go on from"));
        }
        if file.try_lock().is_err() {
            return Err(Error::file(name, "is in use by another run"));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let rest = text.split_off(whole);
        // Only what a run left is cut off, and it always left its options beside the file.
        let ends = serde_json::from_slice::<R>(&rest).is_ok();
        if !(rest.is_empty() || ends || rest.starts_with(BEGINNING) || BEGINNING.starts_with(&rest)) {
            return Err(Error::file(name, "expected rows of an earlier run, found something else at its end"));
        }
        if ends {
            text.extend(&rest);
        }
        let state = FileState { has_rows: !text.is_empty(), is_begun: !rest.is_empty() };
        let mixed = check_config(name, config, state, mix_devices, R::NOUN)?;
        let mut there = BTreeSet::new();
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let wrong = |what: String| Error::file(name, format!("line {}: {what}", number + 1));
            let row: R = serde_json::from_slice(without_mark(line))
                .map_err(|e| wrong(format!("expected a {}: {}", R::NOUN, in_line(&e))))?;
            let (noun, index) = (R::NOUN, row.index());
            fits(&row).map_err(|what| wrong(format!("{noun} {index} {what}")))?;
            if !there.insert(index) {
                return Err(wrong(format!("{noun} {index} is there twice")));
            }
        }
        if ends {
            // Whole, but for its line break.
            file.write_all(b"\n").map_err(failed)?;
        } else if !rest.is_empty() {
            file.set_len(whole as u64).map_err(failed)?;
        }
        Ok(Rows { name: name.to_path_buf(), path, file, there, mixed })
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
        let failed = |e| Error::io(&self.name, e);
        let mut line = serde_json::to_vec(row).map_err(|e| Error::file(&self.name, e.to_string()))?;
        line.push(b'\n');
        if let Some(options) = self.mixed.as_ref().filter(|_| row.device().is_some()) {
            // Before the row: a row that the options do not know of would be worse than an entry without a row.
            write_config(&self.path, options)?;
            self.mixed = None;
        }
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
    /// The rows cannot be read, or written a second time; the file is then as it was, and has all of them.
    pub fn finish(mut self) -> Result<()> {
        let failed = |e: std::io::Error| {
            let what = "all rows are there, and only their order is missing; the same command puts them in order";
            Error::file(&self.name, format!("{what} once this is mended: {e}"))
        };
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.file.read_to_string(&mut text).map_err(failed)?;
        let text = text.trim_start_matches('\u{feff}');
        let index = |line: &str| serde_json::from_str::<Numbered>(line).map_or(usize::MAX, |row| row.index);
        let mut lines: Vec<(usize, &str)> = text.lines().map(|line| (index(line), line)).collect();
        if lines.is_sorted_by_key(|(index, _)| *index) {
            return Ok(());
        }
        lines.sort_by_key(|(index, _)| *index);
        let sorted: String = lines.iter().flat_map(|(_, line)| [line, "\n"]).collect();
        replace(&self.path, &part_path(&self.path), sorted.as_bytes()).map_err(failed)
    }
}

#[derive(Deserialize)]
struct Numbered {
    index: usize,
}

/// Reads a file of rows.
///
/// # Errors
/// The file cannot be read, is empty, a line is not a row, or a row is there twice; the message names the line.
pub fn read<R: Record>(path: &Path) -> Result<Vec<R>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let text = read_whole_text(path, file)?;
    let (mut rows, mut there) = (Vec::new(), BTreeSet::new());
    let (noun, command) = (R::NOUN, R::COMMAND);
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: String| Error::file(path, format!("line {}: {what}", number + 1));
        let line = line.trim().trim_start_matches('\u{feff}');
        if !line.starts_with('{')
            && let Ok(other) = serde_json::from_str(line)
        {
            return Err(wrong(format!("expected a {noun} of `{command}`, found {}", kind(&other))));
        }
        let row: R = serde_json::from_str(line)
            .map_err(|e| wrong(format!("expected a {noun} of `{command}`: {}", in_line(&e))))?;
        if !there.insert(row.index()) {
            return Err(wrong(format!("{noun} {} is there twice", row.index())));
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(Error::file(path, format!("expected {noun}s of `{command}`, found none")));
    }
    Ok(rows)
}

/// A line without the byte order mark that some editors put in front of the first.
fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line)
}

/// The path of a file's configuration: beside the file that a link leads to, so that it is found by either name.
pub fn config_path(path: &Path) -> PathBuf {
    behind_links(path).with_added_extension("config.json")
}

/// Where a file is written before it is replaced.
pub fn part_path(path: &Path) -> PathBuf {
    behind_links(path).with_added_extension("part")
}

/// The configuration beside a file of rows, whatever it is; `None` if there is none that can be read.
pub fn recorded(path: &Path) -> Option<Map<String, Value>> {
    options_of(path).ok()
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
        Ok(row.ends_with(b"\n") || serde_json::from_slice::<Numbered>(&row).is_ok())
    };
    if !rows().unwrap_or(false) {
        return Ok(None);
    }
    match options_of(path) {
        Ok(found) => Ok(Some(found)),
        // Opening the rows says what is wrong.
        Err(Error::Io { .. }) => Ok(Some(Map::new())),
        Err(error) => Err(error),
    }
}

/// The options that a run wrote beside its rows.
fn options_of(path: &Path) -> Result<Map<String, Value>> {
    let beside = config_path(path);
    let file = File::open(&beside).map_err(|e| Error::io(&beside, e))?;
    let text = read_whole_text(&beside, file)?;
    serde_json::from_str(&text).map_err(|e| Error::file(&beside, format!("expected the options of a run: {e}")))
}

/// How far a file has come.
struct FileState {
    has_rows: bool,
    /// The last row was not written to its end.
    is_begun: bool,
}

/// Writes the options of a run beside its rows.
fn write_config(path: &Path, config: &Map<String, Value>) -> Result<()> {
    let beside = config_path(path);
    let text = serde_json::to_vec_pretty(config).map_err(|e| Error::file(&beside, e.to_string()))?;
    replace(&behind_links(&beside), &part_path(&beside), &text).map_err(|e| Error::io(&beside, e))
}

/// Compares the configuration with the one that the rows were made with, or writes it if there are no rows. Gives the
/// options to write when the first row is added, if it is of a device or of kernels that they do not list yet.
fn check_config(
    path: &Path,
    config: &Map<String, Value>,
    state: FileState,
    mix_devices: bool,
    noun: &str,
) -> Result<Option<Map<String, Value>>> {
    let beside = config_path(path);
    let found = match options_of(path) {
        Err(Error::Io { source, .. }) if state.has_rows || state.is_begun => {
            return Err(Error::file(&beside, format!("{source}; without it nothing says how the {noun}s came about")));
        }
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Map::new(),
        found => found?,
    };
    if !state.has_rows {
        if !found.is_empty() && !found.contains_key("ggro") {
            return Err(Error::file(&beside, "expected the options of a run, found something else; it would be lost"));
        }
        return write_config(path, config).map(|()| None);
    }
    // Rows of another command have other options altogether.
    let of = |config: &Map<String, Value>| match config.get(WRITTEN_BY).and_then(Value::as_str) {
        Some(command) => format!("`ggro {command}`"),
        None if config.contains_key("guard") => "`ggro guard`".to_string(),
        None => "`ggro run`".to_string(),
    };
    // What the user gave is a folder where a command writes several files.
    let another = match config.contains_key(WRITTEN_BY) {
        true => "another --output folder",
        false => "another output file",
    };
    if of(&found) != of(config) {
        return Err(Error::file(path, format!("holds rows of {}; use {another}", of(&found))));
    }
    let (before, now) = (MadeOn::of(&found), MadeOn::of(config));
    // What follows from the device alone is no difference of its own. Rows of versions that did not say are on any.
    let of_device = |name: &str| match name {
        "device" | "kernels" | MIXED_IN => true,
        "arithmetic" => before.as_ref().zip(now.as_ref()).is_some_and(|(a, b)| a.backend() != b.backend()),
        _ => false,
    };
    let names: BTreeSet<&String> = found.keys().chain(config.keys()).collect();
    let differs = names.into_iter().filter(|name| !of_device(name) && found.get(*name) != config.get(*name));
    let differs: Vec<String> = differs
        .map(|name| {
            let word = |map: &Map<String, Value>| map.get(name).map_or_else(|| "nothing".to_string(), Value::to_string);
            format!("`{name}` was {}, is {}", word(&found), word(config))
        })
        .collect();
    if differs.is_empty() {
        return match (before, now) {
            (Some(before), Some(now)) if before != now && !mix_devices => Err(Error::file(
                path,
                format!(
                    "its {noun}s were made on {before}, the others would be made on {now}, where answers may differ; use \
                     the same (--device, --kernels), {another}, or --mix-devices, which goes on all the same"
                ),
            )),
            (Some(before), Some(now)) if before != now => Ok(with_mixed_in(&found, &now)),
            _ => Ok(None),
        };
    }
    Err(Error::file(
        path,
        format!("its {noun}s came about in another way: {}; use the same options, or {another}", differs.join("; ")),
    ))
}

/// Options that list what is mixed in now; `None` if they do so already.
fn with_mixed_in(options: &Map<String, Value>, now: &MadeOn) -> Option<Map<String, Value>> {
    let mut list = options.get(MIXED_IN).and_then(Value::as_array).cloned().unwrap_or_default();
    let known = list.iter().filter_map(Value::as_object).any(|entry| MadeOn::of(entry).as_ref() == Some(now));
    if known {
        return None;
    }
    list.push(now.entry());
    let mut options = options.clone();
    options.insert(MIXED_IN.to_string(), Value::Array(list));
    Some(options)
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
            finish_reason: Some("finish".to_string()),
            prompt_tokens: Some(2),
            new_tokens: Some(1),
            work: Some(Work::default()),
            drafts: None,
            search: None,
            segments: Some(Vec::new()),
            round_trip_stable: None,
            concurrency: Some(1),
            device: None,
            kernels: None,
            skipped: None,
        }
    }

    fn config(threshold: f64) -> Map<String, Value> {
        let Value::Object(map) = json!({"ggro": "0", "entropy_threshold": threshold, "seed": 0}) else {
            unreachable!()
        };
        map
    }

    /// Rows of these prompts.
    fn open(path: &Path, config: &Map<String, Value>, prompts: &[String]) -> Result<Rows> {
        Rows::open(path, config, false, &|row: &Row| match prompts.get(row.index) {
            Some(prompt) if *prompt == row.prompt => Ok(()),
            _ => Err("is another one".to_string()),
        })
    }

    #[test]
    fn rows_survive_and_halves_are_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let prompts: Vec<String> = (0..4).map(|i| format!("p{i}")).collect();
        let mut rows = open(&path, &config(1.5), &prompts).unwrap();
        assert!(open(&path, &config(1.5), &prompts).unwrap_err().to_string().contains("another run"));
        rows.add(&row(2)).unwrap();
        rows.add(&row(0)).unwrap();
        drop(rows);
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"index\":1,\"pro");
        std::fs::write(&path, text).unwrap();
        let mut rows = open(&path, &config(1.5), &prompts).unwrap();
        assert!(rows.has(0) && !rows.has(1) && rows.has(2) && rows.len() == 2);
        rows.add(&row(1)).unwrap();
        rows.finish().unwrap();
        let indices: Vec<usize> = read::<Row>(&path).unwrap().iter().map(|row| row.index).collect();
        assert_eq!(indices, [0, 1, 2]);
        // A row that lacks no more than its line break is whole.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.trim_end()).unwrap();
        assert_eq!(open(&path, &config(1.5), &prompts).unwrap().len(), 3);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

        let message = open(&path, &config(2.0), &prompts).unwrap_err().to_string();
        assert!(message.contains("`entropy_threshold` was 1.5, is 2.0") && !message.contains("seed"), "{message}");
        let message = open(&path, &config(1.5), &prompts[..2]).unwrap_err().to_string();
        assert!(message.contains("line 3: row 2 is another one"), "{message}");
        std::fs::write(&path, text.clone() + text.lines().next().unwrap() + "\n").unwrap();
        for message in [open(&path, &config(1.5), &prompts).unwrap_err(), read::<Row>(&path).unwrap_err()] {
            assert!(message.to_string().contains("line 4: row 0 is there twice"), "{message}");
        }
        std::fs::remove_file(config_path(&path)).unwrap();
        assert!(open(&path, &config(1.5), &prompts).is_err());
    }

    #[test]
    fn rows_of_several_devices_are_mixed_if_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let on = |device: &str, kernels: Option<&str>, arithmetic: &str| {
            let mut config = config(1.5);
            config.insert("arithmetic".to_string(), json!(arithmetic));
            MadeOn { device: device.to_string(), kernels: kernels.map(str::to_string) }.record(&mut config);
            config
        };
        let open = |config: &Map<String, Value>, mix| Rows::open::<Row>(&path, config, mix, &|_| Ok(()));
        let first = on("cuda 9.0", Some("sm90"), "auto on CUDA");
        open(&first, false).unwrap().add(&row(0)).unwrap();
        for (other, named) in [
            (on("cuda 9.0", Some("sm80"), "auto on CUDA"), "made on cuda 9.0 with kernels sm80"),
            (on("cuda 8.0", Some("sm80"), "auto on CUDA"), "made on cuda 8.0 with kernels sm80"),
            (on("cpu", None, "f32 on the CPU"), "made on cpu, where"),
        ] {
            let message = open(&other, false).unwrap_err().to_string();
            for part in ["its rows were made on cuda 9.0 with kernels sm90", named, "--mix-devices"] {
                assert!(message.contains(part), "no {part:?} in {message}");
            }
            assert_eq!(open(&other, true).unwrap().len(), 1);
        }
        // Nothing was added yet, so nothing was mixed in.
        let now = || recorded(&path).unwrap();
        assert_eq!(now(), first);
        let sm80 = on("cuda 9.0", Some("sm80"), "auto on CUDA");
        let entry = |device: &str, kernels: Option<&str>| json!({ "device": device, "kernels": kernels });
        for (other, at, listed) in [
            (&sm80, 1, vec![entry("cuda 9.0", Some("sm80"))]),
            (&sm80, 2, vec![entry("cuda 9.0", Some("sm80"))]),
            (&first, 3, vec![entry("cuda 9.0", Some("sm80"))]),
            (&on("cpu", None, "f32 on the CPU"), 4, vec![entry("cuda 9.0", Some("sm80")), entry("cpu", None)]),
        ] {
            let mut rows = open(other, true).unwrap();
            // A row that no device made.
            rows.add(&row(10 * at)).unwrap();
            rows.add(&Row { device: Some(other["device"].as_str().unwrap().to_string()), ..row(at) }).unwrap();
            let mut expected = first.clone();
            expected.insert(MIXED_IN.to_string(), Value::Array(listed));
            assert_eq!(now(), expected, "the rest is what the file was begun with");
        }
        // What was mixed in is mixed in once more only if that is asked for.
        assert!(open(&sm80, false).is_err());
        // What was asked for is another option, on whatever device.
        for mix in [false, true] {
            let message = open(&on("cuda 8.0", Some("sm80"), "f16 on CUDA"), mix).unwrap_err().to_string();
            assert!(message.contains("`arithmetic` was \"auto on CUDA\", is \"f16 on CUDA\""), "{message}");
        }
        open(&first, false).unwrap();
        // Rows of before, which say nothing of it.
        let mut before = first.clone();
        before.retain(|name, _| name != "device" && name != "kernels");
        std::fs::write(config_path(&path), json!(before).to_string()).unwrap();
        assert_eq!(open(&on("cuda 8.0", Some("sm80"), "auto on CUDA"), false).unwrap().len(), 9);
        assert!(open(&on("cpu", None, "f32 on the CPU"), false).unwrap_err().to_string().contains("`arithmetic` was"));
    }

    /// Nothing that a run did not write is cut off or replaced.
    #[test]
    fn other_files_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let foreign = serde_json::to_string(&row(0)).unwrap();
        for text in ["a text without an end", "[1, 2]\n3", "{\"a\": 1}", &foreign] {
            std::fs::write(&path, text).unwrap();
            assert!(open(&path, &config(1.5), &["p0".to_string()]).is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            assert!(!config_path(&path).exists());
        }
        std::fs::write(&path, "").unwrap();
        std::fs::write(config_path(&path), "{\"mine\": 1}").unwrap();
        let message = open(&path, &config(1.5), &[]).unwrap_err().to_string();
        assert!(message.contains("out.jsonl.config.json: expected the options of a run"), "{message}");
        for (line, expected) in
            [("null", "found null"), ("[]", "found an array"), ("{}", "missing field `index` at column 2")]
        {
            std::fs::write(&path, format!("{foreign}\n\n{line}\n")).unwrap();
            let message = read::<Row>(&path).unwrap_err().to_string();
            assert!(
                message.contains("line 3: expected a row of `ggro run`") && message.contains(expected),
                "{message}"
            );
        }
    }

    #[test]
    fn links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("disk")).unwrap();
        let (link, real) = (folder.path().join("link.jsonl"), folder.path().join("disk/real.jsonl"));
        std::os::unix::fs::symlink("disk/real.jsonl", &link).unwrap();
        let prompts: Vec<String> = (0..3).map(|i| format!("p{i}")).collect();
        let mut rows = open(&link, &config(1.5), &prompts).unwrap();
        rows.add(&row(1)).unwrap();
        rows.add(&row(0)).unwrap();
        // No room for a second copy.
        let blocked = part_path(&link);
        std::fs::create_dir(&blocked).unwrap();
        let message = rows.finish().unwrap_err().to_string();
        assert!(message.contains("link.jsonl: all rows are there, and only their order is missing"), "{message}");
        std::fs::remove_dir(&blocked).unwrap();
        // Either name goes on, and both have one configuration.
        open(&real, &config(1.5), &prompts).unwrap().finish().unwrap();
        assert!(link.is_symlink() && !real.is_symlink());
        assert_eq!(read::<Row>(&link).unwrap().iter().map(|row| row.index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(config_path(&link), config_path(&real));
        assert!(open(&link, &config(2.0), &prompts).is_err() && recorded(&link).is_some());
    }
}
