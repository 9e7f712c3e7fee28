//! Words for people: counts, times, lines of progress, and text that a terminal may be trusted with.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::Duration;

/// Whether the terminal knows no escape codes.
pub(super) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Text with its control characters spelled out, but for line breaks and tabs: what a model, a server or a file says must not move
/// the cursor, change the title or fill the clipboard of whoever reads it.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let spelled = |c: char| match c {
        c if harmful(c) && c.is_ascii() => format!("\\x{:02x}", c as u32),
        c if harmful(c) => format!("\\u{{{:x}}}", c as u32),
        c => c.to_string(),
    };
    Cow::Owned(text.chars().map(spelled).collect())
}

/// Text for standard output: [`visible`] on a terminal, and as it is everywhere else.
pub(super) fn for_stdout(text: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() { visible(text) } else { Cow::Borrowed(text) }
}

/// A number of things in words.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Lines of cells with their columns one below the other. The first line has all columns.
pub(super) fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}

/// How far something with so many parts is, in at most `width` columns: its parts, and what else there is room for.
pub(super) struct Counting<'a> {
    pub noun: &'a str,
    pub done: usize,
    pub all: usize,
    /// Done before this process began.
    pub before: usize,
    pub elapsed: Duration,
    /// What else there is to say.
    pub remark: &'a str,
}

impl Counting<'_> {
    pub(super) fn line(&self, width: usize) -> String {
        let mut line = format!("{} of {}", self.done, counted(self.all, self.noun));
        if width < 40 {
            line.truncate(width);
            return line;
        }
        let (new, seconds) = (self.done.saturating_sub(self.before), self.elapsed.as_secs_f64());
        let mut parts = Vec::new();
        if new > 0 && seconds > 0.0 {
            let each = seconds / new as f64;
            if self.done < self.all {
                parts.push(format!("{} left", in_words(each * (self.all - self.done) as f64)));
            }
            let article = if self.noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
            parts.push(match each > 1.0 {
                true => format!("{each:.1} s {article} {}", self.noun),
                false => format!("{:.1} {}s/s", 1.0 / each, self.noun),
            });
        }
        parts.extend((!self.remark.is_empty()).then(|| self.remark.to_string()));
        for part in parts {
            if line.len() + 2 + part.len() < width {
                line += &format!(", {part}");
            }
        }
        // A bar in what is left.
        let room = width.saturating_sub(line.len() + 2).min(30);
        if room >= 8 && self.all > 0 {
            let full = room * self.done.min(self.all) / self.all;
            line = format!("{}{} {line}", "\u{2588}".repeat(full), "\u{2591}".repeat(room - full));
        }
        line
    }
}

/// A time that is estimated.
fn in_words(seconds: f64) -> String {
    let whole = seconds.ceil() as u64;
    match whole {
        0..90 => format!("{whole} s"),
        90..5400 => format!("{} min", whole.div_ceil(60)),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled() {
        assert_eq!(visible("a\x1b]0;t\x07\r\u{9b}b\n\tc"), "a\\x1b]0;t\\x07\\x0d\\u{9b}b\n\tc");
        assert!(matches!(visible("plain \u{e9}\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn progress_fits_the_terminal() {
        let at = |done: usize, seconds: f64, width: usize| {
            let elapsed = Duration::from_secs_f64(seconds);
            let remark = "mean reward 1.234";
            Counting { noun: "answer", done, all: 40, before: 2, elapsed, remark }.line(width)
        };
        assert_eq!(at(2, 0.0, 39), "2 of 40 answers");
        assert_eq!(at(2, 0.0, 60).trim_start_matches(['\u{2588}', '\u{2591}']), " 2 of 40 answers, mean reward 1.234");
        let wide = at(12, 22.0, 120);
        assert!(wide.ends_with(" 12 of 40 answers, 62 s left, 2.2 s an answer, mean reward 1.234"), "{wide}");
        assert!(at(12, 2.0, 120).contains(", 6 s left, 5.0 answers/s"));
        assert!(at(40, 19.0, 120).contains("40 of 40 answers, 2.0 answers/s"));
        for width in 1..130 {
            let line = at(12, 22.0, width);
            assert!(
                line.chars().count() <= width && (width < 16 || line.contains("12 of 40 answers")),
                "{width}: {line}"
            );
        }
        assert_eq!(["60 s", "3 min", "2 h 46 min"], [60.0, 170.0, 9999.0].map(in_words));
        assert_eq!([counted(1, "answer"), counted(0, "answer")], ["1 answer", "0 answers"]);
    }
}
