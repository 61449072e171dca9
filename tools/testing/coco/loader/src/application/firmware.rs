// SPDX-License-Identifier: GPL-2.0

//! The firmware's services (UEFI specification 2.11, chapters 7, 8 and 12), as safe functions.
//!
//! There is one processor, and nothing but the functions that the firmware calls back runs beside
//! this, so that all of it may be used from anywhere until the kernel leaves the boot services.

use core::{
    ffi::c_void,
    fmt::{self, Write},
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, Ordering::Relaxed},
    time::Duration,
};
use r_efi::efi;

static IMAGE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static SYSTEM: AtomicPtr<efi::SystemTable> = AtomicPtr::new(ptr::null_mut());

/// Keeps what the firmware gave to the application's entry point. Has to be called first.
pub fn init(image: efi::Handle, table: *mut efi::SystemTable) {
    IMAGE.store(image, Relaxed);
    SYSTEM.store(table, Relaxed);
}

/// This application.
pub fn image() -> efi::Handle {
    IMAGE.load(Relaxed)
}

fn system() -> &'static efi::SystemTable {
    // SAFETY: `init()` ran first, with the table that the firmware keeps for as long as there are
    // boot services.
    unsafe { &*SYSTEM.load(Relaxed) }
}

/// The table of boot services. It is not a reference, as `memory_map` changes an entry of it.
pub fn boot_services() -> *mut efi::BootServices {
    system().boot_services
}

/// Calls a boot service, and makes a `Result` of its status.
///
/// # Safety
///
/// As for the service with these arguments.
macro_rules! boot {
    ($service:ident, $($argument:expr),* $(,)?) => {{
        let services = $crate::application::firmware::boot_services();
        match ((*services).$service)($($argument),*) {
            r_efi::efi::Status::SUCCESS => Ok(()),
            status => Err(status),
        }
    }};
}
pub(crate) use boot;

/// Prints a line on the console, which OVMF also has on the serial port.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::application::firmware::print(format_args!($($argument)*))
    };
}
pub(crate) use say;

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let console = system().con_out;
        for unit in text.encode_utf16() {
            let mut word = [unit, 0];
            // SAFETY: The firmware's console is there as long as boot services are; the string
            // ends with 0.
            unsafe { ((*console).output_string)(console, word.as_mut_ptr()) };
        }
        Ok(())
    }
}

/// See [`say`].
pub fn print(line: fmt::Arguments<'_>) {
    // The console cannot fail.
    let _ = write!(Console, "coco loader: {line}\r\n");
}

pub fn wait(time: Duration) {
    let microseconds = usize::try_from(time.as_micros()).unwrap_or(usize::MAX);
    // SAFETY: It has no preconditions. Should it fail, there is nothing to do about it.
    let _ = unsafe { boot!(stall, microseconds) };
}

pub fn shut_down() -> ! {
    let reset = system().runtime_services;
    // SAFETY: The runtime services are there, in physical mode; no data is given.
    unsafe {
        ((*reset).reset_system)(
            efi::RESET_SHUTDOWN,
            efi::Status::ABORTED,
            0,
            ptr::null_mut(),
        );
    }
    unreachable!("ResetSystem() returned");
}

/// Where pages are to be allocated.
pub enum Place {
    At(u64),
    /// Anywhere, if the last byte is not beyond this address.
    NotBeyond(u64),
}

/// Allocates pages; the address of the first.
pub fn allocate(place: Place, kind: efi::MemoryType, pages: u64) -> Result<u64, efi::Status> {
    let (how, mut address) = match place {
        Place::At(address) => (efi::ALLOCATE_ADDRESS, address),
        Place::NotBeyond(limit) => (efi::ALLOCATE_MAX_ADDRESS, limit),
    };
    let pages = usize::try_from(pages).map_err(|_| efi::Status::INVALID_PARAMETER)?;
    // SAFETY: The firmware takes free pages only, and writes where they begin to `address`.
    unsafe { boot!(allocate_pages, how, kind, pages, &mut address)? };
    Ok(address)
}

/// Where the entry of a configuration table is. It begins with the table's name.
pub fn configuration_entry(name: &efi::Guid) -> Option<u64> {
    let first = system().configuration_table;
    (0..system().number_of_table_entries)
        // SAFETY: The firmware says how many entries there are, and changes none of them now.
        .map(|index| unsafe { &*first.add(index) })
        .find(|entry| entry.vendor_guid == *name)
        .map(|entry| ptr::from_ref(entry) as u64)
}

/// The interface that a handle has under this name.
pub fn protocol<T>(handle: efi::Handle, mut name: efi::Guid) -> Result<NonNull<T>, efi::Status> {
    let mut interface = ptr::null_mut();
    // SAFETY: The firmware checks the handle, and writes an address to `interface`.
    unsafe { boot!(handle_protocol, handle, &mut name, &mut interface)? };
    NonNull::new(interface.cast()).ok_or(efi::Status::UNSUPPORTED)
}
