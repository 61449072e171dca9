// SPDX-License-Identifier: GPL-2.0

//! Zeroing: when free memory is cleared, how much, and how fast.
//!
//! The policy. A node has two watermarks: below the low one the zeroer begins, at the high one it
//! ends. It also begins where much had to be cleared by those who allocated it, though large blocks
//! would be there. Where less is free than the high one asks for, both shrink in proportion: else
//! the zeroer of a node whose memory is in use would look for dirty pages for ever.
//!
//! Large blocks come first, since that is what huge pages are made of, and what takes the least
//! time to find. From the low watermark on small ones do: single pages are made of them. Neither
//! the share of a CPU nor the rate that were set is exceeded. How a page is cleared, and where free
//! pages are found, is in [`super::clear`].

use crate::{
    map::GROUP,
    worker::{
        FreePage,
        IsolatedPages,
        Source,
        Treated,
        Treatment, //
    },
};
use kernel::prelude::*;

const NSEC_PER_SEC: u64 = 1_000_000_000;
const NSEC_PER_MSEC: u64 = 1_000_000;

/// The zeroer does not sleep for less: what is owed is saved up to here.
const SLEEP_LEAST_NS: u64 = 4 * NSEC_PER_MSEC;

/// The zeroer owes for no more time than this, which is more than a step takes: where a hypervisor
/// takes the CPU away, it counts as used.
const RAN_MOST_NS: u64 = 100 * NSEC_PER_MSEC;

/// If there was nothing to do, twice as many looks are left out, but not more often than this.
const RESTS_MAX: u32 = 4;

/// Fewer pages than these, 2 MiB, are not worth looking at all of a node...
const WORTH_PAGES: u64 = GROUP as u64;

/// ... nor are fewer than this part of a large one: to look at its pages takes time, too.
const WORTH_PART: u64 = 1024;

/// What the administrator has set.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// How often a zeroer that sleeps looks whether there is work.
    pub(crate) delay_ms: u64,
    /// Smallest block that is cleared.
    pub(crate) min_order: u32,
    /// Part of the memory of a node.
    pub(crate) low_percent: u64,
    /// Part of the memory of a node.
    pub(crate) high_percent: u64,
    /// The time that is taken of a CPU, at most.
    pub(crate) cpu_percent: u64,
    /// MiB that are cleared in a second, at most; 0: any number.
    pub(crate) rate_mib: u64,
}

/// What was done by one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cleared {
    /// So many pages. There may be more.
    Pages(u64),
    /// None was found for as long as a step may take. There may be some.
    Looked,
    /// Free memory is short: none of it can be taken off the lists, even for a while.
    Short,
    /// No free page is left that would have to be cleared.
    Nothing,
}

impl Cleared {
    /// Pages cleared.
    fn pages(self) -> u64 {
        match self {
            Self::Pages(pages) => pages,
            Self::Looked | Self::Short | Self::Nothing => 0,
        }
    }
}

/// A node whose free memory is cleared.
pub(crate) trait Node {
    /// What the administrator has set.
    fn settings(&self) -> Settings;
    /// Pages that are free, and zeroed.
    fn zeroed(&self) -> u64;
    /// Pages that are free.
    fn free(&self) -> u64;
    /// All pages.
    fn managed(&self) -> u64;
    /// Bytes of a page.
    fn page_bytes(&self) -> u64;
    /// The time, in ns.
    fn now_ns(&self) -> u64;
    /// The time for which this thread has run, in ns.
    fn runtime_ns(&self) -> u64;
    /// Pages that had to be cleared when they were allocated, since boot, on whatever node.
    fn missed(&self) -> u64;
    /// Notes how much CPUs freed and allocated since the last call: that they may use again.
    fn look(&mut self);
    /// Puts pages on the free lists that CPUs have kept for themselves, and not used since the last
    /// but one [`Self::look`], for a bounded time. Returns whether there are more.
    fn collect(&mut self) -> bool;
    /// Clears a part of a huge page in a pool, for a bounded time. Returns the number of pages, or
    /// `None` if all are zero.
    fn clear_pool(&mut self) -> Option<u64>;
    /// Clears at most one batch of blocks of at least `min_order`, the large ones first, unless
    /// `small_first`.
    ///
    /// Goes on where the last call ended, and returns after a bounded time.
    fn clear(&mut self, min_order: u32, small_first: bool) -> Cleared;
    /// Large blocks are looked for anew: where allocations come from, some were freed since.
    fn look_again(&mut self);
    /// The zeroer begins to work.
    fn begin(&mut self, zeroed: u64, high: u64);
    /// It goes to sleep, having cleared so many pages.
    fn end(&mut self, cleared: u64);
}

/// Clears whatever its source finds.
pub(crate) trait Clear {
    /// Clears those pages of `batch` that are not known to be zero, and returns how many.
    fn clear<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> usize;
}

/// The treatment: blocks of at least `order`, and below `end`, are cleared by `clear`.
pub(crate) struct Zeroing<C: Clear> {
    pub(crate) clear: C,
    pub(crate) order: u32,
    pub(crate) end: u32,
    /// Pages cleared so far.
    pub(crate) cleared: usize,
}

impl<C: Clear> Treatment for Zeroing<C> {
    // 2 MiB: whoever preempts the zeroer lacks them.
    const PAGES_MAX: usize = GROUP;

    fn order(&self) -> u32 {
        self.order
    }

    fn wants(&self, page: &FreePage<'_>) -> bool {
        (self.order..self.end).contains(&page.order())
    }

    fn treat<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> Treated {
        self.cleared += self.clear.clear(batch);
        batch.all()
    }
}

/// Sees to it that the limits on time and rate are kept.
pub(crate) struct Pace {
    /// When the zeroer may go on, given what it did.
    due_ns: u64,
}

impl Pace {
    /// Nothing was done yet.
    pub(crate) const fn new() -> Self {
        Self { due_ns: 0 }
    }

    /// Until `now_ns` the zeroer ran for `ran_ns`, and cleared `bytes`.
    fn charge(&mut self, now_ns: u64, ran_ns: u64, bytes: u64, settings: &Settings) {
        let ran_ns = ran_ns.min(RAN_MOST_NS);
        let share = ran_ns.saturating_mul(100) / settings.cpu_percent.clamp(1, 100);
        let rate = match settings.rate_mib {
            0 => 0,
            mib => bytes.saturating_mul(NSEC_PER_SEC >> 20) / mib,
        };
        // It began when it was due, at the earliest; time in which it did nothing is not saved up.
        let began = now_ns.saturating_sub(ran_ns);

        self.due_ns = self.due_ns.max(began).saturating_add(share.max(rate));
    }

    /// How long the zeroer has to sleep first, in ms; 0 if it may go on.
    fn wait_ms(&self, now_ns: u64) -> u64 {
        match self.due_ns.saturating_sub(now_ns) {
            early if early < SLEEP_LEAST_NS => 0,
            early => early.div_ceil(NSEC_PER_MSEC),
        }
    }
}

/// How a node is, and how it is to be, in pages.
struct Goal {
    zeroed: u64,
    /// Free, and not zeroed.
    dirty: u64,
    low: u64,
    high: u64,
    /// The high watermark if all were free.
    most: u64,
    /// What is worth looking at all of the node.
    worth: u64,
}

impl Goal {
    fn new(node: &impl Node, settings: &Settings) -> Self {
        let (zeroed, free) = (node.zeroed(), node.free());
        let most = node.managed() / 100 * settings.high_percent;
        let high = most.min(free);

        Self {
            zeroed,
            dirty: free.saturating_sub(zeroed),
            most,
            low: high * settings.low_percent / settings.high_percent.max(1),
            high,
            worth: WORTH_PAGES.max(node.managed() / WORTH_PART),
        }
    }
}

/// When a node is worked on.
pub(crate) struct Zeroer {
    working: bool,
    pace: Pace,
    /// When it last looked at what the CPUs do.
    looked_ns: u64,
    /// Whether CPUs have pages that they did not use.
    collecting: bool,
    /// Pages cleared since it began to work.
    cleared: u64,
    /// What [`Node::missed`] was when it began to work, or looked for large blocks anew.
    missed: u64,
    /// How often in a row there was nothing to do.
    rests: u32,
    /// How many looks are left out.
    skip: u32,
    /// The fewest dirty pages that there were since there was nothing to do.
    left: u64,
}

impl Zeroer {
    /// A zeroer that sleeps.
    pub(crate) const fn new() -> Self {
        Self {
            working: false,
            pace: Pace::new(),
            looked_ns: 0,
            collecting: false,
            cleared: 0,
            missed: 0,
            rests: 0,
            skip: 0,
            left: 0,
        }
    }

    /// Does one step, and returns the time in ms until the next; 0: at once.
    pub(crate) fn step(&mut self, node: &mut impl Node) -> u64 {
        let settings = node.settings();
        let wait = self.pace.wait_ms(node.now_ns());
        if wait > 0 {
            return wait;
        }

        // Free memory is not what these are, and all of it will be wanted.
        let pool = self.charged(node, &settings, |node| {
            let pages = node.clear_pool();
            (pages, pages.unwrap_or(0))
        });
        if pool.is_some() {
            return 0;
        }
        let goal = Goal::new(node, &settings);
        if goal.zeroed < goal.most && self.collects(node, &settings, &goal) {
            return 0;
        }
        if goal.zeroed >= goal.high {
            (self.rests, self.skip) = (0, 0);
            return self.rest(node, &settings);
        }
        if !self.is_wanted(node, &goal) {
            return self.rest(node, &settings);
        }

        let small_first = goal.zeroed >= goal.low;
        let cleared = self.charged(node, &settings, |node| {
            let cleared = node.clear(settings.min_order, small_first);
            (cleared, cleared.pages())
        });
        self.cleared += cleared.pages();
        match cleared {
            Cleared::Pages(_) | Cleared::Looked => 0,
            // Whoever frees memory does not wake the zeroer.
            Cleared::Short | Cleared::Nothing => {
                if self.cleared >= goal.worth {
                    self.rests = 0;
                }
                self.skip = (1 << self.rests) - 1;
                self.rests = RESTS_MAX.min(self.rests + 1);
                self.left = Goal::new(node, &settings).dirty;
                self.rest(node, &settings)
            }
        }
    }

    /// Does `work`, which tells how many pages it cleared, and owes for it.
    fn charged<N: Node, R>(
        &mut self,
        node: &mut N,
        settings: &Settings,
        work: impl FnOnce(&mut N) -> (R, u64),
    ) -> R {
        let before = node.runtime_ns();
        let (result, pages) = work(node);
        let ran = node.runtime_ns().saturating_sub(before);
        let bytes = pages.saturating_mul(node.page_bytes());

        self.pace.charge(node.now_ns(), ran, bytes, settings);
        result
    }

    /// Whether there are pages to be had from CPUs that did not use them lately; takes some.
    ///
    /// They are neither cached nor known to be zero, and keep others from becoming large blocks.
    fn collects(&mut self, node: &mut impl Node, settings: &Settings, goal: &Goal) -> bool {
        let now = node.now_ns();

        if now.saturating_sub(self.looked_ns) >= settings.delay_ms * NSEC_PER_MSEC {
            self.looked_ns = now;
            self.collecting = true;
            node.look();
            let missed = node.missed();
            if self.working && missed.wrapping_sub(self.missed) >= goal.worth {
                self.missed = missed;
                node.look_again();
            }
        }
        if self.collecting {
            self.collecting = self.charged(node, settings, |node| (node.collect(), 0));
        }
        self.collecting
    }

    /// Whether zeroed pages are asked for, and are likely to be found.
    fn is_wanted(&mut self, node: &mut impl Node, goal: &Goal) -> bool {
        if self.working {
            return true;
        }
        let missed = node.missed();
        if goal.zeroed >= goal.low && missed.wrapping_sub(self.missed) < goal.worth {
            return false;
        }
        self.left = self.left.min(goal.dirty);
        if self.skip > 0 && goal.dirty < self.left + goal.worth {
            self.skip -= 1;
            return false;
        }
        self.working = true;
        self.cleared = 0;
        self.missed = missed;
        node.begin(goal.zeroed, goal.high);
        true
    }

    /// Ends the work, and returns the time until the next look.
    fn rest(&mut self, node: &mut impl Node, settings: &Settings) -> u64 {
        if self.working {
            self.working = false;
            node.end(self.cleared);
        }
        settings.delay_ms
    }
}

#[cfg(CONFIG_FREEPAGE_KUNIT_TEST)]
#[kunit_tests(freepage_zeroing)]
mod tests {
    use super::*;
    use crate::{
        mock::Mock,
        worker::{
            pass,
            Batch,
            Never,
            Stats, //
        },
    };

    const PAGE_BYTES: u64 = 4096;
    const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_BYTES;
    const BATCH: u64 = 512;

    const SETTINGS: Settings = Settings {
        delay_ms: 500,
        min_order: 0,
        low_percent: 20,
        high_percent: 50,
        cpu_percent: 100,
        rate_mib: 0,
    };

    /// A node where time passes as pages are cleared, and as the zeroer sleeps.
    struct MockNode {
        settings: Settings,
        managed: u64,
        zeroed: u64,
        dirty: u64,
        /// Free, and not to be touched, as what was reported to the host is.
        reported: u64,
        short: bool,
        /// On the lists of a CPU, and not used.
        kept: u64,
        /// In a pool, and not zero.
        pool: u64,
        missed: u64,
        /// Calls that were to clear something.
        clears: usize,
        /// Whether the last one was to begin with small blocks.
        small_first: bool,
        /// Steps that find nothing, before one does.
        looks: u64,
        now_ns: u64,
        runtime_ns: u64,
        ns_per_page: u64,
        begun: usize,
        again: usize,
        ended: usize,
    }

    impl MockNode {
        fn new(managed: u64, settings: Settings) -> Self {
            Self {
                settings,
                managed,
                zeroed: 0,
                dirty: managed,
                reported: 0,
                short: false,
                kept: 0,
                pool: 0,
                missed: 0,
                clears: 0,
                small_first: false,
                looks: 0,
                now_ns: 1_000_000_000_000,
                runtime_ns: 0,
                ns_per_page: 1000,
                begun: 0,
                again: 0,
                ended: 0,
            }
        }

        /// Lets `zeroer` work for `seconds`, and returns the pages that it cleared.
        fn run(&mut self, zeroer: &mut Zeroer, seconds: u64) -> u64 {
            let end = self.now_ns + seconds * NSEC_PER_SEC;
            let before = self.zeroed;

            while self.now_ns < end {
                let wait_ms = zeroer.step(self);
                self.now_ns += wait_ms * NSEC_PER_MSEC;
            }
            self.zeroed - before
        }
    }

    impl Node for MockNode {
        fn settings(&self) -> Settings {
            self.settings
        }

        fn zeroed(&self) -> u64 {
            self.zeroed
        }

        fn free(&self) -> u64 {
            self.zeroed + self.dirty + self.reported
        }

        fn managed(&self) -> u64 {
            self.managed
        }

        fn page_bytes(&self) -> u64 {
            PAGE_BYTES
        }

        fn now_ns(&self) -> u64 {
            self.now_ns
        }

        fn runtime_ns(&self) -> u64 {
            self.runtime_ns
        }

        fn missed(&self) -> u64 {
            self.missed
        }

        fn look(&mut self) {}

        fn collect(&mut self) -> bool {
            let pages = self.kept.min(BATCH);

            self.kept -= pages;
            self.dirty += pages;
            self.kept > 0
        }

        fn clear_pool(&mut self) -> Option<u64> {
            let pages = self.pool.min(BATCH);
            let time = pages * self.ns_per_page;

            self.pool -= pages;
            self.now_ns += time;
            self.runtime_ns += time;
            (pages > 0).then_some(pages)
        }

        fn clear(&mut self, _min_order: u32, small_first: bool) -> Cleared {
            self.clears += 1;
            self.small_first = small_first;
            if self.short {
                return Cleared::Short;
            }
            if self.looks > 0 {
                self.looks -= 1;
                self.now_ns += NSEC_PER_MSEC;
                self.runtime_ns += NSEC_PER_MSEC;
                return Cleared::Looked;
            }
            let pages = self.dirty.min(BATCH);
            let time = pages * self.ns_per_page;
            self.dirty -= pages;
            self.zeroed += pages;
            self.now_ns += time;
            self.runtime_ns += time;
            match pages {
                0 => Cleared::Nothing,
                pages => Cleared::Pages(pages),
            }
        }

        fn look_again(&mut self) {
            self.again += 1;
        }

        fn begin(&mut self, _zeroed: u64, _high: u64) {
            self.begun += 1;
        }

        fn end(&mut self, _cleared: u64) {
            self.ended += 1;
        }
    }

    #[test]
    fn looks_again_where_memory_was_used_meanwhile() {
        let mut node = MockNode::new(100_000_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        node.run(&mut zeroer, 2);
        assert_eq!((node.begun, node.again), (1, 0));
        // A large node: its 1024th.
        node.missed += 100_000_000 / 1024 - 1;
        node.run(&mut zeroer, 2);
        assert_eq!(node.again, 0);
        node.missed += 1;
        node.run(&mut zeroer, 2);
        assert_eq!((node.begun, node.again, node.ended), (1, 1, 0));
    }

    #[test]
    fn begins_below_the_low_and_ends_at_the_high_watermark() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        node.run(&mut zeroer, 10);
        assert!((50_000..50_000 + BATCH).contains(&node.zeroed));
        assert_eq!((node.begun, node.ended), (1, 1));

        // In between, nothing happens.
        (node.zeroed, node.dirty) = (20_000, 80_000);
        assert_eq!(node.run(&mut zeroer, 10), 0);
        (node.zeroed, node.dirty) = (19_999, 80_001);
        assert!(node.run(&mut zeroer, 10) >= 30_001);
        assert_eq!((node.begun, node.ended), (2, 2));
    }

    #[test]
    fn a_changed_watermark_is_seen() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        node.settings.low_percent = 0;
        assert_eq!(node.run(&mut zeroer, 10), 0);
        node.settings.low_percent = 100;
        node.settings.high_percent = 100;
        assert_eq!(node.run(&mut zeroer, 10), 100_000);
        // All is zeroed: the zeroer sleeps.
        assert_eq!(node.run(&mut zeroer, 100), 0);
        assert_eq!(zeroer.step(&mut node), 500);
    }

    #[test]
    fn neither_rate_nor_share_is_exceeded() {
        for rate_mib in [1, 20, 333] {
            for cpu_percent in [1, 30, 100] {
                let mut node = MockNode::new(100_000_000, SETTINGS);
                let mut zeroer = Zeroer::new();

                node.settings.rate_mib = rate_mib;
                node.settings.cpu_percent = cpu_percent;
                let pages = node.run(&mut zeroer, 20);
                let by_rate = 20 * rate_mib * PAGES_PER_MIB;
                let by_share = 20 * NSEC_PER_SEC / 100 * cpu_percent / node.ns_per_page;
                let most = by_rate.min(by_share);

                // Give or take what is saved up, and the last batch. Sleeping in whole ms makes it
                // less where a batch takes few of them.
                assert!(pages <= most + most / 50 + 2 * BATCH);
                assert!(pages + most / 4 + 2 * BATCH >= most);
            }
        }
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut node = MockNode::new(100_000_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        node.settings.rate_mib = 20;
        node.settings.low_percent = 0;
        node.run(&mut zeroer, 1000);
        node.settings.low_percent = 50;
        let pages = node.run(&mut zeroer, 2);
        assert!(pages <= 2 * 20 * PAGES_PER_MIB + 2 * BATCH);
    }

    #[test]
    fn looks_less_often_where_there_is_nothing_to_do() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        (node.dirty, node.reported) = (0, 100_000);
        for looks in [1, 1, 2, 4, 8, 16, 16] {
            let clears = node.clears;
            for _ in 0..looks {
                assert_eq!(node.clears, clears);
                assert_eq!(zeroer.step(&mut node), 500);
                node.now_ns += 500 * NSEC_PER_MSEC;
            }
            assert_eq!(node.clears, clears + 1);
        }
        assert_eq!(node.begun, node.ended);

        // What is freed is not left waiting, if it is worth it.
        node.dirty = WORTH_PAGES - 1;
        assert_eq!(zeroer.step(&mut node), 500);
        assert_eq!(node.zeroed, 0);
        node.dirty = WORTH_PAGES;
        assert_eq!(zeroer.step(&mut node), 0);
        assert_eq!(node.zeroed, WORTH_PAGES);
        // Nor is what comes next.
        node.short = true;
        assert_eq!(zeroer.step(&mut node), 500);
        let clears = node.clears;
        assert_eq!(zeroer.step(&mut node), 500);
        assert_eq!(node.clears, clears + 1);
    }

    #[test]
    fn what_had_to_be_cleared_is_demand() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        // Between the watermarks.
        (node.zeroed, node.dirty) = (30_000, 70_000);
        node.missed = WORTH_PAGES - 1;
        assert_eq!(node.run(&mut zeroer, 10), 0);
        node.missed = WORTH_PAGES;
        assert!(node.run(&mut zeroer, 10) >= 20_000);
        assert!(node.small_first);
        assert_eq!(node.begun, 1);
        // Once.
        (node.zeroed, node.dirty) = (30_000, 70_000);
        assert_eq!(node.run(&mut zeroer, 10), 0);
        // Not if as much is zeroed as may be.
        (node.zeroed, node.dirty) = (50_000, 50_000);
        node.missed = 10 * WORTH_PAGES;
        assert_eq!(node.run(&mut zeroer, 10), 0);
    }

    #[test]
    fn large_blocks_come_first_up_to_the_low_watermark() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        while node.zeroed < 20_000 {
            zeroer.step(&mut node);
            assert!(!node.small_first);
        }
        zeroer.step(&mut node);
        assert!(node.small_first);
    }

    #[test]
    fn what_cpus_do_not_use_is_cleared() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        node.settings.low_percent = 100;
        node.settings.high_percent = 100;
        // All that is free is zeroed.
        (node.zeroed, node.dirty, node.kept) = (50_000, 0, 50_000);
        node.run(&mut zeroer, 2);
        assert_eq!((node.zeroed, node.kept), (100_000, 0));
        // No more is wanted.
        node.settings.low_percent = 10;
        node.settings.high_percent = 10;
        node.kept = 50_000;
        node.run(&mut zeroer, 2);
        assert_eq!(node.kept, 50_000);
    }

    #[test]
    fn pools_are_cleared_within_the_limits() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        // Whatever the watermarks say.
        node.settings.low_percent = 0;
        node.settings.high_percent = 0;
        node.settings.rate_mib = 20;
        node.pool = 100_000;
        node.run(&mut zeroer, 5);
        let pages = 100_000 - node.pool;
        assert!(pages <= 5 * 20 * PAGES_PER_MIB + 2 * BATCH);
        assert!(pages >= 4 * 20 * PAGES_PER_MIB);
        node.run(&mut zeroer, 20);
        assert_eq!((node.pool, node.zeroed), (0, 0));
    }

    #[test]
    fn time_that_others_took_is_not_owed() {
        let mut node = MockNode::new(100_000_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        node.settings.cpu_percent = 10;
        zeroer.step(&mut node);
        // Says the clock of a guest whose vCPU did not run for an hour.
        node.ns_per_page = 3600 * NSEC_PER_SEC / BATCH;
        while node.clears < 2 {
            let wait_ms = zeroer.step(&mut node);
            node.now_ns += wait_ms * NSEC_PER_MSEC;
        }
        node.ns_per_page = 1000;
        assert!(zeroer.step(&mut node) <= 1000);
        // Nor is it saved up.
        let pages = node.run(&mut zeroer, 2);
        assert!(pages <= 2 * NSEC_PER_SEC / 10 / node.ns_per_page + 2 * BATCH + 4000);
    }

    #[test]
    fn where_little_is_free_the_watermarks_shrink() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        // All that is free, since that is less than half of the memory.
        node.dirty = 10_000;
        assert_eq!(node.run(&mut zeroer, 10), 10_000);
        assert_eq!(node.begun, 1);
        // Of it, less than two fifths have to be dirty again; that is 20 to 50 percent.
        (node.zeroed, node.dirty) = (4_000, 6_000);
        assert_eq!(node.run(&mut zeroer, 100), 0);
        assert_eq!(node.begun, 1);
        (node.zeroed, node.dirty) = (3_999, 6_001);
        assert_eq!(node.run(&mut zeroer, 10), 6_001);

        // With nothing wanted nothing is done.
        (node.zeroed, node.dirty) = (0, 10_000);
        node.settings.low_percent = 0;
        node.settings.high_percent = 0;
        assert_eq!(node.run(&mut zeroer, 10), 0);
    }

    #[test]
    fn to_look_in_vain_takes_its_share_and_ends_nothing() {
        let mut node = MockNode::new(100_000, SETTINGS);
        let mut zeroer = Zeroer::new();

        node.looks = 1000;
        node.settings.cpu_percent = 10;
        let start = node.now_ns;
        while node.looks > 0 {
            let wait_ms = zeroer.step(&mut node);
            node.now_ns += wait_ms * NSEC_PER_MSEC;
        }
        // A second of looking, at a tenth of a CPU.
        assert!(node.now_ns - start >= 9 * NSEC_PER_SEC);
        assert_eq!((node.begun, node.ended), (1, 0));
        assert!(node.run(&mut zeroer, 1) > 0);
    }

    /// Clears all that it is given, and counts.
    struct MockClear;

    impl Clear for MockClear {
        fn clear<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> usize {
            batch.runs().iter().map(|run| run.pages()).sum()
        }
    }

    #[test]
    fn blocks_of_the_orders_are_cleared() -> Result {
        for order in 0..=10 {
            for end in order..=11 {
                let source = Mock::new(3, 0..=10)?;
                let mut zeroing = Zeroing {
                    clear: MockClear,
                    order,
                    end,
                    cleared: 0,
                };
                let wanted = |order_of: u32| (order..end).contains(&order_of);

                let mut batch = Batch::new(8)?;
                pass(&source, &mut zeroing, &mut batch, &Stats::new(), &Never)?;
                assert_eq!(zeroing.cleared, 3 * ((1 << end) - (1 << order)));
                assert_eq!(
                    source.count(|block| block.treated == usize::from(wanted(block.run.order))),
                    33
                );
                assert!(source.is_whole());
            }
        }
        Ok(())
    }
}
