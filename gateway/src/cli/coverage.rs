//! `pons coverage`: counts how much of HL7's guide "HL7 Version 2 to FHIR" the mappings do.

use super::{Exit, Failure, Outcome, print};
use clap::Args;
use mappings::Catalog;
use mappings::guide::{Kind, State, measure};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The guide's folder, the one that holds its `mappings/`
    #[arg(long, value_name = "DIR")]
    guide: PathBuf,
    /// A folder of mappings and tables beside the built-in ones
    #[arg(long, value_name = "DIR")]
    mappings: Option<PathBuf>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Every row that is not done, under the table; those of one map alone, if it is named
    #[arg(long, value_name = "MAP", num_args = 0..=1, default_missing_value = "")]
    rows: Option<String>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// A table
    Table,
    /// One JSON document with the counts and every row that is not done
    Json,
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    let files = crate::pipeline::mapping_files(arguments.mappings.as_deref())?;
    let catalog = Catalog::from_files(files.clone()).map_err(crate::pipeline::StartError::Mappings)?;
    let coverage = measure(&catalog, &files, &arguments.guide)
        .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
    let open = Kind::ALL.iter().map(|kind| coverage.count(*kind)[2]).sum::<usize>();
    let exit = if open == 0 { Exit::Ok } else { Exit::Failed };
    if arguments.format == Format::Json {
        print(&coverage.to_json().to_string())?;
        return Ok(exit);
    }
    print("KIND          ROWS    DONE  SKIPPED    OPEN")?;
    let mut sum = [0; 3];
    for kind in Kind::ALL {
        let [done, skipped, open] = coverage.count(kind);
        print(&line(kind.word(), [done, skipped, open]))?;
        sum = [sum[0] + done, sum[1] + skipped, sum[2] + open];
    }
    print(&line("all", sum))?;
    if let Some(map) = &arguments.rows {
        for row in coverage.rows.iter().filter(|row| map.is_empty() || row.map == *map) {
            let what = match &row.state {
                State::Done => continue,
                State::Open => "open".to_owned(),
                State::Skipped(reason) => format!("skipped: {reason}"),
            };
            print(&format!("{} {}  {} -> {}  {what}", row.map, row.number, row.source, row.target))?;
        }
    }
    Ok(exit)
}

fn line(word: &str, [done, skipped, open]: [usize; 3]) -> String {
    format!("{word:<10} {:>7} {done:>7} {skipped:>8} {open:>7}", done + skipped + open)
}
