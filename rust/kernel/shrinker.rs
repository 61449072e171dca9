// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: how a cache gives memory back when the system is short of it.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)

use crate::{
    alloc::AllocError,
    bindings,
    error::Result,
    ffi::c_ulong,
    str::{
        CStr,
        CStrExt as _, //
    },
    types::ForeignOwnable,
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A cache that can give memory back.
///
/// # Examples
///
/// ```
/// use kernel::{
///     shrinker::{Count, Flags, Registration, Scan, Shrinker, ShrinkControl},
///     sync::{
///         atomic::{Atomic, Relaxed},
///         Arc,
///         ArcBorrow,
///     },
/// };
///
/// struct Spares(Atomic<usize>);
///
/// impl Shrinker for Spares {
///     type Ptr = Arc<Spares>;
///
///     fn count(me: ArcBorrow<'_, Spares>, _control: &ShrinkControl<'_>) -> Count {
///         Count::of(me.0.load(Relaxed))
///     }
///
///     fn scan(me: ArcBorrow<'_, Spares>, control: &mut ShrinkControl<'_>) -> Scan {
///         let spares = me.0.load(Relaxed);
///         let freed = spares.min(control.nr_to_scan());
///
///         me.0.store(spares - freed, Relaxed);
///         control.set_nr_scanned(freed);
///         Scan::of(freed)
///     }
/// }
///
/// let spares = Arc::new(Spares(Atomic::new(0)), GFP_KERNEL)?;
/// let _registration = Registration::<Spares>::new(c"rust-doctest", Flags::NONE, spares)?;
/// # Ok::<(), Error>(())
/// ```
pub trait Shrinker: 'static {
    /// What is handed to the functions below; the registration owns it.
    type Ptr: ForeignOwnable + Send + Sync;

    /// How many objects could be freed.
    ///
    /// Called often, from any reclaim context: it is an estimate, and should be cheap.
    fn count(me: <Self::Ptr as ForeignOwnable>::Borrowed<'_>, control: &ShrinkControl<'_>)
        -> Count;

    /// Frees objects, about as many as [`ShrinkControl::nr_to_scan`] says.
    ///
    /// Called from any reclaim context: whoever waits for the memory may hold any lock under which
    /// memory is allocated.
    fn scan(
        me: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        control: &mut ShrinkControl<'_>,
    ) -> Scan;
}

/// What [`Shrinker::count`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// There is nothing to free.
    Empty,
    /// There may be, but it is unknown how much, or not worth it now.
    Unknown,
    /// So many objects could be freed.
    Objects(usize),
}

impl Count {
    /// `objects`, or [`Count::Empty`] if there are none.
    pub const fn of(objects: usize) -> Self {
        match objects {
            0 => Self::Empty,
            _ => Self::Objects(objects),
        }
    }

    const fn into_raw(self) -> c_ulong {
        match self {
            Self::Empty => bindings::SHRINK_EMPTY as c_ulong,
            Self::Unknown => 0,
            // The values above are special.
            Self::Objects(objects) if objects as c_ulong > c_ulong::MAX / 2 => c_ulong::MAX / 2,
            Self::Objects(objects) => objects as c_ulong,
        }
    }
}

/// How [`Shrinker::scan`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// So many objects were freed.
    Freed(usize),
    /// There is no point in another call from this reclaim context.
    Stop,
}

impl Scan {
    /// `objects`, or [`Scan::Stop`] if none were freed.
    pub const fn of(objects: usize) -> Self {
        match objects {
            0 => Self::Stop,
            _ => Self::Freed(objects),
        }
    }

    const fn into_raw(self) -> c_ulong {
        match self {
            Self::Stop => bindings::SHRINK_STOP as c_ulong,
            Self::Freed(objects) if objects as c_ulong > c_ulong::MAX / 2 => c_ulong::MAX / 2,
            Self::Freed(objects) => objects as c_ulong,
        }
    }
}

/// What a shrinker is able to do.
#[derive(Clone, Copy)]
pub struct Flags(u32);

impl Flags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// It looks at [`ShrinkControl::nid`], and is called for each node.
    pub const NUMA_AWARE: Self = Self(bindings::SHRINKER_NUMA_AWARE);
}

/// What reclaim asks for.
///
/// # Invariants
///
/// Valid, and accessed by nobody else, for the lifetime `'a`.
pub struct ShrinkControl<'a> {
    raw: NonNull<bindings::shrink_control>,
    _lifetime: PhantomData<&'a mut bindings::shrink_control>,
}

impl ShrinkControl<'_> {
    /// # Safety
    ///
    /// `raw` is valid, and accessed by nobody else, while the outcome exists.
    unsafe fn from_raw(raw: *mut bindings::shrink_control) -> Self {
        // INVARIANT: By the safety requirement.
        Self {
            // SAFETY: A valid pointer is not null.
            raw: unsafe { NonNull::new_unchecked(raw) },
            _lifetime: PhantomData,
        }
    }

    fn raw(&self) -> &bindings::shrink_control {
        // SAFETY: By the type invariant.
        unsafe { self.raw.as_ref() }
    }

    /// The node that is short of memory. Shrinkers that are not [`Flags::NUMA_AWARE`] are told as
    /// well, but have one count for all nodes.
    pub fn nid(&self) -> i32 {
        self.raw().nid
    }

    /// How many objects should be tried.
    pub fn nr_to_scan(&self) -> usize {
        self.raw().nr_to_scan
    }

    /// Says how many objects were tried, which is taken to be [`Self::nr_to_scan`] otherwise.
    pub fn set_nr_scanned(&mut self, objects: usize) {
        // SAFETY: By the type invariant.
        unsafe { self.raw.as_mut() }.nr_scanned = objects;
    }
}

/// A registered shrinker; unregistered when dropped.
///
/// # Invariants
///
/// `raw` is a registered shrinker with the callbacks of `T`, whose private data is from
/// [`ForeignOwnable::into_foreign`] of a `T::Ptr`.
pub struct Registration<T: Shrinker> {
    raw: NonNull<bindings::shrinker>,
    _data: PhantomData<T::Ptr>,
}

// SAFETY: A shrinker may be unregistered by any task, and the data is `Send`.
unsafe impl<T: Shrinker> Send for Registration<T> {}

// SAFETY: There is nothing to be done with a shared reference.
unsafe impl<T: Shrinker> Sync for Registration<T> {}

impl<T: Shrinker> Registration<T> {
    /// Registers a shrinker.
    ///
    /// `name` is what it is called in debugfs (`CONFIG_SHRINKER_DEBUG`).
    pub fn new(name: &CStr, flags: Flags, data: T::Ptr) -> Result<Self> {
        // SAFETY: The format takes one string, and both strings are null-terminated.
        let raw =
            unsafe { bindings::shrinker_alloc(flags.0, c"%s".as_char_ptr(), name.as_char_ptr()) };
        let raw = NonNull::new(raw).ok_or(AllocError)?;

        // SAFETY: It is ours until it is registered.
        let shrinker = unsafe { &mut *raw.as_ptr() };
        shrinker.count_objects = Some(Self::count_objects);
        shrinker.scan_objects = Some(Self::scan_objects);
        shrinker.private_data = data.into_foreign().cast();

        // SAFETY: Comes from `shrinker_alloc()`, and has its callbacks.
        unsafe { bindings::shrinker_register(raw.as_ptr()) };
        // INVARIANT: All of it was just done.
        Ok(Self {
            raw,
            _data: PhantomData,
        })
    }

    /// # Safety
    ///
    /// Called by reclaim for a shrinker that [`Self::new`] registered.
    unsafe extern "C" fn count_objects(
        shrinker: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: Reclaim lends its control to this call.
        let control = unsafe { ShrinkControl::from_raw(control) };
        // SAFETY: The private data is from `into_foreign()`, and taken back only after the last
        // call has returned.
        let me = unsafe { T::Ptr::borrow((*shrinker).private_data.cast()) };

        T::count(me, &control).into_raw()
    }

    /// # Safety
    ///
    /// Called by reclaim for a shrinker that [`Self::new`] registered.
    unsafe extern "C" fn scan_objects(
        shrinker: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: Reclaim lends its control to this call.
        let mut control = unsafe { ShrinkControl::from_raw(control) };
        // SAFETY: As in `count_objects()`.
        let me = unsafe { T::Ptr::borrow((*shrinker).private_data.cast()) };

        T::scan(me, &mut control).into_raw()
    }
}

impl<T: Shrinker> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is registered, so its data is there.
        let data = unsafe { (*self.raw.as_ptr()).private_data };

        // SAFETY: It is registered. After this no callback runs.
        unsafe { bindings::shrinker_free(self.raw.as_ptr()) };
        // SAFETY: By the type invariant, and nobody borrows it any more.
        drop(unsafe { T::Ptr::from_foreign(data.cast()) });
    }
}
