//! Kernels as the host knows them, and how they are found in their images.
//!
//! Each op declares its own kernels: a type that is a [`KernelSet`]. Opening a device resolves the sets of all ops once, so a
//! missing or mismatched kernel is an error there and not in the middle of an answer.

use super::images::{self, Image};
use crate::{Error, Result};
use cudarc::driver::{result, sys};
use std::any::TypeId;
use std::ffi::CString;

/// A kernel as the host knows it before any device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The file it is in, without its extension.
    pub image: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Threads per block, at most.
    pub threads: u32,
    /// Dynamic shared memory in bytes, at most.
    pub shared: u32,
    /// Takes its place on cards whose blocks have too little shared memory for it.
    pub smaller: Option<Smaller>,
}

/// A kernel that does the same sums as another one, in the same blocks, with less shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smaller {
    /// Its name.
    pub name: &'static str,
    /// Dynamic shared memory in bytes, at most.
    pub shared: u32,
}

impl Spec {
    pub(super) const fn new(image: &'static str, name: &'static str, threads: u32, shared: u32) -> Self {
        Spec { image, name, threads, shared, smaller: None }
    }

    /// The same with a smaller kernel that may take its place, if there is one.
    pub(super) const fn or(self, smaller: Option<Smaller>) -> Self {
        Spec { smaller, ..self }
    }

    /// The kernel, and the smaller one that may take its place.
    pub(super) fn all(self) -> impl Iterator<Item = Spec> {
        let smaller = self.smaller.map(|Smaller { name, shared }| Spec { name, shared, smaller: None, ..self });
        std::iter::once(Spec { smaller: None, ..self }).chain(smaller)
    }

    /// One kernel for each storage type, in the order of [`HalfType`](crate::dtype::HalfType): bf16, then f16.
    pub(super) const fn pair(image: &'static str, names: [&'static str; 2], threads: u32, shared: u32) -> [Self; 2] {
        [Self::new(image, names[0], threads, shared), Self::new(image, names[1], threads, shared)]
    }
}

/// A kernel that can be launched.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) function: sys::CUfunction,
    pub(super) name: &'static str,
    /// Dynamic shared memory in bytes, at most.
    pub(super) shared: u32,
}

// SAFETY: a handle that any thread with the context current may launch; launching does not change it.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// The kernels of one op: a type that stands for the list.
pub(super) trait KernelSet: 'static {
    /// All of them. Launches name them by their index here.
    fn specs() -> Vec<Spec>;
}

/// An entry in a list of ops.
pub(super) struct Registration {
    id: TypeId,
    pub specs: fn() -> Vec<Spec>,
}

impl Registration {
    pub const fn of<K: KernelSet>() -> Self {
        Registration { id: TypeId::of::<K>(), specs: K::specs }
    }

    /// Whether all of its kernels are for Hopper alone: then other devices do without the set.
    pub fn is_for_hopper(&self) -> bool {
        (self.specs)().iter().all(|spec| images::is_for_hopper(spec.image))
    }
}

/// The kernels of all ops, and none of those that are for other devices.
#[derive(Debug)]
pub(super) struct Kernels(Vec<(TypeId, Option<Vec<Kernel>>)>);

impl Kernels {
    /// Loads every image's code for its target into the current context and finds every kernel of the sets in them, each in the
    /// largest version that a block with `limit` bytes of shared memory can run. A set for Hopper alone whose image has no
    /// target here is absent. Modules stay loaded as long as the process lives.
    pub fn load<'a>(
        images: &[(&Image, Option<&str>)],
        sets: impl Iterator<Item = &'a Registration>,
        limit: u32,
    ) -> Result<Self> {
        let mut modules = Vec::new();
        for (image, target) in images {
            let Some(target) = target else { continue };
            let code = image.code_for(target)?;
            // SAFETY: the bytes are whole machine code, or PTX that ends with a zero, made by the build; or what a stand-in driver
            // takes in their place. The driver does not keep them.
            let module = unsafe { result::module::load_data(code.as_ptr().cast()) }
                .map_err(|e| Error::Backend(format!("kernel image {}: cannot be loaded: {e}", image.name)))?;
            modules.push((image.name, module));
        }
        let left_out = |spec: &Spec| images.iter().any(|(image, target)| image.name == spec.image && target.is_none());
        let all = |set: &Registration| -> Result<_> {
            let specs = (set.specs)();
            if set.is_for_hopper() && specs.iter().any(left_out) {
                return Ok((set.id, None));
            }
            Ok((set.id, Some(specs.iter().map(|spec| find(&modules, spec, limit)).collect::<Result<_>>()?)))
        };
        Ok(Kernels(sets.map(all).collect::<Result<_>>()?))
    }

    /// The kernels of one op, in the order of its specs.
    pub fn of<K: KernelSet>(&self) -> Result<&[Kernel]> {
        let found = self.0.iter().find(|(id, _)| *id == TypeId::of::<K>());
        let (_, kernels) =
            found.ok_or_else(|| Error::Backend(format!("{} were not loaded", std::any::type_name::<K>())))?;
        kernels.as_deref().ok_or_else(|| {
            let image = K::specs().first().map_or("", |spec| spec.image);
            Error::Backend(format!(
                "the kernels of {image} are for Hopper alone (compute capability 9.0), and were not loaded for this device"
            ))
        })
    }

    /// Whether the device has the kernels of one op.
    pub fn has<K: KernelSet>(&self) -> bool {
        self.0.iter().any(|(id, kernels)| *id == TypeId::of::<K>() && kernels.is_some())
    }
}

/// A kernel in the loaded images, or the smaller one in its place. This is where the choice is made: plans and launches do not
/// know which of the two they have.
fn find(modules: &[(&'static str, sys::CUmodule)], spec: &Spec, limit: u32) -> Result<Kernel> {
    let module = modules.iter().find(|(loaded, _)| *loaded == spec.image);
    let (_, module) = module.ok_or_else(|| Error::Backend(format!("no kernel image {}", spec.image)))?;
    for Spec { name, shared, .. } in spec.all() {
        let c_name = CString::new(name).map_err(|e| Error::Backend(e.to_string()))?;
        // SAFETY: the module is loaded and is never unloaded.
        let function = unsafe { result::module::get_function(*module, c_name) }
            .map_err(|e| Error::Backend(format!("kernel {name} is missing from its image: {e}")))?;
        if shared + fixed(function, name)? > limit {
            continue;
        }
        if shared > 0 {
            use sys::CUfunction_attribute as Attribute;
            // Without asking a block gets 48 KiB, of which its static shared memory is a part.
            set(function, name, Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)?;
            // All that a multiprocessor has, in percent: two blocks and more of most of these kernels are meant to be there at
            // once, what they copy asynchronously does not go through L1, and one division for all of them spares changing it
            // between two kernels. A hint.
            set(function, name, Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?;
        }
        return Ok(Kernel { function, name, shared });
    }
    Err(Error::Backend(format!(
        "kernel {} needs more than the {limit} bytes of shared memory that a block of this device can have",
        spec.name
    )))
}

/// Static shared memory of a kernel in bytes.
fn fixed(function: sys::CUfunction, name: &str) -> Result<u32> {
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
    // SAFETY: the function is valid.
    let bytes = unsafe { result::function::get_function_attribute(function, attribute) };
    bytes.map(i32::unsigned_abs).map_err(|e| Error::Backend(format!("kernel {name}: static shared memory: {e}")))
}

fn set(function: sys::CUfunction, name: &str, attribute: sys::CUfunction_attribute, value: u32) -> Result<()> {
    // SAFETY: the function is valid, and the attribute is an integer in the range the driver checks.
    unsafe { result::function::set_function_attribute(function, attribute, value as i32) }
        .map_err(|e| Error::Backend(format!("kernel {name}: {attribute:?} of {value}: {e}")))
}
