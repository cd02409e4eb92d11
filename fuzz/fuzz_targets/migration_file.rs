//! Any bytes as a migration file: an answer, never a panic; what is taken once is taken again as it is written out; what is
//! said of a wrong file is fit for a terminal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rehome_spec::Migration;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Migration::parse_with_warnings(text, "fuzz.toml") {
        Err(error) => {
            let shown = error.render(false);
            assert!(!error.problems().is_empty());
            assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        }
        Ok(loaded) => {
            let written = toml::to_string(&loaded.migration).expect("what was read can be written");
            let again = Migration::parse(&written, "again.toml").expect("what was written can be read");
            assert_eq!(again, loaded.migration);
        }
    }
});
