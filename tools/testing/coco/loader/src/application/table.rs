// SPDX-License-Identifier: GPL-2.0

//! The table of unaccepted memory, where the kernel's stub is not to make it.

use super::{
    error::Error,
    firmware::{Place, allocate, boot, configuration_entry},
    plugin,
};
use coco_loader::{
    options::Table,
    ranges::Range,
    table::{GUID, HEADER},
};
use core::slice;
use r_efi::efi;

/// What an entry's name begins with if the kernel is not to know it.
const NOBODY: u64 = u64::MAX;

/// Installs a table for the unaccepted memory, all of which is within `span`, and has the plugin
/// change it once the stub has done its work.
pub fn install(table: &Table, span: Range) -> Result<(), Error> {
    let (pages, offset) = table.room(span);
    let address = allocate(Place::NotBeyond(u64::MAX), efi::ACPI_RECLAIM_MEMORY, pages)
        .map_err(|status| Error::Firmware("allocate pages for the table", status))?;
    let first = address + offset;
    // SAFETY: The firmware has just given these pages, which are mapped where they are, to us;
    // nobody else uses them. Header and bitmap fit into them from `first` on.
    unsafe {
        (address as *mut u8).write_bytes(0, (pages * coco_loader::ranges::PAGE) as usize);
        slice::from_raw_parts_mut(first as *mut u8, HEADER).copy_from_slice(&Table::header(span));
    }
    let (a, b, c, [d, e, rest @ ..]) = GUID;
    let mut name = efi::Guid::from_fields(a, b, c, d, e, &rest);
    // SAFETY: The table is never freed.
    unsafe { boot!(install_configuration_table, &mut name, first as *mut _) }
        .map_err(|status| Error::Firmware("install the table of unaccepted memory", status))?;
    for (offset, value) in table.changes() {
        plugin::change(first + offset, value)?;
    }
    if table.missing {
        let entry = configuration_entry(&name).ok_or(Error::Firmware(
            "find the table of unaccepted memory",
            efi::Status::NOT_FOUND,
        ))?;
        plugin::change(entry, NOBODY)?;
    }
    Ok(())
}
