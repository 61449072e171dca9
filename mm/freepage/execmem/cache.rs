// SPDX-License-Identifier: GPL-2.0

//! The cache: which memory text gets, and what becomes of it afterwards.
//!
//! A pool for each node, so that tasks on different nodes do not wait for each other. What takes
//! time (to allocate, map, overwrite, flush) is done with no spinlock held.
//!
//! Lock order: `text_mutex` (callers may have it), [`Pool::refill`], reclaim, [`Pool::inner`].
//! Reclaim takes only the last one. Nothing is allocated and nothing sleeps under it.

use super::{
    area::{
        Area,
        Kind,
        Memory, //
    },
    holes::{
        Holes,
        Run,
        Spare, //
    },
};
use core::pin::Pin;
use kernel::{
    new_mutex,
    new_spinlock,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        Mutex,
        SpinLock, //
    }, //
};

/// Where an allocation is on its way to be free.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InUse,
    /// It was freed, and somebody overwrites it.
    Leaving,
    /// It was freed, and has to be overwritten once that is possible.
    Pending,
}

/// An allocation.
struct Busy {
    size: usize,
    kind: Kind,
    /// Whether a part of it may be writable.
    writable: bool,
    state: State,
    /// For the hole that it will be.
    spare: Spare,
}

impl Busy {
    /// Its owner has freed it.
    fn leave(&mut self, start: usize) -> Leaving {
        self.state = State::Leaving;
        Leaving {
            run: Run {
                start,
                size: self.size,
            },
            kind: self.kind,
            writable: self.writable,
        }
    }
}

/// An allocation that its owner has freed.
#[derive(Clone, Copy)]
struct Leaving {
    run: Run,
    kind: Kind,
    writable: bool,
}

/// Memory for the records of an allocation.
struct Record {
    busy: RBTreeNodeReservation<usize, Busy>,
    spare: Spare,
}

impl Record {
    fn new() -> Result<Self> {
        Ok(Self {
            busy: RBTreeNodeReservation::new(GFP_KERNEL)?,
            spare: Spare::new()?,
        })
    }
}

/// What debugfs shows, in bytes; see `struct execmem_stats`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stats {
    pub(crate) text: usize,
    pub(crate) large: usize,
    pub(crate) aliased: usize,
    pub(crate) used: usize,
    pub(crate) pending: usize,
    pub(crate) idle: usize,
    pub(crate) hole: usize,
    pub(crate) rodata: usize,
}

impl Stats {
    fn of_area(area: &impl Area) -> Self {
        let size = area.size();

        match area.kind() {
            Kind::Rodata => Self {
                rodata: size,
                ..Self::default()
            },
            kind => Self {
                text: size,
                large: area.large(),
                aliased: if kind == Kind::Aliased { size } else { 0 },
                ..Self::default()
            },
        }
    }

    fn add(&mut self, other: Self) {
        self.text += other.text;
        self.large += other.large;
        self.aliased += other.aliased;
        self.rodata += other.rodata;
    }

    fn sub(&mut self, other: Self) {
        self.text -= other.text;
        self.large -= other.large;
        self.aliased -= other.aliased;
        self.rodata -= other.rodata;
    }
}

/// What became of memory that was to be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freed {
    Yes,
    NotCached,
    /// It is the cache's, but nobody had it.
    Refused,
}

/// What is protected by the lock of a pool.
struct Inner<A> {
    areas: RBTree<usize, A>,
    busy: RBTree<usize, Busy>,
    text: Holes,
    rodata: Holes,
    aliased: Holes,
    stats: Stats,
}

impl<A: Area> Inner<A> {
    fn holes(&mut self, kind: Kind) -> &mut Holes {
        match kind {
            Kind::Text => &mut self.text,
            Kind::Rodata => &mut self.rodata,
            Kind::Aliased => &mut self.aliased,
        }
    }

    /// Whether a hole is all of an area.
    fn is_area(&self, hole: Run) -> bool {
        self.areas
            .get(&hole.start)
            .is_some_and(|area| area.size() == hole.size)
    }

    /// Whether an address is in an area.
    fn has(&self, address: usize) -> bool {
        at_or_before(&self.areas, address)
            .and_then(|start| self.areas.get(&start))
            .is_some_and(|area| address < area.start() + area.size())
    }

    /// The allocation that an address is in.
    fn busy_at(&mut self, address: usize) -> Option<(usize, &mut Busy)> {
        let start = at_or_before(&self.busy, address)?;
        let busy = self.busy.get_mut(&start)?;

        (address < start + busy.size).then_some((start, busy))
    }

    fn hand_out(&mut self, run: Run, kind: Kind, record: Record) {
        let busy = Busy {
            size: run.size,
            kind,
            writable: false,
            state: State::InUse,
            spare: record.spare,
        };

        self.stats.used += run.size;
        self.busy.insert(record.busy.into_node(run.start, busy));
    }

    fn take(
        &mut self,
        size: usize,
        kind: Kind,
        allowed: impl Fn(usize) -> bool,
        record: &mut Option<Record>,
    ) -> Option<usize> {
        let hole = self.holes(kind).find(size, allowed)?;
        let Record { busy, spare } = record.take()?;
        let spare = self.holes(kind).take(hole, size, spare)?;
        let run = Run {
            start: hole.start,
            size,
        };

        if kind != Kind::Aliased && self.is_area(hole) {
            self.stats.idle -= hole.size;
        }
        self.hand_out(run, kind, Record { busy, spare });
        Some(run.start)
    }

    /// A range can be used again. Returns an area that is of no use any more.
    fn end_free(&mut self, start: usize) -> Option<A> {
        let Busy {
            size, kind, spare, ..
        } = self.busy.remove(&start)?;

        self.stats.used -= size;
        self.stats.pending -= size;
        let hole = self.holes(kind).put(Run { start, size }, spare);

        if !self.is_area(hole) {
            return None;
        }
        if kind != Kind::Aliased {
            self.stats.idle += hole.size;
            return None;
        }
        self.aliased.remove(hole);
        self.forget(hole.start)
    }

    /// Takes an area out that nobody uses.
    fn take_idle(&mut self) -> Option<A> {
        if self.stats.idle == 0 {
            return None;
        }
        let Self {
            areas,
            text,
            rodata,
            ..
        } = self;
        let hole = [text, rodata].into_iter().find_map(|holes| {
            let hole = holes.largest(|hole| {
                areas
                    .get(&hole.start)
                    .is_some_and(|area| area.size() == hole.size)
            })?;

            holes.remove(hole)?;
            Some(hole)
        })?;

        self.stats.idle -= hole.size;
        self.forget(hole.start)
    }

    fn forget(&mut self, start: usize) -> Option<A> {
        let area = self.areas.remove(&start)?;

        self.stats.sub(Stats::of_area(&area));
        Some(area)
    }
}

/// The last key up to an address.
fn at_or_before<V>(tree: &RBTree<usize, V>, address: usize) -> Option<usize> {
    match tree.cursor_lower_bound(&address) {
        Some(cursor) if *cursor.current().0 == address => Some(address),
        Some(cursor) => cursor.peek_prev().map(|(start, _)| *start),
        None => tree.cursor_back().map(|cursor| *cursor.current().0),
    }
}

/// How a free begins.
enum Begun {
    Leaving(Leaving),
    Refused,
    NotHere,
}

/// The memory that tasks on a node use.
#[pin_data]
struct Pool<A: Area> {
    nid: usize,
    /// One area at a time: others find what it has left.
    #[pin]
    refill: Mutex<()>,
    #[pin]
    inner: SpinLock<Inner<A>>,
}

impl<A: Area> Pool<A> {
    fn new(nid: usize) -> impl PinInit<Self> {
        pin_init!(Self {
            nid,
            refill <- new_mutex!((), "execmem::refill"),
            inner <- new_spinlock!(Inner {
                areas: RBTree::new(),
                busy: RBTree::new(),
                text: Holes::new(),
                rodata: Holes::new(),
                aliased: Holes::new(),
                stats: Stats::default(),
            }, "execmem"),
        })
    }

    /// Does something with the lock held, and then tells how much became idle.
    fn with<T>(
        &self,
        memory: &impl Memory<Area = A>,
        change: impl FnOnce(&mut Inner<A>) -> T,
    ) -> T {
        let mut inner = self.inner.lock();
        let before = inner.stats.idle;
        let result = change(&mut inner);
        let idle = inner.stats.idle as isize - before as isize;

        drop(inner);
        if idle != 0 {
            memory.count_idle(self.nid, idle);
        }
        result
    }

    /// Adds an area, the first `size` bytes of which are the caller's.
    fn publish(&self, area: A, size: usize, records: Records<A>) -> Option<usize> {
        let Records {
            area: node,
            rest,
            record,
        } = records;
        let mut inner = self.inner.lock();
        let start = area.start();
        let kind = area.kind();
        let left = Run {
            start: start + size,
            size: area.size() - size,
        };

        inner.stats.add(Stats::of_area(&area));
        inner.areas.insert(node.into_node(start, area));
        if left.size > 0 {
            inner.holes(kind).put(left, rest);
        }
        inner.hand_out(Run { start, size }, kind, record);
        Some(start)
    }

    fn begin_free(&self, start: usize) -> Begun {
        let mut inner = self.inner.lock();
        let Some(busy) = inner.busy.get_mut(&start) else {
            return if inner.has(start) {
                Begun::Refused
            } else {
                Begun::NotHere
            };
        };

        if busy.state != State::InUse {
            return Begun::Refused;
        }
        let leaving = busy.leave(start);

        inner.stats.pending += leaving.run.size;
        Begun::Leaving(leaving)
    }

    fn postpone(&self, start: usize) {
        if let Some(busy) = self.inner.lock().busy.get_mut(&start) {
            busy.state = State::Pending;
        }
    }

    /// The first pending allocation from `start` on; the caller overwrites it.
    fn next_pending(&self, start: usize) -> Option<Leaving> {
        let mut inner = self.inner.lock();

        if inner.stats.pending == 0 {
            return None;
        }
        let mut cursor = inner.busy.cursor_lower_bound_mut(&start)?;

        loop {
            let start = *cursor.current().0;
            let busy = cursor.current_mut().1;

            if busy.state == State::Pending {
                return Some(busy.leave(start));
            }
            cursor = cursor.move_next()?;
        }
    }
}

/// Memory for the records of an area, and of an allocation in it.
struct Records<A> {
    area: RBTreeNodeReservation<usize, A>,
    rest: Spare,
    record: Record,
}

/// The pools of all nodes.
pub(crate) struct Cache<M: Memory> {
    pools: KVec<Pin<KBox<Pool<M::Area>>>>,
    memory: M,
}

impl<M: Memory> Cache<M> {
    /// Makes an empty cache for `nodes` nodes.
    pub(crate) fn new(memory: M, nodes: usize) -> Result<Self> {
        let mut cache = Self {
            memory,
            pools: KVec::with_capacity(nodes, GFP_KERNEL)?,
        };

        for nid in 0..nodes {
            let pool = KBox::pin_init(Pool::new(nid), GFP_KERNEL)?;

            cache.pools.push_within_capacity(pool)?;
        }
        Ok(cache)
    }

    fn pool(&self, nid: usize) -> Option<&Pool<M::Area>> {
        self.pools.get(nid).map(|pool| &**pool)
    }

    /// All pools, that of this node first.
    fn near(&self) -> impl Iterator<Item = &Pool<M::Area>> {
        let nid = self.memory.this_node().min(self.pools.len());
        let (lower, upper) = self.pools.split_at(nid);

        Iterator::chain(upper.iter(), lower).map(|pool| &**pool)
    }

    /// Allocates text: outside the direct map if there is any way. May sleep.
    pub(crate) fn alloc(&self, place: M::Place, size: usize) -> Option<usize> {
        let mut record = Some(Record::new().ok()?);

        if self.memory.is_ready() {
            if let Some(start) = self.alloc_kind(place, size, Kind::Text, &mut record) {
                return Some(start);
            }
        }
        self.alloc_kind(place, size, Kind::Aliased, &mut record)
    }

    fn alloc_kind(
        &self,
        place: M::Place,
        size: usize,
        kind: Kind,
        record: &mut Option<Record>,
    ) -> Option<usize> {
        let pool = self.near().next()?;

        self.take(pool, place, size, kind, record)
            .or_else(|| self.refill(pool, place, size, kind, record))
            .or_else(|| {
                self.near()
                    .find_map(|pool| self.take(pool, place, size, kind, record))
            })
    }

    fn take(
        &self,
        pool: &Pool<M::Area>,
        place: M::Place,
        size: usize,
        kind: Kind,
        record: &mut Option<Record>,
    ) -> Option<usize> {
        let allowed = |start| self.memory.allows(place, start, size);

        pool.with(&self.memory, |inner| {
            inner.take(size, kind, allowed, record)
        })
    }

    /// Brings an area into a pool, and takes memory of it.
    fn refill(
        &self,
        pool: &Pool<M::Area>,
        place: M::Place,
        size: usize,
        kind: Kind,
        record: &mut Option<Record>,
    ) -> Option<usize> {
        let _turn = pool.refill.lock();

        if let Some(start) = self.take(pool, place, size, kind, record) {
            return Some(start);
        }
        let node = RBTreeNodeReservation::new(GFP_KERNEL).ok()?;
        let rest = Spare::new().ok()?;
        let area = self.memory.allocate(place, size, kind)?;
        let records = Records {
            area: node,
            rest,
            record: record.take()?,
        };

        pool.publish(area, size, records)
    }

    /// Allocates data that is going to be read-only: outside the direct map or not at all.
    /// May sleep.
    pub(crate) fn alloc_rodata(&self, place: M::Place, size: usize) -> Option<usize> {
        let mut record = Some(Record::new().ok()?);

        self.alloc_kind(place, size, Kind::Rodata, &mut record)
    }

    /// Frees what begins at `start`. May sleep, but waits for nobody who writes to text.
    pub(crate) fn free(&self, start: usize) -> Freed {
        for pool in self.near() {
            match pool.begin_free(start) {
                Begun::Leaving(leaving) => {
                    self.retire(pool, leaving, false);
                    return Freed::Yes;
                }
                Begun::Refused => return Freed::Refused,
                Begun::NotHere => {}
            }
        }
        Freed::NotCached
    }

    /// Overwrites what was freed, and makes it available.
    fn retire(&self, pool: &Pool<M::Area>, leaving: Leaving, wait: bool) {
        if self.overwrite(leaving, wait).is_err() {
            pool.postpone(leaving.run.start);
            self.memory.retry_later();
            return;
        }
        let unused = pool.with(&self.memory, |inner| inner.end_free(leaving.run.start));

        if let Some(area) = unused {
            self.memory.release(area);
        }
    }

    fn overwrite(&self, leaving: Leaving, wait: bool) -> Result {
        let Leaving {
            run,
            kind,
            writable,
        } = leaving;

        if kind == Kind::Rodata {
            return self.memory.make_writable(run.start, run.size);
        }
        self.memory.trap(run.start, run.size, wait)?;
        if writable {
            self.memory.protect(run.start, run.size, kind)?;
        }
        Ok(())
    }

    /// Overwrites what could not be overwritten when it was freed. May sleep.
    pub(crate) fn retry(&self) {
        for pool in &self.pools {
            let mut next = 0;

            while let Some(leaving) = pool.next_pending(next) {
                next = leaving.run.end();
                self.retire(pool, leaving, true);
                self.memory.relax();
            }
        }
    }

    /// What kind of memory an address is of, and an allocation that it is in.
    fn with_busy<T>(&self, address: usize, mut f: impl FnMut(usize, &mut Busy) -> T) -> Option<T> {
        self.near().find_map(|pool| {
            let mut inner = pool.inner.lock();
            let (start, busy) = inner.busy_at(address)?;

            Some(f(start, busy))
        })
    }

    /// The kind of an allocation.
    pub(crate) fn kind(&self, address: usize) -> Option<Kind> {
        self.with_busy(address, |_, busy| busy.kind)
    }

    /// A part of an allocation becomes writable.
    pub(crate) fn make_writable(&self, address: usize) -> Option<Kind> {
        self.with_busy(address, |_, busy| {
            busy.writable = true;
            busy.kind
        })
    }

    /// It is not writable any more.
    pub(crate) fn protected(&self, address: usize, size: usize) {
        self.with_busy(address, |start, busy| {
            if address == start && size >= busy.size {
                busy.writable = false;
            }
        });
    }

    /// How many bytes of a node [`Cache::reclaim`] could free.
    pub(crate) fn reclaimable(&self, nid: usize) -> usize {
        self.pool(nid)
            .map_or(0, |pool| pool.inner.lock().stats.idle)
    }

    /// Gives back areas that nobody uses, until it is `wanted` bytes. Returns how many.
    pub(crate) fn reclaim(&self, nid: usize, wanted: usize) -> usize {
        let mut freed = 0;
        let Some(pool) = self.pool(nid) else {
            return 0;
        };

        while freed < wanted {
            let Some(area) = pool.with(&self.memory, |inner| inner.take_idle()) else {
                break;
            };

            freed += area.size();
            self.memory.release(area);
            self.memory.relax();
        }
        freed
    }

    /// What debugfs shows of a node.
    pub(crate) fn stats(&self, nid: usize) -> Option<Stats> {
        let mut inner = self.pool(nid)?.inner.lock();
        let hole = inner.text.largest(|_| true);

        Some(Stats {
            hole: hole.map_or(0, |hole| hole.size),
            ..inner.stats
        })
    }
}

#[cfg(CONFIG_EXECMEM_KUNIT_TEST)]
#[kunit_tests(execmem_cache)]
mod tests {
    use super::*;
    use crate::{
        mock::{
            Page,
            Step,
            TestMemory, //
        },
        random::Random, //
    };
    use kernel::page::PAGE_SIZE;

    const BLOCK: usize = TestMemory::BLOCK;

    fn cache() -> Result<Cache<TestMemory>> {
        Cache::new(TestMemory::new()?, TestMemory::NODES)
    }

    impl Cache<TestMemory> {
        /// Allocates text, and uses it. What there is has to trap.
        fn text(&self, size: usize) -> Result<usize> {
            let start = self.alloc(TestMemory::ANYWHERE, size).ok_or(ENOMEM)?;

            self.memory.change(start, size, &[Page::Trap], Page::Text);
            Ok(start)
        }

        /// Allocates data, and makes it read-only.
        fn data(&self, size: usize) -> Result<usize> {
            let start = self
                .alloc_rodata(TestMemory::ANYWHERE, size)
                .ok_or(ENOMEM)?;

            self.memory
                .change(start, size, &[Page::Data], Page::ReadOnlyData);
            Ok(start)
        }

        fn total(&self) -> Stats {
            let mut total = Stats::default();

            for stats in (0..TestMemory::NODES).filter_map(|nid| self.stats(nid)) {
                total.add(stats);
                total.used += stats.used;
                total.pending += stats.pending;
                total.idle += stats.idle;
            }
            total
        }

        fn reclaim_all(&self) -> usize {
            (0..TestMemory::NODES)
                .map(|nid| self.reclaim(nid, usize::MAX))
                .sum()
        }

        /// Nobody has anything any more.
        fn expect_all_can_be_given_back(&self) {
            self.memory.fails.set(Step::Nothing);
            self.retry();
            let total = self.total();

            assert_eq!((total.used, total.pending, total.aliased), (0, 0, 0));
            assert_eq!(total.idle, total.text + total.rodata);
            assert_eq!(total.idle as isize, self.memory.idle.get());
            assert_eq!(self.reclaim_all(), total.idle);
            assert_eq!(self.memory.areas.get(), 0);
            assert_eq!(self.memory.idle.get(), 0);
        }
    }

    #[test]
    fn neighbours_share_an_area() -> Result {
        let cache = cache()?;
        let first = cache.text(PAGE_SIZE)?;
        let second = cache.text(3 * PAGE_SIZE)?;

        assert_eq!(cache.memory.areas.get(), 1);
        assert_eq!(second, first + PAGE_SIZE);
        assert_eq!(cache.total().used, 4 * PAGE_SIZE);
        assert_eq!(cache.free(first), Freed::Yes);
        assert_eq!(cache.reclaim_all(), 0);
        assert_eq!(cache.free(second), Freed::Yes);
        assert_eq!(cache.memory.retries.get(), 0);
        cache.expect_all_can_be_given_back();
        Ok(())
    }

    #[test]
    fn more_than_a_block_is_in_one_piece() -> Result {
        let cache = cache()?;
        let start = cache.text(2 * BLOCK + PAGE_SIZE)?;

        assert_eq!(cache.total().text, 3 * BLOCK);
        assert_eq!(cache.kind(start + 2 * BLOCK), Some(Kind::Text));
        assert_eq!(cache.kind(start + 2 * BLOCK + PAGE_SIZE), None);
        cache.free(start);
        cache.expect_all_can_be_given_back();
        Ok(())
    }

    #[test]
    fn smallest_hole_is_taken() -> Result {
        let cache = cache()?;
        let sizes = [5, 1, 2, 1, 3, 1];
        let mut starts = [0; 6];

        for (start, pages) in starts.iter_mut().zip(sizes) {
            *start = cache.text(pages * PAGE_SIZE)?;
        }
        for hole in [0, 2, 4] {
            cache.free(starts[hole]);
        }
        assert_eq!(cache.text(2 * PAGE_SIZE)?, starts[2]);
        assert_eq!(cache.text(3 * PAGE_SIZE)?, starts[4]);
        assert_eq!(cache.text(4 * PAGE_SIZE)?, starts[0]);
        assert_eq!(cache.text(PAGE_SIZE)?, starts[0] + 4 * PAGE_SIZE);
        Ok(())
    }

    #[test]
    fn place_is_kept_to() -> Result {
        let cache = cache()?;
        let low = (0, 64 * PAGE_SIZE);
        let high = (64 * PAGE_SIZE, 128 * PAGE_SIZE);
        let first = cache.alloc(low, PAGE_SIZE).ok_or(ENOMEM)?;
        let second = cache.alloc(high, PAGE_SIZE).ok_or(ENOMEM)?;

        assert!(first < 64 * PAGE_SIZE && second >= 64 * PAGE_SIZE);
        assert_eq!(cache.alloc(low, PAGE_SIZE), Some(first + PAGE_SIZE));
        assert_eq!(cache.alloc(low, 64 * PAGE_SIZE), None);
        Ok(())
    }

    #[test]
    fn nodes_have_areas_of_their_own() -> Result {
        let cache = cache()?;
        let first = cache.text(PAGE_SIZE)?;

        cache.memory.node.set(1);
        let second = cache.text(PAGE_SIZE)?;

        assert_eq!(cache.memory.areas.get(), 2);
        // Without memory, what the other node has will do.
        cache.memory.fails.set(Step::Allocate);
        cache.text(BLOCK - PAGE_SIZE)?;
        let third = cache.text(BLOCK - PAGE_SIZE)?;
        assert!(third > first && third < first + BLOCK);
        assert!(cache.text(PAGE_SIZE).is_err());
        // A free from another node.
        assert_eq!(cache.free(first), Freed::Yes);
        assert_eq!(cache.text(PAGE_SIZE)?, first);
        assert_eq!(cache.free(second), Freed::Yes);
        Ok(())
    }

    #[test]
    fn only_what_is_allocated_is_freed() -> Result {
        let cache = cache()?;
        let start = cache.text(2 * PAGE_SIZE)?;

        assert_eq!(cache.free(start + PAGE_SIZE), Freed::Refused);
        assert_eq!(cache.free(start + 2 * PAGE_SIZE), Freed::Refused);
        assert_eq!(cache.free(start + BLOCK), Freed::NotCached);
        assert_eq!(cache.free(0), Freed::NotCached);
        assert_eq!(cache.free(start), Freed::Yes);
        assert_eq!(cache.free(start), Freed::Refused);
        Ok(())
    }

    #[test]
    fn free_waits_for_nobody() -> Result {
        let cache = cache()?;
        let start = cache.text(PAGE_SIZE)?;

        cache.memory.fails.set(Step::Trap);
        assert_eq!(cache.free(start), Freed::Yes);
        assert_eq!(cache.free(start), Freed::Refused);
        assert_eq!(cache.memory.retries.get(), 1);
        assert_eq!(cache.total().pending, PAGE_SIZE);
        assert_eq!(cache.reclaim_all(), 0);
        assert_ne!(cache.text(PAGE_SIZE)?, start);
        cache.retry();
        assert_eq!(cache.total().pending, 0);
        assert_eq!(cache.text(PAGE_SIZE)?, start);
        Ok(())
    }

    #[test]
    fn writable_text_is_protected_before_it_is_used_again() -> Result {
        let cache = cache()?;
        let start = cache.text(PAGE_SIZE)?;

        assert_eq!(cache.make_writable(start), Some(Kind::Text));
        cache
            .memory
            .change(start, PAGE_SIZE, &[Page::Text], Page::WritableText);
        cache.memory.fails.set(Step::Protect);
        cache.free(start);
        assert_eq!(cache.total().pending, PAGE_SIZE);
        cache.retry();
        assert_eq!(cache.memory.retries.get(), 2);
        cache.expect_all_can_be_given_back();
        Ok(())
    }

    #[test]
    fn data_is_writable_before_it_is_used_again() -> Result {
        let cache = cache()?;
        let start = cache.data(PAGE_SIZE)?;

        assert_eq!(cache.make_writable(start), Some(Kind::Rodata));
        cache.memory.fails.set(Step::MakeWritable);
        cache.free(start);
        assert_eq!(cache.total().pending, PAGE_SIZE);
        cache.memory.fails.set(Step::Nothing);
        cache.retry();
        assert_eq!(cache.data(PAGE_SIZE)?, start);
        cache.free(start);
        cache.expect_all_can_be_given_back();
        Ok(())
    }

    #[test]
    fn text_is_aliased_only_if_need_be() -> Result {
        let cache = cache()?;

        cache.memory.ready.set(false);
        let early = cache.text(PAGE_SIZE)?;

        assert_eq!(cache.kind(early), Some(Kind::Aliased));
        cache.memory.ready.set(true);
        let text = cache.text(PAGE_SIZE)?;

        assert_eq!(cache.kind(text), Some(Kind::Text));
        cache.free(early);
        assert_eq!(cache.total().aliased, 0);
        assert_eq!(cache.memory.areas.get(), 1);
        cache.memory.fails.set(Step::Unmapped);
        assert!(cache.data(PAGE_SIZE).is_err());
        let late = cache.text(BLOCK)?;

        assert_eq!(cache.kind(late), Some(Kind::Aliased));
        cache.free(late);
        cache.free(text);
        cache.expect_all_can_be_given_back();
        Ok(())
    }

    #[test]
    fn reclaim_stops_when_it_has_enough() -> Result {
        let cache = cache()?;
        let mut starts = KVec::new();

        for _ in 0..4 {
            starts.push(cache.text(BLOCK)?, GFP_KERNEL)?;
            starts.push(cache.data(BLOCK)?, GFP_KERNEL)?;
        }
        for start in &starts {
            cache.free(*start);
        }
        assert_eq!(cache.reclaimable(0), 8 * BLOCK);
        assert_eq!(cache.reclaim(0, 0), 0);
        assert_eq!(cache.reclaim(0, 1), BLOCK);
        assert_eq!(cache.reclaim(0, 2 * BLOCK), 2 * BLOCK);
        assert_eq!(cache.reclaim(1, BLOCK), 0);
        assert_eq!(cache.reclaim(TestMemory::NODES, BLOCK), 0);
        assert_eq!(cache.reclaim(0, usize::MAX), 5 * BLOCK);
        assert_eq!(cache.reclaim(0, usize::MAX), 0);
        Ok(())
    }

    /// Whatever happens in which order: memory has one owner, and comes back.
    #[test]
    fn random_sequences() -> Result {
        let steps = [
            Step::Nothing,
            Step::Nothing,
            Step::Nothing,
            Step::Unmapped,
            Step::Allocate,
            Step::Trap,
            Step::Protect,
            Step::MakeWritable,
        ];

        for seed in 1..=8 {
            let cache = cache()?;
            let mut random = Random::new(seed);
            // Start and size.
            let mut owned: KVec<(usize, usize)> = KVec::new();

            for _ in 0..1500 {
                let size = (1 + random.below(20)) * PAGE_SIZE;

                match random.below(12) {
                    0..4 => {
                        if let Ok(start) = cache.text(size) {
                            owned.push((start, size), GFP_KERNEL)?;
                        }
                    }
                    4 => {
                        if let Ok(start) = cache.data(size) {
                            owned.push((start, size), GFP_KERNEL)?;
                        }
                    }
                    5..9 if !owned.is_empty() => {
                        let (start, size) = owned.remove(random.below(owned.len()))?;

                        if random.below(4) == 0 && cache.kind(start) != Some(Kind::Rodata) {
                            cache.make_writable(start);
                            cache
                                .memory
                                .change(start, size, &[Page::Text], Page::WritableText);
                        }
                        assert_eq!(cache.free(start), Freed::Yes);
                    }
                    9 => drop(cache.reclaim(random.below(2), size)),
                    10 => cache.retry(),
                    _ => {
                        cache.memory.fails.set(steps[random.below(steps.len())]);
                        cache.memory.node.set(random.below(TestMemory::NODES));
                        cache.memory.ready.set(random.below(4) > 0);
                    }
                }
                let total = cache.total();
                let used: usize = owned.iter().map(|(_, size)| size).sum();

                assert_eq!(total.used - total.pending, used);
                assert_eq!(total.idle as isize, cache.memory.idle.get());
            }
            for (start, _) in &owned {
                assert_eq!(cache.free(*start), Freed::Yes);
            }
            cache.expect_all_can_be_given_back();
        }
        Ok(())
    }
}
