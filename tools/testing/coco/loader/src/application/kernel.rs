// SPDX-License-Identifier: GPL-2.0

//! The kernel: the file `kernel` in the file system that this application comes from. OVMF gives
//! QEMU's -shim and -kernel a file system of their own, where they have these names.

use super::{
    error::Error,
    firmware::{boot, image, protocol},
};
use coco_loader::{device_path, ranges::Range};
use core::{convert::Infallible, ptr, slice};
use r_efi::{
    efi,
    protocols::{device_path as path, loaded_image},
};

const NAME: &str = "kernel";

/// The device's path is a few nodes long.
const LONGEST_PATH: usize = 1024;

pub struct Kernel {
    handle: efi::Handle,
    /// Where it is in memory.
    pub image: Range,
}

/// Loads the kernel, and gives it the command line that this application got.
pub fn load() -> Result<Kernel, Error> {
    let own = loaded(image())?;
    // SAFETY: `loaded()` returns what is loaded, which is there until it is unloaded.
    let (device, options, size) = unsafe {
        let own = own.as_ref();
        (own.device_handle, own.load_options, own.load_options_size)
    };
    let handle = load_from(device)?;
    let mut kernel = loaded(handle)?;
    // SAFETY: As above, and nobody else uses it before the kernel is started.
    let kernel = unsafe { kernel.as_mut() };
    kernel.load_options = options;
    kernel.load_options_size = size;
    let start = kernel.image_base as u64;
    let end = start + kernel.image_size;
    let image = Range { start, end };
    Ok(Kernel { handle, image })
}

/// Starts the kernel; comes back only where it gives up.
pub fn start(kernel: Kernel) -> Result<Infallible, Error> {
    // SAFETY: The image is loaded and was not started yet. What it returns besides a status is not
    // asked for.
    let ended = unsafe { boot!(start_image, kernel.handle, ptr::null_mut(), ptr::null_mut()) };
    Err(Error::Returned(ended.err().unwrap_or(efi::Status::SUCCESS)))
}

fn loaded(image: efi::Handle) -> Result<ptr::NonNull<loaded_image::Protocol>, Error> {
    protocol(image, loaded_image::PROTOCOL_GUID)
        .map_err(|status| Error::Firmware("find out where an image was loaded", status))
}

fn load_from(device: efi::Handle) -> Result<efi::Handle, Error> {
    let first = protocol(device, path::PROTOCOL_GUID)
        .map_err(|status| Error::Firmware("find the path of this application's device", status))?;
    let mut buffer = [0; LONGEST_PATH];
    // SAFETY: The firmware keeps the path of the device.
    let nodes = unsafe { Nodes::of(first.as_ptr()) };
    let path = device_path::of_file(nodes, NAME, &mut buffer).ok_or(Error::PathTooLong)?;
    let mut handle = ptr::null_mut();
    let no_buffer = (ptr::null_mut(), 0);
    // SAFETY: The path is whole, and the firmware copies it. It reads the file itself.
    let status = unsafe {
        boot!(
            load_image,
            efi::Boolean::FALSE,
            image(),
            path.as_mut_ptr().cast(),
            no_buffer.0,
            no_buffer.1,
            &mut handle,
        )
    };
    status.map(|()| handle).map_err(Error::Kernel)
}

/// The nodes of a device path of the firmware.
///
/// # Invariants
///
/// The pointer is to a node of a path that stays as it is.
struct Nodes(*const u8);

impl Nodes {
    /// # Safety
    ///
    /// The path is whole, and stays as it is.
    unsafe fn of(first: *const path::Protocol) -> Self {
        // INVARIANT: The caller promises it.
        Self(first.cast())
    }
}

impl Iterator for Nodes {
    type Item = &'static [u8];

    fn next(&mut self) -> Option<Self::Item> {
        // SAFETY: By the invariant, this is a node, and a node begins with its header.
        let header = unsafe { self.0.cast::<[u8; 4]>().read() };
        let length = device_path::node_length(header)?;
        // SAFETY: As above; the header says how long the node is.
        let node = unsafe { slice::from_raw_parts(self.0, length) };
        // INVARIANT: This node does not end the path, so that another one is behind it.
        self.0 = self.0.wrapping_add(length);
        Some(node)
    }
}
