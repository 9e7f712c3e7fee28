//! Kernels as the host knows them, and how they are found in their images.
//!
//! Each op declares its own kernels: a type that is a [`KernelSet`]. Opening a device resolves the sets of all ops once, so a
//! missing or mismatched kernel is an error there and not in the middle of an answer.

use super::images::Image;
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
}

impl Spec {
    pub(super) const fn new(image: &'static str, name: &'static str, threads: u32, shared: u32) -> Self {
        Spec { image, name, threads, shared }
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
}

/// The kernels of all ops.
#[derive(Debug)]
pub(super) struct Kernels(Vec<(TypeId, Vec<Kernel>)>);

impl Kernels {
    /// Loads every image's code for a target, by its index in the list that the build made, into the current context and finds
    /// every kernel of the sets in them. Modules stay loaded as long as the process lives.
    pub fn load<'a>(images: &[Image], target: usize, sets: impl Iterator<Item = &'a Registration>) -> Result<Self> {
        let mut modules = Vec::new();
        for image in images {
            let code = image.code_for(target)?;
            // SAFETY: the bytes are whole machine code, or PTX that ends with a zero, made by the build; or what a stand-in driver
            // takes in their place. The driver does not keep them.
            let module = unsafe { result::module::load_data(code.as_ptr().cast()) }
                .map_err(|e| Error::Backend(format!("kernel image {}: cannot be loaded: {e}", image.name)))?;
            modules.push((image.name, module));
        }
        let all = |set: &Registration| -> Result<_> {
            Ok((set.id, (set.specs)().iter().map(|spec| find(&modules, spec)).collect::<Result<_>>()?))
        };
        Ok(Kernels(sets.map(all).collect::<Result<_>>()?))
    }

    /// The kernels of one op, in the order of its specs.
    pub fn of<K: KernelSet>(&self) -> Result<&[Kernel]> {
        let found = self.0.iter().find(|(id, _)| *id == TypeId::of::<K>());
        let found = found.map(|(_, kernels)| kernels.as_slice());
        found.ok_or_else(|| Error::Backend(format!("{} were not loaded", std::any::type_name::<K>())))
    }
}

/// A kernel in the loaded images.
fn find(modules: &[(&'static str, sys::CUmodule)], spec: &Spec) -> Result<Kernel> {
    let &Spec { image, name, shared, .. } = spec;
    let module = modules.iter().find(|(loaded, _)| *loaded == image);
    let (_, module) = module.ok_or_else(|| Error::Backend(format!("no kernel image {image}")))?;
    let c_name = CString::new(name).map_err(|e| Error::Backend(e.to_string()))?;
    // SAFETY: the module is loaded and is never unloaded.
    let function = unsafe { result::module::get_function(*module, c_name) }
        .map_err(|e| Error::Backend(format!("kernel {name} is missing from its image: {e}")))?;
    // Without asking a block gets 48 KiB, of which its static shared memory is a part.
    if shared > 0 {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is valid, and the attribute is an integer in the range the driver checks.
        unsafe { result::function::set_function_attribute(function, attribute, shared as i32) }
            .map_err(|e| Error::Backend(format!("kernel {name}: {shared} bytes of shared memory: {e}")))?;
    }
    Ok(Kernel { function, name })
}
