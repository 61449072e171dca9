// SPDX-License-Identifier: GPL-2.0

//! The application: what happens in which order, and how errors end.

mod error;
mod firmware;
mod kernel;
mod memory_map;
mod plugin;
mod ports;
mod snp;
mod table;

use coco_loader::{
    fw_cfg,
    options::{self, Options, Selection},
    ranges::Range,
};
use coco_protocol::Guest;
use core::{panic::PanicInfo, time::Duration};
use error::Error;
use firmware::say;
use r_efi::efi;

/// How long the words of an error stay before the machine is off, where no plugin ends it.
const LINGER: Duration = Duration::from_secs(2);

/// A longer list of options is a mistake.
const MOST_OPTIONS: usize = 1024;

#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(image: efi::Handle, table: *mut efi::SystemTable) -> efi::Status {
    firmware::init(image, table);
    let Err(error) = run();
    end(format_args!("{error}"))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    end(format_args!("{info}"))
}

/// Says why the kernel does not run, and ends: nobody sits before this machine.
fn end(why: core::fmt::Arguments<'_>) -> ! {
    say!("{why}");
    plugin::give_up();
    firmware::wait(LINGER);
    firmware::shut_down()
}

/// Starts the kernel; comes back only where that failed.
fn run() -> Result<core::convert::Infallible, Error> {
    let guest = plugin::hello()?;
    let mut buffer = [0; MOST_OPTIONS];
    let options = read_options(&mut buffer)?;
    say!("{guest} guest");
    let span = make_unaccepted(&options)?;
    if options.table.wanted() {
        table::install(&options.table, span)?;
    }
    if guest == Guest::Snp {
        snp::install_tables()?;
    }
    let kernel = kernel::load()?;
    memory_map::show_unaccepted()?;
    plugin::start(kernel.image)?;
    kernel::start(kernel)
}

fn read_options(buffer: &mut [u8]) -> Result<Options, Error> {
    let text = match fw_cfg::read(&mut ports::FwCfg, options::FILE, buffer)? {
        Some(bytes) => core::str::from_utf8(bytes).map_err(|_| Error::NotText)?,
        None => "",
    };
    match Options::parse(text.trim_end_matches('\0')) {
        Ok(options) => Ok(options),
        Err(error) => {
            say!("{error}");
            Err(Error::Options)
        }
    }
}

/// Makes memory unaccepted; all of it is within the range that this returns.
fn make_unaccepted(options: &Options) -> Result<Range, Error> {
    let free = memory_map::free()?;
    let mut span: Option<Range> = None;
    for range in free.select(options) {
        memory_map::take(range)?;
        plugin::unaccepted(range)?;
        say!("unaccepted: {range} ({} KiB)", range.size() >> 10);
        // They come in the order of their addresses.
        let start = span.map_or(range.start, |span| span.start);
        span = Some(Range {
            start,
            end: range.end,
        });
    }
    span.ok_or(match options.selection {
        Selection::AllBut(kept) => Error::NothingLeft {
            kept,
            free: free.size(),
        },
        Selection::Ranges => Error::NothingFree,
    })
}
