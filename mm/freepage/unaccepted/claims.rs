// SPDX-License-Identifier: GPL-2.0

//! The claim protocol: who accepts which unit, and when a unit counts as accepted.
//!
//! A unit is what one bit of the firmware's bitmap stands for. The bit is no claim: it is cleared
//! after the unit was accepted, so that nobody touches it before, and a crash kernel is not lied
//! to. Claims are in a table of fixed size, since there is no slab yet when it is first needed.
//! Nothing here may allocate, take a lock, or know about pages and zones:
//! `tools/testing/unaccepted` compiles this very file for a model checker.
//!
//! # Rules
//!
//! 1. A unit is worked on in sections with interrupts off, each of bounded length. In between it is
//!    *parked*: the table says how far it came, and anyone who needs it goes on from there.
//! 2. So a unit that is *active* belongs to another CPU that is in a section now. It comes to its
//!    end whatever else happens: to wait for it is safe in every context but NMI, in interrupts and
//!    with spinlocks held, too. Nobody waits for what it interrupted or preempted, as that is
//!    parked.
//! 3. Nobody holds one claim and waits for another one: the guard unit is claimed after the units
//!    before it have been accepted.
//! 4. The bit is cleared before the claim is given up. Who takes a claim looks at the bit again.
//!
//! All claims that a unit can be in are in one word, so that one compare-and-exchange takes it.

/// Steps in which a unit is accepted: pages of 4K in 2 MiB.
pub(crate) const STEPS: u32 = 512;

/// An atomic word. A model checker has its own.
pub(crate) trait Word {
    /// Loads with acquire order.
    fn load(&self) -> u64;

    /// Replaces `old` by `new`, fully ordered; the other value that is there if it is not `old`.
    fn replace(&self, old: u64, new: u64) -> Result<(), u64>;

    /// Replaces the value by what `change` makes of it.
    fn update(&self, change: impl Fn(u64) -> u64) {
        let mut old = self.load();
        while let Err(now) = self.replace(old, change(old)) {
            old = now;
        }
    }
}

/// The firmware's bitmap: set is unaccepted.
///
/// A bit only goes from set to clear.
pub(crate) struct Bits<'a, W> {
    words: &'a [W],
}

impl<W> Clone for Bits<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Bits<'_, W> {}

impl<'a, W: Word> Bits<'a, W> {
    /// The bitmap in `words`, the lowest bit of the first word first.
    pub(crate) fn new(words: &'a [W]) -> Self {
        Self { words }
    }

    fn place(&self, unit: u64) -> (Option<&W>, u64) {
        let word = usize::try_from(unit / 64).ok();
        (word.and_then(|at| self.words.get(at)), 1 << (unit % 64))
    }

    /// Whether the unit is unaccepted. If not, its memory can be used: the load has acquire order.
    pub(crate) fn test(&self, unit: u64) -> bool {
        let (word, bit) = self.place(unit);
        word.is_some_and(|word| word.load() & bit != 0)
    }

    /// Says that the unit is accepted, with release order.
    fn clear(&self, unit: u64) {
        let (word, bit) = self.place(unit);
        if let Some(word) = word {
            word.update(|old| old & !bit);
        }
    }
}

/// A claim in the table: half a word.
///
/// # Invariants
///
/// 0 is no claim. Else bit 31 is set, bit 30 tells whether it is active, bits 21 to 29 are the
/// steps done, and bits 0 to 20 are the tag, which together with the bucket is the unit.
#[derive(Clone, Copy, PartialEq)]
struct Entry(u32);

const TAG_BITS: u32 = 21;

impl Entry {
    const PRESENT: u32 = 1 << 31;
    const ACTIVE: u32 = 1 << 30;

    fn active(tag: u32, step: u32) -> Self {
        // INVARIANT: The tag and the steps are cut to their bits.
        Self(Self::PRESENT | Self::ACTIVE | Self::fields(tag, step))
    }

    fn parked(tag: u32, step: u32) -> Self {
        // INVARIANT: The tag and the steps are cut to their bits.
        Self(Self::PRESENT | Self::fields(tag, step))
    }

    fn fields(tag: u32, step: u32) -> u32 {
        (step % STEPS) << TAG_BITS | tag & ((1 << TAG_BITS) - 1)
    }

    fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    fn is_active(self) -> bool {
        self.0 & Self::ACTIVE != 0
    }

    fn tag(self) -> u32 {
        self.0 & ((1 << TAG_BITS) - 1)
    }

    fn step(self) -> u32 {
        self.0 >> TAG_BITS & (STEPS - 1)
    }

    fn is_of(self, tag: u32) -> bool {
        self.is_present() && self.tag() == tag
    }
}

/// Both entries of a word.
fn entries(word: u64) -> [Entry; 2] {
    // INVARIANT: Words are made of entries only, or 0.
    [Entry(word as u32), Entry((word >> 32) as u32)]
}

fn word(entries: [Entry; 2]) -> u64 {
    u64::from(entries[0].0) | u64::from(entries[1].0) << 32
}

/// What came of the wish to have a claim.
#[derive(Debug, PartialEq)]
pub(crate) enum Take {
    /// It is the caller's, and active; so many steps are done.
    Taken(u32),
    /// Another CPU is in a section for it, or for both units that have its place.
    Busy,
    /// There is no place until this parked unit is done.
    Full(u64),
}

/// The table of claims, of `N` buckets of two; `N` is a power of two.
///
/// Units that are neighbours are in different buckets, and so are those at the same place of
/// different nodes.
pub(crate) struct Claims<W, const N: usize> {
    buckets: [W; N],
}

impl<W: Word, const N: usize> Claims<W, N> {
    /// The units that have a place: all others are to be refused.
    pub(crate) const UNITS: u64 = (N as u64) << TAG_BITS;

    /// A table without claims: all words are 0.
    pub(crate) const fn new(buckets: [W; N]) -> Self {
        Self { buckets }
    }

    fn spread(tag: u64) -> u64 {
        tag.wrapping_mul(0x9e37_79b9) >> 7
    }

    fn place(&self, unit: u64) -> (&W, u32) {
        let tag = unit / N as u64;
        let bucket = (unit ^ Self::spread(tag)) % N as u64;
        (&self.buckets[bucket as usize], tag as u32)
    }

    /// The unit that has this tag in the bucket of `unit`.
    fn neighbour(unit: u64, tag: u32) -> u64 {
        let bucket = (unit ^ Self::spread(unit / N as u64)) % N as u64;
        let tag = u64::from(tag);
        tag * N as u64 + (bucket ^ Self::spread(tag)) % N as u64
    }

    /// Tries to get the claim for a section; interrupts are off.
    pub(crate) fn take(&self, unit: u64) -> Take {
        let (place, tag) = self.place(unit);
        let mut old = place.load();
        loop {
            let mut both = entries(old);
            let mine = both.iter().position(|entry| entry.is_of(tag));
            let free = || both.iter().position(|entry| !entry.is_present());
            let Some(slot) = mine.or_else(free) else {
                let parked = both.iter().find(|entry| !entry.is_active());
                return parked.map_or(Take::Busy, |entry| {
                    Take::Full(Self::neighbour(unit, entry.tag()))
                });
            };
            if both[slot].is_active() {
                return Take::Busy;
            }
            let step = both[slot].step();
            both[slot] = Entry::active(tag, step);
            match place.replace(old, word(both)) {
                Ok(()) => return Take::Taken(step),
                Err(now) => old = now,
            }
        }
    }

    fn put(&self, unit: u64, entry: impl Fn(u32) -> Entry) {
        let (place, tag) = self.place(unit);
        place.update(|old| {
            word(entries(old).map(|now| if now.is_of(tag) { entry(tag) } else { now }))
        });
    }

    /// Ends a section before the unit is done.
    pub(crate) fn park(&self, unit: u64, step: u32) {
        self.put(unit, |tag| Entry::parked(tag, step));
    }

    /// Ends the section in which the unit was done.
    pub(crate) fn remove(&self, unit: u64) {
        self.put(unit, |_| Entry(0));
    }

    /// The units that are parked or active, in no order.
    pub(crate) fn units(&self) -> impl Iterator<Item = u64> + '_ {
        let words = self.buckets.iter().enumerate();
        words.flat_map(|(bucket, place)| {
            let present = entries(place.load()).map(|entry| {
                let tag = u64::from(entry.tag());
                let unit = tag * N as u64 + (bucket as u64 ^ Self::spread(tag)) % N as u64;
                entry.is_present().then_some(unit)
            });
            present.into_iter().flatten()
        })
    }
}

/// What accepts, and the context that it is done in.
pub(crate) trait Host {
    /// Runs a section: with interrupts off.
    fn section<R>(&self, section: impl FnOnce() -> R) -> R;

    /// Accepts the unit from step `from` on, for a bounded time; how far it came, [`STEPS`] if to
    /// its end. Called in a section.
    fn accept(&self, unit: u64, from: u32) -> u32;

    /// A unit is accepted, and its bit says so. Called in a section.
    fn done(&self) {}

    /// Another CPU is at it; called outside of a section, for the `time`th time in a row.
    fn relax(&self, time: u32);
}

/// Accepts a unit, unless it is; whether another CPU had to be waited for.
///
/// When this returns, the unit is accepted. Allowed in every context but NMI.
pub(crate) fn accept_unit<W: Word, const N: usize>(
    claims: &Claims<W, N>,
    bits: Bits<'_, W>,
    host: &impl Host,
    unit: u64,
) -> bool {
    let (mut times, mut waited) = (0, false);
    while bits.test(unit) {
        if host.section(|| section(claims, bits, host, unit)) {
            times = 0;
        } else {
            waited = true;
            host.relax(times);
            times = times.saturating_add(1);
        }
    }
    waited
}

/// A section for the unit, or for one that has to be done before; false if another CPU is at it.
fn section<W: Word, const N: usize>(
    claims: &Claims<W, N>,
    bits: Bits<'_, W>,
    host: &impl Host,
    unit: u64,
) -> bool {
    let (unit, step) = match claims.take(unit) {
        Take::Taken(step) => (unit, step),
        Take::Busy => return false,
        Take::Full(other) => match claims.take(other) {
            Take::Taken(step) => (other, step),
            _ => return false,
        },
    };
    // Who had the claim before may have done all of it since the bit was seen.
    if !bits.test(unit) {
        claims.remove(unit);
        return true;
    }
    match host.accept(unit, step) {
        STEPS => {
            bits.clear(unit);
            claims.remove(unit);
            host.done();
        }
        step => claims.park(unit, step),
    }
    true
}
