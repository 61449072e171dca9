// SPDX-License-Identifier: GPL-2.0

//! What stands behind the plugin's path on QEMU's command line: `key=value`, separated by commas.

use coco_protocol::Guest;
use std::{ops::Range, path::PathBuf, time::Duration};

/// What goes wrong on purpose.
#[derive(Debug, Default, PartialEq)]
pub struct Faults {
    /// Each so-manieth accept is answered busy; 0: none.
    pub busy_every: u64,
    /// Each so-manieth accept is answered with an error; 0: none.
    pub error_every: u64,
    /// The first accept that covers this address is answered busy.
    pub busy_at: Option<u64>,
    /// Every accept that covers this address is answered with an error.
    pub error_at: Option<u64>,
    pub refuse_2m: bool,
    pub refuse_1g: bool,
    /// Bytes that are pending though the guest was not told.
    pub secretly_unaccepted: Option<Range<u64>>,
    /// Bytes that are accepted though the guest was told to accept them.
    pub secretly_accepted: Option<Range<u64>>,
}

#[derive(Debug, PartialEq)]
pub struct Options {
    pub guest: Guest,
    /// Loads and stores are checked.
    pub check: bool,
    /// What pending memory is filled with. That touches all of it, which takes the host a while.
    pub poison: Option<u8>,
    /// How long it takes to accept 4K.
    pub cost: Duration,
    pub faults: Faults,
    /// A violation ends the guest.
    pub stop: bool,
    /// How many violations the report lists.
    pub list: usize,
    pub report: Option<PathBuf>,
}

impl Options {
    pub fn of(guest: Guest) -> Self {
        Self {
            guest,
            check: false,
            poison: None,
            cost: Duration::ZERO,
            faults: Faults::default(),
            stop: true,
            list: 20,
            report: None,
        }
    }

    /// Reads the options; the error says which one is wrong, and what it may be.
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut options = Self::of(Guest::Tdx);
        let mut guest = None;
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let wrong = |may: &str| format!("{key}={value}: {key} is {may}");
            let switch = || match value {
                "on" => Ok(true),
                "off" => Ok(false),
                _ => Err(wrong("'on' or 'off'")),
            };
            let count = || number(value).ok_or_else(|| wrong("a number"));
            let address = || number(value).ok_or_else(|| wrong("an address, as 0x40000000 or 1G"));
            let range = || {
                extent(value)
                    .ok_or_else(|| wrong("START+SIZE, both multiples of 4K, as 0x40000000+2M"))
            };
            let faults = &mut options.faults;
            match key {
                "guest" => {
                    guest = match value {
                        "tdx" => Some(Guest::Tdx),
                        "snp" => Some(Guest::Snp),
                        _ => return Err(wrong("'tdx' or 'snp'")),
                    }
                }
                "check" => options.check = switch()?,
                "poison" if value == "off" => options.poison = None,
                "poison" => {
                    let byte = number(value).and_then(|value| value.try_into().ok());
                    options.poison = Some(byte.ok_or_else(|| wrong("a byte, as 0xaa, or 'off'"))?);
                }
                "cost-ns" => options.cost = Duration::from_nanos(count()?),
                "busy-every" => faults.busy_every = count()?,
                "error-every" => faults.error_every = count()?,
                "busy-at" => faults.busy_at = Some(address()?),
                "error-at" => faults.error_at = Some(address()?),
                "refuse-2m" => faults.refuse_2m = switch()?,
                "refuse-1g" => faults.refuse_1g = switch()?,
                "secretly-unaccepted" => faults.secretly_unaccepted = Some(range()?),
                "secretly-accepted" => faults.secretly_accepted = Some(range()?),
                "on-violation" => {
                    options.stop = match value {
                        "stop" => true,
                        "continue" => false,
                        _ => return Err(wrong("'stop' or 'continue'")),
                    }
                }
                "list" => options.list = count()? as usize,
                "report" if !value.is_empty() => options.report = Some(value.into()),
                "report" => return Err(wrong("the path of a file")),
                _ => {
                    return Err(format!(
                        "{word}: no such option; there are guest, check, poison, cost-ns, \
                         busy-every, busy-at, error-every, error-at, refuse-2m, refuse-1g, \
                         secretly-unaccepted, secretly-accepted, on-violation, list, report"
                    ));
                }
            }
        }
        options.guest = guest.ok_or("guest=tdx or guest=snp is needed")?;
        let busy = options.faults.busy_every != 0 || options.faults.busy_at.is_some();
        if busy && options.guest == Guest::Snp {
            let why = "busy-every and busy-at are for guest=tdx: PVALIDATE has no answer that \
                       says busy; error-every and error-at are for both";
            return Err(why.into());
        }
        Ok(options)
    }
}

/// A number, decimal or hexadecimal, perhaps followed by K, M or G.
fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    value.ok()?.checked_mul(1 << shift)
}

/// START+SIZE in bytes, neither of them in the middle of a page.
fn extent(text: &str) -> Option<Range<u64>> {
    let (start, size) = text.split_once('+')?;
    let (start, size) = (number(start)?, number(size)?);
    let whole = start % crate::pages::PAGE == 0 && size % crate::pages::PAGE == 0 && size > 0;
    whole.then_some(start..start.checked_add(size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(text.split(',').filter(|word| !word.is_empty()))
    }

    #[test]
    fn every_option_is_read() {
        let got = parse(
            "guest=tdx,check=on,poison=0x55,cost-ns=8000,busy-every=3,error-every=4,busy-at=1G,\
             error-at=0x1000,refuse-2m=on,refuse-1g=on,secretly-unaccepted=64M+2M,\
             secretly-accepted=4K+4K,on-violation=continue,list=5,report=/tmp/report.json",
        );
        let want = Options {
            guest: Guest::Tdx,
            check: true,
            poison: Some(0x55),
            cost: Duration::from_micros(8),
            faults: Faults {
                busy_every: 3,
                error_every: 4,
                busy_at: Some(1 << 30),
                error_at: Some(0x1000),
                refuse_2m: true,
                refuse_1g: true,
                secretly_unaccepted: Some(64 << 20..66 << 20),
                secretly_accepted: Some(4096..8192),
            },
            stop: false,
            list: 5,
            report: Some("/tmp/report.json".into()),
        };
        assert_eq!(got, Ok(want));
        assert_eq!(parse("guest=tdx,poison=off"), Ok(Options::of(Guest::Tdx)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("", "guest=tdx or guest=snp is needed"),
            ("guest=sev", "guest is 'tdx' or 'snp'"),
            ("guest=tdx,chekc=on", "chekc=on: no such option"),
            ("guest=snp,busy-at=1G", "busy-at are for guest=tdx"),
            ("busy-every=7,guest=snp", "PVALIDATE has no answer"),
            ("guest=tdx,check=maybe", "'on' or 'off'"),
            ("guest=tdx,cost-ns=-1", "cost-ns is a number"),
            ("guest=tdx,poison=256", "a byte"),
            ("guest=tdx,report=", "the path of a file"),
            ("guest=tdx,error-at=here", "an address"),
            ("guest=tdx,secretly-accepted=1G", "START+SIZE"),
            ("guest=tdx,secretly-accepted=1G+100", "multiples of 4K"),
            ("guest=tdx,secretly-accepted=1G+0", "multiples of 4K"),
            (
                "guest=tdx,secretly-accepted=0xfffffffffffff000+4K",
                "START+SIZE",
            ),
            ("guest=tdx,list=99999999999999999999G", "list is a number"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
