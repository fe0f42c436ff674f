//! Every input of the corpora, among them whatever a fuzzer once broke a parser
//! with, and random bytes, must pass every check. Needs no fuzzer.

use std::{fs, path::Path};

use onacc_fuzz_harness::CHECKS;
use proptest::prelude::*;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(name);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries
        .map(|entry| {
            entry
                .and_then(|entry| fs::read(entry.path()))
                .expect("an input can be read")
        })
        .collect()
}

#[test]
fn every_input_of_every_corpus_passes_its_check() {
    for (name, check) in CHECKS {
        let inputs = corpus(name);
        assert!(inputs.len() >= 5, "the corpus of {name} is almost empty");
        for input in inputs {
            check(&input);
        }
    }
}

/// What one parser is fed may reach another by mistake.
#[test]
fn every_parser_stands_the_inputs_of_all_the_others() {
    for (name, _) in CHECKS {
        for input in corpus(name) {
            for (_, check) in CHECKS {
                check(&input);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_pass_every_check(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (_, check) in CHECKS {
            check(&bytes);
        }
    }

    /// A cut or a changed byte gets further into a parser than random bytes.
    #[test]
    fn damaged_inputs_pass_every_check(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        byte in any::<u8>(), cut in any::<bool>(),
    ) {
        for (name, check) in CHECKS {
            let inputs = corpus(name);
            let mut input = inputs[which.index(inputs.len())].clone();
            if !input.is_empty() {
                let at = at.index(input.len());
                if cut { input.truncate(at) } else { input[at] = byte }
            }
            check(&input);
        }
    }
}
