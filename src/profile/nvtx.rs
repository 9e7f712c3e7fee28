//! NVTX ranges in the domain `ggro`, through the C of `nvtx.c`: the library behind it is a header, and whether a profiler listens is found
//! out at the first call.

use super::Phase;
use std::ffi::{CString, c_char, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

unsafe extern "C" {
    fn ggro_nvtx_open();
    fn ggro_nvtx_name(category: c_uint, name: *const c_char) -> *mut c_void;
    fn ggro_nvtx_push(name: *mut c_void, category: c_uint, argb: c_uint, payload: c_ulonglong);
    fn ggro_nvtx_pop();
}

/// Handles of the names, by phase.
struct RangeNames([*mut c_void; Phase::ALL.len()]);

// SAFETY: the handles are opaque to us and never change; NVTX takes them from any thread.
unsafe impl Send for RangeNames {}
// SAFETY: as above.
unsafe impl Sync for RangeNames {}

fn names() -> &'static RangeNames {
    static NAMES: OnceLock<RangeNames> = OnceLock::new();
    NAMES.get_or_init(|| {
        // SAFETY: makes a domain, once: `get_or_init` lets one thread in.
        unsafe { ggro_nvtx_open() };
        RangeNames(Phase::ALL.map(|phase| {
            // Names have no zero bytes; an empty one would stand for such a name.
            let name = CString::new(phase.name()).unwrap_or_default();
            // SAFETY: the domain exists, and the text is copied before it is gone.
            unsafe { ggro_nvtx_name(phase as c_uint, name.as_ptr()) }
        }))
    })
}

/// ARGB, one per phase.
const COLOURS: [u32; Phase::ALL.len()] =
    [0xff6b_6b6b, 0xff1f_6fb2, 0xff4f_a3e0, 0xff2d_8a4e, 0xffc4_581b, 0xff8a_4fb0, 0xffa8_323e, 0xffbd_bdbd];

pub(super) fn push(phase: Phase, payload: u64) {
    let index = phase as usize - 1;
    // SAFETY: the handle is one that NVTX gave us for this domain.
    unsafe { ggro_nvtx_push(names().0[index], phase as c_uint, COLOURS[index], payload) };
}

pub(super) fn pop() {
    // SAFETY: every pop is of a guard that pushed on this thread.
    unsafe { ggro_nvtx_pop() };
}
