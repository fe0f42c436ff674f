#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| onacc_fuzz_harness::sidecars(bytes));
