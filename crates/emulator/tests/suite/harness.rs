//! A device, its module and a stream, and launches by kernel name.

use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, ValidAsZeroBits, result};
use ggro_emulator::{Config, Device, STUB_IMAGE};

use crate::stored::{self, KERNELS};

pub fn libcuda() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| ggro_emulator::build().unwrap_or_else(|e| panic!("{e}")))
}

/// The folder of what nvcc makes of this crate's kernels: now, or when it was stored with them.
pub fn ptx() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| match ggro_emulator::nvcc() {
        Some(nvcc) => {
            ggro_emulator::build_ptx(&nvcc, &[KERNELS], "compute_90a").unwrap_or_else(|e| panic!("{e}")).remove(0)
        }
        None => stored::unpack().unwrap_or_else(|e| panic!("{e}")),
    })
}

/// One kernel argument, held by value.
#[derive(Clone, Copy)]
pub enum Arg {
    Pointer(sys::CUdeviceptr),
    I32(i32),
    I64(i64),
    U8(u8),
    F32(f32),
    F64(f64),
    Map(sys::CUtensorMap),
}

// Field order is drop order: the device guard goes last.
pub struct Bench {
    pub stream: Arc<CudaStream>,
    pub module: sys::CUmodule,
    pub ctx: Arc<CudaContext>,
    pub device: Device,
}

pub struct Shape {
    pub grid: (u32, u32, u32),
    pub block: u32,
    pub shared: u32,
}

pub fn shape(grid: u32, block: u32) -> Shape {
    Shape { grid: (grid, 1, 1), block, shared: 0 }
}

impl Shape {
    pub fn shared(mut self, bytes: u32) -> Shape {
        self.shared = bytes;
        self
    }
    pub fn rows(mut self, rows: u32) -> Shape {
        self.grid.1 = rows;
        self
    }
}

impl Bench {
    pub fn new(config: Config) -> Bench {
        Self::with_image(config, STUB_IMAGE.to_bytes_with_nul())
    }

    pub fn with_image(config: Config, image: &[u8]) -> Bench {
        let device = Device::install(libcuda(), config).unwrap_or_else(|e| panic!("{e}"));
        device.configure(&format!("ptx={}", ptx().display()));
        let ctx = CudaContext::new(0).unwrap();
        // SAFETY: every test uses one stream or orders its streams itself.
        unsafe { ctx.disable_event_tracking() };
        let stream = ctx.new_stream().unwrap();
        // SAFETY: the image is a whole cubin or a NUL-terminated text.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.unwrap();
        Bench { stream, module, ctx, device }
    }

    pub fn function(&self, name: &str) -> Result<sys::CUfunction, DriverError> {
        // SAFETY: the module lives as long as the bench.
        unsafe { result::module::get_function(self.module, CString::new(name).unwrap()) }
    }

    pub fn launch(&self, name: &str, shape: Shape, args: &[Arg]) -> Result<(), DriverError> {
        self.launch_on(&self.stream, name, shape, args)
    }

    pub fn launch_on(&self, stream: &CudaStream, name: &str, shape: Shape, args: &[Arg]) -> Result<(), DriverError> {
        let function = self.function(name)?;
        if shape.shared > 48 << 10 {
            self.allow_shared(function, shape.shared)?;
        }
        launch_raw(function, stream, shape, args)
    }

    pub fn allow_shared(&self, function: sys::CUfunction, bytes: u32) -> Result<(), DriverError> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function comes from this bench's module.
        unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) }
    }

    pub fn up<T: DeviceRepr>(&self, host: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(host).unwrap()
    }

    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, n: usize) -> CudaSlice<T> {
        self.stream.alloc_zeros(n).unwrap()
    }

    pub fn raw<T: DeviceRepr>(&self, n: usize) -> CudaSlice<T> {
        // SAFETY: the tests that read it uninitialised mean to.
        unsafe { self.stream.alloc(n) }.unwrap()
    }

    pub fn down<T: DeviceRepr + Default + Clone>(&self, slice: &CudaSlice<T>) -> Vec<T> {
        self.stream.clone_dtoh(slice).unwrap()
    }

    pub fn pointer<T>(&self, slice: &CudaSlice<T>) -> Arg {
        Arg::Pointer(slice.device_ptr(&self.stream).0)
    }

    /// The error that the next synchronisation reports.
    pub fn error(&self) -> Option<CUresult> {
        self.stream.synchronize().err().map(|e| e.0)
    }

    pub fn assert_clean(&self) {
        let faults = self.device.faults();
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.device.reset();
    }
}

/// Pointers to the arguments, and a null pointer behind them, where the driver's interface has no length at all.
fn pointers_to(args: &[Arg]) -> Vec<*mut c_void> {
    let pointer = |arg: &Arg| match arg {
        Arg::Pointer(v) => std::ptr::from_ref(v) as *mut c_void,
        Arg::I32(v) => std::ptr::from_ref(v) as *mut c_void,
        Arg::I64(v) => std::ptr::from_ref(v) as *mut c_void,
        Arg::U8(v) => std::ptr::from_ref(v) as *mut c_void,
        Arg::F32(v) => std::ptr::from_ref(v) as *mut c_void,
        Arg::F64(v) => std::ptr::from_ref(v) as *mut c_void,
        Arg::Map(v) => std::ptr::from_ref(v) as *mut c_void,
    };
    args.iter().map(pointer).chain([std::ptr::null_mut()]).collect()
}

pub fn launch_raw(
    function: sys::CUfunction,
    stream: &CudaStream,
    shape: Shape,
    args: &[Arg],
) -> Result<(), DriverError> {
    let mut pointers = pointers_to(args);
    // SAFETY: the values outlive the call, and the driver copies them in it; what kernels do is the tests' subject.
    unsafe {
        result::launch_kernel(
            function,
            shape.grid,
            (shape.block, 1, 1),
            shape.shared,
            stream.cu_stream(),
            &mut pointers,
        )
    }
}

/// The same of a launch that may begin before the one before it in the stream has ended.
pub fn launch_dependent(
    function: sys::CUfunction,
    stream: &CudaStream,
    shape: Shape,
    args: &[Arg],
) -> Result<(), DriverError> {
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: shape.grid.0,
        gridDimY: shape.grid.1,
        gridDimZ: shape.grid.2,
        blockDimX: shape.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shape.shared,
        hStream: stream.cu_stream(),
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    let mut pointers = pointers_to(args);
    // SAFETY: as in `launch_raw`; the configuration and its attribute outlive the call, too.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }.result()
}

/// Reproducible values in -1..1.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub fn bf16(x: f32) -> u16 {
    ((x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) >> 16) as u16
}

pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
