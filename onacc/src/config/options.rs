//! The options that clamd.conf may hold: names, kinds, nothing else.
//!
//! Owns the table and the look-ups in it. Must not parse, and must not know
//! what an option is good for; `settings` knows that. A name that is missing
//! here stops the agent with "unknown option", so the table holds every option
//! of clamd 1.4 and, because the agent is often the older of the two, those
//! that clamd 1.5 added. Tested below.

/// What the value of an option must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// yes, true, 1, no, false or 0, in any case.
    Bool,
    /// Decimal digits.
    Number,
    /// Decimal digits and, if wanted, one of K, M, G: a number of bytes.
    Size,
    /// Any bytes but NUL and the line end.
    String,
}

/// One option that clamd.conf may hold.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionInfo {
    /// The name as it stands in the file. Case matters.
    pub name: &'static str,
    /// The form of its value.
    pub kind: Kind,
    /// Whether each further line adds a value. Otherwise the first line wins.
    pub repeatable: bool,
    /// Whether clamd ignores the line with a warning, whatever its value.
    pub deprecated: bool,
}

/// The longest name for which [`suggest`] does any work. Longer than every
/// option, short enough that garbage costs nothing.
const LONGEST_GUESS: usize = 64;

/// How many letters a mistyped name may be off.
const FURTHEST_GUESS: usize = 2;

const fn flag(name: &'static str) -> OptionInfo {
    OptionInfo {
        name,
        kind: Kind::Bool,
        repeatable: false,
        deprecated: false,
    }
}

const fn number(name: &'static str) -> OptionInfo {
    OptionInfo {
        kind: Kind::Number,
        ..flag(name)
    }
}

const fn numbers(name: &'static str) -> OptionInfo {
    OptionInfo {
        repeatable: true,
        ..number(name)
    }
}

const fn size(name: &'static str) -> OptionInfo {
    OptionInfo {
        kind: Kind::Size,
        ..flag(name)
    }
}

const fn text(name: &'static str) -> OptionInfo {
    OptionInfo {
        kind: Kind::String,
        ..flag(name)
    }
}

const fn texts(name: &'static str) -> OptionInfo {
    OptionInfo {
        repeatable: true,
        ..text(name)
    }
}

const fn deprecated(name: &'static str) -> OptionInfo {
    OptionInfo {
        deprecated: true,
        ..text(name)
    }
}

/// Every option, sorted by name.
static OPTIONS: &[OptionInfo] = &[
    flag("AlertBrokenExecutables"),
    flag("AlertBrokenMedia"),
    flag("AlertEncrypted"),
    flag("AlertEncryptedArchive"),
    flag("AlertEncryptedDoc"),
    flag("AlertExceedsMax"),
    flag("AlertOLE2Macros"),
    flag("AlertPartitionIntersection"),
    flag("AlertPhishingCloak"),
    flag("AlertPhishingSSLMismatch"),
    flag("AlgorithmicDetection"),
    flag("AllowAllMatchScan"),
    deprecated("AllowSupplementaryGroups"),
    flag("ArchiveBlockEncrypted"),
    deprecated("ArchiveBlockMax"),
    deprecated("ArchiveLimitMemoryUsage"),
    deprecated("ArchiveMaxCompressionRatio"),
    deprecated("ArchiveMaxFiles"),
    deprecated("ArchiveMaxRecursion"),
    deprecated("ArchiveMaxScanSize"),
    flag("BlockMax"),
    flag("Bytecode"),
    text("BytecodeMode"),
    text("BytecodeSecurity"),
    number("BytecodeTimeout"),
    flag("BytecodeUnsigned"),
    text("CVDCertsDirectory"),
    number("CacheSize"),
    number("CommandReadTimeout"),
    flag("ConcurrentDatabaseReload"),
    flag("CrossFilesystems"),
    text("DatabaseDirectory"),
    flag("Debug"),
    deprecated("DetectBrokenExecutables"),
    flag("DetectPUA"),
    number("DevACDepth"),
    flag("DevACOnly"),
    flag("DevLiblog"),
    flag("DevPerformance"),
    flag("DisableCache"),
    flag("DisableCertCheck"),
    flag("EnableReloadCommand"),
    flag("EnableSelfCheckCommand"),
    flag("EnableShutdownCommand"),
    flag("EnableStatsCommand"),
    flag("EnableVersionCommand"),
    texts("ExcludePUA"),
    texts("ExcludePath"),
    flag("ExitOnOOM"),
    flag("ExtendedDetectionInfo"),
    flag("FIPSCryptoHashLimits"),
    number("FailIfCvdOlderThan"),
    flag("FixStaleSocket"),
    flag("FollowDirectorySymlinks"),
    flag("FollowFileSymlinks"),
    flag("ForceToDisk"),
    flag("Foreground"),
    flag("GenerateMetadataJson"),
    flag("HeuristicAlerts"),
    flag("HeuristicScanPrecedence"),
    number("IdleTimeout"),
    texts("IncludePUA"),
    flag("JsonStoreExtraHashes"),
    flag("JsonStoreHTMLURIs"),
    flag("JsonStorePDFURIs"),
    flag("LeaveTemporaryFiles"),
    text("LocalSocket"),
    text("LocalSocketGroup"),
    text("LocalSocketMode"),
    flag("LogClean"),
    text("LogFacility"),
    text("LogFile"),
    size("LogFileMaxSize"),
    flag("LogFileUnlock"),
    flag("LogRotate"),
    flag("LogSyslog"),
    flag("LogTime"),
    flag("LogVerbose"),
    deprecated("MailFollowURLs"),
    deprecated("MailMaxRecursion"),
    number("MaxConnectionQueueLength"),
    number("MaxDirectoryRecursion"),
    size("MaxEmbeddedPE"),
    size("MaxFileSize"),
    number("MaxFiles"),
    size("MaxHTMLNoTags"),
    size("MaxHTMLNormalize"),
    number("MaxIconsPE"),
    number("MaxPartitions"),
    number("MaxQueue"),
    number("MaxRecHWP3"),
    number("MaxRecursion"),
    size("MaxScanSize"),
    number("MaxScanTime"),
    size("MaxScriptNormalize"),
    number("MaxThreads"),
    size("MaxZipTypeRcg"),
    flag("OLE2BlockMacros"),
    flag("OfficialDatabaseOnly"),
    number("OnAccessCurlTimeout"),
    flag("OnAccessDenyOnError"),
    flag("OnAccessDisableDDD"),
    texts("OnAccessExcludePath"),
    flag("OnAccessExcludeRootUID"),
    numbers("OnAccessExcludeUID"),
    texts("OnAccessExcludeUname"),
    flag("OnAccessExtraScanning"),
    texts("OnAccessIncludePath"),
    size("OnAccessMaxFileSize"),
    number("OnAccessMaxThreads"),
    texts("OnAccessMountPath"),
    flag("OnAccessPrevention"),
    number("OnAccessRetryAttempts"),
    number("PCREMatchLimit"),
    size("PCREMaxFileSize"),
    number("PCRERecMatchLimit"),
    flag("PartitionIntersection"),
    flag("PhishingAlwaysBlockCloak"),
    flag("PhishingAlwaysBlockSSLMismatch"),
    flag("PhishingScanURLs"),
    flag("PhishingSignatures"),
    text("PidFile"),
    text("PreludeAnalyzerName"),
    flag("PreludeEnable"),
    number("ReadTimeout"),
    flag("ScanArchive"),
    flag("ScanELF"),
    flag("ScanHTML"),
    flag("ScanHWP3"),
    flag("ScanImage"),
    flag("ScanImageFuzzyHash"),
    flag("ScanMail"),
    flag("ScanOLE2"),
    deprecated("ScanOnAccess"),
    flag("ScanOneNote"),
    flag("ScanPDF"),
    flag("ScanPE"),
    flag("ScanPartialMessages"),
    flag("ScanSWF"),
    flag("ScanXMLDOCS"),
    number("SelfCheck"),
    number("SendBufTimeout"),
    size("StreamMaxLength"),
    number("StreamMaxPort"),
    number("StreamMinPort"),
    flag("StructuredCCOnly"),
    flag("StructuredDataDetection"),
    number("StructuredMinCreditCardCount"),
    number("StructuredMinSSNCount"),
    flag("StructuredSSNFormatNormal"),
    flag("StructuredSSNFormatStripped"),
    texts("TCPAddr"),
    number("TCPSocket"),
    text("TemporaryDirectory"),
    text("User"),
    text("VirusEvent"),
];

/// Every known option, sorted by name.
pub fn all() -> &'static [OptionInfo] {
    OPTIONS
}

/// The option of exactly this name.
pub fn find(name: &[u8]) -> Option<&'static OptionInfo> {
    OPTIONS
        .binary_search_by(|option| option.name.as_bytes().cmp(name))
        .ok()
        .map(|index| &OPTIONS[index])
}

/// The option that was probably meant by an unknown name: the nearest one, if
/// at most two letters differ. Case is no difference here, and neither is
/// `=VALUE` behind the name.
pub fn suggest(name: &[u8]) -> Option<&'static str> {
    let name = name.split(|&byte| byte == b'=').next().unwrap_or(name);
    nearest(name, OPTIONS.iter().map(|option| option.name))
}

/// The name among these that was probably meant.
pub fn nearest(name: &[u8], names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    if name.is_empty() || name.len() > LONGEST_GUESS {
        return None;
    }
    names
        .map(|other| (distance(name, other.as_bytes()), other))
        .filter(|&(distance, _)| distance <= FURTHEST_GUESS)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// How many letters must be added, removed or replaced to get from one name to
/// the other, without regard to case.
fn distance(from: &[u8], to: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (done, byte) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = done + 1;
        for (column, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(!byte.eq_ignore_ascii_case(other));
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_without_doubles() {
        for pair in OPTIONS.windows(2) {
            assert!(pair[0].name < pair[1].name, "{}", pair[1].name);
        }
    }

    #[test]
    fn find_knows_each_option_by_its_exact_name() {
        for option in all() {
            assert_eq!(find(option.name.as_bytes()), Some(option));
        }
        assert_eq!(find(b"localsocket"), None);
        assert_eq!(find(b""), None);
        assert_eq!(find(b"\xff"), None);
    }

    #[test]
    fn kinds_are_those_of_clamd() {
        let kind = |name: &str| find(name.as_bytes()).unwrap().kind;
        assert_eq!(kind("OnAccessPrevention"), Kind::Bool);
        assert_eq!(kind("OnAccessMaxThreads"), Kind::Number);
        assert_eq!(kind("OnAccessMaxFileSize"), Kind::Size);
        assert_eq!(kind("LocalSocket"), Kind::String);
    }

    #[test]
    fn repeatable_options_are_those_of_clamd() {
        let names: Vec<_> = all()
            .iter()
            .filter(|option| option.repeatable)
            .map(|option| option.name)
            .collect();
        assert_eq!(
            names,
            [
                "ExcludePUA",
                "ExcludePath",
                "IncludePUA",
                "OnAccessExcludePath",
                "OnAccessExcludeUID",
                "OnAccessExcludeUname",
                "OnAccessIncludePath",
                "OnAccessMountPath",
                "TCPAddr",
            ]
        );
    }

    #[test]
    fn options_that_clamd_ignores_are_marked() {
        assert!(find(b"ScanOnAccess").unwrap().deprecated);
        assert!(find(b"DetectBrokenExecutables").unwrap().deprecated);
        // Old, but clamd still acts on it.
        assert!(!find(b"AlgorithmicDetection").unwrap().deprecated);
    }

    #[test]
    fn distance_counts_letters() {
        assert_eq!(distance(b"", b""), 0);
        assert_eq!(distance(b"abc", b""), 3);
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(distance(b"LOGTIME", b"LogTime"), 0);
    }

    #[test]
    fn suggest_finds_near_names_only() {
        assert_eq!(suggest(b"OnAccesIncludePath"), Some("OnAccessIncludePath"));
        assert_eq!(suggest(b"localsocket"), Some("LocalSocket"));
        assert_eq!(suggest(b"LogTime=yes"), Some("LogTime"));
        assert_eq!(suggest(b"Wallpaper"), None);
        assert_eq!(suggest(b""), None);
        assert_eq!(suggest(&[b'x'; 5000]), None);
    }
}
