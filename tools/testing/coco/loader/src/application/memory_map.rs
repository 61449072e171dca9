// SPDX-License-Identifier: GPL-2.0

//! The firmware's memory map: what is free in it, and how free memory becomes unaccepted.
//!
//! A firmware whose memory is all accepted gives none of it type 15 on request. So the memory is
//! allocated with a type of our own, which keeps the firmware away from it, and GetMemoryMap(),
//! on its way to the kernel, replaces that type.

use super::{
    error::Error,
    firmware::{Place, allocate, boot, boot_services},
};
use coco_loader::ranges::{Free, Range};
use core::{
    mem::{self, MaybeUninit},
    ptr,
    sync::atomic::{AtomicPtr, Ordering::Relaxed},
};
use r_efi::efi;

/// One of the types from 0x80000000 on, which are for loaders of operating systems (UEFI
/// specification 2.11, 7.2.1).
const TAKEN: efi::MemoryType = 0x8000_c0c0;

/// Some ten times what a memory map needs.
const MAP_SIZE: usize = 32 << 10;

/// All conventional memory.
pub fn free() -> Result<Free, Error> {
    let refused = |status| Error::Firmware("get the memory map", status);
    let mut map = [MaybeUninit::<u64>::uninit(); MAP_SIZE / 8];
    let first: *mut efi::MemoryDescriptor = map.as_mut_ptr().cast();
    let (mut size, mut key, mut stride, mut version) = (mem::size_of_val(&map), 0, 0, 0);
    // SAFETY: `first` points to as many bytes as `size` says, aligned as descriptors are.
    unsafe {
        boot!(
            get_memory_map,
            &mut size,
            first,
            &mut key,
            &mut stride,
            &mut version
        )
        .map_err(refused)?;
    }
    let mut free = Free::default();
    for offset in (0..size).step_by(stride.max(1)) {
        // SAFETY: The firmware wrote `size` bytes of descriptors, one each `stride` bytes.
        let descriptor = unsafe { &*first.byte_add(offset) };
        if descriptor.r#type == efi::CONVENTIONAL_MEMORY {
            let range = Range::of_pages(descriptor.physical_start, descriptor.number_of_pages);
            free.add(range).map_err(|_| Error::TooManyFree)?;
        }
    }
    Ok(free)
}

/// Takes free memory away from the firmware; nothing is to touch it any more.
pub fn take(range: Range) -> Result<(), Error> {
    allocate(Place::At(range.start), TAKEN, range.pages())
        .map(drop)
        .map_err(|status| Error::Take(range, status))
}

/// The firmware's own GetMemoryMap().
static GET_MEMORY_MAP: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// From now on, whoever asks the firmware for its memory map sees unaccepted memory in it.
pub fn show_unaccepted() -> Result<(), Error> {
    let services = boot_services();
    // SAFETY: The table is the firmware's, in memory that can be written to, and its header's size
    // says how many bytes of it the checksum covers. Nothing else uses it at the same time.
    let summed = unsafe {
        GET_MEMORY_MAP.store((*services).get_memory_map as *mut (), Relaxed);
        (*services).get_memory_map = get_memory_map;
        (*services).hdr.crc32 = 0;
        let size = (*services).hdr.header_size as usize;
        let mut sum = 0;
        boot!(calculate_crc32, services.cast(), size, &mut sum).map(|()| {
            (*services).hdr.crc32 = sum;
        })
    };
    summed.map_err(|status| Error::Firmware("sum up the table of boot services", status))
}

/// GetMemoryMap() as the kernel sees it.
unsafe extern "efiapi" fn get_memory_map(
    size: *mut usize,
    map: *mut efi::MemoryDescriptor,
    key: *mut usize,
    stride: *mut usize,
    version: *mut u32,
) -> efi::Status {
    // SAFETY: `show_unaccepted()` put the firmware's function there before it made this one known.
    let original: efi::BootGetMemoryMap = unsafe { mem::transmute(GET_MEMORY_MAP.load(Relaxed)) };
    // SAFETY: The caller promises for this function what it has to promise for that one.
    let status = unsafe { original(size, map, key, stride, version) };
    if status == efi::Status::SUCCESS {
        // SAFETY: So the caller gave memory for the map and for these two, and the firmware wrote
        // `size` bytes of descriptors to it, one each `stride` bytes.
        unsafe { rename(map, *size, *stride) };
    }
    status
}

/// Makes the memory that was taken unaccepted memory in a map.
///
/// # Safety
///
/// At `map` there are `size` bytes of descriptors, one each `stride` bytes.
unsafe fn rename(map: *mut efi::MemoryDescriptor, size: usize, stride: usize) {
    for offset in (0..size).step_by(stride.max(1)) {
        // SAFETY: There is a descriptor, as the caller promises.
        let kind = unsafe { &mut (*map.byte_add(offset)).r#type };
        if *kind == TAKEN {
            *kind = efi::UNACCEPTED_MEMORY_TYPE;
        }
    }
}
