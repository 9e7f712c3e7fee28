//! One op on one small problem, and what its kernels wrote.

use crate::Result;
use crate::cuda::buffer::{Buffer, Element};
use crate::cuda::device::Device;
use crate::dtype::HalfType;
use std::time::{Duration, Instant};

type CheckLaunch = Box<dyn Fn(&CheckRun<'_>, HalfType) -> Result<Vec<CheckOutput>>>;

/// One op on one problem.
pub(crate) struct Case {
    /// Name of the op, as its files are called.
    pub op: &'static str,
    /// The problem.
    pub name: String,
    /// Under which name the file has the results.
    pub expected: String,
    /// Whether it is run in both storage types; else it has none.
    pub both: bool,
    launch: CheckLaunch,
}

impl Case {
    /// A case of both storage types.
    pub(super) fn of_both(
        op: &'static str,
        name: &str,
        expected: &str,
        launch: impl Fn(&CheckRun<'_>, HalfType) -> Result<Vec<CheckOutput>> + 'static,
    ) -> Self {
        let (name, expected) = (name.to_string(), expected.to_string());
        Case { op, name, expected, both: true, launch: Box::new(launch) }
    }

    /// A case without a storage type.
    pub(super) fn of_one(
        op: &'static str,
        name: &str,
        expected: &str,
        launch: impl Fn(&CheckRun<'_>) -> Result<Vec<CheckOutput>> + 'static,
    ) -> Self {
        let (name, expected) = (name.to_string(), expected.to_string());
        Case { op, name, expected, both: false, launch: Box::new(move |device, _| launch(device)) }
    }

    /// Runs it and brings what was written.
    pub(super) fn run(&self, device: &CheckRun<'_>, storage: HalfType) -> Result<Vec<CheckOutput>> {
        (self.launch)(device, storage)
    }
}

/// Elements of one output, or some of them.
pub(crate) struct CheckOutput {
    pub name: &'static str,
    pub values: Vec<f64>,
}

impl CheckOutput {
    pub(super) fn new(name: &'static str, values: Vec<f64>) -> Self {
        CheckOutput { name, values }
    }

    /// Only every `step`-th element, from the first on.
    pub(super) fn every(self, step: usize) -> Self {
        CheckOutput { values: self.values.into_iter().step_by(step).collect(), ..self }
    }
}

/// The device, for a limited time.
pub(super) struct CheckRun<'a> {
    pub device: &'a Device,
    pub started: Instant,
    pub limit: Duration,
}

impl std::ops::Deref for CheckRun<'_> {
    type Target = Device;

    fn deref(&self) -> &Device {
        self.device
    }
}

impl CheckRun<'_> {
    /// Whether the time is over.
    pub fn is_over(&self) -> bool {
        self.started.elapsed() >= self.limit
    }

    /// What a buffer holds after everything that was launched, if that ends in time. A kernel that never ends would
    /// otherwise be waited for in the driver, which nobody can interrupt; the device is then lost to this process.
    pub fn finished<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        let end = self.device.mark()?;
        while !self.device.reached(&end)? {
            if self.is_over() {
                return Err(self.device.give_up(&format!("a kernel did not end within {} s", self.limit.as_secs())));
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        buffer.download(self.device)
    }
}
