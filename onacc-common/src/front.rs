//! Small tables of numbers that a program looks into without a call.
//!
//! Behind each is a hash map, which holds everything. The *front* of it is an
//! array of slots: a slot says that no key of its kind is in the map, or holds
//! the one that is, or says that there are several, so that the map must be
//! asked. An array is read in line, a look into a hash map is a call or two: on
//! an open that is dropped these looks are most of the cost. Must not: be the
//! only place where something is known. Tested here; what the agent writes into
//! the slots and what the programs read out of them are the same functions.

/// Slots of one front: a power of two.
pub const SLOTS: u32 = 256;

/// Which table a front stands before.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// Devices of the watched filesystems.
    Filesystems = 0,
    /// Processes whose opens are never scanned.
    Exempt = 1,
    /// Excluded effective uids.
    Excluded = 2,
}

impl Front {
    /// Slots of all fronts: entries of the map.
    pub const ALL_SLOTS: u32 = 3 * SLOTS;

    /// The slot of a key, as an index into the map of all fronts.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "BPF programs of kernel 6.1 pay a call for every function"
    )]
    pub const fn index(self, key: u32) -> u32 {
        self as u32 * SLOTS + slot(key)
    }
}

/// The slot of a key within a front. Multiplied (by the golden ratio), because
/// device numbers differ in their highest and lowest bits.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "BPF programs of kernel 6.1 pay a call for every function"
)]
pub const fn slot(key: u32) -> u32 {
    key.wrapping_mul(0x9E37_79B1) >> 24
}

/// What a slot says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is not in the table.
    No,
    /// It is, with this value.
    Yes(u32),
    /// The table must be asked.
    Ask,
}

const EMPTY: u64 = 0;
const SEVERAL: u64 = 1;
/// Set in a slot with one key; the value lies above it, the key in the upper half.
const ONE: u64 = 2;
/// Values have room for so many bits.
pub const VALUE_BITS: u32 = 30;

/// Reads a slot.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "BPF programs of kernel 6.1 pay a call for every function"
)]
pub const fn look(slot: u64, key: u32) -> Found {
    if slot == EMPTY {
        Found::No
    } else if slot == SEVERAL {
        Found::Ask
    } else if (slot >> 32) as u32 == key {
        Found::Yes(((slot & 0xffff_ffff) >> 2) as u32)
    } else {
        Found::No
    }
}

/// The slot for these keys and values, all of which fall into it. A value that
/// has no room is to be asked for.
pub fn word(entries: &[(u32, u32)]) -> u64 {
    match entries {
        [] => EMPTY,
        [(key, value)] if *value >> VALUE_BITS == 0 => {
            u64::from(*key) << 32 | u64::from(*value) << 2 | ONE
        }
        _ => SEVERAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_says_none_one_or_ask() {
        assert_eq!(look(word(&[]), 7), Found::No);
        assert_eq!(look(word(&[(7, 3)]), 7), Found::Yes(3));
        assert_eq!(look(word(&[(7, 3)]), 8), Found::No);
        assert_eq!(look(word(&[(7, 3), (8, 1)]), 7), Found::Ask);
        assert_eq!(look(word(&[(7, 3), (8, 1)]), 9), Found::Ask);
        assert_eq!(look(word(&[(0, 0)]), 0), Found::Yes(0));
        assert_eq!(look(word(&[(u32::MAX, 1)]), u32::MAX), Found::Yes(1));
        assert_eq!(look(word(&[(7, 1 << VALUE_BITS)]), 7), Found::Ask);
        let largest = (1 << VALUE_BITS) - 1;
        assert_eq!(look(word(&[(7, largest)]), 7), Found::Yes(largest));
    }

    #[test]
    fn fronts_do_not_overlap() {
        for key in [0, 1, 255, 256, crate::kernel_dev(259, 3), u32::MAX] {
            assert!(slot(key) < SLOTS);
            assert_eq!(Front::Filesystems.index(key), slot(key));
            assert_eq!(Front::Excluded.index(key), 2 * SLOTS + slot(key));
            assert!(Front::Excluded.index(key) < Front::ALL_SLOTS);
        }
    }

    #[test]
    fn neighbouring_uids_and_devices_have_slots_of_their_own() {
        let spread = |keys: &mut dyn Iterator<Item = u32>| {
            let slots: std::collections::HashSet<u32> = keys.map(slot).collect();
            slots.len()
        };
        assert!(spread(&mut (1000..1064)) > 48);
        assert!(spread(&mut (0..16).map(|minor| crate::kernel_dev(0, minor))) > 12);
        assert!(spread(&mut (0..16).map(|minor| crate::kernel_dev(259, minor))) > 12);
    }
}
