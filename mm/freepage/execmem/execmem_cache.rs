// SPDX-License-Identifier: GPL-2.0

//! The cache of text outside the direct map.
//!
//! * [`holes`] finds free memory.
//! * [`cache`] decides where memory comes from, and what becomes of it when it is freed.
//! * [`area`] is the view of memory; the `unsafe` over it is there.
//!
//! What `mm/execmem.c` calls, and whatever else has to be in C, is in `glue.c`. Here is what that
//! calls.

use crate::{
    area::{
        Kernel,
        Range, //
    },
    cache::{
        Cache,
        Freed, //
    },
};
use kernel::{
    bindings,
    page::PAGE_SIZE,
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

mod area;
mod cache;
mod holes;
#[cfg(CONFIG_EXECMEM_KUNIT_TEST)]
mod mock;
#[cfg(CONFIG_EXECMEM_KUNIT_TEST)]
#[path = "../unmapped/random.rs"]
mod random;

const __LOG_PREFIX: &[u8] = b"execmem\0";

/// The cache, once it has been set up.
static CACHE: SetOnce<Arc<Cache<Kernel>>> = SetOnce::new();

/// Keeps the shrinker registered.
static SHRINKER: SetOnce<Registration<Cache<Kernel>>> = SetOnce::new();

impl Shrinker for Cache<Kernel> {
    type Ptr = Arc<Self>;

    fn count(me: ArcBorrow<'_, Self>, control: &ShrinkControl<'_>) -> Count {
        Count::of(me.reclaimable(control.nid() as usize) / PAGE_SIZE)
    }

    fn scan(me: ArcBorrow<'_, Self>, control: &mut ShrinkControl<'_>) -> Scan {
        let wanted = control.nr_to_scan().saturating_mul(PAGE_SIZE);
        let released = me.reclaim(control.nid() as usize, wanted) / PAGE_SIZE;

        control.set_nr_scanned(released);
        Scan::of(released)
    }
}

/// Sets the cache up.
///
/// # Safety
///
/// Called once, when slab and vmalloc are there, before any other function here.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_init() -> c_int {
    let init = || {
        let cache = Cache::new(Kernel, area::possible_nodes())?;

        CACHE.populate(Arc::new(cache, GFP_KERNEL)?);
        Ok(0)
    };

    kernel::error::from_result(init)
}

/// Lets reclaim have what is not in use.
///
/// # Safety
///
/// Called once, from an initcall.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_register() -> c_int {
    let register = || {
        let cache = CACHE.as_ref().ok_or(ENODEV)?.clone();

        SHRINKER.populate(Registration::new(c"execmem", Flags::NUMA_AWARE, cache)?);
        Ok(0)
    };

    kernel::error::from_result(register)
}

/// Gives back what is not in use, on all nodes. Returns how many bytes.
///
/// # Safety
///
/// Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_purge() -> usize {
    let purge = |cache: &Arc<Cache<Kernel>>| {
        (0..area::possible_nodes())
            .map(|nid| cache.reclaim(nid, usize::MAX))
            .sum()
    };

    CACHE.as_ref().map_or(0, purge)
}

/// Allocates text, or data that is going to be read-only; 0 if there is none.
///
/// # Safety
///
/// `range` stays as it is for ever. Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_alloc(
    range: *const bindings::execmem_range,
    size: usize,
    rodata: bool,
) -> usize {
    // SAFETY: By the safety requirement.
    let range = unsafe { Range::from_raw(range) };
    let (Some(range), Some(cache)) = (range, CACHE.as_ref()) else {
        return 0;
    };
    let start = if rodata {
        cache.alloc_rodata(range, size)
    } else {
        cache.alloc(range, size)
    };

    start.unwrap_or(0)
}

/// Frees what begins at `start`.
///
/// # Safety
///
/// Nobody uses it any more. Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_free(start: usize) -> bindings::execmem_freed {
    match CACHE
        .as_ref()
        .map_or(Freed::NotCached, |cache| cache.free(start))
    {
        Freed::Yes => bindings::execmem_freed_EXECMEM_FREED,
        Freed::NotCached => bindings::execmem_freed_EXECMEM_NOT_CACHED,
        Freed::Refused => bindings::execmem_freed_EXECMEM_REFUSED,
    }
}

/// What kind of memory an address is of.
///
/// # Safety
///
/// Called from process context.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_kind(address: usize) -> bindings::execmem_kind {
    CACHE
        .as_ref()
        .and_then(|cache| cache.kind(address))
        .map_or(bindings::execmem_kind_EXECMEM_FOREIGN, |kind| {
            kind.into_raw()
        })
}

/// Memory is about to be writable. Returns what kind it is of.
///
/// # Safety
///
/// Called from process context.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_make_writable(
    address: usize,
) -> bindings::execmem_kind {
    CACHE
        .as_ref()
        .and_then(|cache| cache.make_writable(address))
        .map_or(bindings::execmem_kind_EXECMEM_FOREIGN, |kind| {
            kind.into_raw()
        })
}

/// Memory is not writable any more.
///
/// # Safety
///
/// Called from process context.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_protected(address: usize, size: usize) {
    if let Some(cache) = CACHE.as_ref() {
        cache.protected(address, size);
    }
}

/// Overwrites what could not be overwritten when it was freed.
///
/// # Safety
///
/// Called from process context that may sleep.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_retry() {
    if let Some(cache) = CACHE.as_ref() {
        cache.retry();
    }
}

/// What debugfs shows of a node; false if there is no such node.
///
/// # Safety
///
/// `stats` can be written to.
#[export]
pub(crate) unsafe extern "C" fn execmem_rust_stats(
    nid: c_int,
    stats: *mut bindings::execmem_stats,
) -> bool {
    let Some(now) = CACHE.as_ref().and_then(|cache| cache.stats(nid as usize)) else {
        return false;
    };
    let now = bindings::execmem_stats {
        text: now.text,
        large: now.large,
        aliased: now.aliased,
        used: now.used,
        pending: now.pending,
        idle: now.idle,
        hole: now.hole,
        rodata: now.rodata,
    };

    // SAFETY: By the safety requirement.
    unsafe { stats.write(now) };
    true
}
