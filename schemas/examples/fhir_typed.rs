//! A second opinion on FHIR Bundles: whether each reads into the typed models of fhir-sdk and comes back the same.
//!
//! `cargo run -p schemas --features typed --example fhir_typed -- FILE.ndjson`: one Bundle a line; ends with 1 if one is refused.

#![expect(clippy::print_stdout, reason = "a command for people")]

use std::io::Error;
use std::process::ExitCode;

fn main() -> Result<ExitCode, Error> {
    let (mut taken, mut refused) = (0, 0);
    for file in std::env::args_os().skip(1) {
        for (line, bundle) in (1..).zip(std::fs::read_to_string(file)?.lines()) {
            match schemas::fhir::typed::check(bundle.as_bytes()) {
                Ok(()) => taken += 1,
                Err(place) => {
                    refused += 1;
                    println!("line {line}: {place}");
                }
            }
        }
    }
    println!("{taken} taken, {refused} refused");
    Ok(if taken > 0 && refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
