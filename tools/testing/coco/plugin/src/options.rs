// SPDX-License-Identifier: GPL-2.0

//! What stands behind the plugin's path on QEMU's command line: `key=value`, separated by commas.

use crate::{
    faults::{Answer, Fault},
    host::HostPages,
};
use coco_protocol::{Guest, size};
use std::{collections::HashSet, ops::Range, path::PathBuf, time::Duration};

/// What time calls take.
#[derive(Debug, Default, PartialEq)]
pub struct Costs {
    /// An accept or a conversion, whatever becomes of it.
    pub call: Duration,
    /// Each 4K that is accepted.
    pub accept: Duration,
    /// Each 4K that is converted.
    pub convert: Duration,
    /// Each 4K that is accepted, for each vCPU that is idle.
    pub idle: Duration,
}

#[derive(Debug, PartialEq)]
pub struct Options {
    pub guest: Guest,
    /// Loads and stores are checked.
    pub check: bool,
    /// What pending memory is filled with. That touches all of it, which takes the host a while.
    pub poison: Option<u8>,
    /// By which pages the host maps memory.
    pub host_pages: HostPages,
    pub costs: Costs,
    pub faults: Vec<Fault>,
    /// Bytes that are pending though the guest was not told.
    pub secretly_unaccepted: Option<Range<u64>>,
    /// Bytes that are accepted though the guest was told to accept them.
    pub secretly_accepted: Option<Range<u64>>,
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
            host_pages: match guest {
                Guest::Tdx => HostPages::Small,
                Guest::Snp => HostPages::Medium,
            },
            costs: Costs::default(),
            faults: Vec::new(),
            secretly_unaccepted: None,
            secretly_accepted: None,
            stop: true,
            list: 20,
            report: None,
        }
    }

    /// Reads the options; the error says which one is wrong, and what it may be.
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut options = Self::of(Guest::Tdx);
        let (mut guest, mut host_pages) = (None, None);
        let mut given = HashSet::new();
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if key != "fault" && !given.insert(key) {
                return Err(format!(
                    "{word}: {key} was given before; only fault may be repeated"
                ));
            }
            let wrong = |may: &str| format!("{key}={value}: {key} is {may}");
            let switch = || match value {
                "on" => Ok(true),
                "off" => Ok(false),
                _ => Err(wrong("'on' or 'off'")),
            };
            let count = || size(value).ok_or_else(|| wrong("a number"));
            let rate = || {
                let rate = size(value).filter(|rate| *rate > 0);
                rate.ok_or_else(|| wrong("a number above 0"))
            };
            let address = || size(value).ok_or_else(|| wrong("an address, as 0x40000000 or 1G"));
            let range = || {
                extent(value)
                    .ok_or_else(|| wrong("START+SIZE, both multiples of 4K, as 0x40000000+2M"))
            };
            let cost = || count().map(Duration::from_nanos);
            let (costs, faults) = (&mut options.costs, &mut options.faults);
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
                    let byte = size(value).and_then(|value| value.try_into().ok());
                    options.poison = Some(byte.ok_or_else(|| wrong("a byte, as 0xaa, or 'off'"))?);
                }
                "host-pages" => {
                    let pages = host_pages_of(value);
                    host_pages = Some(pages.ok_or_else(|| {
                        wrong("4k, 2m, mixed=N% (so many of all 2M blocks are 4K pages), or 1g")
                    })?);
                }
                "cost-ns" => costs.accept = cost()?,
                "call-cost-ns" => costs.call = cost()?,
                "convert-cost-ns" => costs.convert = cost()?,
                "idle-cost-ns" => costs.idle = cost()?,
                "fault" => {
                    let fault = Fault::parse(value, size);
                    faults.push(fault.ok_or_else(|| {
                        wrong(
                            "CALL:ANSWER:every=N or CALL:ANSWER:at=ADDRESS, perhaps with :times=N \
                             behind it; calls are accept, map-gpa, psc, psc-list and psc-msr, \
                             answers busy, retry, error or a status",
                        )
                    })?);
                }
                "busy-every" => faults.push(Fault::every(Answer::Busy, rate()?)),
                "error-every" => faults.push(Fault::every(Answer::Error, rate()?)),
                "busy-at" => faults.push(Fault::at(Answer::Busy, address()?, 1)),
                "error-at" => faults.push(Fault::at(Answer::Error, address()?, u64::MAX)),
                "secretly-unaccepted" => options.secretly_unaccepted = Some(range()?),
                "secretly-accepted" => options.secretly_accepted = Some(range()?),
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
                        "{word}: no such option; there are guest, check, poison, host-pages, \
                         cost-ns, call-cost-ns, convert-cost-ns, idle-cost-ns, fault, busy-every, \
                         busy-at, error-every, error-at, secretly-unaccepted, secretly-accepted, \
                         on-violation, list, report"
                    ));
                }
            }
        }
        options.guest = guest.ok_or("guest=tdx or guest=snp is needed")?;
        options.host_pages = host_pages.unwrap_or(Self::of(options.guest).host_pages);
        if options.host_pages == HostPages::Large && options.guest == Guest::Snp {
            return Err("host-pages=1g is for guest=tdx: PVALIDATE has no such size".into());
        }
        if let Some(fault) = options.faults.iter().find(|f| !f.suits(options.guest)) {
            return Err(format!(
                "{:?} of {:?} is no answer that a guest of this kind can get: TDX has accept \
                 (busy, error, status) and map-gpa (busy, retry, error, status), SEV-SNP has \
                 accept (error, status), psc (retry, error, status), psc-list (error, status) and \
                 psc-msr (error)",
                fault.answer, fault.call
            ));
        }
        if !options.costs.idle.is_zero() && options.guest == Guest::Snp {
            return Err(
                "idle-cost-ns is for guest=tdx: a SEV-SNP guest does not say that it is idle"
                    .into(),
            );
        }
        Ok(options)
    }
}

/// By which pages the host maps memory, in the words of the option.
fn host_pages_of(text: &str) -> Option<HostPages> {
    match text {
        "4k" => Some(HostPages::Small),
        "2m" => Some(HostPages::Medium),
        "1g" => Some(HostPages::Large),
        _ => {
            let percent = text.strip_prefix("mixed=")?.strip_suffix('%')?;
            let percent = size(percent).filter(|percent| *percent <= 100)?;
            Some(HostPages::Mixed(percent as u8))
        }
    }
}

/// START+SIZE in bytes, neither of them in the middle of a page.
fn extent(text: &str) -> Option<Range<u64>> {
    let (start, length) = text.split_once('+')?;
    let (start, length) = (size(start)?, size(length)?);
    let whole = start % crate::pages::PAGE == 0 && length % crate::pages::PAGE == 0 && length > 0;
    whole.then_some(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Call;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(text.split(',').filter(|word| !word.is_empty()))
    }

    #[test]
    fn every_option_is_read() {
        let got = parse(
            "guest=tdx,check=on,poison=0x55,cost-ns=8000,busy-every=3,error-every=4,busy-at=1G,\
             error-at=0x1000,host-pages=mixed=25%,secretly-unaccepted=64M+2M,call-cost-ns=2000,\
             convert-cost-ns=3000,idle-cost-ns=4000,fault=map-gpa:retry:every=2,\
             secretly-accepted=4K+4K,on-violation=continue,list=5,report=/tmp/report.json",
        );
        let want = Options {
            guest: Guest::Tdx,
            check: true,
            poison: Some(0x55),
            host_pages: HostPages::Mixed(25),
            costs: Costs {
                accept: Duration::from_micros(8),
                call: Duration::from_micros(2),
                convert: Duration::from_micros(3),
                idle: Duration::from_micros(4),
            },
            faults: vec![
                Fault::every(Answer::Busy, 3),
                Fault::every(Answer::Error, 4),
                Fault::at(Answer::Busy, 1 << 30, 1),
                Fault::at(Answer::Error, 0x1000, u64::MAX),
                Fault {
                    call: Call::MapGpa,
                    ..Fault::every(Answer::Retry, 2)
                },
            ],
            secretly_unaccepted: Some(64 << 20..66 << 20),
            secretly_accepted: Some(4096..8192),
            stop: false,
            list: 5,
            report: Some("/tmp/report.json".into()),
        };
        assert_eq!(got, Ok(want));
        assert_eq!(parse("guest=tdx,poison=off"), Ok(Options::of(Guest::Tdx)));
    }

    #[test]
    fn hosts_map_4k_in_tdx_and_what_they_are_told_to() {
        for (text, pages) in [
            ("guest=tdx", HostPages::Small),
            ("guest=snp", HostPages::Medium),
            ("host-pages=4k,guest=snp", HostPages::Small),
            ("guest=tdx,host-pages=2m", HostPages::Medium),
            ("guest=tdx,host-pages=1g", HostPages::Large),
            ("guest=tdx,host-pages=mixed=0%", HostPages::Mixed(0)),
            ("guest=tdx,host-pages=mixed=100%", HostPages::Mixed(100)),
        ] {
            assert_eq!(parse(text).map(|options| options.host_pages), Ok(pages));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("", "guest=tdx or guest=snp is needed"),
            ("guest=sev", "guest is 'tdx' or 'snp'"),
            ("guest=tdx,chekc=on", "chekc=on: no such option"),
            ("guest=snp,busy-at=1G", "Busy of Accept is no answer"),
            ("busy-every=0,guest=tdx", "a number above 0"),
            (
                "fault=psc:retry:every=7,guest=tdx",
                "Retry of PscEntry is no",
            ),
            ("fault=accept:busy,guest=tdx", "CALL:ANSWER:every=N"),
            ("idle-cost-ns=5,guest=snp", "idle-cost-ns is for guest=tdx"),
            ("guest=tdx,check=maybe", "'on' or 'off'"),
            ("guest=tdx,cost-ns=-1", "cost-ns is a number"),
            ("guest=tdx,poison=256", "a byte"),
            ("guest=tdx,list=1,list=1", "list was given before"),
            ("guest=tdx,host-pages=8k", "4k, 2m, mixed=N%"),
            ("guest=tdx,host-pages=mixed=101%", "4k, 2m, mixed=N%"),
            ("guest=tdx,host-pages=mixed=5", "4k, 2m, mixed=N%"),
            ("guest=snp,host-pages=1g", "PVALIDATE has no such size"),
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
