//! Memory of the products: panels of weights, packed rows, lanes between their visits.

use crate::model::cpu::lanes::LANES;
use memmap2::MmapMut;

/// Sixteen floats that do not cross a cache line: a load that crosses one costs two.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(in crate::model::cpu) struct CacheLine(pub [f32; LANES]);

/// Bytes of a huge page of x86-64.
const HUGE: usize = 2 << 20;

/// Floats in whole lines. A large buffer asks for huge pages: a product walks through more small pages than the processor
/// remembers the addresses of, which made it 2 to 10 % slower.
#[derive(Default)]
pub(in crate::model::cpu) struct LaneBuffer {
    memory: Option<MmapMut>,
    /// Byte of the memory at which the lines begin.
    start: usize,
    lines: usize,
}

impl LaneBuffer {
    pub const fn new() -> Self {
        LaneBuffer { memory: None, start: 0, lines: 0 }
    }

    /// Makes room for so many floats. What the buffer held is lost if it has to grow.
    pub fn grow(&mut self, floats: usize) {
        let lines = floats.div_ceil(LANES);
        if self.lines >= lines {
            return;
        }
        // Given back first, so that both are never held.
        *self = LaneBuffer::new();
        let bytes = lines * size_of::<CacheLine>();
        // From half a huge page on it gets whole ones.
        let huge = bytes >= HUGE / 2;
        let room = if huge { bytes.next_multiple_of(HUGE) + HUGE } else { bytes };
        let Ok(memory) = MmapMut::map_anon(room) else {
            // What a vector would do.
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<CacheLine>())
        };
        if huge {
            self.start = memory.as_ptr().align_offset(HUGE).min(HUGE);
            // A system without huge pages refuses, and the product is only slower.
            #[cfg(target_os = "linux")]
            let _ = memory.advise_range(memmap2::Advice::HugePage, self.start, room - HUGE);
        }
        self.memory = Some(memory);
        self.lines = lines;
    }

    /// Floats that it has room for.
    pub fn len(&self) -> usize {
        self.lines * LANES
    }

    pub fn as_ptr(&self) -> *const f32 {
        self.memory
            .as_ref()
            .map_or(std::ptr::NonNull::<CacheLine>::dangling().as_ptr().cast_const(), |memory| {
                memory.as_ptr().wrapping_add(self.start).cast()
            })
            .cast()
    }

    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        let start = self.start;
        self.memory
            .as_mut()
            .map_or(std::ptr::NonNull::<CacheLine>::dangling().as_ptr(), |memory| {
                memory.as_mut_ptr().wrapping_add(start).cast()
            })
            .cast()
    }

    pub fn lines_mut(&mut self) -> &mut [CacheLine] {
        let lines = self.lines;
        // SAFETY: `grow` mapped `lines` lines from `start` on, which is a multiple of a line behind a page; mapped memory begins as
        // zeros, and any bits are floats. Without memory there are no lines, and a dangling pointer is aligned.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), lines) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_all_sizes_are_aligned_and_writable_to_their_end() {
        let mut buffer = LaneBuffer::new();
        assert!(buffer.lines_mut().is_empty());
        for floats in [1, 16, 17, 5_000, 200_000, 300_000, 1_000_000, 3] {
            buffer.grow(floats);
            assert!(buffer.len() >= floats && buffer.as_ptr().align_offset(64) == 0);
            let last = buffer.len() / LANES - 1;
            let lines = buffer.lines_mut();
            (lines[0].0[0], lines[last].0[LANES - 1]) = (1.0, 2.0);
        }
        assert_eq!(buffer.len(), 1_000_000);
    }
}
