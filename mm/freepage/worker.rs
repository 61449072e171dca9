// SPDX-License-Identifier: GPL-2.0

//! The worker: takes free pages that want a treatment off the free lists, a batch at a time, treats
//! them without the lock, and puts them back.
//!
//! What to treat, and how, is a [`Treatment`]; where the pages come from is a [`Source`]. This file
//! knows neither zones nor devices, which is how it is tested: against a mock of each.
//!
//! A pass is bounded: it visits no more groups of pages than its budget, holds the lock for a few
//! groups or one batch at a time, and yields the CPU between batches.

use crate::map::Run;
use core::marker::PhantomData;
use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        AtomicType,
        Full,
        Relaxed, //
    },
};

/// A pass may visit this many groups, 128 MiB with 4K pages, whatever is pending.
const BUDGET_MIN: usize = 64;

/// The delay between passes is not doubled more often than this.
const BACKOFF_MAX: i32 = 6;

/// The delay that is doubled, if there is none without back-off.
const BACKOFF_LEAST_MS: u32 = 10;

/// A block on a free list, for as long as the lock is held.
pub(crate) struct FreePage<'guard> {
    pub(crate) block: Run,
    _guard: PhantomData<&'guard ()>,
}

impl FreePage<'_> {
    /// Names a block on a free list; `_guard` is what proves that the lock is held.
    pub(crate) fn new<G>(_guard: &G, block: Run) -> FreePage<'_> {
        FreePage {
            block,
            _guard: PhantomData,
        }
    }

    /// Order of the block.
    pub(crate) fn order(&self) -> u32 {
        self.block.order
    }
}

/// Something that is done to free pages in the background.
pub(crate) trait Treatment {
    /// The granularity: aligned units of `1 << order` pages are treated whole.
    fn order(&self) -> u32;

    /// Whether `page` can be treated at all. Called with the lock held.
    fn wants(&self, page: &FreePage<'_>) -> bool;

    /// Treats the runs of `batch`, all or none.
    ///
    /// No lock is held, and the pages belong to the caller. On error they are put back as they
    /// were, to be treated later.
    fn treat<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> Result;
}

/// How a call of [`Source::isolate`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The lock was held for long enough; there may be more.
    More,
    /// The batch is full, or the source ran low on memory.
    Full,
    /// Nothing is left within the budget.
    Done,
}

/// Where free pages come from.
pub(crate) trait Source {
    /// Begins a pass, and returns the number of groups that may hold pages to be treated.
    fn begin(&self) -> usize;

    /// Takes pages that `treatment` wants off the free lists, during one hold of the lock, and
    /// subtracts the groups that are finished from `budget`.
    ///
    /// From here on they count as treated, unless they are put back as not.
    fn isolate(&self, treatment: &impl Treatment, batch: &mut Batch, budget: &mut usize) -> Step;

    /// Puts the pages of `batch` back, and empties it. Unless `treated`, they still want it.
    fn put_back(&self, batch: &mut Batch, treated: bool);
}

/// Room for the pages of one batch, allocated once.
pub(crate) struct Batch {
    /// Blocks taken off the free lists, to be put back.
    pub(crate) blocks: KVec<Run>,
    /// The parts of `blocks` that want treatment.
    pub(crate) runs: KVec<Run>,
    capacity: usize,
}

impl Batch {
    /// Allocates room for `capacity` runs.
    pub(crate) fn new(capacity: usize) -> Result<Self> {
        Ok(Self {
            blocks: KVec::with_capacity(capacity, GFP_KERNEL)?,
            runs: KVec::with_capacity(capacity, GFP_KERNEL)?,
            capacity,
        })
    }

    /// Whether no run fits any more.
    pub(crate) fn is_full(&self) -> bool {
        self.runs.len() == self.capacity
    }

    /// Adds a run of the block that was added last; returns false if it does not fit.
    pub(crate) fn push(&mut self, run: Run) -> bool {
        !self.is_full() && self.runs.push_within_capacity(run).is_ok()
    }

    /// Adds a block, of which at least one run will be pushed.
    pub(crate) fn push_block(&mut self, block: Run) {
        // Each block has a run of its own, so there is room for as many.
        let _ = self.blocks.push_within_capacity(block);
    }

    /// Empties the batch.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.runs.clear();
    }
}

/// Pages that were taken off the free lists. Dropped means put back.
pub(crate) struct IsolatedPages<'a, S: Source> {
    source: &'a S,
    batch: &'a mut Batch,
    treated: bool,
}

impl<'a, S: Source> IsolatedPages<'a, S> {
    fn new(source: &'a S, batch: &'a mut Batch) -> Self {
        Self {
            source,
            batch,
            treated: false,
        }
    }

    /// What is to be treated.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.batch.runs
    }

    /// Number of pages in [`Self::runs`].
    pub(crate) fn pages(&self) -> usize {
        self.runs().iter().map(Run::pages).sum()
    }

    /// Fills the batch, releasing the lock in between. Returns false if nothing is left.
    fn fill(&mut self, treatment: &impl Treatment, budget: &mut usize) -> bool {
        loop {
            match self.source.isolate(treatment, self.batch, budget) {
                Step::More => cond_resched(),
                Step::Full => return true,
                Step::Done => return false,
            }
        }
    }
}

impl<S: Source> Drop for IsolatedPages<'_, S> {
    fn drop(&mut self) {
        if !self.batch.blocks.is_empty() {
            self.source.put_back(self.batch, self.treated);
        }
    }
}

/// How a pass over a source ended.
///
/// Of several sources, the largest says when the next pass is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// All that was pending was visited.
    Done,
    /// The source is short of memory.
    Short,
    /// The budget was used up.
    More,
}

/// Lets others run. Process context, no lock held under which one must not sleep.
pub(crate) fn cond_resched() {
    // SAFETY: Callers are in process context.
    unsafe { bindings::freepage_cond_resched() };
}

/// Makes one pass over `source`: treats what wants it, within the budget.
///
/// On error the pages of the failed batch are back in the source and still want treatment.
pub(crate) fn pass<S: Source, T: Treatment>(
    source: &S,
    treatment: &mut T,
    batch: &mut Batch,
    stats: &Stats,
) -> Result<Outcome> {
    let pending = source.begin();
    // Follows what is pending, so that each pass leaves at most a quarter, but not the youngest
    // pages of a busy system, which are likely to be allocated again.
    let granted = pending.min(BUDGET_MIN.max(pending / 4 * 3));
    let mut budget = granted;

    if pending == 0 {
        return Ok(Outcome::Done);
    }
    loop {
        let mut pages = IsolatedPages::new(source, batch);
        let more = pages.fill(treatment, &mut budget);
        if !pages.runs().is_empty() {
            let count = pages.pages();
            if let Err(error) = treatment.treat(&mut pages) {
                stats.failures.add(1, Relaxed);
                return Err(error);
            }
            pages.treated = true;
            stats.batches.add(1, Relaxed);
            stats.pages.add(count as i64, Relaxed);
        } else if more {
            return Ok(Outcome::Short);
        }
        drop(pages);
        cond_resched();
        if !more {
            break;
        }
    }
    Ok(if granted < pending {
        Outcome::More
    } else {
        Outcome::Done
    })
}

/// Makes one pass over all `sources`; an error ends it.
pub(crate) fn pass_all<'a, S: Source + 'a, T: Treatment>(
    sources: impl Iterator<Item = &'a S>,
    treatment: &mut T,
    batch: &mut Batch,
    stats: &Stats,
) -> Result<Outcome> {
    let mut outcome = Outcome::Done;

    for source in sources {
        outcome = outcome.max(pass(source, treatment, batch, stats)?);
    }
    Ok(outcome)
}

/// What a worker has done since boot. Each figure stands for itself, hence relaxed.
pub(crate) struct Stats {
    /// Passes over all sources.
    pub(crate) passes: Atomic<i64>,
    /// Batches treated.
    pub(crate) batches: Atomic<i64>,
    /// Batches that failed.
    pub(crate) failures: Atomic<i64>,
    /// Pages treated.
    pub(crate) pages: Atomic<i64>,
}

impl Stats {
    /// All zero.
    pub(crate) const fn new() -> Self {
        Self {
            passes: Atomic::new(0),
            batches: Atomic::new(0),
            failures: Atomic::new(0),
            pages: Atomic::new(0),
        }
    }
}

/// Whether a pass is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
enum State {
    /// No pass is queued.
    Idle = 0,
    /// A pass is queued, or wanted after the one that runs.
    Requested = 1,
    /// A pass runs, and nothing was requested since it began.
    Active = 2,
}

// SAFETY: `State` has the size and alignment of `i32`, and every `State` is a valid `i32`.
unsafe impl AtomicType for State {
    type Repr = i32;
}

/// When passes happen. The owner queues them; this decides whether and after which delay.
pub(crate) struct Worker {
    state: Atomic<State>,
    /// How often the delay is doubled.
    backoff: Atomic<i32>,
    /// What was done.
    pub(crate) stats: Stats,
}

impl Worker {
    /// A worker without work.
    pub(crate) const fn new() -> Self {
        Self {
            state: Atomic::new(State::Idle),
            backoff: Atomic::new(0),
            stats: Stats::new(),
        }
    }

    /// Asks for a pass. If this returns true, the caller queues it after [`Self::delay_ms`].
    ///
    /// Any context.
    #[must_use]
    pub(crate) fn request(&self) -> bool {
        // Full: what the caller did before is visible to the pass, if none has to be queued.
        self.state.load(Relaxed) != State::Requested
            && self.state.xchg(State::Requested, Full) == State::Idle
    }

    /// Whether a pass is queued or wanted.
    pub(crate) fn is_requested(&self) -> bool {
        self.state.load(Relaxed) == State::Requested
    }

    /// A queued pass begins.
    pub(crate) fn begin(&self) {
        self.stats.passes.add(1, Relaxed);
        // Full: pairs with `request()`.
        self.state.xchg(State::Active, Full);
    }

    /// The pass ended. If this returns true, the caller queues the next one, see
    /// [`Self::request`].
    #[must_use]
    pub(crate) fn end(&self, outcome: Result<Outcome>) -> bool {
        match outcome {
            Ok(Outcome::Done) => self.backoff.store(0, Relaxed),
            Ok(Outcome::More) => {
                self.backoff.store(0, Relaxed);
                self.state.store(State::Requested, Relaxed);
            }
            // Whoever frees memory requests the next pass.
            Ok(Outcome::Short) => self.back_off(),
            Err(_) => {
                self.back_off();
                self.state.store(State::Requested, Relaxed);
            }
        }
        self.state
            .cmpxchg(State::Active, State::Idle, Full)
            .is_err()
    }

    /// Doubles the delay of the next pass.
    fn back_off(&self) {
        let doubled = self.backoff.load(Relaxed) + 1;
        self.backoff.store(doubled.min(BACKOFF_MAX), Relaxed);
    }

    /// Forgets everything but the statistics. No pass is queued or runs.
    pub(crate) fn reset(&self) {
        self.backoff.store(0, Relaxed);
        self.state.store(State::Idle, Relaxed);
    }

    /// The time until a pass begins, if `delay_ms` is the time without back-off.
    pub(crate) fn delay_ms(&self, delay_ms: u32) -> u32 {
        match self.backoff.load(Relaxed) {
            0 => delay_ms,
            doubled => delay_ms.max(BACKOFF_LEAST_MS).saturating_mul(1 << doubled),
        }
    }

    /// The delay that back-off led to, 0 if there is none.
    pub(crate) fn backoff_ms(&self, delay_ms: u32) -> u32 {
        match self.backoff.load(Relaxed) {
            0 => 0,
            _ => self.delay_ms(delay_ms),
        }
    }
}

#[cfg(CONFIG_FREEPAGE_KUNIT_TEST)]
#[kunit_tests(freepage_worker)]
mod tests {
    use super::*;
    use crate::mock::Mock;

    /// Treats what it is told to, and fails when it is told to.
    struct MockTreatment {
        order: u32,
        calls: usize,
        fail_at: Option<usize>,
    }

    impl MockTreatment {
        fn new(order: u32, fail_at: Option<usize>) -> Self {
            Self {
                order,
                calls: 0,
                fail_at,
            }
        }
    }

    impl Treatment for MockTreatment {
        fn order(&self) -> u32 {
            self.order
        }

        fn wants(&self, page: &FreePage<'_>) -> bool {
            page.order() >= self.order
        }

        fn treat<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> Result {
            assert!(!batch.runs().is_empty());
            self.calls += 1;
            if self.fail_at == Some(self.calls) {
                Err(EIO)
            } else {
                Ok(())
            }
        }
    }

    #[test]
    fn every_wanted_page_is_treated_once() -> Result {
        for order in 0..=10 {
            let source = Mock::new(5, 0..=10)?;
            let mut treatment = MockTreatment::new(order, None);
            let mut batch = Batch::new(8)?;
            let stats = Stats::new();

            for _ in 0..2 {
                let outcome = pass(&source, &mut treatment, &mut batch, &stats)?;
                assert_eq!(outcome, Outcome::Done);
            }
            assert!(source.is_whole());
            assert_eq!(
                source.count(|block| block.treated == usize::from(block.run.order >= order)),
                55
            );
            assert_eq!(stats.batches.load(Relaxed), treatment.calls as i64);
        }
        Ok(())
    }

    #[test]
    fn a_failure_at_any_batch_loses_nothing() -> Result {
        for fail_at in 1..=7 {
            let source = Mock::new(5, 0..=10)?;
            let mut treatment = MockTreatment::new(0, Some(fail_at));
            let mut batch = Batch::new(8)?;
            let stats = Stats::new();

            assert_eq!(pass(&source, &mut treatment, &mut batch, &stats), Err(EIO));
            assert!(source.is_whole());
            assert_eq!(source.count(|block| block.treated == 1), (fail_at - 1) * 8);

            // What failed, and what was not reached, is treated later.
            pass(&source, &mut treatment, &mut batch, &stats)?;
            assert_eq!(source.count(|block| block.treated == 1), 55);
        }
        Ok(())
    }

    #[test]
    fn the_budget_follows_what_is_pending() -> Result {
        let source = Mock::new(1000, 0..=0)?;
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(32)?;
        let mut left = 1000;

        while left > 0 {
            let granted = left.min(BUDGET_MIN.max(left / 4 * 3));
            let outcome = pass(&source, &mut treatment, &mut batch, &Stats::new())?;

            left -= granted;
            assert_eq!(source.count(|block| block.pending), left);
            let expected = if left == 0 {
                Outcome::Done
            } else {
                Outcome::More
            };
            assert_eq!(outcome, expected);
        }
        // The cursor went on where the last pass ended.
        assert_eq!(source.count(|block| block.treated == 1), 1000);
        Ok(())
    }

    #[test]
    fn a_short_source_is_left_alone() -> Result {
        let source = Mock::new(10, 0..=0)?;
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(4)?;

        source.short.set(true);
        let outcome = pass(&source, &mut treatment, &mut batch, &Stats::new())?;
        assert_eq!(outcome, Outcome::Short);
        assert_eq!(source.count(|block| block.pending), 10);
        assert_eq!(treatment.calls, 0);
        Ok(())
    }

    #[test]
    fn sources_are_taken_in_turn() -> Result {
        let sources = [
            Mock::new(3, 0..=0)?,
            Mock::new(200, 0..=0)?,
            Mock::new(3, 0..=0)?,
        ];
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(4)?;

        sources[0].short.set(true);
        let outcome = pass_all(sources.iter(), &mut treatment, &mut batch, &Stats::new())?;
        assert_eq!(outcome, Outcome::More);
        assert_eq!(sources[0].count(|block| block.treated == 0), 3);
        assert_eq!(sources[1].count(|block| block.treated == 1), 150);
        assert_eq!(sources[2].count(|block| block.treated == 1), 3);
        Ok(())
    }

    #[test]
    fn one_pass_is_queued_at_a_time() {
        let worker = Worker::new();

        assert!(worker.request());
        assert!(!worker.request());
        worker.begin();
        assert!(!worker.is_requested());
        assert!(!worker.end(Ok(Outcome::Done)));

        // Requested while the pass runs: queued when it ends, not before.
        assert!(worker.request());
        worker.begin();
        assert!(!worker.request());
        assert!(worker.end(Ok(Outcome::Done)));
        worker.begin();
        assert!(!worker.end(Ok(Outcome::Done)));
    }

    #[test]
    fn back_off_doubles_and_ends() {
        let worker = Worker::new();

        assert_eq!(worker.backoff_ms(2000), 0);
        for doubled in 1..=BACKOFF_MAX + 2 {
            worker.begin();
            // A device is tried again; memory has to be freed by someone.
            if doubled % 2 == 0 {
                assert!(!worker.end(Ok(Outcome::Short)));
            } else {
                assert!(worker.end(Err(EIO)));
            }
            assert_eq!(worker.backoff_ms(2000), 2000 << doubled.min(BACKOFF_MAX));
            // No delay at all is no reason to never let go.
            assert_eq!(
                worker.delay_ms(0),
                BACKOFF_LEAST_MS << doubled.min(BACKOFF_MAX)
            );
        }
        assert_eq!(worker.delay_ms(u32::MAX), u32::MAX);
        worker.begin();
        assert!(worker.end(Ok(Outcome::More)));
        assert_eq!(worker.backoff_ms(2000), 0);
        assert_eq!(worker.delay_ms(2000), 2000);
    }
}
