//! The log: lines that go to standard error through a thread of their own.
//!
//! Standard error may be closed, on a full disk, or a pipe whose reader stalls. No request waits for it and none ends because of
//! it: lines that it does not take in time are counted and lost.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written, at most.
const WAITING: usize = 4096;
/// Pause before a pipe that takes nothing at the moment is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Takes lines. Writing to it never fails and never waits.
#[derive(Clone)]
pub struct Log {
    lines: SyncSender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

/// The thread that writes the lines.
pub struct LogThread {
    log: Log,
    thread: JoinHandle<()>,
    ending: Arc<AtomicBool>,
}

impl Log {
    /// Starts the thread. `lost` makes the line that tells how many were lost.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn start(out: impl Write + Send + 'static, lost: fn(u64) -> String) -> std::io::Result<(Log, LogThread)> {
        let (lines, waiting) = sync_channel(WAITING);
        let log = Log { lines, lost: Arc::default() };
        let (count, ending) = (log.lost.clone(), Arc::new(AtomicBool::new(false)));
        let ends = ending.clone();
        let write = move || write_all(out, &waiting, &count, &ends, lost);
        let thread = std::thread::Builder::new().name("log".to_string()).spawn(write)?;
        Ok((log.clone(), LogThread { log, thread, ending }))
    }

    /// Adds a line.
    pub fn line(&self, line: &str) {
        self.send(format!("{line}\n").into_bytes());
    }

    fn send(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl LogThread {
    /// Waits until what is waiting is written, but not for long.
    pub fn finish(self, most: Duration) {
        self.ending.store(true, Ordering::Release);
        // Wakes the thread, if it waits for a line.
        self.log.send(Vec::new());
        let until = Instant::now() + most;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;
    fn make_writer(&self) -> Log {
        self.clone()
    }
}

fn write_all(
    mut out: impl Write,
    lines: &Receiver<Vec<u8>>,
    lost: &AtomicU64,
    ending: &AtomicBool,
    tell: fn(u64) -> String,
) {
    // Whether the last line was written in part.
    let mut torn = false;
    while let Ok(line) = lines.recv() {
        if !line.is_empty() {
            let whole = if torn { [b"\n", &line[..]].concat() } else { line };
            let written = written(&mut out, &whole, ending);
            torn = if written == 0 { torn } else { written < whole.len() };
            if written < whole.len() {
                lost.fetch_add(1, Ordering::Relaxed);
            } else if let count @ 1.. = lost.swap(0, Ordering::Relaxed) {
                let line = tell(count) + "\n";
                let written = self::written(&mut out, line.as_bytes(), ending);
                torn = (1..line.len()).contains(&written);
                if written < line.len() {
                    lost.fetch_add(count, Ordering::Relaxed);
                }
            }
        }
        if ending.load(Ordering::Acquire) {
            for line in lines.try_iter() {
                written(&mut out, &line, ending);
            }
            return;
        }
    }
}

/// Bytes of a line that were taken.
fn written(out: &mut impl Write, line: &[u8], ending: &AtomicBool) -> usize {
    let mut done = 0;
    while done < line.len() {
        match out.write(&line[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && !ending.load(Ordering::Acquire) => {
                std::thread::sleep(PAUSE);
            }
            Err(_) => break,
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Fails, or waits, as long as it is told to.
    #[derive(Clone, Default)]
    struct Sink {
        text: Arc<Mutex<Vec<u8>>>,
        fails: Arc<AtomicBool>,
        stalls: Arc<AtomicBool>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            while self.stalls.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if self.fails.load(Ordering::Acquire) {
                return Err(ErrorKind::StorageFull.into());
            }
            self.text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lost(count: u64) -> String {
        format!("{count} lost")
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_told_of() {
        let sink = Sink::default();
        let (log, thread) = Log::start(sink.clone(), lost).unwrap();
        sink.fails.store(true, Ordering::Release);
        (0..3).for_each(|_| log.line("no room"));
        while log.lost.load(Ordering::Relaxed) < 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        sink.fails.store(false, Ordering::Release);
        log.line("room");
        thread.finish(Duration::from_secs(10));
        assert_eq!(String::from_utf8(sink.text.lock().unwrap().clone()).unwrap(), "room\n3 lost\n");
    }

    #[test]
    fn a_stalled_reader_is_not_waited_for() {
        let sink = Sink::default();
        sink.stalls.store(true, Ordering::Release);
        let (log, thread) = Log::start(sink.clone(), lost).unwrap();
        (0..2 * WAITING).for_each(|_| log.line("x"));
        assert!(log.lost.load(Ordering::Relaxed) >= WAITING as u64 - 1);
        thread.finish(Duration::from_millis(10));
        sink.stalls.store(false, Ordering::Release);
    }
}
