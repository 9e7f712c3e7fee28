//! Rows as pictures: SVG that any browser shows.

use super::report::Report;
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

const COLOURS: [&str; 6] = ["#1f6fb2", "#c4581b", "#2d8a4e", "#8a4fb0", "#a8323e", "#6b6b6b"];

/// The chart that fits what was measured: tokens a second against rows of a batch if rows have them, else times over greedy
/// decoding. `None` if there is nothing to draw.
pub fn of(report: &Report) -> Option<String> {
    let with_rows = report.rows.iter().filter(|row| row.rows.is_some() && row.phase == "decode").count();
    let serving = report.rows.iter().any(|row| row.phase == "throughput");
    if with_rows > 0 || serving { throughput(report) } else { costs(report) }
}

/// A line of points.
struct ChartSeries {
    name: String,
    points: Vec<(f64, f64)>,
    dashed: bool,
}

/// Tokens a second against rows, with the limit of each case drawn in.
fn throughput(report: &Report) -> Option<String> {
    let mut series: Vec<ChartSeries> = Vec::new();
    for row in report.rows.iter().filter(|row| row.phase == "decode" || row.phase == "throughput") {
        let Some((x, y)) = row.rows.zip(row.committed_tokens_per_second.or(row.work_tokens_per_second)) else {
            continue;
        };
        // What stands in the case besides the number of rows tells lines apart.
        let rest = row.case.split_once(' ').map_or("", |(_, rest)| rest);
        let name = [row.phase.as_str(), rest, row.launch.as_str()].join(" ").trim().to_string();
        let mut add = |name: String, y: f64, dashed: bool| match series.iter_mut().find(|one| one.name == name) {
            Some(one) => one.points.push((x as f64, y)),
            None => series.push(ChartSeries { name, points: vec![(x as f64, y)], dashed }),
        };
        if let Some(percent) = row.percent.filter(|percent| *percent > 0.0) {
            add(format!("limit of {name}"), 100.0 * y / percent, true);
        }
        add(name, y, false);
    }
    if series.is_empty() {
        return None;
    }
    for one in &mut series {
        one.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let all = || series.iter().flat_map(|one| &one.points);
    let x = Scale::of(all().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Scale::of(all().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut svg = head(report, "tokens a second, by rows of the batch");
    axes(&mut svg, &x, &y, "rows", "tokens/s");
    let mut colour = 0;
    for (index, one) in series.iter().enumerate() {
        let at = one.points.iter().map(|&(px, py)| (x.place(px), y.place(py)));
        let path: Vec<String> = at.clone().map(|(px, py)| format!("{px:.1},{py:.1}")).collect();
        let (stroke, dash) = match one.dashed {
            true => (COLOURS[5], " stroke-dasharray=\"6 4\""),
            false => {
                colour += 1;
                (COLOURS[(colour - 1) % 5], "")
            }
        };
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"2\"{dash}/>",
            path.join(" ")
        );
        for (px, py) in at.filter(|_| !one.dashed) {
            let _ = writeln!(svg, "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\" fill=\"{stroke}\"/>");
        }
        // Below the lines, which rise to the right.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" style=\"fill: {stroke}\">{}</text>",
            WIDTH - RIGHT - 12.0,
            HEIGHT - BOTTOM - 12.0 - 16.0 * (series.len() - 1 - index) as f64,
            escaped(&one.name)
        );
    }
    svg += "</svg>\n";
    Some(svg)
}

/// Seconds over those of greedy decoding, a bar per way of answering.
fn costs(report: &Report) -> Option<String> {
    let bars: Vec<(String, f64, f32)> = report
        .rows
        .iter()
        .filter_map(|row| {
            let answer = row.answer.as_ref()?;
            Some((format!("{} {}", row.phase, row.case).trim().to_string(), answer.over_greedy, answer.reward))
        })
        .collect();
    let most = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    if bars.is_empty() || !most.is_finite() || most <= 0.0 {
        return None;
    }
    let mut svg = head(report, "seconds of an answer over greedy decoding, with its reward");
    let step = (HEIGHT - TOP - 20.0) / bars.len() as f64;
    let room = WIDTH - 240.0 - RIGHT - 120.0;
    for (index, (name, over, reward)) in bars.iter().enumerate() {
        let (top, width) = (TOP + step * index as f64, room * over / most);
        let middle = top + 0.5 * step + 4.0;
        let colour = COLOURS[index.min(4)];
        let _ = writeln!(svg, "<text x=\"232\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>", escaped(name));
        let _ = writeln!(
            svg,
            "<rect x=\"240\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            top + 0.15 * step,
            0.7 * step
        );
        let x = 246.0 + width;
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{middle:.1}\">{over:.2}, reward {reward:.2}</text>");
    }
    svg += "</svg>\n";
    Some(svg)
}

fn head(report: &Report, title: &str) -> String {
    let models = report.header.models.join(" and ");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n<style>text {{ fill: #222 }} .line {{ stroke: #999 }}</style>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>\n<text x=\"{LEFT}\" y=\"38\">{}</text>\n",
        escaped(title),
        escaped(&format!("{}, {models}, {}", report.header.device, report.header.commit)),
    )
}

/// A logarithmic scale.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Scale {
        let logs = values.filter(|value| *value > 0.0).map(f64::log2);
        let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(log), high.max(log)));
        match low <= high {
            true => Scale { low: low.floor(), high: high.ceil().max(low.floor() + 1.0), from, to },
            false => Scale { low: 0.0, high: 1.0, from, to },
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE).log2() - self.low) / (self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Powers of two, no more than fit.
    fn marks(&self) -> Vec<f64> {
        let step = ((self.high - self.low) / 9.0).ceil().max(1.0);
        let count = ((self.high - self.low) / step) as usize;
        (0..=count).map(|i| (self.low + step * i as f64).exp2()).collect()
    }
}

fn axes(svg: &mut String, x: &Scale, y: &Scale, across: &str, up: &str) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for mark in x.marks() {
        let at = x.place(mark);
        let _ = writeln!(
            svg,
            "<line class=\"line\" x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{TOP}\" stroke-width=\"0.3\"/>"
        );
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>", bottom + 18.0);
    }
    for mark in y.marks() {
        let at = y.place(mark);
        let _ = writeln!(
            svg,
            "<line class=\"line\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke-width=\"0.3\"/>"
        );
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>", LEFT - 8.0, at + 4.0);
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{across}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 16.0
    );
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{up}</text>", LEFT - 8.0, TOP - 6.0);
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::{AnswerNumbers, Row};
    use super::*;

    #[test]
    fn what_can_be_drawn() {
        let decode = |rows: usize, percent: Option<f64>| Row {
            rows: Some(rows),
            work_tokens_per_second: Some(100.0 * rows as f64),
            percent,
            ..Row::new("decode", format!("{rows} rows behind 256"), vec![0.01])
        };
        let mut report = Report { rows: vec![decode(1, Some(50.0)), decode(8, Some(80.0))], ..Report::default() };
        let svg = of(&report).unwrap();
        assert_eq!(svg.matches("<polyline").count(), 2, "the limit is drawn in");
        assert!(svg.matches("<circle").count() == 2 && svg.contains("limit of decode rows behind 256"));
        report.rows = vec![decode(1, None)];
        assert_eq!(of(&report).unwrap().matches("<polyline").count(), 1);
        let answer = AnswerNumbers { over_greedy: 2.5, reward: 1.0, ..AnswerNumbers::default() };
        report.rows = vec![Row { answer: Some(answer), ..Row::new("ggro", "<off>".to_string(), vec![1.0]) }];
        let svg = of(&report).unwrap();
        assert!(svg.contains("2.50, reward 1.00") && svg.contains("&lt;off&gt;"));
        report.rows.clear();
        assert_eq!(of(&report), None);
    }

    #[test]
    fn scales_hold_what_they_are_made_of() {
        let scale = Scale::of([1.0, 64.0, 3.0].into_iter(), 0.0, 600.0);
        assert_eq!((scale.place(1.0), scale.place(64.0), scale.place(8.0)), (0.0, 600.0, 300.0));
        assert_eq!(scale.marks(), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        assert!(Scale::of([].into_iter(), 0.0, 1.0).place(5.0).is_finite());
    }
}
