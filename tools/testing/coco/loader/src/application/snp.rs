// SPDX-License-Identifier: GPL-2.0

//! What the firmware of an SEV-SNP guest leaves for the kernel.

use super::{
    error::Error,
    firmware::{Place, allocate, boot},
    plugin::cpuid,
};
use coco_loader::{
    ranges::PAGE,
    snp::{BLOB_GUID, CpuidPage, blob, secrets},
};
use core::slice;
use r_efi::efi;

/// The kernel keeps the blob's address in 32 bits.
const LIMIT: u64 = u32::MAX as u64;

/// Leaves the CC blob, a secrets page and a CPUID page for the kernel.
pub fn install_tables() -> Result<(), Error> {
    let table = pages(3)?;
    let (first, rest) = table.split_at_mut(PAGE as usize);
    let (second, third) = rest.split_at_mut(PAGE as usize);
    second.copy_from_slice(&secrets());
    third.copy_from_slice(CpuidPage::new(cpuid).bytes());
    let blob = blob(second.as_ptr() as u64, third.as_ptr() as u64);
    first[..blob.len()].copy_from_slice(&blob);
    let (a, b, c, [d, e, rest @ ..]) = BLOB_GUID;
    let mut name = efi::Guid::from_fields(a, b, c, d, e, &rest);
    // SAFETY: The pages are never freed, and nobody writes to them any more.
    unsafe {
        boot!(
            install_configuration_table,
            &mut name,
            first.as_mut_ptr().cast()
        )
    }
    .map_err(|status| Error::Firmware("install the CC blob", status))
}

/// Pages full of zeroes that the kernel leaves alone.
fn pages(count: u64) -> Result<&'static mut [u8], Error> {
    let address = allocate(Place::NotBeyond(LIMIT), efi::ACPI_RECLAIM_MEMORY, count)
        .map_err(|status| Error::Firmware("allocate pages for the CC blob", status))?;
    let size = (count * PAGE) as usize;
    // SAFETY: The firmware has just given these pages, which are mapped where they are, to us.
    let pages = unsafe {
        let first = address as *mut u8;
        first.write_bytes(0, size);
        slice::from_raw_parts_mut(first, size)
    };
    Ok(pages)
}
