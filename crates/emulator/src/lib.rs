//! The emulated device: a libcuda stand-in that executes the PTX that nvcc makes of the kernels on the CPU, warp by warp, and
//! checks every memory access. Tests build it with [`build`], put it in place with [`Device::install`] before the first driver
//! call, and then use the driver as they would on a GPU. See the README beside this crate for what it models and what it cannot.
//!
//! There is one device in a process. [`Device`] is a guard on it: tests that run in parallel threads take turns.

mod compile;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Deserialize;

pub use compile::{build, build_ptx, nvcc};

/// An image for `cuModuleLoadData` where no compiler made a real one: it has every kernel of the folder of PTX that is selected,
/// and launches are checked as far as PTX goes.
pub const STUB_IMAGE: &CStr = c"ggro stub image";

/// The order in which threads and blocks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Ascending; each warp as far as it can get.
    Forward,
    /// Descending.
    Reverse,
    /// At random, from this seed.
    Shuffle(u64),
}

/// When asynchronous copies happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// When they are waited for: a missing wait shows.
    Late,
    /// When they are issued: a buffer that is refilled too early shows.
    Early,
}

/// When operations on a stream happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// In the call that submits them.
    Eager,
    /// When somebody waits for them: a missing event shows.
    Lazy,
}

/// How the device behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Observe every load and store.
    pub checked: bool,
    /// The order of threads and blocks.
    pub schedule: Schedule,
    /// Asynchronous copies, late or early.
    pub copies: Copies,
    /// Stream operations, eager or lazy.
    pub streams: Streams,
}

impl Default for Config {
    fn default() -> Self {
        Self { checked: false, schedule: Schedule::Forward, copies: Copies::Late, streams: Streams::Eager }
    }
}

impl Config {
    /// Plain and checked, in every schedule and copy mode: what a kernel should pass.
    pub fn matrix() -> Vec<Config> {
        let mut all = Vec::new();
        for checked in [false, true] {
            for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Shuffle(1), Schedule::Shuffle(2)] {
                for copies in [Copies::Late, Copies::Early] {
                    all.push(Config { checked, schedule, copies, streams: Streams::Eager });
                }
            }
        }
        all
    }
}

/// What a kernel did since the last reset. Bytes, sectors and bank conflicts are counted only where accesses are observed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Counters {
    /// Launches.
    pub launches: u64,
    /// Launches whose accesses were observed.
    pub checked_launches: u64,
    /// Blocks run.
    pub blocks: u64,
    /// Threads run.
    pub threads: u64,
    /// Bytes read from global memory.
    pub bytes_read: u64,
    /// Bytes written to global memory.
    pub bytes_written: u64,
    /// The same, each byte once per launch: what a perfect cache would leave.
    pub unique_bytes_read: u64,
    /// The same for writes.
    pub unique_bytes_written: u64,
    /// Distinct 32-byte sectors, summed over the accesses of warps.
    pub sectors_read: u64,
    /// The same for writes.
    pub sectors_written: u64,
    /// Passes over the shared-memory banks.
    pub shared_wavefronts: u64,
    /// Passes beyond the first of each access.
    pub bank_conflicts: u64,
    /// Operations of matrix instructions, two per product.
    pub matrix_flops: u64,
    /// Instructions of PTX, once per thread that was at them.
    pub instructions: u64,
    /// Launches that could begin before the kernel before them had ended.
    pub dependent_launches: u64,
    /// Bytes that their threads read from global memory before they waited for that.
    pub early_bytes_read: u64,
}

/// Something that a kernel or a launch did wrong.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Fault {
    /// The class, such as `out of bounds` or `shared memory race`.
    pub kind: String,
    /// The kernel's name; empty outside kernels.
    pub kernel: String,
    /// The first block it was seen in.
    pub block: Option<[u32; 3]>,
    /// The first thread it was seen in.
    pub thread: Option<[u32; 3]>,
    /// Source file and line.
    pub at: String,
    /// What happened.
    pub message: String,
    /// How often.
    pub count: u64,
}

/// Counters by kernel, and faults, since the last reset.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Report {
    /// By kernel name.
    pub kernels: BTreeMap<String, Counters>,
    /// In the order of their first occurrence.
    pub faults: Vec<Fault>,
    /// How often the profiler was told to collect, and to stop, since the process began.
    pub profiler: [u64; 2],
}

/// The emulated device, held by one test at a time.
pub struct Device {
    engine: &'static Engine,
    _turn: MutexGuard<'static, ()>,
}

struct Engine {
    configure: unsafe extern "C" fn(*const c_char) -> c_int,
    reset: unsafe extern "C" fn() -> c_int,
    report: unsafe extern "C" fn(*mut c_char, usize) -> usize,
}

thread_local! {
    static HELD: Cell<bool> = const { Cell::new(false) };
}
static TURN: Mutex<()> = Mutex::new(());
static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();

impl Device {
    /// Waits for its turn, loads the engine (what [`build`] returned) in place of libcuda and resets the device. Which kernels
    /// run is said next, with `configure("ptx=FOLDER")`; what is not in the folder comes from the images that are loaded.
    ///
    /// The engine's SONAME is `libcuda.so`, the first name that cudarc asks for, and a library that is loaded satisfies
    /// a search by SONAME. So this must come before the first driver call of the process.
    ///
    /// # Errors
    /// The library cannot be loaded.
    ///
    /// # Panics
    /// When this thread holds a `Device` already: it would wait for itself.
    pub fn install(libcuda: &Path, config: Config) -> io::Result<Device> {
        assert!(!HELD.replace(true), "this thread holds the emulated device already");
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = ENGINE.get_or_init(|| Engine::load(libcuda)).as_ref().map_err(|e| io::Error::other(e.clone()))?;
        let device = Device { engine, _turn: turn };
        // Settings that single tests change.
        for default in [
            "arch=90",
            "exits=report",
            "faults=fail",
            "memory=17179869184",
            "watchdog=60",
            "ptx=image",
            "lanes=together",
            "mma=exact",
            "dependents=late",
        ] {
            device.configure(default);
        }
        device.set(config);
        device.reset();
        Ok(device)
    }

    /// Changes the whole configuration. Loaded modules stay valid.
    pub fn set(&self, config: Config) {
        self.configure(if config.checked { "accesses=observed" } else { "accesses=plain" });
        self.configure(&match config.schedule {
            Schedule::Forward => "schedule=forward".to_owned(),
            Schedule::Reverse => "schedule=reverse".to_owned(),
            Schedule::Shuffle(seed) => format!("schedule=shuffle:{seed}"),
        });
        self.configure(if config.copies == Copies::Late { "copies=late" } else { "copies=early" });
        self.configure(if config.streams == Streams::Lazy { "streams=lazy" } else { "streams=eager" });
    }

    /// Changes one setting, `key=value`; the README lists them.
    ///
    /// # Panics
    /// When the engine does not know the setting.
    pub fn configure(&self, setting: &str) {
        let text = CString::new(setting).expect("a setting has no NUL");
        // SAFETY: the engine reads a NUL-terminated string and keeps no pointer to it.
        let error = unsafe { (self.engine.configure)(text.as_ptr()) };
        assert_eq!(error, 0, "the emulated device does not understand {setting:?}");
    }

    /// Forgets faults, counters and a broken context. Allocations stay, and count as initialised.
    pub fn reset(&self) {
        // SAFETY: takes no arguments; the engine locks itself.
        unsafe { (self.engine.reset)() };
    }

    /// Counters and faults since the last reset.
    pub fn report(&self) -> Report {
        let mut text: Vec<u8> = Vec::new();
        loop {
            // SAFETY: the engine writes at most `text.len()` bytes to the buffer.
            let needed = unsafe { (self.engine.report)(text.as_mut_ptr().cast(), text.len()) };
            if needed < text.len() {
                text.truncate(needed);
                return serde_json::from_slice(&text).expect("the engine writes valid JSON");
            }
            text.resize(needed + 1, 0);
        }
    }

    /// The faults since the last reset.
    pub fn faults(&self) -> Vec<Fault> {
        self.report().faults
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        HELD.set(false);
    }
}

impl Engine {
    fn load(libcuda: &Path) -> Result<Engine, String> {
        let path = CString::new(libcuda.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: loading runs the constructors of our own library, which only set up its globals.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            // SAFETY: dlerror returns a NUL-terminated string after a failure.
            return Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned());
        }
        // SAFETY: the library is loaded and never closed; the names are NUL-terminated.
        let find = |name: &CStr| unsafe { libc::dlsym(library, name.as_ptr()) };
        let [configure, reset, report] =
            [c"ggro_emu_configure", c"ggro_emu_reset", c"ggro_emu_counters_json"].map(find);
        if configure.is_null() || reset.is_null() || report.is_null() {
            return Err(format!("{} is not the emulated device", libcuda.display()));
        }
        // SAFETY: driver_context.cc defines these functions with these C signatures.
        unsafe {
            Ok(Engine {
                configure: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> c_int>(configure),
                reset: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(reset),
                report: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_char, usize) -> usize>(report),
            })
        }
    }
}
