// SPDX-License-Identifier: GPL-2.0

//! UEFI device paths (UEFI specification 2.11, chapter 10): nodes, each with type, sub-type and
//! its own length in front, up to a node that ends the path.

const HEADER: usize = 4;
const END: [u8; HEADER] = [0x7f, 0xff, 4, 0];
const MEDIA: u8 = 4;
const FILE: u8 = 4;

/// Writes the path of `file` on a device into `buffer`.
///
/// `nodes` are those of the device's path, as they are in memory, without the end. Returns what of
/// `buffer` is the path; `None` if the buffer is too small.
pub fn of_file<'a, 'b>(
    nodes: impl Iterator<Item = &'b [u8]>,
    file: &str,
    buffer: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    let mut length = 0;
    let mut append = |bytes: &[u8]| {
        buffer
            .get_mut(length..length + bytes.len())?
            .copy_from_slice(bytes);
        length += bytes.len();
        Some(())
    };
    for node in nodes {
        append(node)?;
    }
    let size = HEADER + 2 * (file.encode_utf16().count() + 1);
    let [low, high] = u16::try_from(size).ok()?.to_le_bytes();
    append(&[MEDIA, FILE, low, high])?;
    for unit in file.encode_utf16().chain([0]) {
        append(&unit.to_le_bytes())?;
    }
    append(&END)?;
    Some(&mut buffer[..length])
}

/// How long a node with this header is; `None` for the one that ends the path, or a broken one.
pub fn node_length(header: [u8; HEADER]) -> Option<usize> {
    let length = usize::from(u16::from_le_bytes([header[2], header[3]]));
    (header[0] != END[0] && length >= HEADER).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_appended() {
        let node = [1, 2, 6, 0, 9, 9];
        let mut buffer = [0; 64];
        let path = of_file([&node[..]].into_iter(), "k", &mut buffer).unwrap();
        let expected = [
            1, 2, 6, 0, 9, 9, 4, 4, 8, 0, b'k', 0, 0, 0, 0x7f, 0xff, 4, 0,
        ];
        assert_eq!(path, expected);
        let length = expected.len();
        assert!(of_file([&node[..]].into_iter(), "k", &mut buffer[..length]).is_some());
        assert!(of_file([&node[..]].into_iter(), "k", &mut buffer[..length - 1]).is_none());
    }

    #[test]
    fn a_path_ends() {
        assert_eq!(node_length([1, 2, 6, 0]), Some(6));
        assert_eq!(node_length([1, 2, 0, 1]), Some(256));
        assert_eq!(node_length(END), None);
        assert_eq!(node_length([1, 2, 3, 0]), None);
    }
}
