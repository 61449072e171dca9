// SPDX-License-Identifier: GPL-2.0

//! The view of memory for text: the only place with `unsafe` over it.
//!
//! What can be done to memory is [`Memory`], so that the cache can be tested on memory that is
//! simulated. [`Kernel`] is the real one, through `glue.c`.

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// What memory is for, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text outside the direct map.
    Text,
    /// Read-only data outside the direct map.
    Rodata,
    /// Text that the direct map has as well.
    Aliased,
}

impl Kind {
    pub(crate) fn into_raw(self) -> bindings::execmem_kind {
        match self {
            Self::Text => bindings::execmem_kind_EXECMEM_TEXT,
            Self::Rodata => bindings::execmem_kind_EXECMEM_RODATA,
            Self::Aliased => bindings::execmem_kind_EXECMEM_ALIASED,
        }
    }
}

/// Memory that was mapped at once. There is a gap between any two of them.
pub(crate) trait Area: Unpin {
    /// Where it is.
    fn start(&self) -> usize;

    /// How many bytes there are.
    fn size(&self) -> usize;

    /// How many of them are mapped by larger entries.
    fn large(&self) -> usize;

    fn kind(&self) -> Kind;
}

/// Where memory comes from, and who else has to know.
pub(crate) trait Memory {
    type Area: Area;
    /// Where an allocation may be.
    type Place: Copy;

    /// Allocates memory: at least `size` bytes.
    ///
    /// Text is filled with trapping instructions, and not writable. Data is writable.
    fn allocate(&self, place: Self::Place, size: usize, kind: Kind) -> Option<Self::Area>;

    /// Unmaps and frees memory. May sleep, allocates nothing.
    fn release(&self, area: Self::Area);

    /// Whether an allocation may be at `start`.
    fn allows(&self, place: Self::Place, start: usize, size: usize) -> bool;

    /// Whether there is memory outside the direct map at all.
    fn is_ready(&self) -> bool;

    /// Overwrites text with trapping instructions. May wait for others who write to text if it
    /// is told so; else fails.
    fn trap(&self, start: usize, size: usize, wait: bool) -> Result;

    /// Makes text executable, and not writable.
    fn protect(&self, start: usize, size: usize, kind: Kind) -> Result;

    /// Makes data writable, whatever parts of it are.
    fn make_writable(&self, start: usize, size: usize) -> Result;

    /// Has [`super::cache::Cache::retry`] called soon.
    fn retry_later(&self);

    /// So many bytes more can be given back.
    fn count_idle(&self, nid: usize, bytes: isize);

    /// The node that memory should come from.
    fn this_node(&self) -> usize;

    /// Lets others run.
    fn relax(&self);
}

/// The memory of this machine.
pub(crate) struct Kernel;

/// An `execmem_range`.
///
/// # Invariants
///
/// It is one of those that exist since boot and never change.
#[derive(Clone, Copy)]
pub(crate) struct Range(NonNull<bindings::execmem_range>);

impl Range {
    /// # Safety
    ///
    /// `raw` is null, or a range that stays as it is.
    pub(crate) unsafe fn from_raw(raw: *const bindings::execmem_range) -> Option<Self> {
        // INVARIANT: By the safety requirement.
        NonNull::new(raw.cast_mut()).map(Self)
    }
}

/// An `execmem_area`.
///
/// # Invariants
///
/// Comes from `execmem_area_alloc()`, nobody else has it, and it does not change.
pub(crate) struct KernelArea(NonNull<bindings::execmem_area>);

// SAFETY: Nothing about the memory belongs to a task.
unsafe impl Send for KernelArea {}

impl KernelArea {
    fn get(&self) -> &bindings::execmem_area {
        // SAFETY: By the type invariant.
        unsafe { self.0.as_ref() }
    }
}

impl Area for KernelArea {
    fn start(&self) -> usize {
        self.get().start
    }

    fn size(&self) -> usize {
        self.get().size
    }

    fn large(&self) -> usize {
        self.get().large
    }

    fn kind(&self) -> Kind {
        match self.get().kind {
            bindings::execmem_kind_EXECMEM_RODATA => Kind::Rodata,
            bindings::execmem_kind_EXECMEM_ALIASED => Kind::Aliased,
            _ => Kind::Text,
        }
    }
}

impl Memory for Kernel {
    type Area = KernelArea;
    type Place = Range;

    fn allocate(&self, place: Range, size: usize, kind: Kind) -> Option<KernelArea> {
        // SAFETY: The range is valid by its invariant; the caller of `execmem_alloc()` may sleep.
        let raw = unsafe { bindings::execmem_area_alloc(place.0.as_ptr(), size, kind.into_raw()) };

        // INVARIANT: It was just allocated.
        NonNull::new(raw).map(KernelArea)
    }

    fn release(&self, area: KernelArea) {
        // SAFETY: By the invariant of `KernelArea` it is ours, and this is the end of it.
        unsafe { bindings::execmem_area_free(area.0.as_ptr()) };
    }

    fn allows(&self, place: Range, start: usize, size: usize) -> bool {
        // SAFETY: The range is valid by its invariant.
        unsafe { bindings::execmem_range_holds(place.0.as_ptr(), start, size) }
    }

    fn is_ready(&self) -> bool {
        // SAFETY: May be called from anywhere.
        unsafe { bindings::execmem_unmapped_is_ready() }
    }

    fn trap(&self, start: usize, size: usize, wait: bool) -> Result {
        // SAFETY: It is text of the cache that nobody has any more.
        to_result(unsafe { bindings::execmem_trap(start, size, wait) })
    }

    fn protect(&self, start: usize, size: usize, kind: Kind) -> Result {
        let aliased = kind == Kind::Aliased;

        // SAFETY: It is text of the cache that nobody has any more.
        to_result(unsafe { bindings::execmem_protect(start, size, aliased) })
    }

    fn make_writable(&self, start: usize, size: usize) -> Result {
        // SAFETY: It is data of the cache that nobody has any more.
        to_result(unsafe { bindings::execmem_make_writable(start, size) })
    }

    fn retry_later(&self) {
        // SAFETY: May be called from process context.
        unsafe { bindings::execmem_retry_later() };
    }

    fn count_idle(&self, nid: usize, bytes: isize) {
        // SAFETY: Nodes that have had memory stay.
        unsafe { bindings::execmem_count_idle(nid as c_int, bytes) };
    }

    fn this_node(&self) -> usize {
        // SAFETY: Only returns a number.
        unsafe { bindings::execmem_this_node() as usize }
    }

    fn relax(&self) {
        // SAFETY: Not called with a spinlock held.
        unsafe { bindings::execmem_cond_resched() };
    }
}

/// How many nodes there can be; all have a lower number.
pub(crate) fn possible_nodes() -> usize {
    // SAFETY: Only returns a number.
    unsafe { bindings::execmem_possible_nodes() as usize }
}
