// SPDX-License-Identifier: GPL-2.0

//! How much is accepted, and when: for an allocation, in the background, on request.
//!
//! Memory that is unaccepted waits in blocks, each a pageblock; a block that is taken is *in
//! flight* until it is in the free lists. Blocks are the [`Source`]'s; no `unsafe` here.

use super::stats::Why;
use core::cmp;

/// Where blocks come from: a zone, or the zones of a node.
pub(crate) trait Source {
    type Block;

    /// Pages in a block.
    const PAGES: i64;

    /// Takes a block for the caller, if there is one.
    fn take(&self) -> Option<Self::Block>;

    /// Accepts a block and gives it to the free lists.
    fn accept(&self, block: Self::Block, why: Why);

    /// Number of blocks that are in flight.
    fn in_flight(&self) -> i64;

    /// Number of blocks that have landed, ever; it wraps.
    fn landed(&self) -> u32;

    /// Sleeps until [`Self::landed`] is no longer `before`.
    fn wait(&self, before: u32);
}

/// What an allocation knows of its zone and itself.
#[derive(Clone, Copy)]
pub(crate) struct Demand {
    /// Pages that are missing to the promo watermark; not positive if none are.
    pub(crate) shortage: i64,
    /// The zone has no page for this allocation.
    pub(crate) must: bool,
    /// The allocation may sleep.
    pub(crate) may_sleep: bool,
}

/// Accepts a block for an allocation, if there is need; whether to try the zone again.
///
/// One block, so that an allocation stalls for no more than that. Where there are free pages, one
/// that may not sleep leaves it to others, and what is in flight counts as if it were there. Before
/// watermarks are known, nothing is accepted in advance.
pub(crate) fn replenish(zone: &impl Source, demand: Demand) -> bool {
    replenish_from(zone, demand)
}

fn replenish_from<S: Source>(zone: &S, demand: Demand) -> bool {
    let wanted = demand.may_sleep && demand.shortage > zone.in_flight() * S::PAGES;
    if !demand.must && !wanted {
        return false;
    }
    let before = zone.landed();
    if let Some(block) = zone.take() {
        zone.accept(block, Why::Allocation);
        return true;
    }
    if !demand.must || !demand.may_sleep {
        return false;
    }
    // Others have the last ones, or had them. This must not be taken for a zone without memory.
    if zone.in_flight() > 0 {
        zone.wait(before);
        return true;
    }
    zone.landed() != before
}

/// How much the background may do, for each node.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Of the time of one CPU, in percent; 1 to 100.
    pub(crate) share: u32,
    /// MiB in a second; 0 is no limit.
    pub(crate) rate: u32,
}

impl Limits {
    /// How long to pause after `bytes` were accepted in `took` ns, in ns.
    pub(crate) fn pause(self, bytes: u64, took: u64) -> u64 {
        let share = u64::from(self.share.clamp(1, 100));
        let by_share = took.saturating_mul(100 - share) / share;
        let by_rate = match u64::from(self.rate) {
            0 => 0,
            rate => bytes
                .saturating_mul(1_000_000_000 >> 20)
                .checked_div(rate)
                .unwrap_or(0)
                .saturating_sub(took),
        };
        cmp::max(by_share, by_rate)
    }
}

/// Accepts a block in the background or on request; false if there is none.
pub(crate) fn advance(node: &impl Source, why: Why) -> bool {
    match node.take() {
        Some(block) => {
            node.accept(block, why);
            true
        }
        None => false,
    }
}
