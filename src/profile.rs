//! What the engine is doing, for whoever watches: ranges that Nsight shows (NVTX), a trace of them for Perfetto, and the window in which a
//! profiler collects.
//!
//! Off, all of it is one relaxed load of a word ([`range`]). On, a range is pushed when a phase begins and popped when its guard is
//! dropped. Names are few and never change, so that they can be filtered by; how much a phase works on is its payload.

#[cfg(nvtx)]
mod nvtx;

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// A phase. Its number is its NVTX category.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// A turn is planned, or its results are handed out.
    Scheduler = 1,
    /// Prompts, or longer spans, through the policy.
    Prefill,
    /// Single tokens through the policy.
    Decode,
    /// Texts through the reward model.
    RewardForward,
    /// Segments through it, and back.
    RewardBackward,
    /// A nudge token is chosen.
    Nudge,
    /// A request is read.
    Server,
    /// A layer of a model, at the second level.
    Layer,
}

impl Phase {
    /// All of them.
    pub const ALL: [Phase; 8] = [
        Phase::Scheduler,
        Phase::Prefill,
        Phase::Decode,
        Phase::RewardForward,
        Phase::RewardBackward,
        Phase::Nudge,
        Phase::Server,
        Phase::Layer,
    ];

    /// As a profiler shows it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Scheduler => "scheduler",
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
            Phase::RewardForward => "reward forward",
            Phase::RewardBackward => "reward backward",
            Phase::Nudge => "nudge",
            Phase::Server => "server",
            Phase::Layer => "layer",
        }
    }

    /// Whether it is a pass of a model, by which windows are counted.
    fn is_pass(self) -> bool {
        matches!(self, Phase::Prefill | Phase::Decode | Phase::RewardForward | Phase::RewardBackward)
    }
}

/// Bits of [`ON`].
const NVTX: u8 = 1;
const TRACE: u8 = 2;
const LAYERS: u8 = 4;
const WINDOW: u8 = 8;

/// What is on; 0 is nothing.
static ON: AtomicU8 = AtomicU8::new(0);
/// Passes of a model so far.
static PASSES: AtomicU64 = AtomicU64::new(0);
/// What somebody asked for besides a window: 0 nothing, 1 to collect, 2 to stop.
static ASKED: AtomicU8 = AtomicU8::new(0);
static WINDOW_OF: OnceLock<Steps> = OnceLock::new();
static TRACE_FILE: Mutex<Option<TraceFile>> = Mutex::new(None);
/// Starts (true) and stops a profiler that collects on request.
static COLLECT: OnceLock<fn(bool)> = OnceLock::new();
static COLLECTING: AtomicU8 = AtomicU8::new(0);

/// How much NVTX shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    #[default]
    Off,
    /// Phases.
    Phases,
    /// Phases, and layers in them.
    Layers,
}

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Level, String> {
        match text {
            "off" | "0" => Ok(Level::Off),
            "1" | "on" => Ok(Level::Phases),
            "2" | "layers" => Ok(Level::Layers),
            _ => Err("expected off, 1 (phases) or 2 (layers too)".to_string()),
        }
    }
}

/// Passes of a model, counted from 1, between which a profiler collects: both ends are part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl FromStr for Steps {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Steps, String> {
        let numbers = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match numbers {
            Some((first, last)) if 1 <= first && first <= last => Ok(Steps { first, last }),
            _ => Err("expected two numbers from 1 on, FIRST-LAST".to_string()),
        }
    }
}

/// What is to be watched, and how.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// NVTX ranges.
    pub nvtx: Level,
    /// A window for a profiler.
    pub steps: Option<Steps>,
    /// A trace for Perfetto.
    pub trace: Option<PathBuf>,
    /// Whether [`ask`] will be called.
    pub on_request: bool,
}

/// Whether this build can show NVTX ranges.
pub const fn has_nvtx() -> bool {
    cfg!(nvtx)
}

/// Begins to watch. For the whole process, and once.
///
/// # Errors
/// NVTX is asked for and not part of this build, or the trace's file cannot be written.
pub fn start(watch: &Watch) -> Result<()> {
    let mut on = 0;
    if watch.nvtx != Level::Off {
        if !has_nvtx() {
            return Err(Error::invalid(
                "this build has no NVTX; the header nvtx3/nvToolsExt.h was not found when it was made (it comes with the CUDA \
                 toolkit, and with scripts/install-nvcc.sh)",
            ));
        }
        on |= NVTX;
    }
    if watch.nvtx == Level::Layers {
        on |= LAYERS;
    }
    if let Some(path) = &watch.trace {
        let trace = TraceFile::create(path)?;
        *TRACE_FILE.lock().unwrap_or_else(PoisonError::into_inner) = Some(trace);
        on |= TRACE;
    }
    if let Some(steps) = watch.steps {
        // The first one stays; a process has one command.
        let _ = WINDOW_OF.set(steps);
        on |= WINDOW;
    }
    if watch.on_request {
        on |= WINDOW;
    }
    ON.fetch_or(on, Ordering::Relaxed);
    Ok(())
}

/// Ends the trace. What is still open then is not in it.
///
/// # Errors
/// The file cannot be written to its end.
pub fn finish() -> Result<()> {
    collect(false);
    match TRACE_FILE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(trace) => trace.finish(),
        None => Ok(()),
    }
}

/// Says how a profiler that collects on request is started and stopped. The first one stays.
pub fn collects_with(collect: fn(bool)) {
    let _ = COLLECT.set(collect);
}

/// Asks for the profiler to collect, or to stop, from the next pass on. False if nobody listens for it.
pub fn ask(collecting: bool) -> bool {
    let listening = ON.load(Ordering::Relaxed) & WINDOW != 0;
    if listening {
        ASKED.store(if collecting { 1 } else { 2 }, Ordering::Release);
    }
    listening
}

fn collect(on: bool) {
    let (from, to) = (u8::from(!on), u8::from(on));
    if COLLECTING.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        && let Some(collect) = COLLECT.get()
    {
        collect(on);
    }
}

/// A phase in progress; it ends when this is dropped, on the thread on which it began.
#[must_use]
pub struct Range {
    on: u8,
    phase: Phase,
    payload: u64,
    since: Option<Instant>,
    /// The number of the pass, if it is one and windows are counted.
    pass: u64,
    /// Not to be sent: a profiler nests the ranges of a thread.
    _thread: PhantomData<*const ()>,
}

/// Begins a phase that works on so many tokens, spans or requests.
#[inline]
pub fn range(phase: Phase, payload: usize) -> Range {
    let on = ON.load(Ordering::Relaxed);
    let mut range = Range { on: 0, phase, payload: 0, since: None, pass: 0, _thread: PhantomData };
    if on != 0 {
        range.begin(on, payload as u64);
    }
    range
}

/// Begins a layer, if layers are shown.
#[inline]
pub fn layer(index: usize) -> Range {
    match ON.load(Ordering::Relaxed) & LAYERS {
        0 => Range { on: 0, phase: Phase::Layer, payload: 0, since: None, pass: 0, _thread: PhantomData },
        _ => range(Phase::Layer, index),
    }
}

impl Range {
    #[cold]
    fn begin(&mut self, on: u8, payload: u64) {
        if self.phase.is_pass() && on & WINDOW != 0 {
            self.pass = PASSES.fetch_add(1, Ordering::AcqRel) + 1;
            match ASKED.swap(0, Ordering::AcqRel) {
                1 => collect(true),
                2 => collect(false),
                _ => {}
            }
            if WINDOW_OF.get().is_some_and(|steps| steps.first == self.pass) {
                collect(true);
            }
        }
        (self.on, self.payload) = (on, payload);
        self.since = (on & TRACE != 0).then(Instant::now);
        #[cfg(nvtx)]
        if on & NVTX != 0 {
            nvtx::push(self.phase, payload);
        }
    }

    #[cold]
    fn end(&mut self) {
        #[cfg(nvtx)]
        if self.on & NVTX != 0 {
            nvtx::pop();
        }
        if let Some(since) = self.since {
            let mut guard = TRACE_FILE.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(trace) = guard.as_mut() {
                trace.event(self.phase, self.payload, since);
            }
        }
        if self.pass > 0 && WINDOW_OF.get().is_some_and(|steps| steps.last == self.pass) {
            collect(false);
        }
    }
}

impl Drop for Range {
    #[inline]
    fn drop(&mut self) {
        if self.on != 0 {
            self.end();
        }
    }
}

/// Complete events of the Trace Event Format, in microseconds.
struct TraceFile {
    path: PathBuf,
    out: BufWriter<File>,
    started: Instant,
    /// The first failure; nothing is written after it.
    failed: Option<std::io::Error>,
    first: bool,
}

impl TraceFile {
    fn create(path: &Path) -> Result<TraceFile> {
        let file = File::create(path).map_err(|e| Error::io(path, e))?;
        let mut out = BufWriter::new(file);
        out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[").map_err(|e| Error::io(path, e))?;
        Ok(TraceFile { path: path.to_path_buf(), out, started: Instant::now(), failed: None, first: true })
    }

    fn event(&mut self, phase: Phase, payload: u64, since: Instant) {
        let micros = |from: Instant, to: Instant| to.saturating_duration_since(from).as_nanos() as f64 / 1e3;
        let (at, took) = (micros(self.started, since), micros(since, Instant::now()));
        let comma = if std::mem::replace(&mut self.first, false) { "" } else { "," };
        let (name, process, thread) = (phase.name(), std::process::id(), thread_number());
        let written = writeln!(
            self.out,
            "{comma}{{\"name\":\"{name}\",\"cat\":\"ggro\",\"ph\":\"X\",\"ts\":{at:.3},\"dur\":{took:.3},\"pid\":{process},\
             \"tid\":{thread},\"args\":{{\"count\":{payload}}}}}"
        );
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }

    fn finish(mut self) -> Result<()> {
        let ended = self.out.write_all(b"]}\n").and_then(|()| self.out.flush());
        self.failed.map_or(ended, Err).map_err(|e| Error::io(&self.path, e))
    }
}

/// Threads by the order in which they were first seen.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static MINE: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    MINE.with(|mine| *mine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command_line() {
        assert_eq!("3-10".parse(), Ok(Steps { first: 3, last: 10 }));
        for wrong in ["", "3", "0-4", "4-3", "a-b", "1-", "-1-2"] {
            assert!(wrong.parse::<Steps>().is_err(), "{wrong}");
        }
        assert_eq!(("off".parse(), "1".parse(), "2".parse()), (Ok(Level::Off), Ok(Level::Phases), Ok(Level::Layers)));
        assert!("3".parse::<Level>().is_err());
    }

    /// Nothing is on in the tests of the library: a range costs a load.
    #[test]
    fn off_costs_nothing_to_speak_of() {
        let started = Instant::now();
        const COUNT: usize = 1_000_000;
        for index in 0..COUNT {
            let _range = range(Phase::Decode, std::hint::black_box(index));
        }
        let each = started.elapsed().as_secs_f64() / COUNT as f64;
        println!("{:.2} ns a range", 1e9 * each);
        // Generous for a busy machine; alone it is some nanoseconds.
        assert!(each < 200e-9, "{each}");
        assert_eq!(PASSES.load(Ordering::Relaxed), 0);
        assert!(!ask(true));
    }
}
