//! Bytes read from a fanotify fd, in; events, out.
//!
//! Pure: no system call, no fd is owned here (`Group::read` takes ownership of
//! what this names). Must not trust a length: every event is checked against
//! the buffer, and a length that cannot be ends the batch. Tested here, and
//! fuzzed (`fuzz/fuzz_targets/events.rs`).

/// Size of `struct fanotify_event_metadata` (include/uapi/linux/fanotify.h).
pub const METADATA_LEN: usize = 24;

/// One event as the kernel wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEvent {
    /// `FAN_*` bits.
    pub mask: u64,
    /// The fd of the opened file, or a negative number where the kernel sends none.
    pub fd: i32,
    /// Thread id of the opener (`FAN_REPORT_TID`), 0 if it lives in another pid namespace.
    pub tid: i32,
}

/// The bytes are not what fanotify(7) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The batch ends inside an event.
    #[error("fanotify: the batch ends inside an event ({0} bytes are left)")]
    Truncated(usize),
    /// `event_len` is smaller than the metadata or larger than the batch.
    #[error("fanotify: impossible event length {0}")]
    BadLength(u32),
    /// `metadata_len` is smaller than the metadata or larger than the event.
    #[error("fanotify: impossible metadata length {0}")]
    BadMetadataLength(u16),
    /// The structure has another version than the one this agent was built for.
    /// The fd field cannot be trusted, so nothing after it is read.
    #[error("fanotify: event structure version {0}, expected 3")]
    BadVersion(u8),
}

/// Iterates over the events of one read. After an error it ends.
#[derive(Debug)]
pub struct Events<'a> {
    rest: &'a [u8],
}

impl<'a> Events<'a> {
    /// Events of the bytes that one `read(2)` returned.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl Iterator for Events<'_> {
    type Item = Result<RawEvent, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let result = split_event(self.rest);
        match result {
            Ok((event, rest)) => {
                self.rest = rest;
                Some(Ok(event))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

fn split_event(bytes: &[u8]) -> Result<(RawEvent, &[u8]), ParseError> {
    let Some((head, _)) = bytes.split_first_chunk::<METADATA_LEN>() else {
        return Err(ParseError::Truncated(bytes.len()));
    };
    let array = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
    let event_len = u32::from_ne_bytes(array(0));
    let version = head[4];
    let metadata_len = u16::from_ne_bytes([head[6], head[7]]);
    if version != libc::FANOTIFY_METADATA_VERSION {
        return Err(ParseError::BadVersion(version));
    }
    let len = usize::try_from(event_len).map_err(|_| ParseError::BadLength(event_len))?;
    if len < METADATA_LEN || len > bytes.len() {
        return Err(ParseError::BadLength(event_len));
    }
    if usize::from(metadata_len) < METADATA_LEN || usize::from(metadata_len) > len {
        return Err(ParseError::BadMetadataLength(metadata_len));
    }
    Ok((
        RawEvent {
            mask: mask_of(array(8), array(12)),
            fd: i32::from_ne_bytes(array(16)),
            tid: i32::from_ne_bytes(array(20)),
        },
        &bytes[len..],
    ))
}

/// Eight bytes in the machine's order, from two fours.
fn mask_of(low: [u8; 4], high: [u8; 4]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&low);
    bytes[4..].copy_from_slice(&high);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(event: &RawEvent, extra: usize, version: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(METADATA_LEN + extra).unwrap().to_ne_bytes());
        bytes.push(version);
        bytes.push(0);
        bytes.extend(u16::try_from(METADATA_LEN).unwrap().to_ne_bytes());
        bytes.extend(event.mask.to_ne_bytes());
        bytes.extend(event.fd.to_ne_bytes());
        bytes.extend(event.tid.to_ne_bytes());
        bytes.extend(vec![0xaa; extra]);
        bytes
    }

    const EVENT: RawEvent = RawEvent {
        mask: libc::FAN_OPEN_PERM,
        fd: 7,
        tid: 4242,
    };

    #[test]
    fn layout_is_that_of_libc() {
        assert_eq!(METADATA_LEN, size_of::<libc::fanotify_event_metadata>());
    }

    #[test]
    fn a_length_of_zero_ends_the_batch_instead_of_looping() {
        let mut bytes = bytes_of(&EVENT, 0, 3);
        bytes[0..4].fill(0);
        let events: Vec<_> = Events::new(&bytes).collect();
        assert_eq!(events, [Err(ParseError::BadLength(0))]);
    }

    #[test]
    fn another_version_yields_no_fd() {
        let mut bytes = bytes_of(&EVENT, 0, 4);
        bytes.extend(bytes_of(&EVENT, 0, 3));
        let events: Vec<_> = Events::new(&bytes).collect();
        assert_eq!(events, [Err(ParseError::BadVersion(4))]);
    }

    #[test]
    fn a_batch_that_ends_inside_an_event_says_so() {
        let bytes = bytes_of(&EVENT, 0, 3);
        let events: Vec<_> = Events::new(&bytes[..20]).collect();
        assert_eq!(events, [Err(ParseError::Truncated(20))]);
        let mut long = bytes.clone();
        long[0] = 25;
        assert_eq!(
            Events::new(&long).next(),
            Some(Err(ParseError::BadLength(25)))
        );
    }

    proptest! {
        #[test]
        fn whole_events_come_out_as_they_went_in(
            list in proptest::collection::vec((any::<u64>(), any::<i32>(), any::<i32>(), 0usize..64), 0..40)
        ) {
            let mut bytes = Vec::new();
            let mut want = Vec::new();
            for (mask, fd, tid, extra) in list {
                let event = RawEvent { mask, fd, tid };
                bytes.extend(bytes_of(&event, extra, 3));
                want.push(Ok(event));
            }
            let got: Vec<_> = Events::new(&bytes).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let count = Events::new(&bytes).count();
            prop_assert!(count <= bytes.len() / METADATA_LEN + 1);
        }
    }
}
