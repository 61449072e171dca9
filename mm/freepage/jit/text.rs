// SPDX-License-Identifier: GPL-2.0

//! The view of executable memory: the only place with `unsafe` over it.
//!
//! What can be done to it is [`Text`], so that the allocator can be tested on text that is
//! simulated. [`Kernel`] is the real one, through `glue.c`.

use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// Executable memory.
pub(crate) trait Text {
    /// Takes contiguous pages. They can be executed, not written to, and hold traps.
    ///
    /// May sleep. The address is a multiple of the page size, and not 0.
    fn take(&self, pages: usize) -> Result<usize>;

    /// Gives back what [`Text::take`] returned. May sleep.
    fn give(&self, start: usize);

    /// Fills memory with instructions that trap. May sleep.
    fn trap(&self, start: usize, len: usize) -> Result;

    /// Changes memory. May sleep.
    fn poke(&self, start: usize, src: &[u8]) -> Result;
}

/// The executable memory of this kernel.
pub(crate) struct Kernel;

impl Text for Kernel {
    fn take(&self, pages: usize) -> Result<usize> {
        // SAFETY: The callers of `jit_alloc()` may sleep.
        match unsafe { bindings::jit_text_take(pages) } {
            0 => Err(ENOMEM),
            start => Ok(start),
        }
    }

    fn give(&self, start: usize) {
        // SAFETY: The allocator gives back what it took, once, and when nobody uses it.
        unsafe { bindings::jit_text_give(start) };
    }

    fn trap(&self, start: usize, len: usize) -> Result {
        // SAFETY: It is the allocator's text, and nobody uses it.
        to_result(unsafe { bindings::jit_text_trap(start, len) })
    }

    fn poke(&self, start: usize, src: &[u8]) -> Result {
        // SAFETY: It is text of one allocation; that nobody executes what is changed is a
        // requirement of `jit_update()`.
        to_result(unsafe { bindings::jit_text_poke(start, src.as_ptr().cast(), src.len()) })
    }
}

/// Has free text given back soon, by someone who may wait.
pub(crate) fn queue_trim() {
    // SAFETY: Can be called from anywhere.
    unsafe { bindings::jit_queue_trim() };
}
