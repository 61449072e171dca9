// SPDX-License-Identifier: GPL-2.0

//! Executable memory in small pieces, for code that the kernel generates.
//!
//! * [`class`] says which sizes there are.
//! * [`slab`] knows the objects of one size.
//! * [`block`] knows which pages are whose.
//! * [`large`] knows what is larger than a page.
//! * [`jit`] is the allocator.
//! * [`text`] is the view of executable memory; the `unsafe` over it is there.
//!
//! The interface, and whatever else has to be in C, is in `glue.c`. Here is what it calls.

use crate::{
    class::Class,
    jit::Jit,
    slab::Problem,
    text::Kernel, //
};
use core::slice;
use kernel::{
    bindings,
    prelude::*,
    shrinker::{
        Count,
        Flags,
        Registration,
        Scan,
        ShrinkControl,
        Shrinker, //
    },
    sync::{
        Arc,
        ArcBorrow,
        SetOnce, //
    },
};

mod block;
mod class;
mod jit;
mod large;
#[cfg(CONFIG_JITALLOC_KUNIT_TEST)]
mod mock;
#[cfg(CONFIG_JITALLOC_KUNIT_TEST)]
#[path = "../unmapped/random.rs"]
mod random;
mod slab;
mod text;

const __LOG_PREFIX: &[u8] = b"jitalloc\0";

/// The allocator, once it has been set up.
static JIT: SetOnce<Arc<Jit<Kernel>>> = SetOnce::new();

/// Keeps the shrinker registered.
static SHRINKER: SetOnce<Registration<Jit<Kernel>>> = SetOnce::new();

impl Shrinker for Jit<Kernel> {
    type Ptr = Arc<Self>;

    fn count(me: ArcBorrow<'_, Self>, _control: &ShrinkControl<'_>) -> Count {
        Count::of(me.spare())
    }

    /// execmem allocates with its lock held, so it may be what waits here.
    fn scan(_me: ArcBorrow<'_, Self>, _control: &mut ShrinkControl<'_>) -> Scan {
        text::queue_trim();
        Scan::Stop
    }
}

fn init() -> Result {
    let jit = Arc::pin_init(Jit::new(Kernel)?, GFP_KERNEL)?;
    let shrinker = Registration::new(c"jitalloc", Flags::NONE, jit.clone())?;

    SHRINKER.populate(shrinker);
    JIT.populate(jit);
    Ok(())
}

/// Sets the allocator up.
///
/// # Safety
///
/// Called once, from an initcall, before any other function here.
#[export]
pub(crate) unsafe extern "C" fn jitalloc_init() -> c_int {
    kernel::error::from_result(|| init().map(|()| 0))
}

/// Allocates text; its address, or 0.
///
/// # Safety
///
/// Called from process context that may sleep. `src` is null, or can be read for `len` bytes;
/// `flush` is null or can be called.
#[export]
pub(crate) unsafe extern "C" fn jitalloc_alloc(
    src: *const c_void,
    len: usize,
    flush: Option<unsafe extern "C" fn()>,
) -> usize {
    // SAFETY: By the safety requirement.
    let src = (!src.is_null()).then(|| unsafe { slice::from_raw_parts(src.cast(), len) });
    // SAFETY: By the safety requirement.
    let flush = flush.map(|flush| move || unsafe { flush() });
    let flush = flush.as_ref().map(|flush| flush as &dyn Fn());

    JIT.as_ref()
        .and_then(|jit| jit.alloc(src, len, flush))
        .unwrap_or(0)
}

fn answer(result: Result<(), Problem>) -> bindings::jit_answer {
    match result {
        Ok(()) => bindings::jit_answer_JIT_DONE,
        Err(Problem::Foreign) => bindings::jit_answer_JIT_FOREIGN,
        Err(Problem::Inside) => bindings::jit_answer_JIT_INSIDE,
        Err(Problem::Freed) => bindings::jit_answer_JIT_FREED,
        Err(Problem::Beyond) => bindings::jit_answer_JIT_BEYOND,
        Err(Problem::Unpoked) => bindings::jit_answer_JIT_UNPOKED,
    }
}

/// Changes text.
///
/// # Safety
///
/// Called from process context that may sleep. `src` can be read for `len` bytes, and nobody
/// executes what is changed.
#[export]
pub(crate) unsafe extern "C" fn jitalloc_update(
    dst: usize,
    src: *const c_void,
    len: usize,
) -> bindings::jit_answer {
    if len == 0 {
        return bindings::jit_answer_JIT_DONE;
    }
    // SAFETY: By the safety requirement.
    let src = unsafe { slice::from_raw_parts(src.cast(), len) };

    answer(
        JIT.as_ref()
            .map_or(Err(Problem::Foreign), |jit| jit.update(dst, src)),
    )
}

/// Frees text.
///
/// # Safety
///
/// Called from process context that may sleep. Nobody executes the text.
#[export]
pub(crate) unsafe extern "C" fn jitalloc_free(start: usize) -> bindings::jit_answer {
    answer(
        JIT.as_ref()
            .map_or(Err(Problem::Foreign), |jit| jit.free(start)),
    )
}

/// Gives back what is free.
///
/// # Safety
///
/// Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn jitalloc_trim() {
    if let Some(jit) = JIT.as_ref() {
        jit.trim();
    }
}

/// What debugfs shows of a size class; false if there is no such class.
///
/// # Safety
///
/// `stats` can be written to.
#[export]
pub(crate) unsafe extern "C" fn jitalloc_class_stats(
    class: c_uint,
    stats: *mut bindings::jit_class_stats,
) -> bool {
    let (Some(jit), Some(class)) = (JIT.as_ref(), Class::nth(class as usize)) else {
        return false;
    };
    let now = jit.class_stats(class);
    let now = bindings::jit_class_stats {
        size: class.size(),
        objects: now.slabs * class.objects(),
        used: now.used,
        slabs: now.slabs,
        asked: now.asked,
    };

    // SAFETY: By the safety requirement.
    unsafe { stats.write(now) };
    true
}

/// What debugfs shows of all else; false if the allocator could not be set up.
///
/// # Safety
///
/// `totals` can be written to.
#[export]
pub(crate) unsafe extern "C" fn jitalloc_totals(totals: *mut bindings::jit_totals) -> bool {
    let Some(jit) = JIT.as_ref() else {
        return false;
    };
    let now = jit.totals();
    let now = bindings::jit_totals {
        blocks: now.blocks.blocks,
        block_pages: now.blocks.pages,
        free_pages: now.blocks.free,
        large: now.large.pieces,
        large_pages: now.large.pages,
        large_used: now.large.used,
        large_asked: now.large.asked,
        flushes: now.flushes as usize,
    };

    // SAFETY: By the safety requirement.
    unsafe { totals.write(now) };
    true
}
