//! `pons`: arguments, then the configuration, then one subcommand.

fn main() {}
