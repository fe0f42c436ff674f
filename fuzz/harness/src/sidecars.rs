use onacc::respond::quarantine::record::Record;

/// Records of quarantined files, which whoever may write there could have changed:
/// what is taken for one can be shown and restored from, or says that it cannot.
pub fn sidecars(bytes: &[u8]) {
    if let Ok(record) = Record::parse(bytes) {
        assert!(
            record
                .mode_bits()
                .is_none_or(|bits| format!("{bits:o}").len() <= 11)
        );
        let _ = (record.name.path(), record.origin.path());
        assert!(record.other_origins.len() <= bytes.len());
    }
}
