// SPDX-License-Identifier: GPL-2.0

//! How the UEFI loader, inside the guest, talks to the QEMU plugin, outside of it.
//!
//! The loader executes CPUID with [`LEAF`] in EAX; the plugin sees the instruction before QEMU
//! does, and answers in its place. The leaf is one of those that hypervisors may define (Intel
//! SDM, volume 2, CPUID: 0x40000000 to 0x4fffffff), so that no processor gives it a meaning of
//! its own.
//!
//! | register | of the request | of the answer |
//! |---|---|---|
//! | EAX | [`LEAF`] | [`Status`], or [`Guest`] for [`Request::Hello`] |
//! | EBX | | [`SIGNATURE`]: without the plugin, QEMU answers something else |
//! | ECX | which request | [`VERSION`] for [`Request::Hello`], else 0 |
//! | EDX | | 0 |
//! | R8, R9 | first byte and end of the range; address and value of a change | unchanged |

#![cfg_attr(not(test), no_std)]

use core::fmt;

/// What EAX holds in a request.
pub const LEAF: u32 = 0x4fff_c0c0;

/// What EBX holds in an answer: "coco".
pub const SIGNATURE: u32 = u32::from_le_bytes(*b"coco");

/// The version of this protocol. Loader and plugin have to agree on it.
pub const VERSION: u32 = 2;

/// What the plugin plays to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    Tdx = 1,
    Snp = 2,
}

impl Guest {
    /// The guest that EAX of an answer to [`Request::Hello`] names.
    pub fn from_register(eax: u32) -> Option<Self> {
        [Self::Tdx, Self::Snp]
            .into_iter()
            .find(|guest| *guest as u32 == eax)
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tdx => "TDX",
            Self::Snp => "SEV-SNP",
        })
    }
}

/// What the loader asks for. Addresses are guest-physical; `end` is the byte after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Whether there is a plugin, and what it plays.
    Hello,
    /// The memory is to be unaccepted ("pending") from now on. Both edges are multiples of 4096.
    Unaccepted { start: u64, end: u64 },
    /// The kernel, loaded at this place, is about to start: protection and emulation begin.
    Start { start: u64, end: u64 },
    /// The eight bytes at the address become this value as soon as the kernel runs where it is
    /// linked to: after its EFI stub, and before it looks at what firmware left.
    Change { address: u64, value: u64 },
    /// The kernel cannot be started, and the console says why. There is no answer: QEMU ends.
    GiveUp,
}

impl Request {
    const HELLO: u32 = 0;
    const UNACCEPTED: u32 = 1;
    const START: u32 = 2;
    const GIVE_UP: u32 = 3;
    const CHANGE: u32 = 4;

    /// ECX, R8 and R9 of this request.
    pub fn registers(&self) -> (u32, u64, u64) {
        match *self {
            Self::Hello => (Self::HELLO, 0, 0),
            Self::Unaccepted { start, end } => (Self::UNACCEPTED, start, end),
            Self::Start { start, end } => (Self::START, start, end),
            Self::GiveUp => (Self::GIVE_UP, 0, 0),
            Self::Change { address, value } => (Self::CHANGE, address, value),
        }
    }

    /// The request in these registers; `None` if this version knows none with this number.
    pub fn from_registers(ecx: u32, r8: u64, r9: u64) -> Option<Self> {
        match ecx {
            Self::HELLO => Some(Self::Hello),
            Self::UNACCEPTED => Some(Self::Unaccepted { start: r8, end: r9 }),
            Self::START => Some(Self::Start { start: r8, end: r9 }),
            Self::GIVE_UP => Some(Self::GiveUp),
            Self::CHANGE => Some(Self::Change {
                address: r8,
                value: r9,
            }),
            _ => None,
        }
    }
}

/// How [`Request::Unaccepted`], [`Request::Start`] and [`Request::Change`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Done = 0,
    /// An edge is not a multiple of 4096, or nothing lies between the two.
    Misaligned = 1,
    /// A page of it was made unaccepted before.
    AlreadyPending = 2,
    /// It is beyond the memory whose state the plugin keeps.
    Beyond = 3,
    /// The plugin cannot write to it, so it is not (all) RAM.
    Unwritable = 4,
    /// The plugin does not know the request.
    Unknown = 5,
}

impl Status {
    /// The status that EAX of an answer holds.
    pub fn from_register(eax: u32) -> Option<Self> {
        [
            Self::Done,
            Self::Misaligned,
            Self::AlreadyPending,
            Self::Beyond,
            Self::Unwritable,
            Self::Unknown,
        ]
        .into_iter()
        .find(|status| *status as u32 == eax)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Done => "done",
            Self::Misaligned => "it is empty or not aligned to 4096 bytes",
            Self::AlreadyPending => "a page of it is unaccepted already",
            Self::Beyond => "it is beyond what the plugin keeps track of",
            Self::Unwritable => "the plugin cannot write to it",
            Self::Unknown => "the plugin does not know this request",
        })
    }
}

/// A number as options have it: decimal, or hexadecimal after 0x; K, M, G and T behind it are
/// powers of 1024.
pub fn size(text: &str) -> Option<u64> {
    let last = text.chars().last()?;
    let (digits, shift) = match last.to_ascii_uppercase() {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let (digits, radix) = match digits.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (digits, 10),
    };
    // from_str_radix() takes a sign as well.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let number = u64::from_str_radix(digits, radix).ok()?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_registers() {
        let (start, end) = (0x1000, 0x1_0000_0000);
        for request in [
            Request::Hello,
            Request::Unaccepted { start, end },
            Request::Start { start, end },
            Request::GiveUp,
            Request::Change {
                address: start,
                value: 7,
            },
        ] {
            let (ecx, r8, r9) = request.registers();
            assert_eq!(Request::from_registers(ecx, r8, r9), Some(request));
        }
        assert_eq!(Request::from_registers(5, 0, 0), None);
    }

    #[test]
    fn answers_survive_the_registers() {
        for eax in 0..6 {
            let status = Status::from_register(eax).unwrap();
            assert_eq!(status as u32, eax);
            assert!(!status.to_string().is_empty());
        }
        assert_eq!(Status::from_register(6), None);
        assert_eq!(Guest::from_register(1), Some(Guest::Tdx));
        assert_eq!(Guest::from_register(2), Some(Guest::Snp));
        assert_eq!(Guest::from_register(0), None);
    }

    #[test]
    fn the_leaf_is_one_of_the_hypervisors() {
        assert_eq!(LEAF >> 28, 4);
        assert_eq!(SIGNATURE.to_le_bytes(), *b"coco");
    }

    #[test]
    fn sizes_have_suffixes_and_bases() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("0x10", 16),
            ("0x10M", 16 << 20),
            ("3G", 3 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "0x",
            "x",
            "-1",
            "+1",
            "1.5G",
            "1MM",
            "1é",
            "1P",
            "16777216T",
        ] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
