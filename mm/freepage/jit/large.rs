// SPDX-License-Identifier: GPL-2.0

//! Text that is larger than a page: areas of executable memory, and the pieces that they are cut
//! into. Nothing here changes text, or takes or gives back any.

use super::slab::{
    Problem,
    Taken, //
};
use core::{
    cmp::Reverse,
    ops::Range, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    },
};

/// Pages of an area, unless there was less to be had, or a piece is larger.
pub(crate) const AREA_PAGES: usize = 512;

/// Bytes that pieces are multiples of. A page has a bit of a word for each.
const UNIT: usize = PAGE_SIZE / u64::BITS as usize;

/// Areas without a piece that are kept for the next one.
const KEPT: usize = 1;

/// What an area has is cut into units.
///
/// # Invariants
///
/// `free` is the number of bits in `used` that are clear.
struct Area {
    /// A bit for each unit that is not free, a word for each page.
    used: KVVec<u64>,
    free: usize,
    /// There is no room for more units than this; there may be less.
    room: usize,
    /// The last flush of branch predictors that began before something here was free.
    dirtied: u64,
}

impl Area {
    fn pages(&self) -> usize {
        self.used.len()
    }

    fn units(&self) -> usize {
        self.pages() * u64::BITS as usize
    }

    fn is_empty(&self) -> bool {
        self.free == self.units()
    }

    /// The first unit of `units` that is in use, or free; the end if none is.
    fn first(&self, units: Range<usize>, used: bool) -> usize {
        let mut unit = units.start;

        while unit < units.end {
            let word = self.used[unit / 64];
            let wanted = (if used { word } else { !word }) >> (unit % 64);

            if wanted != 0 {
                unit += wanted.trailing_zeros() as usize;
                break;
            }
            unit = (unit / 64 + 1) * 64;
        }
        unit.min(units.end)
    }

    /// Where so many units are free; a multiple of `align`.
    fn find(&self, units: usize, align: usize) -> Option<usize> {
        let (mut start, end) = (0, self.units());

        loop {
            start = self.first(start..end, false).next_multiple_of(align);
            if units > end.saturating_sub(start) {
                return None;
            }
            let used = self.first(start..start + units, true);

            if used == start + units {
                return Some(start);
            }
            start = used;
        }
    }

    fn mark(&mut self, units: Range<usize>, used: bool) {
        // INVARIANT: All of them were the other.
        if used {
            self.free -= units.len();
        } else {
            self.free += units.len();
            self.room = self.free;
        }
        let mut unit = units.start;

        while unit < units.end {
            let word = unit / 64;
            let bits = (units.end - unit).min(64 - unit % 64);
            let mask = (u64::MAX >> (64 - bits)) << (unit % 64);

            if used {
                self.used[word] |= mask;
            } else {
                self.used[word] &= !mask;
            }
            unit += bits;
        }
    }

    fn take(&mut self, units: usize, align: usize) -> Option<usize> {
        if units > self.room {
            return None;
        }
        let Some(start) = self.find(units, align) else {
            // Less may fit where more is aligned to more.
            if align == 1 {
                self.room = units - 1;
            }
            return None;
        };

        self.mark(start..start + units, true);
        Some(start)
    }
}

/// How many units a piece has, and what number of them it is aligned to: to the power of two
/// that divides its length, up to a page.
fn shape(len: usize) -> (usize, usize) {
    let align = 1 << len.trailing_zeros().min(PAGE_SIZE.trailing_zeros());

    (len.div_ceil(UNIT), (align / UNIT).max(1))
}

/// A piece of an area.
#[derive(Clone, Copy)]
struct Piece {
    /// Where the area begins.
    area: usize,
    /// Bytes that were asked for.
    asked: usize,
}

type AreaNode = RBTreeNode<Reverse<usize>, Area>;

/// What a new piece is written down in.
pub(crate) struct Record(RBTreeNodeReservation<Reverse<usize>, Piece>);

impl Record {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL)?))
    }
}

/// What a new area is written down in.
pub(crate) struct AreaRecord {
    node: RBTreeNodeReservation<Reverse<usize>, Area>,
    used: KVVec<u64>,
}

impl AreaRecord {
    pub(crate) fn new(pages: usize) -> Result<Self> {
        Ok(Self {
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
            used: KVVec::from_elem(0, pages, GFP_KERNEL)?,
        })
    }

    pub(crate) fn pages(&self) -> usize {
        self.used.len()
    }
}

/// A piece that is nobody's any more, and not free yet.
pub(crate) struct Freed {
    piece: Piece,
    /// Bytes that it has.
    pub(crate) len: usize,
    _node: RBTreeNode<Reverse<usize>, Piece>,
}

/// An area that is to be given back.
pub(crate) struct Spare(AreaNode);

impl Spare {
    /// Where the area begins.
    pub(crate) fn into_start(self) -> usize {
        let (Reverse(start), _) = self.0.to_key_value();

        start
    }
}

/// Numbers for debugfs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) pieces: usize,
    /// Pages of the areas.
    pub(crate) pages: usize,
    /// Bytes that are in use, and of these those that were asked for.
    pub(crate) used: usize,
    pub(crate) asked: usize,
}

/// All areas and pieces. Nothing here allocates, sleeps or frees.
pub(crate) struct Areas {
    /// By where they begin, the last first, so that a lookup finds what is around an address.
    areas: RBTree<Reverse<usize>, Area>,
    pieces: RBTree<Reverse<usize>, Piece>,
    /// Areas of the usual size that have no piece.
    empty: usize,
    stats: Stats,
}

impl Areas {
    pub(crate) fn new() -> Self {
        Self {
            areas: RBTree::new(),
            pieces: RBTree::new(),
            empty: 0,
            stats: Stats::default(),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// How many pages could be given back.
    pub(crate) fn spare(&self) -> usize {
        self.empty * AREA_PAGES
    }

    fn is_kept(area: &Area) -> bool {
        area.is_empty() && area.pages() == AREA_PAGES
    }

    /// Takes a piece of an area that there is, those in use before others. Without one, the
    /// record comes back.
    pub(crate) fn take(&mut self, record: Record, len: usize) -> Result<Taken, Record> {
        let (units, align) = shape(len);
        let mut found = None;

        for idle in [false, true] {
            found = self
                .areas
                .iter_mut()
                .filter(|(_, area)| area.is_empty() == idle)
                .find_map(|(start, area)| {
                    let was_kept = Self::is_kept(area);
                    let unit = area.take(units, align)?;

                    Some((start.0, unit, was_kept, area.dirtied))
                });
            if found.is_some() {
                break;
            }
        }
        let Some((area, unit, was_kept, dirtied)) = found else {
            return Err(record);
        };
        let start = area + unit * UNIT;
        let piece = Piece { area, asked: len };

        self.empty -= usize::from(was_kept);
        self.stats.pieces += 1;
        self.stats.used += units * UNIT;
        self.stats.asked += len;
        self.pieces
            .insert(record.0.into_node(Reverse(start), piece));
        Ok(Taken { start, dirtied })
    }

    /// Adds an area, and takes a piece of it before anyone else can. It is large enough.
    pub(crate) fn add(
        &mut self,
        area: AreaRecord,
        start: usize,
        dirtied: u64,
        record: Record,
        len: usize,
    ) -> Option<Taken> {
        let pages = area.pages();
        let units = pages * u64::BITS as usize;
        // INVARIANT: None is in use.
        let fresh = Area {
            used: area.used,
            free: units,
            room: units,
            dirtied,
        };

        self.empty += usize::from(Self::is_kept(&fresh));
        self.stats.pages += pages;
        self.areas
            .insert(area.node.into_node(Reverse(start), fresh));
        self.take(record, len).ok()
    }

    /// The piece around an address, and where it begins.
    fn around(&self, address: usize) -> Option<(usize, Piece)> {
        let cursor = self.pieces.cursor_lower_bound(&Reverse(address))?;
        let (Reverse(start), piece) = cursor.current();

        (address - *start < shape(piece.asked).0 * UNIT).then_some((*start, *piece))
    }

    /// Whether so many bytes from an address on are in one piece.
    pub(crate) fn check(&self, address: usize, len: usize) -> Result<(), Problem> {
        let (start, piece) = self.around(address).ok_or(Problem::Foreign)?;
        let end = (address - start).checked_add(len);

        if end.is_none_or(|end| end > piece.asked) {
            return Err(Problem::Beyond);
        }
        Ok(())
    }

    /// Takes a piece from its owner. It counts as in use until [`Areas::end_free`].
    pub(crate) fn begin_free(&mut self, start: usize) -> Result<Freed, Problem> {
        let (begin, piece) = self.around(start).ok_or(Problem::Foreign)?;

        if begin != start {
            return Err(Problem::Inside);
        }
        let node = self.pieces.remove_node(&Reverse(start));

        Ok(Freed {
            piece,
            len: shape(piece.asked).0 * UNIT,
            _node: node.ok_or(Problem::Foreign)?,
        })
    }

    /// Takes back a piece that traps. An area that is to be given back, if that made one.
    ///
    /// What it was written down in is to be dropped without the lock.
    pub(crate) fn end_free(&mut self, start: usize, freed: &Freed, dirtied: u64) -> Option<Spare> {
        let begin = freed.piece.area;
        let area = self.areas.get_mut(&Reverse(begin))?;
        let unit = (start - begin) / UNIT;

        area.mark(unit..unit + freed.len / UNIT, false);
        area.dirtied = area.dirtied.max(dirtied);
        let (is_empty, is_kept) = (area.is_empty(), Self::is_kept(area));

        self.stats.pieces -= 1;
        self.stats.used -= freed.len;
        self.stats.asked -= freed.piece.asked;
        self.empty += usize::from(is_kept);
        // Others are of use to nobody else.
        if is_empty && (!is_kept || self.empty > KEPT) {
            self.remove(begin)
        } else {
            None
        }
    }

    /// Takes an area without a piece out, if there is one.
    pub(crate) fn trim(&mut self) -> Option<Spare> {
        let (Reverse(start), _) = self.areas.iter().find(|(_, area)| area.is_empty())?;
        let start = *start;

        self.remove(start)
    }

    fn remove(&mut self, start: usize) -> Option<Spare> {
        let area = self.areas.get(&Reverse(start))?;
        let (pages, is_kept) = (area.pages(), Self::is_kept(area));

        self.empty -= usize::from(is_kept);
        self.stats.pages -= pages;
        Some(Spare(self.areas.remove_node(&Reverse(start))?))
    }
}
