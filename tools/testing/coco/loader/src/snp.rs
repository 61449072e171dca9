// SPDX-License-Identifier: GPL-2.0

//! The tables that an SEV-SNP guest's firmware leaves for the kernel: the "CC blob", which says
//! where the secrets page and the CPUID page are (struct cc_blob_sev_info in Linux' asm/sev.h).

/// How a configuration table with the CC blob is called: EFI_CC_BLOB_GUID of linux/efi.h.
pub const BLOB_GUID: (u32, u16, u16, [u8; 8]) = (
    0x067b_1f5f,
    0xcf26,
    0x44c5,
    [0x85, 0x54, 0x93, 0xd7, 0x77, 0x91, 0x2d, 0x42],
);

const PAGE: usize = 4096;

/// "AMDE".
const MAGIC: u32 = u32::from_le_bytes(*b"AMDE");

/// Bytes of a CC blob.
pub const BLOB_SIZE: usize = 40;

/// The CC blob of a secrets and a CPUID page at these addresses.
pub fn blob(secrets: u64, cpuid: u64) -> [u8; BLOB_SIZE] {
    let mut blob = [0; BLOB_SIZE];
    put(&mut blob, 0, &MAGIC.to_le_bytes());
    put(&mut blob, 8, &secrets.to_le_bytes());
    put(&mut blob, 16, &(PAGE as u32).to_le_bytes());
    put(&mut blob, 24, &cpuid.to_le_bytes());
    put(&mut blob, 32, &(PAGE as u32).to_le_bytes());
    blob
}

/// A secrets page without secrets (SEV-SNP firmware ABI specification, SNP_LAUNCH_FINISH): no
/// keys for messages to the firmware, and no SVSM.
pub fn secrets() -> [u8; PAGE] {
    let mut page = [0; PAGE];
    put(&mut page, 0, &3u32.to_le_bytes());
    page
}

/// What CPUID returns: EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

/// The CPUID page (SEV-SNP firmware ABI specification, "CPUID Reporting").
pub struct CpuidPage {
    bytes: [u8; PAGE],
    count: usize,
}

impl CpuidPage {
    const FIRST: usize = 16;
    const ENTRY: usize = 48;
    const MOST: usize = 64;

    /// The first sub-leaf of each leaf that has anything to say. QEMU's CPUID does not trap, so
    /// that the kernel checks and keeps this page, and asks the processor all the same.
    pub fn new(cpuid: impl Fn(u32) -> Registers) -> Self {
        let mut page = Self {
            bytes: [0; PAGE],
            count: 0,
        };
        for first in [0, 0x8000_0000] {
            let last = cpuid(first)[0].min(first + 0xff);
            for leaf in first..=last {
                page.add(leaf, cpuid(leaf));
            }
        }
        page
    }

    /// A leaf that is missing reads as zero, whether it is so or there is no room left.
    fn add(&mut self, leaf: u32, registers: Registers) {
        if registers == [0; 4] || self.count == Self::MOST {
            return;
        }
        let entry = Self::FIRST + self.count * Self::ENTRY;
        put(&mut self.bytes, entry, &leaf.to_le_bytes());
        for (index, register) in registers.iter().enumerate() {
            put(
                &mut self.bytes,
                entry + 24 + 4 * index,
                &register.to_le_bytes(),
            );
        }
        self.count += 1;
        put(&mut self.bytes, 0, &(self.count as u32).to_le_bytes());
    }

    pub fn bytes(&self) -> &[u8; PAGE] {
        &self.bytes
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    #[test]
    fn the_blob_names_both_pages() {
        let blob = blob(0x1000, 0x2000);
        assert_eq!(word(&blob, 0), 0x4544_4d41);
        let pages = [8, 16, 24, 32].map(|offset| word(&blob, offset));
        assert_eq!(pages, [0x1000, 4096, 0x2000, 4096]);
    }

    #[test]
    fn the_cpuid_page_has_the_leaves_that_are_not_zero() {
        let page = CpuidPage::new(|leaf| match leaf {
            0 => [2, 5, 6, 7],
            2 => [0, 0, 0, 8],
            0x8000_0000 => [0x8000_0001, 0, 0, 0],
            _ => [0; 4],
        });
        let bytes = page.bytes();
        assert_eq!(word(bytes, 0), 3);
        let leaves = [0, 1, 2].map(|entry| word(bytes, 16 + 48 * entry));
        assert_eq!(leaves, [0, 2, 0x8000_0000]);
        assert_eq!(word(bytes, 16 + 24), 2);
        assert_eq!(word(bytes, 16 + 48 + 36), 8);
    }

    #[test]
    fn the_cpuid_page_is_never_overrun() {
        let page = CpuidPage::new(|leaf| [leaf | 0xff, 1, 1, 1]);
        assert_eq!(word(page.bytes(), 0), 64);
        let page = CpuidPage::new(|_| [u32::MAX; 4]);
        assert_eq!(word(page.bytes(), 0), 64);
    }
}
