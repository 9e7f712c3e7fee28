//! What judges say of answers: one judgement per row, in a file of its own beside the rows.

use super::gold::Gold;
use crate::batch::guard::{Guard, hash_of};
use crate::batch::output::{Record, Row};
use crate::batch::record::{PromptRecord, lay_out};
use crate::engine::Engine;
use crate::files::chat::Message;
use crate::files::pair::Pair;
use crate::scoring::RewardQuery;
use crate::text::Next;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// What a judge says of one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Number of the prompt.
    pub index: usize,
    /// The score, higher is better; `None` where the judge has none.
    pub score: Option<f64>,
    /// Of the answer that was judged, as [`hash_of`], so that one that has changed since is noticed.
    pub answer_hash: String,
    /// The kind of device that it was made on, where a model judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl Record for Judgement {
    fn index(&self) -> usize {
        self.index
    }

    fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }
}

impl Judgement {
    /// The judgement of a row.
    pub fn new(row: &Row, score: Option<f64>, device: Option<String>) -> Judgement {
        Judgement { index: row.index, score, answer_hash: hash_of(&row.response), device }
    }

    /// What is wrong with a judgement of this row, which is there already; `None` is a row that is not there.
    ///
    /// # Errors
    /// It is of another answer.
    pub fn fits(&self, row: Option<&Row>) -> std::result::Result<(), String> {
        match row {
            Some(row) if hash_of(&row.response) == self.answer_hash => Ok(()),
            Some(_) => Err("judges another answer than the one that is there; remove the file".to_string()),
            None => Err("judges an answer that is not there; remove the file".to_string()),
        }
    }
}

/// 1 for a right answer, 0 for a wrong one; `None` where no right answer is known.
pub fn right(row: &Row) -> Option<f64> {
    row.correct.map(|correct| f64::from(u8::from(correct)))
}

/// The gold score of a row.
pub fn gold(rule: &Gold, row: &Row) -> f64 {
    rule.score(&row.response, row.finish_reason.as_deref() == Some("finish"))
}

/// 1 for safe, 0 for unsafe, by a guard model; `None` if it says neither.
///
/// # Errors
/// As [`Guard::ask`].
pub fn safe(guard: &Guard<'_>, row: &Row) -> Result<Option<f64>> {
    Ok(guard.ask(row)?.safe.map(|safe| f64::from(u8::from(safe))))
}

/// A second reward model.
pub struct SecondReward<'a> {
    /// The engine that runs it.
    pub engine: &'a Engine,
    /// The model, with its own tokenizer and chat template.
    pub pair: &'a Arc<Pair>,
}

impl SecondReward<'_> {
    /// Its reward of the conversation with the answer at its end.
    ///
    /// # Errors
    /// There is no chat template, the conversation cannot be laid out or is too long, or the engine fails.
    pub fn score(&self, record: &PromptRecord, row: &Row) -> Result<Option<f64>> {
        let of_prompt = |error: Error| error.within(&format!("prompt {}", row.index));
        if self.pair.chat().is_none() {
            return Err(Error::invalid("a judge that is a reward model needs a chat template; this one has none"));
        }
        let mut messages = record.messages.clone();
        messages.push(Message { role: "assistant".to_string(), content: row.response.clone() });
        let laid = lay_out(self.pair, None, &messages, None, Next::Nothing);
        let ids = laid.map_err(Error::from).map_err(of_prompt)?.ids;
        let query = RewardQuery { ids, ..RewardQuery::default() };
        let (report, _) = self.engine.score(query, self.pair.reward_pad_id())?.wait().map_err(of_prompt)?;
        Ok(Some(f64::from(report.reward)))
    }
}

/// An answer of the program that judges.
#[derive(Deserialize)]
struct Said {
    index: usize,
    score: Option<f64>,
}

/// Lets a program judge rows: it reads JSON lines with `index`, `prompt` and `response` until its input ends, and writes JSON
/// lines with `index` and `score` in any order. `index` is the place in `rows`. `add` is called with each place and its score, as
/// they come.
///
/// # Errors
/// The program cannot be started, fails, says something else, or leaves an answer out; or `add` fails.
pub fn ask_program(
    command: &[String],
    rows: &[&Row],
    add: &mut dyn FnMut(usize, Option<f64>) -> Result<()>,
) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::invalid("expected a program, found none"));
    };
    let failed = |e: std::io::Error| Error::io(program, e);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| Error::invalid(format!("{program}: cannot be started: {e}")))?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Error::Backend("a program without pipes".to_string()));
    };
    let write = move || -> std::io::Result<()> {
        for (index, row) in rows.iter().enumerate() {
            let line = json!({ "index": index, "prompt": row.prompt, "response": row.response });
            writeln!(input, "{line}")?;
        }
        Ok(())
    };
    let read = || -> Result<()> {
        let mut missing: Vec<bool> = vec![true; rows.len()];
        for (number, line) in BufReader::new(output).lines().enumerate() {
            let line = line.map_err(failed)?;
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |what: String| Error::invalid(format!("{program}: line {} of its output: {what}", number + 1));
            let said: Said =
                serde_json::from_str(&line).map_err(|e| wrong(format!("expected index and score: {e}")))?;
            match missing.get_mut(said.index) {
                Some(missing) if *missing => *missing = false,
                Some(_) => return Err(wrong(format!("index {} is there twice", said.index))),
                None => return Err(wrong(format!("there is no index {}", said.index))),
            }
            add(said.index, said.score)?;
        }
        match missing.iter().position(|missing| *missing) {
            Some(index) => Err(Error::invalid(format!("{program}: ended without a score of index {index}"))),
            None => Ok(()),
        }
    };
    let (wrote, said) = std::thread::scope(|scope| {
        let writer = scope.spawn(write);
        let said = read();
        if said.is_err() {
            // It may still wait for the rest of its input; whether it can be ended any more does not matter.
            let _ = child.kill();
        }
        (writer.join(), said)
    });
    let status = child.wait().map_err(failed)?;
    if said.is_err() && !status.success() && status.code().is_some() {
        return Err(Error::invalid(format!("{program}: {status}")));
    }
    said?;
    match wrote {
        // A program that has said everything need not read to the end.
        Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => Err(failed(error)),
        Err(_) => Err(Error::Backend("the thread that feeds a program panicked".to_string())),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: usize, response: &str) -> Row {
        let record = PromptRecord::of_text(format!("p{index}"));
        Row { response: response.to_string(), skipped: None, ..Row::skipped(index, &record, String::new()) }
    }

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_string).to_vec()
    }

    #[test]
    fn a_program_judges_in_any_order() {
        let rows = [row(7, "a"), row(8, "b")];
        let rows: Vec<&Row> = rows.iter().collect();
        let mut found = Vec::new();
        let script = r#"read a; read b; echo "$b" | grep -q '"response":"b"' && echo '{"index": 1, "score": null}'; echo; echo '{"index": 0, "score": 2.5}'"#;
        ask_program(&shell(script), &rows, &mut |index, score| {
            found.push((index, score));
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [(1, None), (0, Some(2.5))]);
    }

    #[test]
    fn what_a_program_does_wrong_is_named() {
        let rows = [row(0, "a"), row(1, "b")];
        let rows: Vec<&Row> = rows.iter().collect();
        for (script, words) in [
            ("cat > /dev/null; echo x", "line 1 of its output: expected index and score"),
            ("cat > /dev/null; echo '{\"index\": 0, \"score\": 1}'", "ended without a score of index 1"),
            ("echo '{\"index\": 2, \"score\": 1}'; cat > /dev/null", "there is no index 2"),
            ("for i in 1 2; do echo '{\"index\": 0, \"score\": 1}'; done; cat > /dev/null", "index 0 is there twice"),
            ("exit 3", "exit status: 3"),
        ] {
            let error = ask_program(&shell(script), &rows, &mut |_, _| Ok(())).unwrap_err().to_string();
            assert!(error.contains(words), "{script}: {error}");
        }
        let none = ["/no/such/program".to_string()];
        assert!(ask_program(&none, &rows, &mut |_, _| Ok(())).unwrap_err().to_string().contains("cannot be started"));
    }

    #[test]
    fn a_judgement_belongs_to_its_answer() {
        let judgement = Judgement::new(&row(3, "a"), Some(1.0), None);
        assert!(judgement.fits(Some(&row(3, "a"))).is_ok());
        assert!(judgement.fits(Some(&row(3, "b"))).is_err() && judgement.fits(None).is_err());
        let line = serde_json::to_string(&judgement).unwrap();
        assert!(line.starts_with("{\"index\":3,"), "{line}");
    }
}
