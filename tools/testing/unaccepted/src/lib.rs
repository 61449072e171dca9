// SPDX-License-Identifier: GPL-2.0

//! Kernel code that needs no kernel, to be tested by what runs on any machine: see `tests/`.

#[path = "../../../../mm/freepage/unaccepted/claims.rs"]
#[allow(dead_code)]
mod claims_source;
#[path = "../../../../mm/freepage/unaccepted/table.rs"]
#[allow(dead_code)]
mod table_source;

#[cfg(test)]
mod model;
#[cfg(test)]
mod table;
