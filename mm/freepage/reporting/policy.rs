// SPDX-License-Identifier: GPL-2.0

//! What is reported: any free block of at least the configured order is wanted, unless it is part
//! of a reserve of zeroed memory; the host is told of those units of that order in it that were
//! freed since they were last reported. Who the host is, is in [`super::view`].

use crate::{
    map::{
        Run,
        LARGEST, //
    },
    worker::{
        FreePage,
        IsolatedPages,
        Source,
        Treated,
        Treatment, //
    },
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

/// Pages of a report, if blocks are smaller.
const REPORT_PAGES: usize = 32 << 20 >> PAGE_SHIFT;

/// Takes reports.
pub(crate) trait Host {
    /// Reports `runs`. They belong to the caller for as long as this takes, which may sleep.
    fn report(&mut self, runs: &[Run]) -> Result;
}

/// Reports free blocks of at least `order` to `host`.
pub(crate) struct Reporting<H: Host> {
    pub(crate) host: H,
    pub(crate) order: u32,
}

impl<H: Host> Treatment for Reporting<H> {
    // 32 MiB, so that nobody runs short of memory for what is on its way to the host.
    const PAGES_MAX: usize = if REPORT_PAGES > LARGEST {
        REPORT_PAGES
    } else {
        LARGEST
    };

    fn order(&self) -> u32 {
        self.order
    }

    fn wants(&self, page: &FreePage<'_>) -> bool {
        page.order() >= self.order && !page.is_reserve()
    }

    fn treat<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> Treated {
        // The device takes all of them, or none.
        match self.host.report(batch.runs()) {
            Ok(()) => batch.all(),
            Err(error) => Treated {
                runs: 0,
                result: Err(error),
            },
        }
    }
}

#[cfg(CONFIG_FREEPAGE_KUNIT_TEST)]
#[kunit_tests(freepage_reporting)]
mod tests {
    use super::*;
    use crate::{
        mock::Mock,
        worker::{
            pass,
            Batch,
            Never,
            Outcome,
            Stats, //
        },
    };
    use kernel::sync::atomic::Relaxed;

    const CAPACITY: usize = 32;

    /// A host that can fail, and notes what it was told.
    struct MockHost {
        /// Reports that succeed before all others fail.
        patience: usize,
        largest: usize,
        smallest_order: u32,
        pages: usize,
    }

    impl Host for MockHost {
        fn report(&mut self, runs: &[Run]) -> Result {
            if self.patience == 0 {
                return Err(ENODEV);
            }
            self.patience -= 1;
            self.largest = self.largest.max(runs.len());
            for run in runs {
                self.smallest_order = self.smallest_order.min(run.order);
                self.pages += run.pages();
            }
            Ok(())
        }
    }

    fn reporting(order: u32, patience: usize) -> Reporting<MockHost> {
        let host = MockHost {
            patience,
            largest: 0,
            smallest_order: u32::MAX,
            pages: 0,
        };
        Reporting { host, order }
    }

    #[test]
    fn reports_blocks_of_the_order_and_above() -> Result {
        for order in 0..=10 {
            let source = Mock::new(3, 0..=10)?;
            let mut policy = reporting(order, usize::MAX);
            let stats = Stats::new();
            let outcome = pass(
                &source,
                &mut policy,
                &mut Batch::new(CAPACITY)?,
                &stats,
                &Never,
            )?;
            let wanted = source.count(|block| block.run.order >= order);

            assert_eq!(outcome, Outcome::Done);
            assert_eq!(policy.host.smallest_order, order);
            assert_eq!(source.count(|block| block.treated == 1), wanted);
            assert_eq!(source.count(|block| block.treated == 0), 33 - wanted);
            assert_eq!(stats.pages.load(Relaxed), policy.host.pages as i64);
            assert!(source.is_whole());
        }
        Ok(())
    }

    #[test]
    fn never_exceeds_the_capacity_nor_the_memory() -> Result {
        for capacity in [1, 7, CAPACITY] {
            let source = Mock::new(60, 9..=9)?;
            let mut policy = reporting(9, usize::MAX);

            pass(
                &source,
                &mut policy,
                &mut Batch::new(capacity)?,
                &Stats::new(),
                &Never,
            )?;
            let runs = capacity.min(Reporting::<MockHost>::PAGES_MAX >> 9);
            assert_eq!(policy.host.largest, runs);
            assert_eq!(source.most_isolated.get(), runs << 9);
            assert_eq!(policy.host.pages, 60 << 9);
        }
        Ok(())
    }

    #[test]
    fn a_device_that_goes_away_loses_nothing() -> Result {
        let source = Mock::new(20, 0..=2)?;
        let mut batch = Batch::new(CAPACITY)?;
        let stats = Stats::new();
        let gone = pass(&source, &mut reporting(0, 1), &mut batch, &stats, &Never);

        assert_eq!(gone, Err(ENODEV));
        assert!(source.is_whole());
        assert_eq!(source.count(|block| block.treated == 1), CAPACITY);
        assert_eq!(source.count(|block| block.pending), 60 - CAPACITY);

        // The next device gets the rest.
        let mut policy = reporting(0, usize::MAX);
        pass(&source, &mut policy, &mut batch, &stats, &Never)?;
        assert_eq!(source.count(|block| block.treated == 1), 60);
        assert_eq!(stats.failures.load(Relaxed), 1);
        Ok(())
    }
}
