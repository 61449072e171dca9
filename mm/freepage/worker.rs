// SPDX-License-Identifier: GPL-2.0

//! The worker: takes free pages that want a treatment off the free lists, a batch at a time, treats
//! them without the lock, and puts them back.
//!
//! What to treat, and how, is a [`Treatment`]; where the pages come from is a [`Source`]. This file
//! knows neither zones nor devices, which is how it is tested: against a mock of each. When passes
//! are made is up to [`super::runner`].
//!
//! A pass is bounded: it visits no more groups of pages than its budget, holds the lock for a few
//! groups or one batch at a time, yields the CPU between batches, and ends there when told to.

use crate::{
    map::Run,
    primitives::{
        cond_resched,
        Held,
        State, //
    },
};
use core::cell::Cell;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        barrier::smp_mb, //
    },
};

/// A pass may visit this many groups, 128 MiB with 4K pages, whatever is pending.
const BUDGET_MIN: usize = 64;

/// A delay is not doubled more often than this.
const DOUBLED_MAX: u32 = 6;

/// The delay that is doubled, if there is none without back-off.
const BACKOFF_LEAST_MS: u32 = 10;

/// A block on a free list, for as long as the lock is held.
pub(crate) struct FreePage<'held> {
    block: Run,
    held: &'held dyn Held,
    keeps_zeroed: bool,
    /// Whether its pages were looked at.
    looked: Cell<bool>,
}

impl<'held> FreePage<'held> {
    /// Names a block on a free list of the source whose lock is `held`; `keeps_zeroed` tells
    /// whether its zeroed memory is a reserve.
    pub(crate) fn new(held: &'held dyn Held, block: Run, keeps_zeroed: bool) -> Self {
        Self {
            block,
            held,
            keeps_zeroed,
            looked: Cell::new(false),
        }
    }

    /// Order of the block.
    pub(crate) fn order(&self) -> u32 {
        self.block.order
    }

    /// Whether the block is part of a reserve of memory that is known to be zero. Looks at its
    /// pages: to be asked last.
    pub(crate) fn is_reserve(&self) -> bool {
        if !self.keeps_zeroed {
            return false;
        }
        self.looked.set(true);
        self.held.is_zeroed(self.block)
    }

    /// Whether that was asked for: it takes time.
    pub(crate) fn was_looked_at(&self) -> bool {
        self.looked.get()
    }
}

/// How far a treatment came with a batch.
pub(crate) struct Treated {
    /// So many runs, the first ones, are treated. The others want it still.
    pub(crate) runs: usize,
    /// Why it did not come further. An error ends the pass.
    pub(crate) result: Result,
}

/// Something that is done to free pages in the background.
pub(crate) trait Treatment {
    /// Pages that are off the free lists at once, at most: whoever preempts the treatment lacks
    /// them. At least a unit.
    const PAGES_MAX: usize;

    /// The granularity: aligned units of `1 << order` pages are treated whole. Does not change
    /// during a pass.
    fn order(&self) -> u32;

    /// Whether `page` can be treated at all. Called with the lock held.
    fn wants(&self, page: &FreePage<'_>) -> bool;

    /// Treats the runs of `batch`, or the first of them.
    ///
    /// No lock is held, and the pages belong to the caller. What was not treated is put back as it
    /// was, to be treated later.
    fn treat<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> Treated;
}

/// How a call of [`Source::isolate`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The lock was held for long enough; there may be more.
    More,
    /// The batch is full.
    Full,
    /// Memory is short, so that nothing more can be taken.
    Short,
    /// Nothing is left within the budget.
    Done,
}

/// How much a pass may do, in groups.
pub(crate) struct Budget {
    /// Groups that may be finished.
    groups: usize,
    /// Groups that may be looked at: some of them cannot be finished, as in isolated pageblocks.
    looks: usize,
}

impl Budget {
    /// Whether nothing is left.
    pub(crate) fn is_spent(&self) -> bool {
        self.groups == 0 || self.looks == 0
    }

    /// A group was looked at.
    pub(crate) fn visited(&mut self, finished: bool) {
        self.looks = self.looks.saturating_sub(1);
        self.groups = self.groups.saturating_sub(usize::from(finished));
    }
}

/// Where free pages come from.
pub(crate) trait Source {
    /// Begins a pass, and returns the number of groups that may hold pages to be treated.
    fn begin(&self) -> usize;

    /// The number of groups that may hold pages to be treated.
    fn pending(&self) -> usize;

    /// Whether there is much that is free and cannot be found yet: [`Self::begin`] changes that.
    fn hides_some(&self) -> bool {
        false
    }

    /// Takes pages that `treatment` wants off the free lists, during one hold of the lock, and
    /// subtracts the groups that are visited from `budget`.
    ///
    /// From here on they count as treated, unless they are put back as not.
    fn isolate<T: Treatment>(&self, treatment: &T, batch: &mut Batch, budget: &mut Budget) -> Step;

    /// Puts the pages of `batch` back, and empties it. All but the first `treated` runs want it
    /// still.
    fn put_back(&self, batch: &mut Batch, treated: usize);
}

/// Room for the pages of one batch, allocated once.
pub(crate) struct Batch {
    /// Blocks taken off the free lists, to be put back.
    pub(crate) blocks: KVec<Run>,
    /// The parts of `blocks` that want treatment.
    pub(crate) runs: KVec<Run>,
    capacity: usize,
    /// Pages of `blocks`, and how many there may be.
    pages: usize,
    limit: usize,
}

impl Batch {
    /// Allocates room for `capacity` runs.
    pub(crate) fn new(capacity: usize) -> Result<Self> {
        Ok(Self {
            blocks: KVec::with_capacity(capacity, GFP_KERNEL)?,
            runs: KVec::with_capacity(capacity, GFP_KERNEL)?,
            capacity,
            pages: 0,
            limit: 0,
        })
    }

    /// Whether no run fits any more.
    pub(crate) fn is_full(&self) -> bool {
        self.runs.len() == self.capacity
    }

    /// How many pages may still be taken.
    pub(crate) fn room(&self) -> usize {
        self.limit.saturating_sub(self.pages)
    }

    /// How many pages were taken.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Adds a run of the block that is pushed next; returns false if it does not fit.
    pub(crate) fn push(&mut self, run: Run) -> bool {
        !self.is_full() && self.runs.push_within_capacity(run).is_ok()
    }

    /// Adds a block, of which at least one run was pushed, or will be.
    pub(crate) fn push_block(&mut self, block: Run) {
        self.pages += block.pages();
        // Each block has a run of its own, so there is room for as many.
        let _ = self.blocks.push_within_capacity(block);
    }

    /// Empties the batch.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.runs.clear();
        self.pages = 0;
    }
}

/// Pages that were taken off the free lists. Dropped means put back.
pub(crate) struct IsolatedPages<'a, S: Source> {
    source: &'a S,
    batch: &'a mut Batch,
    treated: usize,
}

impl<'a, S: Source> IsolatedPages<'a, S> {
    /// Of at most so many pages.
    fn new(source: &'a S, batch: &'a mut Batch, limit: usize) -> Self {
        batch.limit = limit;
        Self {
            source,
            batch,
            treated: 0,
        }
    }

    /// What is to be treated.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.batch.runs
    }

    /// All of it was treated.
    pub(crate) fn all(&self) -> Treated {
        Treated {
            runs: self.runs().len(),
            result: Ok(()),
        }
    }

    /// Number of pages in [`Self::runs`] that were treated.
    fn pages_treated(&self) -> usize {
        self.runs().iter().take(self.treated).map(Run::pages).sum()
    }

    /// Fills the batch, releasing the lock in between.
    fn fill(&mut self, treatment: &impl Treatment, budget: &mut Budget, stop: &impl Stop) -> Step {
        loop {
            match self.source.isolate(treatment, self.batch, budget) {
                Step::More if stop.is_wanted() => return Step::Full,
                Step::More => cond_resched(),
                step => return step,
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

/// Tells a pass when to end before it is done.
pub(crate) trait Stop {
    /// Whether it is to end now.
    fn is_wanted(&self) -> bool;

    /// How many pages it may still treat.
    fn pages_left(&self) -> usize {
        usize::MAX
    }

    /// Whether it leaves a part of what is pending, of a busy system the youngest pages: they are
    /// likely to be allocated again.
    fn leaves_some(&self) -> bool {
        true
    }
}

/// Passes that are bounded anyway.
pub(crate) struct Never;

impl Stop for Never {
    fn is_wanted(&self) -> bool {
        false
    }
}

/// How a pass over a source ended.
///
/// Of several sources, the largest says when the next pass is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// All that was pending was visited, or nothing of it can be treated for now.
    Done,
    /// The source is short of memory.
    Short,
    /// The budget was used up.
    More,
    /// It was told to stop.
    Stopped,
}

/// Makes one pass over `source`: treats what wants it, within the budget.
///
/// Of a batch that failed, what was not treated is back in the source and still wants it.
pub(crate) fn pass<S: Source, T: Treatment>(
    source: &S,
    treatment: &mut T,
    batch: &mut Batch,
    stats: &Stats,
    stop: &impl Stop,
) -> Result<Outcome> {
    let pending = source.begin();
    // Follows what is pending, so that each pass leaves at most a quarter.
    let granted = match stop.leaves_some() {
        true => pending.min(BUDGET_MIN.max(pending / 4 * 3)),
        false => pending,
    };
    let mut budget = Budget {
        groups: granted,
        looks: pending,
    };
    let mut rest = false;
    // What is hidden asks for no pass, and was freed since this one began.
    let next = || match source.hides_some() {
        true => Outcome::More,
        false => Outcome::Done,
    };

    if pending == 0 {
        return Ok(next());
    }
    loop {
        if stop.is_wanted() {
            return Ok(Outcome::Stopped);
        }
        let limit = T::PAGES_MAX.min(stop.pages_left());
        let mut pages = IsolatedPages::new(source, batch, limit);
        let step = pages.fill(treatment, &mut budget, stop);
        let empty = pages.runs().is_empty();
        if !empty {
            let treated = treatment.treat(&mut pages);
            pages.treated = treated.runs;
            rest |= treated.runs < pages.runs().len() && treated.runs > 0;
            stats.pages.add(pages.pages_treated() as i64, Relaxed);
            if let Err(error) = treated.result {
                stats.failures.add(1, Relaxed);
                return Err(error);
            }
            stats.batches.add(1, Relaxed);
        }
        drop(pages);
        cond_resched();
        match step {
            Step::Done => break,
            // What was taken may have been all that there was to spare.
            Step::Short if empty => return Ok(Outcome::Short),
            _ => {}
        }
    }
    // What cannot be treated is no reason for another pass.
    let more = rest || (granted < pending && budget.groups < granted);
    Ok(if more && source.pending() > 0 {
        Outcome::More
    } else {
        next()
    })
}

/// Decides for how long a pass waits for memory to be left alone.
///
/// Whoever frees much may allocate it again at once, which is why passes have a delay. Where nobody
/// allocates, there is no need to wait for all of it.
pub(crate) struct Patience {
    waited_ms: u32,
    /// When allocations were looked at last, and how many pages were allocated until then.
    looked: Option<(u64, u64)>,
}

impl Patience {
    /// How often it looks in the time of a delay.
    const LOOKS: u32 = 8;

    /// Memory is left alone if less than this part of what was freed is allocated between looks. A
    /// small one: what was freed may have been allocated since, and freed is only known by groups.
    const PART: u64 = 64;

    pub(crate) const fn new() -> Self {
        Self {
            waited_ms: 0,
            looked: None,
        }
    }

    /// The time between looks.
    pub(crate) fn look_ms(delay_ms: u32) -> u32 {
        delay_ms / Self::LOOKS
    }

    /// Looks; the time to wait until the next look, in ms, or `Ok` if the pass is due, with whether
    /// memory is left alone. The pass was requested, or was looked for last, [`Self::look_ms`] ago.
    ///
    /// `allocated` pages were allocated since boot, and `freed` have to be treated.
    pub(crate) fn look(
        &mut self,
        now_ms: u64,
        allocated: u64,
        freed: u64,
        delay_ms: u32,
    ) -> Result<bool, u32> {
        let look_ms = Self::look_ms(delay_ms);
        let before = self.looked.replace((now_ms, allocated));
        // What was allocated before memory was freed says nothing.
        let recent = before.filter(|(then, _)| now_ms - then <= u64::from(look_ms) * 2);
        let calm =
            recent.is_some_and(|(_, before)| allocated.wrapping_sub(before) <= freed / Self::PART);

        self.waited_ms += look_ms;
        if calm || look_ms == 0 || self.waited_ms >= delay_ms {
            self.waited_ms = 0;
            return Ok(calm);
        }
        Err(look_ms.min(delay_ms - self.waited_ms))
    }
}

/// When a source that was short of memory is tried again.
#[derive(Clone, Copy)]
pub(crate) struct Rest {
    /// How often the delay was doubled, in a row.
    doubled: u32,
    until_ms: u64,
}

impl Rest {
    /// Now.
    pub(crate) const NONE: Self = Self {
        doubled: 0,
        until_ms: 0,
    };

    /// It was short; `delay_ms` is the time between passes.
    fn begin(&mut self, now_ms: u64, delay_ms: u32) {
        self.doubled = DOUBLED_MAX.min(self.doubled + 1);
        self.until_ms = now_ms + u64::from(doubled(delay_ms, self.doubled));
    }

    /// The delay that being short led to, 0 if it did not.
    pub(crate) fn backoff_ms(&self, delay_ms: u32) -> u32 {
        match self.doubled {
            0 => 0,
            times => doubled(delay_ms, times),
        }
    }

    /// The time that is left, in ms.
    pub(crate) fn left_ms(&self, now_ms: u64) -> u32 {
        let left = self.until_ms.saturating_sub(now_ms);
        u32::try_from(left).unwrap_or(u32::MAX)
    }
}

/// `delay_ms`, doubled so often.
fn doubled(delay_ms: u32, times: u32) -> u32 {
    match times {
        0 => delay_ms,
        times => delay_ms.max(BACKOFF_LEAST_MS).saturating_mul(1 << times),
    }
}

/// A source that is left alone for a while if it is short of memory, while others are not.
pub(crate) trait Resting: Source {
    /// Gives access to when it is tried again.
    fn rest<R>(&self, access: impl FnOnce(&mut Rest) -> R) -> R;

    /// Whether somebody freed memory and has asked for a pass since the last one.
    fn is_requested(&self) -> bool;
}

/// How a pass over all sources ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct All {
    /// The largest of all.
    pub(crate) outcome: Outcome,
    /// The time, in ms, until a source has rested that somebody wants a pass over.
    pub(crate) rested_ms: Option<u32>,
}

/// Makes one pass over all `sources` but those that rest; an error ends it.
///
/// `delay_ms` is the time between passes.
pub(crate) fn pass_all<S: Resting, T: Treatment>(
    sources: impl Iterator<Item = S>,
    treatment: &mut T,
    batch: &mut Batch,
    stats: &Stats,
    stop: &impl Stop,
    (now_ms, delay_ms): (u64, u32),
) -> Result<All> {
    let mut all = All {
        outcome: Outcome::Done,
        rested_ms: None,
    };

    for source in sources {
        let left = source.rest(|rest| rest.left_ms(now_ms));
        if left > 0 {
            if source.is_requested() {
                all.rested_ms = Some(all.rested_ms.map_or(left, |other| other.min(left)));
            }
            continue;
        }
        match pass(&source, treatment, batch, stats, stop)? {
            // Whoever frees memory there asks for the next pass.
            Outcome::Short => source.rest(|rest| rest.begin(now_ms, delay_ms)),
            outcome => {
                source.rest(|rest| *rest = Rest::NONE);
                all.outcome = all.outcome.max(outcome);
            }
        }
        if all.outcome == Outcome::Stopped {
            break;
        }
    }
    Ok(all)
}

/// What follows a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until somebody asks for it.
    Nothing,
    /// Another pass is queued, after [`Worker::delay_ms`].
    Pass,
    /// One is queued after so many ms, unless somebody has done so; who asks gets it earlier.
    Rested(u32),
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

/// When passes happen. The owner queues them; this decides whether and after which delay.
pub(crate) struct Worker {
    state: Atomic<State>,
    /// How often the delay is doubled, since passes failed.
    doubled: Atomic<u32>,
    /// What was done.
    pub(crate) stats: Stats,
}

impl Worker {
    /// A worker without work.
    pub(crate) const fn new() -> Self {
        Self {
            state: Atomic::new(State::Idle),
            doubled: Atomic::new(0),
            stats: Stats::new(),
        }
    }

    /// Asks for a pass. If this returns true, the caller queues it after [`Self::delay_ms`].
    ///
    /// Any context.
    #[must_use]
    pub(crate) fn request(&self) -> bool {
        // Pairs with `begin()`: what the caller stored before is visible to the pass if this finds
        // that one is wanted already. Without it the load may come first, as in LKMM's SB litmus
        // test: a pass begins in between, does not see the store, and no other one follows.
        smp_mb(Full);
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

    /// The pass ended. What the caller does then.
    #[must_use]
    pub(crate) fn end(&self, all: Result<All>) -> Next {
        let again = match all {
            Ok(all) => {
                self.doubled.store(0, Relaxed);
                matches!(all.outcome, Outcome::More | Outcome::Stopped)
            }
            Err(_) => {
                let doubled = self.doubled.load(Relaxed) + 1;
                self.doubled.store(doubled.min(DOUBLED_MAX), Relaxed);
                true
            }
        };
        let rested = all.ok().and_then(|all| all.rested_ms);

        if again {
            self.state.store(State::Requested, Relaxed);
        } else if self.state.cmpxchg(State::Active, State::Idle, Full).is_ok() {
            return rested.map_or(Next::Nothing, Next::Rested);
        }
        Next::Pass
    }

    /// Forgets everything but the statistics. No pass is queued or runs.
    pub(crate) fn reset(&self) {
        self.doubled.store(0, Relaxed);
        self.state.store(State::Idle, Relaxed);
    }

    /// The time until a pass begins, if `delay_ms` is the time without back-off.
    pub(crate) fn delay_ms(&self, delay_ms: u32) -> u32 {
        doubled(delay_ms, self.doubled.load(Relaxed))
    }

    /// The delay that back-off led to, 0 if there is none.
    pub(crate) fn backoff_ms(&self, delay_ms: u32) -> u32 {
        match self.doubled.load(Relaxed) {
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

    const DELAY_MS: u32 = 2000;

    /// Treats what it is told to, and fails or stops when it is told to.
    struct MockTreatment {
        order: u32,
        calls: usize,
        fail_at: Option<usize>,
        /// Runs that it treats of a batch, at most.
        runs: usize,
    }

    impl MockTreatment {
        fn new(order: u32, fail_at: Option<usize>) -> Self {
            Self {
                order,
                calls: 0,
                fail_at,
                runs: usize::MAX,
            }
        }
    }

    impl Treatment for MockTreatment {
        const PAGES_MAX: usize = 32 << 10;

        fn order(&self) -> u32 {
            self.order
        }

        fn wants(&self, page: &FreePage<'_>) -> bool {
            page.order() >= self.order
        }

        fn treat<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> Treated {
            assert!(!batch.runs().is_empty());
            self.calls += 1;
            let result = match self.fail_at == Some(self.calls) {
                true => Err(EIO),
                false => Ok(()),
            };
            let runs = result.map_or(0, |()| self.runs.min(batch.runs().len()));
            Treated { runs, result }
        }
    }

    /// Wants a pass to stop when it was asked so often.
    struct After(Cell<usize>);

    impl Stop for After {
        fn is_wanted(&self) -> bool {
            let left = self.0.get();
            self.0.set(left.saturating_sub(1));
            left == 0
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
                let outcome = pass(&source, &mut treatment, &mut batch, &stats, &Never)?;
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
    fn what_cannot_be_found_yet_asks_for_another_pass() -> Result {
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(8)?;
        let stats = Stats::new();

        for count in [0, 5] {
            let source = Mock::new(count, 0..=0)?;
            for (hidden, outcome) in [(true, Outcome::More), (false, Outcome::Done)] {
                source.hidden.set(hidden);
                let found = pass(&source, &mut treatment, &mut batch, &stats, &Never)?;
                assert_eq!(found, outcome);
            }
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

            let outcome = pass(&source, &mut treatment, &mut batch, &stats, &Never);
            assert_eq!(outcome, Err(EIO));
            assert!(source.is_whole());
            assert_eq!(source.count(|block| block.treated == 1), (fail_at - 1) * 8);

            // What failed, and what was not reached, is treated later.
            pass(&source, &mut treatment, &mut batch, &stats, &Never)?;
            assert_eq!(source.count(|block| block.treated == 1), 55);
        }
        Ok(())
    }

    #[test]
    fn what_is_left_of_a_batch_is_treated_later() -> Result {
        let source = Mock::new(20, 0..=0)?;
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(8)?;
        let stats = Stats::new();
        let mut left = 20;

        treatment.runs = 3;
        while left > 0 {
            let outcome = pass(&source, &mut treatment, &mut batch, &stats, &Never)?;
            let treated = source.count(|block| block.treated == 1);
            assert_eq!(stats.pages.load(Relaxed), treated as i64);
            assert!(20 - treated < left);
            left = 20 - treated;
            assert_eq!(source.count(|block| block.pending), left);
            let more = outcome == Outcome::More;
            assert_eq!(more, left != 0);
        }
        assert!(source.is_whole());
        Ok(())
    }

    #[test]
    fn a_pass_can_be_stopped_after_any_batch() -> Result {
        for after in 0..6 {
            let source = Mock::new(40, 0..=0)?;
            let mut treatment = MockTreatment::new(0, None);
            let mut batch = Batch::new(8)?;
            let stop = After(Cell::new(after));

            let outcome = pass(&source, &mut treatment, &mut batch, &Stats::new(), &stop)?;
            assert_eq!(outcome, Outcome::Stopped);
            assert!(source.is_whole());
            let treated = source.count(|block| block.treated == 1);
            assert_eq!(source.count(|block| block.pending), 40 - treated);
            assert!(treated <= after * 8);
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
            let outcome = pass(&source, &mut treatment, &mut batch, &Stats::new(), &Never)?;

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
    fn what_cannot_be_taken_is_not_tried_for_ever() -> Result {
        let source = Mock::new(1000, 0..=0)?;
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(32)?;

        source.isolated.set(1000);
        let outcome = pass(&source, &mut treatment, &mut batch, &Stats::new(), &Never)?;
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(source.count(|block| block.pending), 1000);

        // It does not hide what lies behind it.
        source.isolated.set(800);
        let outcome = pass(&source, &mut treatment, &mut batch, &Stats::new(), &Never)?;
        assert_eq!(outcome, Outcome::More);
        assert_eq!(source.count(|block| block.treated == 1), 200);
        let outcome = pass(&source, &mut treatment, &mut batch, &Stats::new(), &Never)?;
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(source.count(|block| block.pending), 800);
        Ok(())
    }

    #[test]
    fn a_short_source_is_left_alone() -> Result {
        let source = Mock::new(10, 0..=0)?;
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(4)?;

        source.short.set(true);
        let outcome = pass(&source, &mut treatment, &mut batch, &Stats::new(), &Never)?;
        assert_eq!(outcome, Outcome::Short);
        assert_eq!(source.count(|block| block.pending), 10);
        assert_eq!(treatment.calls, 0);
        Ok(())
    }

    #[test]
    fn a_short_source_delays_no_other() -> Result {
        let sources = [
            Mock::new(3, 0..=0)?,
            Mock::new(200, 0..=0)?,
            Mock::new(3, 0..=0)?,
        ];
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(4)?;
        let mut all = |now_ms| {
            let stats = Stats::new();
            let times = (now_ms, DELAY_MS);
            pass_all(
                sources.iter(),
                &mut treatment,
                &mut batch,
                &stats,
                &Never,
                times,
            )
        };
        let treated = |source: &Mock| source.count(|block| block.treated == 1);

        sources[0].short.set(true);
        let first = all(0)?;
        assert_eq!(first.outcome, Outcome::More);
        assert_eq!(first.rested_ms, None);
        assert_eq!(treated(&sources[0]), 0);
        assert_eq!(treated(&sources[1]), 150);
        assert_eq!(treated(&sources[2]), 3);

        // It has memory again, and somebody freed some: its rest ends when it ends.
        sources[0].short.set(false);
        sources[0].requested.set(true);
        let second = all(1000)?;
        assert_eq!(second.rested_ms, Some(2 * DELAY_MS - 1000));
        assert_eq!(treated(&sources[0]), 0);
        assert!(treated(&sources[1]) > 150);

        let third = all(2 * u64::from(DELAY_MS))?;
        assert_eq!(third.rested_ms, None);
        assert_eq!(treated(&sources[0]), 3);
        Ok(())
    }

    #[test]
    fn a_rest_doubles() -> Result {
        let source = [Mock::new(3, 0..=0)?];
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(4)?;
        let mut now_ms = 0;

        source[0].short.set(true);
        for times in 1..=DOUBLED_MAX + 2 {
            let stats = Stats::new();
            // No delay at all is no reason to never let go.
            let delay_ms = 0;
            let times_ms = (now_ms, delay_ms);
            pass_all(
                source.iter(),
                &mut treatment,
                &mut batch,
                &stats,
                &Never,
                times_ms,
            )?;
            let left = (&source[0]).rest(|rest| rest.left_ms(now_ms));
            assert_eq!(left, BACKOFF_LEAST_MS << times.min(DOUBLED_MAX));
            now_ms += u64::from(left);
        }
        Ok(())
    }

    #[test]
    fn it_waits_while_memory_is_in_use() {
        let mut patience = Patience::new();
        let (mut now_ms, mut allocated, freed) = (10_000, 0, 1 << 18);
        let mut look = |allocates| {
            now_ms += u64::from(Patience::look_ms(DELAY_MS));
            allocated += allocates;
            patience.look(now_ms, allocated, freed, DELAY_MS)
        };

        // The first look only sees how much was allocated ever.
        assert_eq!(look(1 << 30), Err(250));
        assert_eq!(look(100), Ok(true));
        assert_eq!(look(freed / 64), Ok(true));
        // For no longer than the delay.
        for _ in 0..2 {
            for _ in 0..7 {
                assert_eq!(look(freed / 32), Err(250));
            }
            assert_eq!(look(freed / 32), Ok(false));
        }
        assert_eq!(look(freed / 32), Err(250));
        assert_eq!(look(0), Ok(true));
    }

    #[test]
    fn a_look_long_ago_says_nothing() {
        let mut patience = Patience::new();

        assert_eq!(patience.look(0, 0, 8, DELAY_MS), Err(250));
        assert_eq!(patience.look(100_000, 0, 8, DELAY_MS), Err(250));
        assert_eq!(patience.look(100_250, 0, 8, DELAY_MS), Ok(true));
        // Without a delay there is nothing to wait for.
        assert_eq!(Patience::new().look(0, 0, 8, 0), Ok(false));
    }

    /// Wants no more than so many pages, and all of what is pending.
    struct Pages<'a>(usize, &'a Stats);

    impl Stop for Pages<'_> {
        fn is_wanted(&self) -> bool {
            self.pages_left() == 0
        }

        fn pages_left(&self) -> usize {
            self.0.saturating_sub(self.1.pages.load(Relaxed) as usize)
        }

        fn leaves_some(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_budget_of_pages_is_kept() -> Result {
        let source = Mock::new(1000, 0..=0)?;
        let mut treatment = MockTreatment::new(0, None);
        let mut batch = Batch::new(32)?;
        let stats = Stats::new();

        let budget = Pages(777, &stats);
        let outcome = pass(&source, &mut treatment, &mut batch, &stats, &budget)?;
        assert_eq!(outcome, Outcome::Stopped);
        assert_eq!(source.count(|block| block.treated == 1), 777);
        let budget = Pages(usize::MAX, &stats);
        let outcome = pass(&source, &mut treatment, &mut batch, &stats, &budget)?;
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(source.count(|block| block.treated == 1), 1000);
        Ok(())
    }

    const DONE: Result<All> = Ok(All {
        outcome: Outcome::Done,
        rested_ms: None,
    });

    #[test]
    fn one_pass_is_queued_at_a_time() {
        let worker = Worker::new();

        assert!(worker.request());
        assert!(!worker.request());
        worker.begin();
        assert!(!worker.is_requested());
        assert_eq!(worker.end(DONE), Next::Nothing);

        // Requested while the pass runs: queued when it ends, not before.
        assert!(worker.request());
        worker.begin();
        assert!(!worker.request());
        assert_eq!(worker.end(DONE), Next::Pass);
        worker.begin();
        assert_eq!(worker.end(DONE), Next::Nothing);
    }

    #[test]
    fn a_pass_that_was_stopped_is_made_later() {
        let worker = Worker::new();
        let stopped = Ok(All {
            outcome: Outcome::Stopped,
            rested_ms: Some(1),
        });

        assert!(worker.request());
        worker.begin();
        assert_eq!(worker.end(stopped), Next::Pass);
        assert!(!worker.request());
    }

    #[test]
    fn who_asks_does_not_wait_for_a_rest() {
        let worker = Worker::new();
        let rests = Ok(All {
            outcome: Outcome::Done,
            rested_ms: Some(9 * DELAY_MS),
        });

        assert!(worker.request());
        worker.begin();
        assert_eq!(worker.end(rests), Next::Rested(9 * DELAY_MS));
        assert!(worker.request());
        worker.begin();
        assert!(!worker.request());
        assert_eq!(worker.end(rests), Next::Pass);
    }

    #[test]
    fn back_off_doubles_and_ends() {
        let worker = Worker::new();

        assert_eq!(worker.backoff_ms(DELAY_MS), 0);
        for times in 1..=DOUBLED_MAX + 2 {
            let delay = DELAY_MS << times.min(DOUBLED_MAX);
            worker.begin();
            assert_eq!(worker.end(Err(EIO)), Next::Pass);
            assert_eq!(worker.backoff_ms(DELAY_MS), delay);
            // No delay at all is no reason to never let go.
            assert_eq!(
                worker.delay_ms(0),
                BACKOFF_LEAST_MS << times.min(DOUBLED_MAX)
            );
        }
        assert_eq!(worker.delay_ms(u32::MAX), u32::MAX);
        worker.begin();
        assert_eq!(worker.end(DONE), Next::Nothing);
        assert_eq!(worker.backoff_ms(DELAY_MS), 0);
        assert_eq!(worker.delay_ms(DELAY_MS), DELAY_MS);
    }
}
