// SPDX-License-Identifier: GPL-2.0

//! The unmapped page allocator: free pages that are not in the kernel's direct map.
//!
//! * [`buddy`] splits and merges free blocks.
//! * [`cache`] decides when blocks leave the direct map, and when they return.
//! * [`pages`] is the view of pages and of the direct map; the `unsafe` over them is there.
//!
//! The hook of the page allocator is in `unmapped.h`; the interface, and whatever else has to be
//! in C, in `glue.c`. Here is what it calls.

use crate::{
    cache::Cache,
    pages::{
        Gfp,
        Kernel,
        PageLists, //
    },
};
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

mod buddy;
mod cache;
#[cfg(CONFIG_UNMAPPED_ALLOC_KUNIT_TEST)]
mod mock;
mod pages;
#[cfg(CONFIG_UNMAPPED_ALLOC_KUNIT_TEST)]
mod random;

const __LOG_PREFIX: &[u8] = b"unmapped_alloc\0";

/// The cache, once it has been set up.
static CACHE: SetOnce<Arc<Cache<Kernel>>> = SetOnce::new();

/// Keeps the shrinker registered.
static SHRINKER: SetOnce<Registration<Cache<Kernel>>> = SetOnce::new();

impl Shrinker for Cache<Kernel> {
    type Ptr = Arc<Self>;

    fn count(me: ArcBorrow<'_, Self>, control: &ShrinkControl<'_>) -> Count {
        Count::of(me.reclaimable(control.nid() as usize))
    }

    fn scan(me: ArcBorrow<'_, Self>, control: &mut ShrinkControl<'_>) -> Scan {
        let released = me.reclaim(control.nid() as usize, control.nr_to_scan());

        control.set_nr_scanned(released);
        Scan::of(released)
    }
}

fn init() -> Result {
    let nodes = pages::possible_nodes();
    let cache = Arc::new(Cache::new(Kernel, nodes, PageLists::new)?, GFP_KERNEL)?;
    let shrinker = Registration::new(c"unmapped_alloc", Flags::NUMA_AWARE, cache.clone())?;

    SHRINKER.populate(shrinker);
    CACHE.populate(cache);
    Ok(())
}

/// Sets the cache up.
///
/// # Safety
///
/// Called once, from an initcall, before any other function here.
#[export]
pub(crate) unsafe extern "C" fn unmapped_alloc_init() -> c_int {
    kernel::error::from_result(|| init().map(|()| 0))
}

/// Takes pages that are cached; the first page frame number, or `usize::MAX`.
///
/// # Safety
///
/// Called from process context.
#[export]
pub(crate) unsafe extern "C" fn unmapped_alloc_take(nid: c_int, order: c_uint) -> usize {
    let run = CACHE
        .as_ref()
        .and_then(|cache| cache.take(nid as usize, order));

    run.map_or(usize::MAX, |run| run.start)
}

/// Takes pages after a refill, of a block up to the order `largest`; the first page frame number,
/// or `usize::MAX`.
///
/// # Safety
///
/// Called from process context that may sleep, as `gfp` says. `nodes` is null or valid.
#[export]
pub(crate) unsafe extern "C" fn unmapped_alloc_refill(
    gfp: bindings::gfp_t,
    nodes: *mut bindings::nodemask_t,
    nid: c_int,
    order: c_uint,
    largest: c_uint,
) -> usize {
    // SAFETY: By the safety requirement.
    let gfp = unsafe { Gfp::new(gfp).within(nodes) };
    let run = CACHE
        .as_ref()
        .and_then(|cache| cache.refill(gfp, nid as usize, order, largest));

    run.map_or(usize::MAX, |run| run.start)
}

/// Takes back pages that were freed.
///
/// # Safety
///
/// Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn unmapped_alloc_drain() {
    if let Some(cache) = CACHE.as_ref() {
        cache.drain();
    }
}

/// Gives the direct map its larger entries back.
///
/// # Safety
///
/// Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn unmapped_alloc_collapse() {
    if let Some(cache) = CACHE.as_ref() {
        cache.collapse();
    }
}

/// Gives back all free pages of a node.
///
/// # Safety
///
/// Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn unmapped_alloc_release_all(nid: c_int) {
    if let Some(cache) = CACHE.as_ref() {
        cache.release_all(nid as usize);
    }
}

/// Gives back what was free all the time since this was called last; how many pages stay free.
///
/// # Safety
///
/// Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn unmapped_alloc_age(nid: c_int) -> usize {
    CACHE.as_ref().map_or(0, |cache| cache.age(nid as usize))
}

/// What debugfs shows of a node; false if there is no such node.
///
/// # Safety
///
/// `stats` can be written to.
#[export]
pub(crate) unsafe extern "C" fn unmapped_alloc_stats(
    nid: c_int,
    stats: *mut bindings::unmapped_stats,
) -> bool {
    let Some(now) = CACHE.as_ref().and_then(|cache| cache.stats(nid as usize)) else {
        return false;
    };
    let now = bindings::unmapped_stats {
        free: now.free,
        cached: now.cached,
        released: now.released,
    };

    // SAFETY: By the safety requirement.
    unsafe { stats.write(now) };
    true
}
