//! Text on the terminal: printed segment by segment, coloured on request, with a progress line meanwhile.
//!
//! Where both the text and the progress line go to one terminal, the line would overwrite the unfinished last row of the
//! text. There the unfinished row is part of the progress display, and rows are broken at word boundaries as they fill.

use super::args::{Color, Generate};
use super::words::{counted, for_stdout, is_dumb};
use crate::answer::{Segment, TokenLogprob};
use crate::engine::Observer;
use crate::files::pair::Pair;
use crate::text::{End, Prompt, TextRules, TextWriter};
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

/// A token whose signal reaches this share of the threshold is shown as uncertain.
const UNCERTAIN: f64 = 0.6;

/// How a stretch of text is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Style {
    /// Without colour.
    #[default]
    Plain,
    /// A token that the reward gradient chose.
    Nudged,
    /// A token whose signal is near the threshold.
    Uncertain,
}

impl Style {
    /// The escape code that opens the style; every style is closed by a reset.
    pub(super) fn code(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Nudged => "\x1b[1;32m",
            Style::Uncertain => "\x1b[33m",
        }
    }

    pub(super) fn paint(self, text: &str) -> String {
        match self {
            Style::Plain => text.to_string(),
            _ => format!("{}{text}\x1b[0m", self.code()),
        }
    }
}

/// Whether standard output is coloured.
pub(super) fn coloured(color: Color) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            !refused && !is_dumb() && std::io::stdout().is_terminal()
        }
    }
}

/// Prints an answer while it is decoded.
pub(super) struct TerminalWriter {
    writer: TextWriter,
    /// Least value of the signal at which a token is uncertain.
    uncertain: f64,
    painted: bool,
    page: Page,
    progress: Progress,
    /// The answer so far.
    pub text: String,
    /// The error that closed standard output, if it was closed.
    pub closed: Option<std::io::Error>,
    /// Go on decoding after standard output was closed, because a file is to be written.
    persistent: bool,
    /// The text of a segment may change with the next one: it is printed as a whole.
    unsettled: bool,
}

/// How an answer is printed.
pub(super) struct View<'a> {
    /// Start of the answer, printed first.
    pub prefill: &'a str,
    /// Threshold of the signal.
    pub threshold: f64,
    /// Print to standard output at all.
    pub printed: bool,
    /// Colour it.
    pub painted: bool,
    /// Go on when standard output is closed.
    pub persistent: bool,
    /// Print nothing before the answer is known as a whole.
    pub unsettled: bool,
}

impl TerminalWriter {
    /// Prints an answer of `ggro generate` as it is decoded. `threshold` is the signal's.
    pub(super) fn of_answer(
        args: &Generate,
        pair: &Pair,
        prompt: &Prompt,
        rules: Arc<TextRules>,
        threshold: f64,
    ) -> TerminalWriter {
        let view = View {
            prefill: &prompt.prefill,
            threshold,
            printed: !args.output.json,
            painted: coloured(args.output.color) && !args.output.json,
            persistent: args.output.trace.is_some(),
            unsettled: args.text.retokenize,
        };
        TerminalWriter::new(TextWriter::new(pair.tokenizer.clone(), rules, &prompt.ids, &prompt.header), &view)
    }

    pub(super) fn new(writer: TextWriter, view: &View<'_>) -> Self {
        let progress = Progress::new();
        let terminal = std::io::stdout().is_terminal();
        let kind = match (view.printed, terminal.then(|| progress.width()).flatten()) {
            (false, _) => Page::None,
            (true, None) => Page::Direct { breaks: 0 },
            (true, Some(width)) => Page::Rows { row: Vec::new(), width },
        };
        let threshold = view.threshold;
        let mut terminal = TerminalWriter {
            writer,
            uncertain: if threshold > 0.0 { UNCERTAIN * threshold } else { threshold / UNCERTAIN },
            painted: view.painted,
            page: kind,
            progress,
            text: String::new(),
            closed: None,
            persistent: view.persistent,
            unsettled: view.unsettled,
        };
        if !terminal.unsettled {
            terminal.put(view.prefill, Style::Plain);
        }
        terminal
    }

    /// Prints all of an answer and the final line break.
    pub(super) fn whole(&mut self, text: &str) {
        self.put(text, Style::Plain);
        self.end();
    }

    /// Prints what was held back and the final line break.
    pub(super) fn finish(&mut self) -> Result<()> {
        let rest = self.writer.finish(End::Length)?;
        self.put(&rest, Style::Plain);
        self.end();
        Ok(())
    }

    /// Ends the line of an answer that failed, if any of it was printed.
    fn abandon(&mut self) {
        if self.text.is_empty() {
            self.page = Page::None;
        }
        self.end();
    }

    /// Ends the line and the progress display.
    fn end(&mut self) {
        self.progress.clear();
        if let Err(error) = self.page.end() {
            self.closed.get_or_insert(error);
        }
    }

    fn put(&mut self, text: &str, style: Style) {
        self.text += text;
        if text.is_empty() || self.closed.is_some() {
            return;
        }
        let style = if self.painted { style } else { Style::Plain };
        if let Err(error) = self.page.put(&for_stdout(text), style, &self.progress) {
            self.closed = Some(error);
        }
    }

    /// What a failed request ends with: the error that closed standard output, if it was closed.
    pub(super) fn failed(&mut self, error: Error) -> anyhow::Error {
        self.abandon();
        self.closed.take().map_or_else(|| error.into(), Into::into)
    }

    /// Whether decoding is to go on.
    fn proceed(&self) -> Result<()> {
        match self.closed.is_some() && !self.persistent {
            true => Err(Error::Backend("standard output was closed".to_string())),
            false => Ok(()),
        }
    }

    fn committed(&mut self, segment: &Segment, committed: &[u32]) -> Result<()> {
        let best = segment.candidates.get(segment.best);
        for (index, &id) in committed.iter().enumerate() {
            let text = self.writer.push(id)?.text;
            let uncertain = best.and_then(|best| best.signals.get(index)).is_some_and(|&value| value >= self.uncertain);
            let style = if self.writer.end().is_some() {
                Style::Plain
            } else if segment.best > 0 && segment.start + index == segment.slot {
                Style::Nudged
            } else if uncertain {
                Style::Uncertain
            } else {
                Style::Plain
            };
            self.put(&text, style);
        }
        if let Err(error) = self.page.flush(&self.progress) {
            self.closed.get_or_insert(error);
        }
        Ok(())
    }
}

impl Observer for TerminalWriter {
    fn segment(&mut self, segment: &Segment, committed: &[u32]) -> Result<()> {
        if !self.unsettled {
            self.committed(segment, committed)?;
        }
        self.progress.segment(committed.len());
        self.proceed()
    }

    fn token(&mut self) {
        self.progress.token();
    }

    /// A completion's tokens are coloured by their entropy.
    fn completion_token(&mut self, _: usize, token: &TokenLogprob) -> Result<()> {
        let text = self.writer.push(token.id)?.text;
        let uncertain = token.entropy >= self.uncertain && self.writer.end().is_none();
        self.put(&text, if uncertain { Style::Uncertain } else { Style::Plain });
        self.progress.committed += 1;
        if let Err(error) = self.page.flush(&self.progress) {
            self.closed.get_or_insert(error);
        }
        self.proceed()
    }
}

/// Where the text goes.
enum Page {
    /// Nowhere.
    None,
    /// Straight to standard output, except for line breaks at the end: an answer ends with exactly one.
    Direct {
        /// Line breaks held back.
        breaks: usize,
    },
    /// To a terminal that also shows the progress line.
    Rows {
        /// The unfinished row.
        row: Vec<(char, Style)>,
        /// Columns of the terminal.
        width: usize,
    },
}

impl Page {
    fn put(&mut self, text: &str, style: Style, progress: &Progress) -> std::io::Result<()> {
        match self {
            Page::None => Ok(()),
            Page::Direct { breaks } => {
                let body = text.trim_end_matches('\n');
                if body.is_empty() {
                    *breaks += text.len();
                    return Ok(());
                }
                let held = "\n".repeat(std::mem::replace(breaks, text.len() - body.len()));
                write!(std::io::stdout(), "{held}{}", style.paint(body))
            }
            Page::Rows { row, width } => {
                for c in text.chars() {
                    if c != '\n' {
                        row.push((c, style));
                        if columns(row) < *width {
                            continue;
                        }
                    }
                    let rest = if c == '\n' { Vec::new() } else { break_off(row) };
                    let line = paint(row);
                    *row = rest;
                    progress.suspended(|| writeln!(std::io::stdout(), "{line}"))?;
                }
                Ok(())
            }
        }
    }

    fn flush(&mut self, progress: &Progress) -> std::io::Result<()> {
        match self {
            Page::None => Ok(()),
            Page::Direct { .. } => std::io::stdout().flush(),
            Page::Rows { row, .. } => {
                progress.row(paint(row));
                Ok(())
            }
        }
    }

    fn end(&mut self) -> std::io::Result<()> {
        let mut stdout = std::io::stdout();
        match self {
            Page::None => return Ok(()),
            Page::Direct { .. } => writeln!(stdout)?,
            Page::Rows { row, .. } => writeln!(stdout, "{}", paint(&std::mem::take(row)))?,
        }
        stdout.flush()
    }
}

/// Cuts a full row at its last space and returns what comes after; a row without one is left whole.
fn break_off(row: &mut Vec<(char, Style)>) -> Vec<(char, Style)> {
    match row.iter().rposition(|&(c, _)| c == ' ') {
        Some(space) => {
            let rest = row.split_off(space + 1);
            row.truncate(space);
            rest
        }
        None => Vec::new(),
    }
}

/// Columns a row takes, wide scripts counted double. An overestimate only breaks a row early.
fn columns(row: &[(char, Style)]) -> usize {
    row.iter().map(|&(c, _)| if c >= '\u{1100}' { 2 } else { 1 }).sum()
}

fn paint(row: &[(char, Style)]) -> String {
    row.chunk_by(|a, b| a.1 == b.1)
        .map(|run| run[0].1.paint(&run.iter().map(|&(c, _)| c).collect::<String>()))
        .collect()
}

/// The progress line on standard error; hidden if that is not a terminal.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    /// What is decoded, where it is not the answer itself.
    name: Option<&'static str>,
    segments: usize,
    committed: usize,
    decoded: usize,
}

impl Progress {
    pub(super) fn new() -> Self {
        Progress::of(None)
    }

    /// Of something else than the answer.
    pub(super) fn named(name: &'static str) -> Self {
        Progress::of(Some(name))
    }

    fn of(name: Option<&'static str>) -> Self {
        let bar = (std::io::stderr().is_terminal() && !is_dumb()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(false));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let progress = Progress { bar, name, segments: 0, committed: 0, decoded: 0 };
        progress.show();
        progress
    }

    /// Columns of the terminal, if text and progress line share one.
    fn width(&self) -> Option<usize> {
        self.bar.as_ref()?;
        let size = terminal_size::terminal_size_of(std::io::stdout());
        Some(size.map_or(80, |(width, _)| usize::from(width.0)).max(20))
    }

    fn segment(&mut self, committed: usize) {
        self.segments += 1;
        self.committed += committed;
        self.show();
    }

    fn token(&mut self) {
        self.decoded += 1;
        self.show();
    }

    fn show(&self) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(match self.name {
                // It has one segment.
                Some(name) => format!("{name}: {}", counted(self.decoded, "token")),
                None => {
                    let kept = counted(self.committed, "token");
                    format!("segment {}, {kept} kept, {} decoded", self.segments + 1, self.decoded)
                }
            });
        }
    }

    /// Shows the unfinished row of the text above the progress line.
    fn row(&self, row: String) {
        if let Some(bar) = &self.bar {
            bar.set_style(style(!row.is_empty()));
            bar.set_message(row);
        }
    }

    fn suspended<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// The progress line of decoding that prints no text.
impl Observer for Progress {
    fn segment(&mut self, _: &Segment, committed: &[u32]) -> Result<()> {
        self.segment(committed.len());
        Ok(())
    }

    fn token(&mut self) {
        self.token();
    }
}

fn style(with_row: bool) -> ProgressStyle {
    let template = if with_row { "{msg}\n{spinner} {prefix}" } else { "{spinner} {prefix}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_break_at_words() {
        let mut row: Vec<_> = "one two th".chars().map(|c| (c, Style::Plain)).collect();
        let rest = break_off(&mut row);
        assert_eq!((paint(&row).as_str(), paint(&rest).as_str()), ("one two", "th"));
        let mut row: Vec<_> = "abcdef".chars().map(|c| (c, Style::Plain)).collect();
        assert!(break_off(&mut row).is_empty());
        assert_eq!(paint(&row), "abcdef");
    }

    #[test]
    fn runs_of_a_style_are_painted_once() {
        let row = [('a', Style::Plain), ('b', Style::Nudged), ('c', Style::Nudged)];
        assert_eq!(paint(&row), "a\x1b[1;32mbc\x1b[0m");
    }
}
