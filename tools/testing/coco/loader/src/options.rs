// SPDX-License-Identifier: GPL-2.0

//! The loader's options: words separated by white space, from the file [`FILE`] of QEMU's fw_cfg.
//!
//! | option | which memory becomes unaccepted |
//! |---|---|
//! | `all-but=SIZE` | all that is free, except for the lowest SIZE of it (default: 512M) |
//! | `range=START+SIZE` | what is free of this range; may be given more than once |
//! | `unaligned` | in addition, no edge is a multiple of 2 MiB |
//!
//! These are about the table by which the kernel knows of it, which its EFI stub makes by itself if
//! the firmware has none:
//!
//! | option | what is odd about the table |
//! |---|---|
//! | `odd-table` | it begins at the end of a page, and its bitmap is in the next |
//! | `table-version=N`, `table-unit=SIZE`, `table-size=SIZE` | the kernel finds this in it |
//! | `no-table` | the kernel does not find it |
//!
//! Numbers are decimal, or hexadecimal after 0x; K, M, G and T behind them are powers of 1024.

use crate::ranges::{PAGE, Range};
use coco_protocol::size;
use core::fmt;

/// Where QEMU's command line puts the options: `-fw_cfg name=FILE,string=...`.
pub const FILE: &str = "opt/org.kernel.coco/unaccepted";

/// As much memory as the loader, the kernel's EFI stub and a large initrd need.
const KEPT: u64 = 512 << 20;

/// More ranges than a test needs.
pub const MAX_RANGES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All free memory, except for the lowest so many bytes of it.
    AllBut(u64),
    /// The ranges that [`Options::ranges`] gives.
    Ranges,
}

/// What is odd about the table of unaccepted memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// It begins at the end of a page.
    pub odd: bool,
    pub version: Option<u64>,
    pub unit: Option<u64>,
    pub size: Option<u64>,
    /// The kernel does not find it.
    pub missing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub selection: Selection,
    pub unaligned: bool,
    pub table: Table,
    ranges: [Range; MAX_RANGES],
    count: usize,
}

/// What is wrong with an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Unknown,
    NotASize,
    NotARange,
    Misaligned,
    Empty,
    Overlaps,
    TooMany,
    Twice,
    Both,
}

/// An option that cannot be taken, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error<'a> {
    pub word: &'a str,
    pub fault: Fault,
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "option '{}' of fw_cfg file {FILE}: ", self.word)?;
        match self.fault {
            Fault::Unknown => out.write_str(
                "there is no such option; there are all-but=SIZE, range=START+SIZE, unaligned, \
                 odd-table, no-table, table-version=N, table-unit=SIZE and table-size=SIZE",
            ),
            Fault::NotASize => out.write_str("not a size; write 512M or 0x20000000, for instance"),
            Fault::NotARange => {
                out.write_str("not a range; write range=START+SIZE, as in range=1G+512M")
            }
            Fault::Misaligned => out.write_str("start and size have to be multiples of 4K"),
            Fault::Empty => out.write_str("the size is 0"),
            Fault::Overlaps => out.write_str("it overlaps a range that was given before"),
            Fault::TooMany => write!(out, "there can be no more than {MAX_RANGES} ranges"),
            Fault::Twice => out.write_str("it was given before"),
            Fault::Both => out.write_str("all-but= and range= exclude each other"),
        }
    }
}

impl Options {
    /// The options that `text` consists of.
    ///
    /// # Errors
    ///
    /// The first word that is no option, or one that cannot be together with those before it.
    pub fn parse(text: &str) -> Result<Self, Error<'_>> {
        let mut options = Self {
            selection: Selection::AllBut(KEPT),
            unaligned: false,
            table: Table::default(),
            ranges: [Range::default(); MAX_RANGES],
            count: 0,
        };
        let mut kept = None;
        for word in text.split_ascii_whitespace() {
            options
                .take(word, &mut kept)
                .map_err(|fault| Error { word, fault })?;
        }
        if let Some(size) = kept {
            options.selection = Selection::AllBut(size);
        }
        Ok(options)
    }

    /// The ranges of [`Selection::Ranges`]: multiples of 4096 that do not overlap.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.count]
    }

    fn take(&mut self, word: &str, kept: &mut Option<u64>) -> Result<(), Fault> {
        match word.split_once('=') {
            Some(("all-but", _)) if self.count > 0 => Err(Fault::Both),
            Some(("all-but", _)) if kept.is_some() => Err(Fault::Twice),
            Some(("all-but", text)) => {
                *kept = Some(size(text).ok_or(Fault::NotASize)?);
                Ok(())
            }
            Some(("range", _)) if kept.is_some() => Err(Fault::Both),
            Some(("range", text)) => self.add(range(text)?),
            Some(("table-version", text)) => put(&mut self.table.version, text, u32::MAX.into()),
            Some(("table-unit", text)) => put(&mut self.table.unit, text, u32::MAX.into()),
            Some(("table-size", text)) => put(&mut self.table.size, text, u64::MAX),
            None if word == "unaligned" => set(&mut self.unaligned),
            None if word == "odd-table" => set(&mut self.table.odd),
            None if word == "no-table" => set(&mut self.table.missing),
            _ => Err(Fault::Unknown),
        }
    }

    fn add(&mut self, new: Range) -> Result<(), Fault> {
        if self
            .ranges()
            .iter()
            .any(|old| old.intersection(new).is_some())
        {
            return Err(Fault::Overlaps);
        }
        *self.ranges.get_mut(self.count).ok_or(Fault::TooMany)? = new;
        self.count += 1;
        self.selection = Selection::Ranges;
        Ok(())
    }
}

/// A word that stands for itself.
fn set(switch: &mut bool) -> Result<(), Fault> {
    if *switch {
        return Err(Fault::Twice);
    }
    *switch = true;
    Ok(())
}

/// A number that is no larger than `most`.
fn put(place: &mut Option<u64>, text: &str, most: u64) -> Result<(), Fault> {
    let value = size(text).filter(|value| *value <= most);
    let value = value.ok_or(Fault::NotASize)?;
    match place.replace(value) {
        Some(_) => Err(Fault::Twice),
        None => Ok(()),
    }
}

fn range(text: &str) -> Result<Range, Fault> {
    let (start, length) = text.split_once('+').ok_or(Fault::NotARange)?;
    let start = size(start).ok_or(Fault::NotARange)?;
    let length = size(length).ok_or(Fault::NotARange)?;
    if length == 0 {
        return Err(Fault::Empty);
    }
    if start % PAGE != 0 || length % PAGE != 0 {
        return Err(Fault::Misaligned);
    }
    let end = start.checked_add(length).ok_or(Fault::NotARange)?;
    Ok(Range { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (&str, Fault) {
        let error = Options::parse(text).unwrap_err();
        assert!(error.to_string().contains(error.word));
        (error.word, error.fault)
    }

    #[test]
    fn without_options_half_a_gigabyte_is_kept() {
        for text in ["", " \n"] {
            let options = Options::parse(text).unwrap();
            assert_eq!(options.selection, Selection::AllBut(512 << 20));
            assert!(!options.unaligned && options.ranges().is_empty());
        }
    }

    #[test]
    fn options_are_taken_in_any_order() {
        let options = Options::parse("unaligned all-but=1G").unwrap();
        assert_eq!(options.selection, Selection::AllBut(1 << 30));
        assert!(options.unaligned);

        let options = Options::parse("range=1G+0x5000\trange=0x80000000+4K\n").unwrap();
        assert_eq!(options.selection, Selection::Ranges);
        let expected = [(1 << 30, (1 << 30) + 0x5000), (2 << 30, (2 << 30) + 4096)];
        let expected = expected.map(|(start, end)| Range { start, end });
        assert_eq!(options.ranges(), expected);
    }

    #[test]
    fn a_table_may_be_odd_in_many_ways() {
        let table = |text| Options::parse(text).unwrap().table;
        assert_eq!(table("unaligned"), Table::default());
        let all = "odd-table table-version=2 table-unit=4K table-size=1T no-table";
        let want = Table {
            odd: true,
            version: Some(2),
            unit: Some(4096),
            size: Some(1 << 40),
            missing: true,
        };
        assert_eq!(table(all), want);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word, what) in [
            ("unaligned all=1G", "all=1G", Fault::Unknown),
            ("aligned", "aligned", Fault::Unknown),
            ("unaligned=1", "unaligned=1", Fault::Unknown),
            ("all-but", "all-but", Fault::Unknown),
            ("all-but=", "all-but=", Fault::NotASize),
            ("all-but=many", "all-but=many", Fault::NotASize),
            ("range=1G", "range=1G", Fault::NotARange),
            ("range=1G-2G", "range=1G-2G", Fault::NotARange),
            ("range=1G+4K+4K", "range=1G+4K+4K", Fault::NotARange),
            ("range=16777215T+2T", "range=16777215T+2T", Fault::NotARange),
            ("range=1G+0", "range=1G+0", Fault::Empty),
            ("range=1G+100", "range=1G+100", Fault::Misaligned),
            ("range=1+4K", "range=1+4K", Fault::Misaligned),
            ("range=1G+8K range=0+2G", "range=0+2G", Fault::Overlaps),
            ("all-but=1G range=1G+4K", "range=1G+4K", Fault::Both),
            ("range=1G+4K all-but=1G", "all-but=1G", Fault::Both),
            ("all-but=1G all-but=2G", "all-but=2G", Fault::Twice),
            ("unaligned unaligned", "unaligned", Fault::Twice),
            ("odd-table odd-table", "odd-table", Fault::Twice),
            ("table-unit=4K table-unit=4K", "table-unit=4K", Fault::Twice),
            ("table-version=4G", "table-version=4G", Fault::NotASize),
            ("table-size=", "table-size=", Fault::NotASize),
        ] {
            assert_eq!(fault(text), (word, what), "{text}");
        }
    }

    #[test]
    fn there_is_an_end_to_ranges() {
        let words: Vec<_> = (0..=MAX_RANGES).map(|i| format!("range={i}G+4K")).collect();
        assert!(Options::parse(&words[1..].join(" ")).is_ok());
        assert_eq!(fault(&words.join(" ")).1, Fault::TooMany);
    }
}
