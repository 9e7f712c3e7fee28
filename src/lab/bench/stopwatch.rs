//! Wall-clock and processor time of a run.

use std::time::Instant;

/// What a run took, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Taken {
    /// By the clock on the wall.
    pub wall: f64,
    /// Of all threads of this process together.
    pub processor: f64,
}

/// Times a run.
pub(super) struct Stopwatch {
    started: Instant,
    processor: f64,
}

impl Stopwatch {
    pub fn start() -> Stopwatch {
        let processor = processor();
        Stopwatch { started: Instant::now(), processor }
    }

    pub fn stop(self) -> Taken {
        let wall = self.started.elapsed().as_secs_f64();
        Taken { wall, processor: processor() - self.processor }
    }
}

/// Seconds that all threads of this process have run, those that have ended included.
fn processor() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sleeping_takes_no_processor_time_and_working_does() {
        let watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(50));
        let slept = watch.stop();
        let watch = Stopwatch::start();
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let worked = watch.stop();
        assert!(slept.wall >= 0.05 && worked.wall >= 0.05, "{slept:?} {worked:?}");
        // Other tests of this process run meanwhile, so only the difference of zero is sure.
        assert!(slept.processor >= 0.0 && worked.processor > 0.0, "{slept:?} {worked:?}");
    }
}
