//! One device, its stream and its kernels.

use super::driver::{self, is_sticky, words};
use super::images::{self, Capability, Image};
use super::kernels::{Kernel, KernelSet, Kernels, Registration};
use super::launch::{self, Launch};
use crate::{Error, Result};
use cudarc::driver::{CudaContext, CudaEvent, CudaGraph, CudaStream, DriverError, result, sys};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// Since then edges of graphs say that a kernel may begin early.
const EDGES: driver::Version = driver::Version(12, 3);

/// An open device, and one stream of work on it. A clone is the same stream.
#[derive(Clone, Debug)]
pub struct Device {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    name: String,
    capability: Capability,
    multiprocessors: u32,
    code: u64,
    /// Whether products read weights in tiles: see [`weight_layout`](super::ops::weight_layout).
    pub(super) tiled_weights: bool,
    /// Products of few tokens run in the kernel for most.
    pub(super) widest_products: bool,
    /// Kernels wait for those before them where they have to, so they may begin before these have ended.
    waits: bool,
    /// They do.
    dependent: bool,
    /// Graphs keep that. They have edges of this kind since CUDA 12.3.
    dependent_edges: bool,
    /// The stream records a graph now.
    recording: Arc<AtomicBool>,
    /// Set by the first error after which the driver answers nothing else, on any stream.
    dead: Arc<OnceLock<String>>,
}

/// Starts and stops a profiler that collects between the two. One that is not there is no error.
fn collect(on: bool) {
    let _ = if on { cudarc::driver::profiler_start() } else { cudarc::driver::profiler_stop() };
}

impl Device {
    /// Opens a device and finds the kernels of these sets in the images.
    pub(super) fn start<'a>(
        ordinal: usize,
        images: &[Image],
        sets: impl Iterator<Item = &'a Registration>,
    ) -> Result<Self> {
        if images.is_empty() {
            images::target_for(&[], Capability(0, 0))?;
        }
        driver::start()?;
        let failed = |what: &str| {
            let what = what.to_string();
            move |e: DriverError| Error::Backend(format!("CUDA device {ordinal}: {what}: {}", words(&e)))
        };
        let context = CudaContext::new(ordinal).map_err(failed("cannot be opened"))?;
        // SAFETY: a buffer is allocated, used and released on the stream of one `Device` value and its clones, so no buffer is ever used by two
        // streams at once, which is all that the events are for; and no buffer has been allocated yet.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("no stream"))?;
        let (major, minor) = context.compute_capability().map_err(failed("no compute capability"))?;
        let capability = Capability(major.unsigned_abs(), minor.unsigned_abs());
        let of_device = |image| Image::target_for(image, capability).map(|target| (image, target));
        let images: Vec<(&Image, Option<&str>)> = images.iter().map(of_device).collect::<Result<_>>()?;
        let targets: BTreeSet<&str> = images.iter().filter_map(|(_, target)| *target).collect();
        targets.iter().copied().try_for_each(driver::takes)?;
        // Hopper's own code has the instruction that waits; what was made for older cards has not.
        let waits = targets.iter().all(|target| target.ends_with("_90a"));
        let name = context.name().map_err(failed("no name"))?;
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(count).map_err(failed("no multiprocessor count"))?;
        let most = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared = context.attribute(most).map_err(failed("no shared memory"))?;
        let free = || context.mem_get_info().map(|(free, _)| free as u64).map_err(failed("no free memory"));
        let before = free()?;
        let kernels = Arc::new(Kernels::load(&images, sets, shared.unsigned_abs())?);
        let code = before.saturating_sub(free()?);
        crate::profile::collects_with(collect);
        Ok(Device {
            kernels,
            stream,
            context,
            name,
            capability,
            multiprocessors: multiprocessors.unsigned_abs(),
            code,
            // As the products of every card read them.
            tiled_weights: false,
            widest_products: false,
            waits,
            dependent: false,
            dependent_edges: driver::version()? >= EDGES,
            recording: Arc::default(),
            dead: Arc::new(OnceLock::new()),
        })
    }

    /// The same device with a stream of its own: what is queued there may run at the same time as what is queued here. Buffers belong to the
    /// stream that they were made on.
    ///
    /// # Errors
    /// The driver has no stream left.
    pub fn with_new_stream(&self) -> Result<Self> {
        self.alive()?;
        let stream = self.context.new_stream().map_err(|e| self.fault("no stream", e))?;
        Ok(Device {
            kernels: self.kernels.clone(),
            stream,
            context: self.context.clone(),
            name: self.name.clone(),
            recording: Arc::default(),
            dead: self.dead.clone(),
            ..*self
        })
    }

    /// Whether a kernel can begin before the one before it in the stream has ended.
    pub fn can_launch_dependents(&self) -> bool {
        self.waits
    }

    /// The same device, on which each kernel begins when the one before it has ended, or, with `on` and where it can, earlier.
    #[must_use]
    pub fn with_dependent_launches(self, on: bool) -> Self {
        Device { dependent: on && self.waits, ..self }
    }

    /// Whether kernels begin earlier where they can.
    pub fn launches_dependents(&self) -> bool {
        self.dependent
    }

    /// How many devices the driver finds.
    ///
    /// # Errors
    /// There is no driver, or it does not start.
    pub fn count() -> Result<usize> {
        driver::start()?;
        let count = result::device::get_count();
        let count =
            count.map_err(|e| Error::Backend(format!("the CUDA driver does not count devices: {}", words(&e))))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The driver's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// Number of multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Bytes of its memory that loading the kernels took.
    pub fn code(&self) -> u64 {
        self.code
    }

    /// Free and total memory in bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|e| self.fault("cannot ask for free memory", e))
    }

    /// Waits until everything launched so far is done.
    pub fn synchronize(&self) -> Result<()> {
        self.alive()?;
        self.stream.synchronize().map_err(|e| self.fault("a kernel failed", e))
    }

    /// A point on the stream's clock.
    pub fn record(&self) -> Result<Event> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        Ok(Event(self.stream.record_event(flags).map_err(|e| self.fault("cannot record an event", e))?))
    }

    /// A point on the stream to wait for, without a time.
    pub(super) fn mark(&self) -> Result<Event> {
        // A waiting thread sleeps, so that its core is free for other work.
        let flags = Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC);
        Ok(Event(self.stream.record_event(flags).map_err(|e| self.fault("cannot record an event", e))?))
    }

    /// Moves such a point to what has been queued so far.
    pub(super) fn mark_again(&self, event: &Event) -> Result<()> {
        event.0.record(&self.stream).map_err(|e| self.fault("cannot record an event", e))
    }

    /// Waits until everything queued before the event is done.
    pub(super) fn wait(&self, event: &Event) -> Result<()> {
        event.0.synchronize().map_err(|e| self.fault("a copy or a kernel failed", e))
    }

    /// Whether everything queued before the event is done.
    pub(super) fn reached(&self, event: &Event) -> Result<bool> {
        event.0.try_is_complete().map_err(|e| self.fault("a copy or a kernel failed", e))
    }

    /// Waits for both events and returns the seconds between them.
    pub fn seconds(&self, from: &Event, to: &Event) -> Result<f64> {
        let milliseconds = from.0.elapsed_ms(&to.0).map_err(|e| self.fault("cannot read an event", e))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// Version of CUDA that the driver speaks, as in `13.0`; `None` if it does not say.
    pub fn driver_version(&self) -> Option<String> {
        driver::version().ok().map(|version| version.to_string())
    }

    /// What the driver says of the device for a report: names and numbers, without those that it does not know.
    pub fn facts(&self) -> Vec<(&'static str, u64)> {
        use sys::CUdevice_attribute as A;
        let facts = [
            ("shared_memory_per_block", A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            ("registers_per_multiprocessor", A::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR),
            ("l2_cache_bytes", A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE),
            ("memory_bus_bits", A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH),
            ("ecc", A::CU_DEVICE_ATTRIBUTE_ECC_ENABLED),
            ("compute_mode", A::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE),
        ];
        let of = |attribute| self.context.attribute(attribute).ok().and_then(|value| u64::try_from(value).ok());
        facts.into_iter().filter_map(|(name, attribute)| Some((name, of(attribute)?))).collect()
    }

    /// Largest clocks in MHz, of multiprocessors and memory; `None` if it does not say.
    pub fn clocks_mhz(&self) -> Option<[u32; 2]> {
        use sys::CUdevice_attribute::{CU_DEVICE_ATTRIBUTE_CLOCK_RATE, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE};
        let megahertz = |attribute| self.context.attribute(attribute).ok().filter(|&khz| khz > 0).map(|khz| khz / 1000);
        let clocks = [CU_DEVICE_ATTRIBUTE_CLOCK_RATE, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE].map(megahertz);
        match clocks {
            [Some(cores), Some(memory)] => Some([cores.unsigned_abs(), memory.unsigned_abs()]),
            _ => None,
        }
    }

    /// An error once the device is dead, with the words of the error that killed it.
    pub fn alive(&self) -> Result<()> {
        match self.dead.get() {
            None => Ok(()),
            Some(why) => Err(Error::DeviceLost(format!("the CUDA device is lost after an earlier error: {why}"))),
        }
    }

    /// Gives the device up for this process, because a kernel does not end: nothing behind it would ever run.
    pub(super) fn give_up(&self, why: &str) -> Error {
        let message = format!("{}: {why}", self.name);
        let _ = self.dead.set(message.clone());
        Error::DeviceLost(format!("{message}; the device is lost to this process"))
    }

    /// The kernels of one op, in the order of its specs.
    ///
    /// # Errors
    /// They are for other devices: see [`has`](Self::has).
    pub(super) fn kernels<K: KernelSet>(&self) -> Result<&[Kernel]> {
        self.kernels.of::<K>()
    }

    /// Whether the device has the kernels of one op. Only those for Hopper alone can be absent.
    pub(super) fn has<K: KernelSet>(&self) -> bool {
        self.kernels.has::<K>()
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The stream, for calls of the driver's own on this thread: they take the context that is bound to it.
    ///
    /// # Errors
    /// The device is lost.
    pub(super) fn bound(&self) -> Result<&Arc<CudaStream>> {
        self.alive()?;
        self.context.bind_to_thread().map_err(|e| self.fault("cannot bind the context", e))?;
        Ok(&self.stream)
    }

    /// Records what `launches` queues instead of running it. Nothing may be allocated, copied from or to the host, or waited
    /// for meanwhile.
    ///
    /// # Errors
    /// Those of `launches`; the driver cannot make a graph of it.
    pub(crate) fn capture(&self, launches: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.alive()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(|e| self.fault("cannot record a graph", e))?;
        self.recording.store(true, Relaxed);
        let launched = launches();
        self.recording.store(false, Relaxed);
        // Whatever happened, the stream has to become an ordinary one again.
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        launched?;
        match graph.map_err(|e| self.fault("cannot make a graph", e))? {
            Some(graph) => Ok(Graph(graph)),
            None => Err(Error::Backend(format!("{}: nothing was recorded", self.name))),
        }
    }

    /// Brings a graph to the device, so that its first launch does not have to.
    pub(crate) fn upload(&self, graph: &Graph) -> Result<()> {
        self.alive()?;
        graph.0.upload().map_err(|e| self.fault("a graph cannot be brought to the device", e))
    }

    /// Queues everything that a graph recorded.
    ///
    /// # Safety
    ///
    /// All memory that was lent while it was recorded is still there, and none of it is lent elsewhere for writing.
    pub(crate) unsafe fn replay(&self, graph: &mut Graph) -> Result<()> {
        self.alive()?;
        graph.0.launch().map_err(|e| self.fault("a graph cannot be launched", e))
    }

    /// Turns a driver's error into ours, and remembers it if the device does not survive it.
    pub(super) fn fault(&self, what: &str, error: DriverError) -> Error {
        let message = format!("{}: {what}: {}", self.name, words(&error));
        if is_sticky(error.0) {
            let _ = self.dead.set(message.clone());
            return Error::DeviceLost(format!("{message}; the device is lost to this process"));
        }
        Error::Backend(message)
    }

    /// Queues a kernel.
    ///
    /// # Safety
    ///
    /// `args` points to the kernel's parameters, in their order and of their types; every address among them is valid
    /// for what the kernel reads and writes in this shape of launch, and memory that it writes is not lent elsewhere.
    pub(super) unsafe fn launch(&self, kernel: &Kernel, launch: Launch, args: &mut [*mut c_void]) -> Result<()> {
        let stream = self.bound()?.cu_stream();
        let dependent = self.dependent && (self.dependent_edges || !self.recording.load(Relaxed));
        // SAFETY: the function belongs to this context, and the caller vouches for the arguments. A kernel that may begin early is made
        // for Hopper, and all of those wait before they touch what the kernels before them touch.
        let queued = unsafe { launch::queue(kernel.function, launch, dependent, stream, args) };
        queued.map_err(|e| self.fault(kernel.name, e))
    }
}

/// Launches that were recorded, with all their parameters.
pub(crate) struct Graph(CudaGraph);

// SAFETY: the driver wants calls on one graph one after the other, from whatever thread; it is only launched by the one who has it
// mutably, and destroyed by its last owner.
unsafe impl Send for Graph {}

/// A point on a stream's clock.
#[derive(Debug)]
pub struct Event(CudaEvent);
