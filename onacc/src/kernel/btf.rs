//! Where fields of kernel structures sit, from the running kernel's own BTF.
//!
//! Pure walker over the bytes of `/sys/kernel/btf/vmlinux` (format:
//! Documentation/bpf/btf.rst). Every offset and length is checked; unions and
//! structures without a name are looked into, to a bounded depth. Must not:
//! guess. A field that is not found is an error that names it. Tested here on
//! made-up bytes and on the running kernel, and fuzzed.

use std::collections::HashMap;

/// Anonymous members nest three deep at most in what we read.
const MAX_DEPTH: usize = 8;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
/// Bytes of the header of `linux/btf.h`.
const HEADER_LEN: usize = 24;

/// BTF cannot be read, or lacks something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("{0}: no BTF of the running kernel (CONFIG_DEBUG_INFO_BTF)")]
    Unreadable(String),
    /// Not BTF, or damaged.
    #[error("BTF: {0}")]
    Malformed(&'static str),
    /// A structure or field is not there.
    #[error("BTF of this kernel has no {0}")]
    Missing(String),
}

/// What a named type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A function of the kernel.
    Function,
    /// A `typedef`; each tracepoint has one.
    Typedef,
}

/// The types of a BTF blob.
#[derive(Debug)]
pub struct Btf<'a> {
    strings: &'a [u8],
    /// Where each type starts in `types`; index 0 is type id 1.
    starts: Vec<usize>,
    types: &'a [u8],
    structs: HashMap<&'a [u8], usize>,
}

/// A structure or union.
struct Composite<'a> {
    members: &'a [u8],
    /// Whether member offsets carry a bit-field size in their upper byte.
    kind_flag: bool,
}

struct Member {
    name: u32,
    kind: u32,
    bit_offset: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    Some(u32::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?))
}

impl<'a> Btf<'a> {
    /// Indexes a BTF blob of this machine's byte order.
    ///
    /// # Errors
    /// [`BtfError::Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let bad = BtfError::Malformed;
        let magic = bytes.get(..2).ok_or(bad("shorter than its header"))?;
        if magic != 0xeb9f_u16.to_ne_bytes() {
            return Err(bad("wrong magic number"));
        }
        let header = |at| {
            word(bytes, at)
                .and_then(|value| usize::try_from(value).ok())
                .ok_or(bad("shorter than its header"))
        };
        let header_len = header(4)?;
        let section = |offset: usize, len: usize| {
            let start = header_len.checked_add(offset)?;
            bytes.get(start..start.checked_add(len)?)
        };
        let types = section(header(8)?, header(12)?).ok_or(bad("types lie outside the file"))?;
        let strings = section(header(16)?, header(20)?).ok_or(bad("strings lie outside"))?;
        let mut btf = Self {
            strings,
            starts: Vec::new(),
            types,
            structs: HashMap::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let info = word(types, at + 4).ok_or(bad("a type is cut off"))?;
            let name = word(types, at).ok_or(bad("a type is cut off"))?;
            let len = type_len(info).ok_or(bad("a type of unknown kind"))?;
            if kind_of(info) == KIND_STRUCT && name != 0 {
                let name = btf.string(name).ok_or(bad("a name lies outside"))?;
                btf.structs.entry(name).or_insert(btf.starts.len());
            }
            btf.starts.push(at);
            at = at.checked_add(len).ok_or(bad("a type is too long"))?;
        }
        Ok(btf)
    }

    /// Byte offset of a field, given as a path such as `["i_ctime", "tv_sec"]`.
    ///
    /// # Errors
    /// [`BtfError::Missing`] names what is not there.
    pub fn offset(&self, structure: &str, path: &[&str]) -> Result<u64, BtfError> {
        let missing = || BtfError::Missing(format!("{structure}.{}", path.join(".")));
        let mut index = *self
            .structs
            .get(structure.as_bytes())
            .ok_or_else(|| BtfError::Missing(format!("struct {structure}")))?;
        let mut bits = 0u64;
        for (at, field) in path.iter().enumerate() {
            let (offset, kind) = self
                .find(index, field.as_bytes(), MAX_DEPTH)
                .ok_or_else(missing)?;
            bits = bits.checked_add(offset).ok_or_else(missing)?;
            if at + 1 < path.len() {
                index = Self::index_of(kind).ok_or_else(missing)?;
            }
        }
        if bits.is_multiple_of(8) {
            Ok(bits / 8)
        } else {
            Err(missing())
        }
    }

    /// As [`Btf::offset`], for the first of several names that is there: fields
    /// change their names between kernels.
    ///
    /// # Errors
    /// [`BtfError::Missing`] names all that were tried.
    pub fn offset_of_any(&self, structure: &str, paths: &[&[&str]]) -> Result<u64, BtfError> {
        paths
            .iter()
            .find_map(|path| self.offset(structure, path).ok())
            .ok_or_else(|| {
                let names: Vec<_> = paths.iter().map(|path| path.join(".")).collect();
                BtfError::Missing(format!("{structure}.{{{}}}", names.join(" or ")))
            })
    }

    /// The id of a type, if there is one of this name and kind.
    pub fn id_of(&self, name: &str, what: Named) -> Option<u32> {
        let kind = match what {
            Named::Function => KIND_FUNC,
            Named::Typedef => KIND_TYPEDEF,
        };
        self.starts
            .iter()
            .position(|at| {
                let found = word(self.types, at + 4).map(kind_of) == Some(kind);
                found && word(self.types, *at).is_some_and(|offset| self.is_named(offset, name))
            })
            .and_then(|index| u32::try_from(index + 1).ok())
    }

    /// A blob in which these types have the ids that they have here, and all
    /// others are place-holders without a name: what a reader needs who asks for
    /// ids alone, in a fraction of the time. What is not there is not in it.
    pub fn excerpt(&self, wanted: &[(&str, Named)]) -> Vec<u8> {
        let mut found: Vec<(u32, &str, Named)> = wanted
            .iter()
            .filter_map(|(name, what)| Some((self.id_of(name, *what)?, *name, *what)))
            .collect();
        found.sort_unstable_by_key(|(id, ..)| *id);
        found.dedup_by_key(|(id, ..)| *id);
        let mut strings = vec![0];
        let mut types: Vec<u8> = Vec::new();
        let mut id = 1;
        for (at, name, what) in found {
            for _ in id..at {
                types.extend([0, KIND_FWD << 24, 0].map(u32::to_ne_bytes).as_flattened());
            }
            let kind = match what {
                Named::Function => KIND_FUNC,
                Named::Typedef => KIND_TYPEDEF,
            };
            let offset = u32::try_from(strings.len()).unwrap_or(0);
            types.extend([offset, kind << 24, 0].map(u32::to_ne_bytes).as_flattened());
            strings.extend(name.bytes());
            strings.push(0);
            id = at + 1;
        }
        let mut blob = Vec::with_capacity(HEADER_LEN + types.len() + strings.len());
        blob.extend(0xeb9f_u16.to_ne_bytes());
        blob.extend([1, 0]);
        for number in [HEADER_LEN, 0, types.len(), types.len(), strings.len()] {
            // Shorter than the blob that it comes from, whose lengths are 32 bits.
            blob.extend(u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes());
        }
        blob.extend(types);
        blob.extend(strings);
        blob
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        usize::try_from(offset)
            .ok()
            .and_then(|offset| self.strings.get(offset..))
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Bit offset and type of a member, also of nameless members' members.
    fn find(&self, index: usize, name: &[u8], depth: usize) -> Option<(u64, u32)> {
        let composite = self.composite(index)?;
        for member in composite.iter() {
            let offset = if composite.kind_flag {
                member.bit_offset & 0x00ff_ffff
            } else {
                member.bit_offset
            };
            if member.name != 0 {
                if self.string(member.name) == Some(name) {
                    return Some((u64::from(offset), member.kind));
                }
            } else if depth > 0
                && let Some(inner) = Self::index_of(member.kind)
                && let Some((below, kind)) = self.find(inner, name, depth - 1)
            {
                return Some((u64::from(offset) + below, kind));
            }
        }
        None
    }

    fn composite(&self, index: usize) -> Option<Composite<'a>> {
        let at = *self.starts.get(index)?;
        let info = word(self.types, at + 4)?;
        if !matches!(kind_of(info), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let members = self.types.get(at + 12..at.checked_add(type_len(info)?)?)?;
        Some(Composite {
            members,
            kind_flag: info >> 31 == 1,
        })
    }

    /// From a type id to the index of its structure or union. Ids start at 1.
    fn index_of(id: u32) -> Option<usize> {
        usize::try_from(id).ok()?.checked_sub(1)
    }

    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(usize::try_from(offset).ok()?..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

impl Composite<'_> {
    fn iter(&self) -> impl Iterator<Item = Member> {
        self.members.chunks_exact(12).filter_map(|bytes| {
            Some(Member {
                name: word(bytes, 0)?,
                kind: word(bytes, 4)?,
                bit_offset: word(bytes, 8)?,
            })
        })
    }
}

fn kind_of(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

/// Length of a type with what follows its twelve bytes (btf.rst, 2.2).
fn type_len(info: u32) -> Option<usize> {
    let entries = usize::try_from(info & 0xffff).ok()?;
    let extra = match kind_of(info) {
        // INT, VAR, DECL_TAG: one word.
        1 | 14 | 17 => 4,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG: nothing.
        2 | 7..=12 | 16 | 18 => 0,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64: twelve bytes an entry.
        KIND_STRUCT | KIND_UNION | 15 | 19 => entries.checked_mul(12)?,
        // ENUM, FUNC_PROTO: eight.
        6 | 13 => entries.checked_mul(8)?,
        _ => return None,
    };
    extra.checked_add(12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A blob with `struct outer { int a; union { struct { int x; }; int y; }; struct inner b; }`
    /// and `struct inner { int deep; }`.
    fn blob() -> Vec<u8> {
        let strings = b"\0outer\0a\0x\0y\0b\0inner\0deep\0";
        let at = |name: &[u8]| {
            u32::try_from(
                strings
                    .windows(name.len() + 2)
                    .position(|window| {
                        window[0] == 0
                            && window[1..=name.len()] == *name
                            && window[name.len() + 1] == 0
                    })
                    .unwrap()
                    + 1,
            )
            .unwrap()
        };
        let mut words: Vec<u32> = Vec::new();
        // 1: int
        words.extend([0, 1 << 24, 4, 32]);
        // 2: nameless struct { int x at bit 32 }
        words.extend([0, KIND_STRUCT << 24 | 1, 8, at(b"x"), 1, 32]);
        // 3: nameless union { type 2; int y }
        words.extend([0, KIND_UNION << 24 | 2, 8, 0, 2, 0, at(b"y"), 1, 0]);
        // 4: struct inner { int deep at bit 64 }
        words.extend([at(b"inner"), KIND_STRUCT << 24 | 1, 12, at(b"deep"), 1, 64]);
        // 5: struct outer
        words.extend([at(b"outer"), KIND_STRUCT << 24 | 3, 32]);
        words.extend([at(b"a"), 1, 0, 0, 3, 64, at(b"b"), 4, 128]);
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = Vec::new();
        out.extend(0xeb9f_u16.to_ne_bytes());
        out.extend([1, 0]);
        for value in [24, 0, types.len(), types.len(), strings.len()] {
            out.extend(u32::try_from(value).unwrap().to_ne_bytes());
        }
        out.extend(types);
        out.extend(strings);
        out
    }

    #[test]
    fn finds_fields_in_nameless_unions_and_nested_structures() {
        let blob = blob();
        let btf = Btf::parse(&blob).unwrap();
        assert_eq!(btf.offset("outer", &["a"]), Ok(0));
        assert_eq!(btf.offset("outer", &["y"]), Ok(8));
        assert_eq!(btf.offset("outer", &["x"]), Ok(12));
        assert_eq!(btf.offset("outer", &["b", "deep"]), Ok(24));
        assert_eq!(btf.offset_of_any("outer", &[&["gone"], &["b"]]), Ok(16));
    }

    #[test]
    fn what_is_missing_is_named() {
        let blob = blob();
        let btf = Btf::parse(&blob).unwrap();
        assert_eq!(
            btf.offset("outer", &["zz"]).unwrap_err().to_string(),
            "BTF of this kernel has no outer.zz"
        );
        assert_eq!(
            btf.offset("nope", &["a"]).unwrap_err().to_string(),
            "BTF of this kernel has no struct nope"
        );
        assert_eq!(
            btf.offset_of_any("outer", &[&["p", "q"], &["r"]])
                .unwrap_err()
                .to_string(),
            "BTF of this kernel has no outer.{p.q or r}"
        );
    }

    #[test]
    fn the_running_kernel_has_what_the_programs_need() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIPPED: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(&bytes).unwrap();
        let sb = btf.offset("inode", &["i_sb"]).unwrap();
        let ino = btf.offset("inode", &["i_ino"]).unwrap();
        assert!(sb > 0 && ino > sb && ino < 512);
    }

    #[test]
    fn an_excerpt_has_the_ids_of_the_whole() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIPPED: no BTF on this kernel");
            return;
        };
        let whole = Btf::parse(&bytes).unwrap();
        let wanted = [
            ("security_file_open", Named::Function),
            ("no_such_function", Named::Function),
            ("btf_trace_writeback_mark_inode_dirty", Named::Typedef),
        ];
        let blob = whole.excerpt(&wanted);
        let excerpt = Btf::parse(&blob).unwrap();
        for (name, what) in wanted {
            let id = whole.id_of(name, what);
            assert_eq!(excerpt.id_of(name, what), id, "{name}");
            assert_eq!(id.is_some(), name != "no_such_function");
        }
        assert_eq!(excerpt.id_of("security_file_open", Named::Typedef), None);
        // The library that it is made for takes it.
        aya::Btf::parse(&blob, aya::Endianness::default()).unwrap();
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0usize..320, value in any::<u8>(), cut in 0usize..320) {
            let mut bytes = blob();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(cut.max(1));
            if let Ok(btf) = Btf::parse(&bytes) {
                let _ = btf.offset("outer", &["b", "deep"]);
                let _ = btf.offset("outer", &["x"]);
                let _ = btf.excerpt(&[("a", Named::Function), ("b", Named::Typedef)]);
            }
        }
    }
}
