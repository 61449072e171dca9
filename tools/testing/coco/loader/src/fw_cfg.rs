// SPDX-License-Identifier: GPL-2.0

//! Files that QEMU's command line gives to the guest (QEMU's docs/specs/fw_cfg.rst).

/// Keys of the interface.
const SIGNATURE: u16 = 0x00;
const DIRECTORY: u16 = 0x19;

/// How large an entry of the directory is, and where in it the name begins.
const ENTRY: usize = 64;
const NAME: usize = 8;

/// The device: a key selects an item, which is then read from its beginning.
pub trait Device {
    fn select(&mut self, key: u16);
    fn read(&mut self, bytes: &mut [u8]);
}

#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no such device, so this is not QEMU.
    Absent,
    /// The file has so many bytes, which is more than there is room for.
    TooLong(u32),
}

/// Reads the file called `name` into `buffer`; `None` if there is none.
///
/// # Errors
///
/// See [`Error`].
pub fn read<'a>(
    device: &mut impl Device,
    name: &str,
    buffer: &'a mut [u8],
) -> Result<Option<&'a [u8]>, Error> {
    let mut word = [0; 4];
    device.select(SIGNATURE);
    device.read(&mut word);
    if word != *b"QEMU" {
        return Err(Error::Absent);
    }
    device.select(DIRECTORY);
    device.read(&mut word);
    for _ in 0..u32::from_be_bytes(word) {
        let mut entry = [0; ENTRY];
        device.read(&mut entry);
        let (size, key) = entry.split_at(4);
        let size = u32::from_be_bytes([size[0], size[1], size[2], size[3]]);
        let there = entry[NAME..].split(|byte| *byte == 0).next();
        if there == Some(name.as_bytes()) {
            let bytes = buffer
                .get_mut(..size as usize)
                .ok_or(Error::TooLong(size))?;
            device.select(u16::from_be_bytes([key[0], key[1]]));
            device.read(bytes);
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        items: Vec<(u16, Vec<u8>)>,
        rest: Vec<u8>,
    }

    impl Fake {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let mut directory = (files.len() as u32).to_be_bytes().to_vec();
            let mut items = vec![(SIGNATURE, b"QEMU".to_vec())];
            for (key, (name, bytes)) in (0x20..).zip(files) {
                directory.extend((bytes.len() as u32).to_be_bytes());
                directory.extend(u16::to_be_bytes(key));
                directory.extend([0; 2]);
                directory.extend(name.bytes().chain(std::iter::repeat(0)).take(ENTRY - NAME));
                items.push((key, bytes.to_vec()));
            }
            items.push((DIRECTORY, directory));
            let rest = Vec::new();
            Self { items, rest }
        }
    }

    impl Device for Fake {
        fn select(&mut self, key: u16) {
            let item = self.items.iter().find(|(other, _)| *other == key);
            self.rest = item.map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        }

        fn read(&mut self, bytes: &mut [u8]) {
            let count = bytes.len().min(self.rest.len());
            bytes.fill(0);
            bytes[..count].copy_from_slice(&self.rest[..count]);
            self.rest.drain(..count);
        }
    }

    #[test]
    fn a_file_is_found_by_its_whole_name() {
        let mut fake = Fake::new(&[("opt/a", b"no"), ("opt/ab", b"yes"), ("opt/abc", b"no")]);
        let mut buffer = [0; 8];
        assert_eq!(
            read(&mut fake, "opt/ab", &mut buffer),
            Ok(Some(&b"yes"[..]))
        );
        assert_eq!(read(&mut fake, "opt", &mut buffer), Ok(None));
    }

    #[test]
    fn a_file_may_be_too_long() {
        let mut fake = Fake::new(&[("opt/a", b"12345")]);
        assert_eq!(
            read(&mut fake, "opt/a", &mut [0; 4]),
            Err(Error::TooLong(5))
        );
        assert!(read(&mut fake, "opt/a", &mut [0; 5]).is_ok());
    }

    #[test]
    fn the_device_may_be_absent() {
        let (items, rest) = (Vec::new(), Vec::new());
        let mut fake = Fake { items, rest };
        assert_eq!(read(&mut fake, "opt/a", &mut []), Err(Error::Absent));
    }
}
