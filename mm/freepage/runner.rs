// SPDX-License-Identifier: GPL-2.0

//! The runner: when a treatment makes passes over all zones, and how it starts and stops.
//!
//! A treatment whose passes are work items has a [`Runner`], a static, and a [`Job`], which is
//! there while it is started. Whoever frees memory requests a pass, which begins after a delay, or
//! earlier if it is [`Patience`] that decides. A pass ends early when the treatment is stopped, and
//! when the system is about to be suspended: then it goes on afterwards.
//!
//! Start, stop and forget are called by one at a time; the caller has a lock for that. A pass does
//! not take it.

use crate::{
    map::GROUP,
    primitives::{
        self,
        Kind, //
    },
    worker::{
        self,
        Batch,
        Next,
        Patience,
        Resting,
        Source,
        Stats,
        Stop,
        Treatment,
        Worker, //
    },
    zone, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        barrier::smp_mb, //
    },
};

/// What a pass needs, allocated when a treatment starts so that it never fails later.
pub(crate) struct Job<T> {
    pub(crate) treatment: T,
    batch: Batch,
    patience: Patience,
}

impl<T: Treatment> Job<T> {
    /// A job whose batches have room for `capacity` runs.
    pub(crate) fn new(treatment: T, capacity: usize) -> Result<Self> {
        Ok(Self {
            treatment,
            batch: Batch::new(capacity)?,
            patience: Patience::new(),
        })
    }
}

/// What the user has chosen.
#[derive(Clone, Copy)]
pub(crate) struct Delay {
    /// The time between a request and its pass, in ms.
    pub(crate) ms: u32,
    /// Whether it is less where nobody allocates memory.
    pub(crate) adapts: bool,
}

impl Delay {
    /// The time until it is looked whether a pass is due, which is after `ms` at the latest.
    fn first_ms(self, ms: u32) -> u32 {
        match self.adapts && ms == self.ms {
            true => Patience::look_ms(ms),
            false => ms,
        }
    }
}

/// Makes the passes of a treatment.
pub(crate) struct Runner {
    kind: Kind,
    delay: fn() -> Delay,
    worker: Worker,
    /// Whether passes can be queued, and go on.
    started: Atomic<bool>,
    /// Whether the next pass has to look at all that was freed, also where nothing is pending.
    revisit: Atomic<bool>,
}

/// When a pass of a runner ends.
struct Pass<'a> {
    runner: &'a Runner,
    /// Whether nobody allocates memory.
    calm: bool,
}

impl Stop for Pass<'_> {
    fn is_wanted(&self) -> bool {
        self.runner.is_stopping()
    }

    fn leaves_some(&self) -> bool {
        !self.calm
    }
}

/// When a flush ends.
struct Flush<'a> {
    runner: &'a Runner,
    /// What [`Stats::pages`] will be then.
    until: usize,
    order: u32,
}

impl Stop for Flush<'_> {
    fn is_wanted(&self) -> bool {
        let unit = 1 << self.order;
        self.runner.is_stopping() || primitives::is_interrupted() || self.pages_left() < unit
    }

    fn pages_left(&self) -> usize {
        self.until.saturating_sub(self.runner.pages())
    }

    fn leaves_some(&self) -> bool {
        false
    }
}

impl Runner {
    /// A runner that is not started; `delay` tells what the user has chosen.
    pub(crate) const fn new(kind: Kind, delay: fn() -> Delay) -> Self {
        Self {
            kind,
            delay,
            worker: Worker::new(),
            started: Atomic::new(false),
            revisit: Atomic::new(false),
        }
    }

    /// What was done since boot.
    pub(crate) fn stats(&self) -> &Stats {
        &self.worker.stats
    }

    /// The longest time, in ms, by which anything is delayed beyond what the user has chosen, for
    /// want of memory or since passes failed; 0 if nothing is. May sleep.
    pub(crate) fn backoff_ms(&self) -> u32 {
        let delay_ms = (self.delay)().ms;
        let rests =
            zone::sources(self.kind).map(|zone| zone.rest(|rest| rest.backoff_ms(delay_ms)));

        rests.fold(self.worker.backoff_ms(delay_ms), u32::max)
    }

    /// Tracks all zones, takes all that is free for freed, and requests a pass.
    ///
    /// Blocks of at least `order` request passes. The [`Job`] is there. May sleep; on error nothing
    /// has changed.
    pub(crate) fn start(&self, order: u32) -> Result {
        zone::track(self.kind)?;
        // Before a pass, which may be the next thing that happens: what is freed after it must not
        // go unseen.
        primitives::track(self.kind, true);
        self.worker.reset();
        self.set_order(order);
        // Release: pairs with `request()`.
        self.started.store(true, Release);
        self.request();
        Ok(())
    }

    /// Undoes what [`Self::start`] did, and waits for a pass that runs. May sleep.
    pub(crate) fn stop(&self) {
        primitives::track(self.kind, false);
        // No zone is tracked after this, so that no hook requests a pass.
        zone::untrack(self.kind);
        primitives::sync(self.kind);
        self.started.store(false, Relaxed);
        primitives::cancel(self.kind);
        primitives::set_order(self.kind, None);
        self.worker.reset();
    }

    /// Blocks of at least `order` request passes from now on.
    pub(crate) fn set_order(&self, order: u32) {
        primitives::set_order(self.kind, Some(order));
    }

    /// Requests a pass, if started. Any context; no zone lock is held.
    pub(crate) fn request(&self) {
        // Acquire: pairs with `start()`.
        if self.started.load(Acquire) && self.worker.request() {
            self.queue_next();
        }
    }

    /// Makes the next pass look at all that was freed, and requests one if started. `lock` takes
    /// what keeps start and stop away.
    ///
    /// May be called before there is such a lock.
    pub(crate) fn revisit<G>(&self, lock: impl FnOnce() -> G) {
        // Release: who sees it sees what is to be looked for.
        self.revisit.store(true, Release);
        // Pairs with `start()`, by way of `request()`: either its first pass sees what was just
        // stored, or this sees that it is started.
        smp_mb(Full);
        if self.started.load(Relaxed) {
            let _lock = lock();
            self.request();
        }
    }

    /// The delay was changed: applies it to a pass that is queued. `lock` as above.
    pub(crate) fn delay_changed<G>(&self, lock: impl FnOnce() -> G) {
        if self.started.load(Relaxed) {
            let _lock = lock();
            // Pairs with `request()` and `end()`: either they see the delay, or they are seen here.
            smp_mb(Full);
            if self.started.load(Relaxed) && self.worker.is_requested() {
                self.queue_next();
            }
        }
    }

    /// Takes all that is free for freed, and requests a pass. May sleep.
    pub(crate) fn forget(&self) {
        zone::sources(self.kind).for_each(|zone| zone.forget());
        self.request();
    }

    /// Whether a pass is due, and whether nobody allocates memory; if not it is queued anew.
    fn is_due(&self, patience: &mut Patience, delay: Delay) -> Option<bool> {
        if !delay.adapts || self.worker.backoff_ms(delay.ms) > 0 || self.is_stopping() {
            return Some(false);
        }
        let Some(allocated) = primitives::allocated() else {
            return Some(false);
        };
        let groups: usize = zone::sources(self.kind).map(|zone| zone.pending()).sum();
        let freed = (groups * GROUP) as u64;
        match patience.look(primitives::now_ms(), allocated, freed, delay.ms) {
            Ok(calm) => Some(calm),
            Err(look_ms) => {
                self.queue(look_ms, true);
                None
            }
        }
    }

    /// Makes one pass over all zones, if it is due; `prepare` is called after the request was taken
    /// note of.
    ///
    /// Called as the work of the treatment, while it is started. Returns whether another pass is
    /// queued, or `None` if there was none.
    pub(crate) fn pass<T: Treatment>(
        &self,
        job: &mut Job<T>,
        prepare: impl FnOnce(&mut T),
    ) -> Option<bool> {
        let delay = (self.delay)();
        let calm = self.is_due(&mut job.patience, delay)?;

        self.worker.begin();
        // Full: before what `prepare` reads. Who changes that afterwards requests another pass.
        let revisit = self.revisit.xchg(false, Full);
        prepare(&mut job.treatment);
        if revisit {
            zone::sources(self.kind).for_each(|zone| zone.revisit());
        }
        let runner = self;
        let all = worker::pass_all(
            zone::sources(self.kind),
            &mut job.treatment,
            &mut job.batch,
            &self.worker.stats,
            &Pass { runner, calm },
            (primitives::now_ms(), delay.ms),
        );
        match self.worker.end(all) {
            Next::Nothing => return Some(false),
            Next::Pass => self.queue_next(),
            Next::Rested(rested_ms) => self.queue(rested_ms.max(delay.ms), false),
        }
        Some(true)
    }

    /// Treats what is free, up to `pages`, in the task of the caller. May sleep.
    ///
    /// Ends when that is done, when nothing is left that can be treated now, or with an error:
    /// `EINTR` on a signal. What was treated until then stays so.
    pub(crate) fn flush<T: Treatment>(&self, job: &mut Job<T>, pages: usize) -> Result {
        let stop = Flush {
            runner: self,
            until: self.pages().saturating_add(pages),
            order: job.treatment.order(),
        };
        loop {
            let before = self.pages();
            worker::pass_all(
                zone::sources(self.kind),
                &mut job.treatment,
                &mut job.batch,
                &self.worker.stats,
                &stop,
                (primitives::now_ms(), (self.delay)().ms),
            )?;
            if primitives::is_interrupted() {
                return Err(EINTR);
            }
            // What is freed meanwhile belongs to it, too.
            if stop.is_wanted() || self.pages() == before {
                return Ok(());
            }
        }
    }

    /// Queues the pass that was just requested.
    fn queue_next(&self) {
        // Pairs with `delay_changed()`.
        smp_mb(Full);
        let delay = (self.delay)();
        self.queue(delay.first_ms(self.worker.delay_ms(delay.ms)), true);
    }

    /// Whether a pass that runs is to end.
    fn is_stopping(&self) -> bool {
        !self.started.load(Relaxed) || primitives::freezing()
    }

    /// Pages that were treated since boot.
    fn pages(&self) -> usize {
        self.worker.stats.pages.load(Relaxed) as usize
    }

    fn queue(&self, delay_ms: u32, again: bool) {
        if self.started.load(Relaxed) {
            primitives::queue(self.kind, delay_ms, again);
        }
    }
}
