//! What judges say of answers: one judgement per row, in a file of its own beside the rows.

use super::gold::Gold;
use crate::batch::guard::{Guard, hash_of};
use crate::batch::output::{Record, Row};
use crate::batch::record::{PromptRecord, lay_out};
use crate::engine::Engine;
use crate::files::chat::Message;
use crate::files::json::in_line;
use crate::files::pair::Pair;
use crate::scoring::RewardQuery;
use crate::text::Next;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// What a judge says of one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Number of the prompt.
    pub index: usize,
    /// The score, higher is better; `None` where the judge has none.
    #[serde(deserialize_with = "Option::deserialize")]
    pub score: Option<f64>,
    /// Of what was judged, the prompt and the answer, so that a change since is noticed: FNV-1a in hexadecimal.
    pub answer_hash: String,
    /// The kind of device that it was made on, where a model judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl Record for Judgement {
    const NOUN: &'static str = "judgement";
    const COMMAND: &'static str = "ggro compare";

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
        Judgement { index: row.index, score, answer_hash: hash_of_row(row), device }
    }

    /// What is wrong with a judgement of this row, which is there already; `None` is a row that is not there.
    ///
    /// # Errors
    /// It is of another answer.
    pub fn fits(&self, row: Option<&Row>) -> std::result::Result<(), String> {
        match row {
            Some(row) if hash_of_row(row) == self.answer_hash => Ok(()),
            Some(_) => Err("judges another answer than the one that is there; remove the file".to_string()),
            None => Err("judges an answer that is not there; remove the file".to_string()),
        }
    }
}

/// Of all that a judge may look at.
fn hash_of_row(row: &Row) -> String {
    let seen = json!([row.prompt, row.full_text, row.response, row.finish_reason, row.answer, row.metadata]);
    hash_of(&seen.to_string())
}

/// 1 for a right answer, 0 for a wrong one; `None` where no right answer is known.
///
/// Tasks have read the answers already. Of other prompts the text behind the last `Answer:` counts, or the last line if
/// there is none: it must be the right answer, whatever its letters' case, the marks around it and the full stop behind
/// it.
pub fn right(row: &Row) -> Option<f64> {
    let as_number = |right: bool| f64::from(u8::from(right));
    if row.correct.is_some() {
        return row.correct.map(as_number);
    }
    let plain = |text: &str| {
        let text = text.trim_matches(|c: char| c.is_whitespace() || "*_`\"'$()".contains(c));
        text.trim_end_matches('.').trim_end().to_lowercase()
    };
    let expected = plain(row.answer.as_deref()?);
    let said = match row.response.rsplit_once("Answer:") {
        Some((_, said)) => said.trim_start().lines().next(),
        None => row.response.trim_end().lines().last(),
    };
    Some(as_number(plain(said.unwrap_or_default()) == expected))
}

/// The gold score of a row.
pub fn gold(rule: &Gold, row: &Row) -> f64 {
    rule.score(&row.response, row.finish_reason.as_deref() == Some("finish"))
}

/// What a model says of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The score, if it has one.
    pub score: Option<f64>,
    /// Whether it has none because the text is too long for the model.
    pub too_long: bool,
}

/// 1 for safe, 0 for unsafe, by a guard model; no score if it says neither.
///
/// # Errors
/// As [`Guard::ask`].
pub fn safe(guard: &Guard<'_>, row: &Row) -> Result<Scored> {
    let verdict = guard.ask(row)?;
    Ok(Scored { score: verdict.safe.map(|safe| f64::from(u8::from(safe))), too_long: verdict.skipped.is_some() })
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
    /// There is no chat template, the conversation cannot be laid out, or the engine fails.
    pub fn score(&self, record: &PromptRecord, row: &Row) -> Result<Scored> {
        let scored = || -> Result<f64> {
            if self.pair.chat().is_none() {
                return Err(Error::invalid("a judge that is a reward model needs a chat template; this one has none"));
            }
            let mut messages = record.messages.clone();
            messages.push(Message { role: "assistant".to_string(), content: row.response.clone() });
            let ids = lay_out(self.pair, None, &messages, None, Next::Nothing)?.ids;
            let query = RewardQuery { ids, ..RewardQuery::default() };
            let (report, _) = self.engine.score(query, self.pair.reward_pad_id())?.wait()?;
            Ok(f64::from(report.reward))
        };
        match scored() {
            Ok(score) => Ok(Scored { score: Some(score), too_long: false }),
            Err(Error::TooLong { .. }) => Ok(Scored { score: None, too_long: true }),
            Err(error) => Err(error.within(&format!("prompt {}", row.index))),
        }
    }
}

/// What a program is told of an answer: all that is known of the prompt, and which method answered it with which seed.
/// `index` is the place in the list of questions.
pub fn question(index: usize, record: &PromptRecord, row: &Row, (point, seed): (&str, u64)) -> String {
    let messages: Vec<Value> = match &record.whole {
        Some(whole) => whole.messages.clone(),
        None => record.messages.iter().map(|one| json!({ "role": one.role, "content": one.content })).collect(),
    };
    let line = json!({
        "index": index,
        "prompt": row.prompt,
        "response": row.response,
        "messages": messages,
        "answer": row.answer,
        "metadata": row.metadata,
        "finish_reason": row.finish_reason,
        "point": point,
        "seed": seed,
    });
    line.to_string()
}

/// The words of a command, as a shell takes simple ones apart: at white space, but not within quotes; a backslash takes
/// the character behind it as it is, within double quotes only one that would have a meaning. Nothing else has one.
///
/// # Errors
/// A quote is not closed, or there is no word.
pub fn command_words(text: &str) -> std::result::Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (_, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => match chars.next() {
                Some(next) => {
                    let word = word.get_or_insert_default();
                    if quote.is_some() && !"\"\\$`".contains(next) {
                        word.push('\\');
                    }
                    word.push(next);
                }
                None => return Err("ends with a backslash".to_string()),
            },
            ('"' | '\'', None) => {
                word.get_or_insert_default();
                quote = Some(c);
            }
            (_, None) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match quote {
        Some(open) => Err(format!("has a {open} without its end")),
        None if words.is_empty() => Err("expected a program, found none".to_string()),
        None => Ok(words),
    }
}

/// Checks that there is such a program: a file that may be run, by its path or on the PATH.
///
/// # Errors
/// There is none.
pub fn check_program(command: &[String]) -> Result<()> {
    let Some(program) = command.first() else {
        return Err(Error::invalid("expected a program, found none"));
    };
    let runs =
        |path: &Path| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    let (found, place) = match program.contains('/') {
        true => (runs(Path::new(program)), "there"),
        false => {
            let folders = std::env::var_os("PATH").unwrap_or_default();
            (std::env::split_paths(&folders).any(|folder| runs(&folder.join(program))), "on the PATH")
        }
    };
    match found {
        true => Ok(()),
        false => Err(Error::invalid(format!("{program}: cannot be started: no program of this name is {place}"))),
    }
}

/// Longest line of a program, in bytes.
const MOST_LINE: u64 = 1 << 20;

/// Lines of a program that are read before they are looked at, at most.
const LINES_AHEAD: usize = 64;

/// How long a program that said something wrong may take to end by itself, so that its status can be given.
const GRACE: Duration = Duration::from_secs(1);

/// How long a program that has said everything may take to end by itself.
const END: Duration = Duration::from_secs(10);

/// An answer of the program that judges.
#[derive(Deserialize)]
struct JudgeReply {
    index: usize,
    // A field that is missing is not null: whoever misspells it would get a table without scores.
    #[serde(deserialize_with = "Option::deserialize")]
    score: Option<f64>,
}

/// Whose fault it is that no more is heard.
enum Fault {
    /// What the program did wrong.
    Program(String),
    Ours(Error),
}

/// Lets a program judge: it reads the questions, a line each, until its input ends, and writes JSON lines with `index`
/// and `score` in any order. `index` is the place in `questions`. `add` is called with each place and its score, as
/// they come. The program is ended if it writes no line for `patience`.
///
/// # Errors
/// The program cannot be started, fails, says something else, says nothing for too long, or leaves an answer out; or
/// `add` fails.
pub fn ask_program(
    command: &[String],
    questions: Vec<String>,
    patience: Duration,
    add: &mut dyn FnMut(usize, Option<f64>) -> Result<()>,
) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::invalid("expected a program, found none"));
    };
    let mut started = Command::new(program);
    started.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    // It stays in this process group, so that a terminal that interrupts ggro interrupts it as well. Python would keep lines to
    // itself until there are kilobytes of them.
    started.env("PYTHONUNBUFFERED", "1");
    let mut child = started.spawn().map_err(|e| Error::invalid(format!("{program}: cannot be started: {e}")))?;
    let count = questions.len();
    let lines = match threads(&mut child, questions) {
        Ok(lines) => lines,
        Err(e) => {
            end(&mut child);
            return Err(Error::io(program, e));
        }
    };
    let heard = listen(&lines, count, patience, add);
    // The threads are not waited for: what the program started may hold the other ends of the pipes as long as it
    // likes.
    let status = match &heard {
        Ok(()) => {
            drop(lines);
            ended(&mut child, END)
        }
        // Its output is read meanwhile: a pipe that is closed would be what it ends by.
        Err(Fault::Program(_)) => ended(&mut child, GRACE),
        Err(Fault::Ours(_)) => None,
    };
    if status.is_none() {
        end(&mut child);
    }
    match (heard, status) {
        // A program that has said everything may end as it likes.
        (Ok(()), _) => Ok(()),
        (Err(Fault::Ours(error)), _) => Err(error),
        (Err(Fault::Program(what)), Some(status)) if !status.success() => {
            Err(Error::invalid(format!("{program}: {what}; {status}")))
        }
        (Err(Fault::Program(what)), _) => Err(Error::invalid(format!("{program}: {what}"))),
    }
}

/// Starts a thread that feeds the program and one that reads its lines.
fn threads(child: &mut Child, questions: Vec<String>) -> std::io::Result<Receiver<std::io::Result<Vec<u8>>>> {
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(std::io::Error::other("a program without pipes"));
    };
    let (send, lines) = sync_channel(LINES_AHEAD);
    std::thread::Builder::new().name("to-judge".to_string()).spawn(move || feed(input, questions))?;
    std::thread::Builder::new().name("from-judge".to_string()).spawn(move || read_lines(output, &send))?;
    Ok(lines)
}

/// A program that has said everything need not read to the end. One that got too little leaves answers out, and that is
/// an error.
fn feed(mut input: ChildStdin, questions: Vec<String>) {
    for mut line in questions {
        line.push('\n');
        if input.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_lines(output: ChildStdout, send: &SyncSender<std::io::Result<Vec<u8>>>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let read = output.by_ref().take(MOST_LINE).read_until(b'\n', &mut line);
        let is_last = !matches!(read, Ok(1..));
        if matches!(read, Ok(0)) || send.send(read.map(|_| line)).is_err() || is_last {
            return;
        }
    }
}

/// Hears the program out: until nothing is missing.
fn listen(
    lines: &Receiver<std::io::Result<Vec<u8>>>,
    count: usize,
    patience: Duration,
    add: &mut dyn FnMut(usize, Option<f64>) -> Result<()>,
) -> std::result::Result<(), Fault> {
    let mut missing = vec![true; count];
    let mut left = count;
    let next = |missing: &[bool]| missing.iter().position(|&missing| missing).unwrap_or_default();
    let mut number = 0;
    while left > 0 {
        let line = match lines.recv_timeout(patience) {
            Ok(line) => line.map_err(|e| Fault::Program(format!("its output cannot be read: {e}")))?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Fault::Program(format!("ended without a score of index {}", next(&missing))));
            }
            Err(RecvTimeoutError::Timeout) => {
                let (seconds, next) = (patience.as_secs(), next(&missing));
                return Err(Fault::Program(format!(
                    "wrote no line for {seconds} s; the next index is {next}; a program has to flush each line, and timeout_seconds gives it longer"
                )));
            }
        };
        number += 1;
        let wrong = |what: String| Fault::Program(format!("line {number} of its output: {what}"));
        if line.len() as u64 == MOST_LINE && !line.ends_with(b"\n") {
            return Err(wrong(format!("is longer than {MOST_LINE} bytes")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let said: JudgeReply =
            serde_json::from_slice(&line).map_err(|e| wrong(format!("expected index and score: {}", in_line(&e))))?;
        match missing.get_mut(said.index) {
            Some(missing) if *missing => *missing = false,
            Some(_) => return Err(wrong(format!("index {} is there twice", said.index))),
            None => return Err(wrong(format!("there is no index {}", said.index))),
        }
        add(said.index, said.score).map_err(Fault::Ours)?;
        left -= 1;
    }
    Ok(())
}

/// The status of a program that ends within so long.
fn ended(child: &mut Child, grace: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + grace;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Err(_) => return None,
            Ok(None) if Instant::now() >= until => return None,
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Ends a program that was not waited for yet. What cannot be ended any more has ended; what it started itself ends when it finds
/// its pipes closed.
fn end(child: &mut Child) {
    let _ = child.kill();
    // Without this it would stay in the table of processes.
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn row(index: usize, response: &str) -> Row {
        let record = PromptRecord::of_text(format!("p{index}"));
        Row { response: response.to_string(), skipped: None, ..Row::skipped(index, &record, String::new()) }
    }

    fn shell(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_string).to_vec()
    }

    fn questions(responses: &[&str]) -> Vec<String> {
        let record = PromptRecord { answer: Some("4".to_string()), ..PromptRecord::of_text("p".to_string()) };
        let one = |(index, response): (usize, &&str)| {
            let row = Row { answer: record.answer.clone(), ..row(index + 7, response) };
            question(index, &record, &row, ("bon@2", 3))
        };
        responses.iter().enumerate().map(one).collect()
    }

    fn ask(script: &str, patience: Duration) -> Result<Vec<(usize, Option<f64>)>> {
        let mut found = Vec::new();
        ask_program(&shell(script), questions(&["a", "b"]), patience, &mut |index, score| {
            found.push((index, score));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn a_program_judges_in_any_order() {
        let script = r#"read a; read b; echo "$b" | grep -q '"response":"b"' && echo '{"index": 1, "score": null}'
                        echo; echo '{"index": 0, "score": 2.5}'"#;
        assert_eq!(ask(script, PATIENCE).unwrap(), [(1, None), (0, Some(2.5))]);
        let line: Value = serde_json::from_str(&questions(&["a"])[0]).unwrap();
        let expected = json!({
            "index": 0, "prompt": "p7", "response": "a", "messages": [{ "role": "user", "content": "p" }],
            "answer": "4", "metadata": null, "finish_reason": null, "point": "bon@2", "seed": 3,
        });
        assert_eq!(line, expected);
    }

    /// What it started may live on with its pipes.
    #[test]
    fn a_program_that_has_said_everything_need_not_end() {
        let both = "echo '{\"index\": 0, \"score\": 1}'; echo '{\"index\": 1, \"score\": 1}'";
        let started = Instant::now();
        assert_eq!(ask(&format!("{both}; sleep 20 2> /dev/null & exit 1"), PATIENCE).unwrap().len(), 2);
        assert!(started.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn what_a_program_does_wrong_is_named() {
        let long = "cat > /dev/null; head -c 1100000 /dev/zero";
        for (script, words) in [
            ("cat > /dev/null; echo x", "line 1 of its output: expected index and score"),
            ("echo x; exit 3", "expected index and score: expected value at column 1; exit status: 3"),
            ("cat > /dev/null; echo '{\"index\": 0, \"score\": 1}'", "ended without a score of index 1"),
            ("cat > /dev/null; echo '{\"index\": 0, \"scor\": 1}'", "missing field `score`"),
            ("echo '{\"index\": 2, \"score\": 1}'; cat > /dev/null", "there is no index 2"),
            ("for i in 1 2; do echo '{\"index\": 0, \"score\": 1}'; done; cat > /dev/null", "index 0 is there twice"),
            (long, "line 1 of its output: is longer than 1048576 bytes"),
            ("exit 3", "ended without a score of index 0; exit status: 3"),
        ] {
            let error = ask(script, PATIENCE).unwrap_err().to_string();
            assert!(error.contains(words), "{script}: {error}");
        }
        let none = ["/no/such/program".to_string()];
        let error = ask_program(&none, questions(&["a"]), PATIENCE, &mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("cannot be started"), "{error}");
    }

    /// Neither the program nor what it started is waited for.
    #[test]
    fn a_program_that_hangs_is_ended() {
        let started = Instant::now();
        for script in [
            "sleep 60",
            "sleep 20 2> /dev/null & sleep 60",
            "echo '{\"index\": 0, \"score\": 1}'; sleep 20 2> /dev/null | cat 2> /dev/null; wait",
        ] {
            let error = ask(script, Duration::from_secs(1)).unwrap_err().to_string();
            let next = usize::from(script.starts_with("echo"));
            assert!(error.contains(&format!("wrote no line for 1 s; the next index is {next}")), "{error}");
        }
        // A wrong line, and a process in the background that keeps both pipes.
        let error = ask("sleep 20 <&0 2> /dev/null & echo x; exit 4", PATIENCE).unwrap_err().to_string();
        assert!(error.contains("exit status: 4"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn words_of_a_command() {
        for (text, words) in [
            ("judge --model  a.bin", &["judge", "--model", "a.bin"][..]),
            ("sh -c 'a \"b\" \\n' \"it's\" x\\ y ''", &["sh", "-c", "a \"b\" \\n", "it's", "x y", ""][..]),
            ("a\"b c\"d", &["ab cd"][..]),
            ("a \"\\d \\\" \\\\\"", &["a", "\\d \" \\"][..]),
        ] {
            assert_eq!(command_words(text).unwrap(), words, "{text}");
        }
        for text in ["", "  ", "a 'b", "a\\"] {
            assert!(command_words(text).is_err(), "{text}");
        }
    }

    #[test]
    fn programs_are_found_before_they_are_needed() {
        for program in ["sh", "/bin/sh"] {
            check_program(&[program.to_string()]).unwrap();
        }
        for program in ["/no/such/program", "/", "/etc/passwd", "no-such-program-is-there"] {
            let error = check_program(&[program.to_string()]).unwrap_err().to_string();
            assert!(error.contains("cannot be started"), "{error}");
        }
    }

    #[test]
    fn right_answers_of_other_prompts() {
        for (response, expected) in [
            ("2 and 2 is\n**4.**\n", Some(1.0)),
            ("Answer: 5\nAnswer: 4 \nThat is all.", Some(1.0)),
            ("(4)", Some(1.0)),
            ("It is 4", Some(0.0)),
            ("", Some(0.0)),
        ] {
            let row = Row { answer: Some("4".to_string()), ..row(0, response) };
            assert_eq!(right(&row), expected, "{response}");
            // A task has read it otherwise.
            assert_eq!(right(&Row { correct: Some(false), ..row }), Some(0.0));
        }
        assert_eq!(right(&row(0, "4")), None);
    }

    #[test]
    fn a_judgement_belongs_to_its_answer() {
        let judgement = Judgement::new(&row(3, "a"), Some(1.0), None);
        assert!(judgement.fits(Some(&row(3, "a"))).is_ok());
        assert!(judgement.fits(Some(&row(3, "b"))).is_err() && judgement.fits(None).is_err());
        // The same words to another prompt, or cut off.
        let same = row(3, "a");
        for other in [
            Row { prompt: "q".to_string(), ..same.clone() },
            Row { full_text: "system".to_string(), ..same.clone() },
            Row { finish_reason: Some("finish".to_string()), ..same.clone() },
        ] {
            assert!(judgement.fits(Some(&other)).is_err(), "{other:?}");
        }
        let line = serde_json::to_string(&judgement).unwrap();
        assert!(line.starts_with("{\"index\":3,"), "{line}");
        assert!(serde_json::from_str::<Judgement>("{\"index\":3,\"answer_hash\":\"0\"}").is_err());
    }
}
