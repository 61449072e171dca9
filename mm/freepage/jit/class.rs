// SPDX-License-Identifier: GPL-2.0

//! Size classes: which sizes objects have, and how many pages the slabs that hold them.
//!
//! Sizes are multiples of 16: each one up to 64 bytes, then four for each power of two. So of an
//! object less than 16 bytes are not asked for, or less than a fifth of it. A slab has as many
//! pages as it takes for the objects to fill them.

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// Pages of the largest slab.
pub(crate) const MAX_PAGES: usize = 7;

/// Objects of the slab that has most.
pub(crate) const MAX_OBJECTS: usize = PAGE_SIZE / 16;

/// The class of objects of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class(u8);

impl Class {
    pub(crate) const COUNT: usize = 28;

    /// The class for `len` bytes; none for more than a page has, or for nothing.
    ///
    /// An object is aligned to what `len` is a multiple of: a class follows a multiple of a power
    /// of two by less than that only if it is none itself.
    pub(crate) fn of(len: usize) -> Option<Self> {
        let index = match len {
            0 => return None,
            1..=64 => (len - 1) / 16,
            65..=PAGE_SIZE => {
                let last = len - 1;
                let power = last.ilog2() as usize;

                (power - 5) * 4 + (last >> (power - 2)) % 4
            }
            _ => return None,
        };

        Some(Self(index as u8))
    }

    pub(crate) fn nth(index: usize) -> Option<Self> {
        (index < Self::COUNT).then_some(Self(index as u8))
    }

    pub(crate) fn index(self) -> usize {
        self.0.into()
    }

    /// Bytes of an object.
    pub(crate) fn size(self) -> usize {
        let (power, quarter) = (self.index() / 4, self.index() % 4);

        match power {
            0 => 16 * (quarter + 1),
            _ => (5 + quarter) << (power + 3),
        }
    }

    /// Pages of a slab.
    pub(crate) fn pages(self) -> usize {
        self.size() >> self.size().trailing_zeros()
    }

    /// Objects of a slab.
    pub(crate) fn objects(self) -> usize {
        self.pages() * PAGE_SIZE / self.size()
    }
}

#[cfg(CONFIG_JITALLOC_KUNIT_TEST)]
#[kunit_tests(jitalloc_class)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_in_order_and_fill_their_slabs() {
        let mut before = 0;

        for class in (0..Class::COUNT).filter_map(Class::nth) {
            assert!(class.size() > before);
            assert_eq!(class.size() % 16, 0);
            assert_eq!(class.objects() * class.size(), class.pages() * PAGE_SIZE);
            assert!(class.pages() <= MAX_PAGES && class.objects() <= MAX_OBJECTS);
            before = class.size();
        }
        assert_eq!(before, PAGE_SIZE);
        assert!(Class::nth(Class::COUNT).is_none());
    }

    #[test]
    fn the_smallest_class_that_will_do_is_taken() -> Result {
        for len in 1..=PAGE_SIZE {
            let class = Class::of(len).ok_or(EINVAL)?;
            let smaller = class.index().checked_sub(1).and_then(Class::nth);

            assert!(class.size() >= len);
            assert!(smaller.is_none_or(|smaller| smaller.size() < len));
        }
        assert!(Class::of(0).is_none());
        assert!(Class::of(PAGE_SIZE + 1).is_none());
        Ok(())
    }

    #[test]
    fn waste_is_bounded() -> Result {
        for len in 1..=PAGE_SIZE {
            let size = Class::of(len).ok_or(EINVAL)?.size();

            assert!(size - len < 16 || 5 * (size - len) < size);
        }
        Ok(())
    }

    #[test]
    fn objects_are_aligned_as_their_length_is() -> Result {
        for len in 1..=PAGE_SIZE {
            let size = Class::of(len).ok_or(EINVAL)?.size();

            assert!(size.trailing_zeros() >= len.trailing_zeros());
        }
        Ok(())
    }
}
