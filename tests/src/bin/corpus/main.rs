//! Other people's data and other people's programs against Pons, as commands; neither is part of the project.
//!
//! `cargo run --release -p tests --bin corpus -- map FOLDER... [--oracle COMMAND]` maps every message of some folders and hands
//! the Bundles to a validator; `... -- clients` lets clients of MLLP and FHIR from PyPI and npm at a gateway; `... -- fhirpath FILE`
//! runs HL7's tests of FHIRPath.

#![expect(clippy::print_stdout, reason = "a command for people")]

mod fhirpath;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::Duration;
use tests::gateway::{Gateway, Setup, binary};
use tests::generate::{Population, Run};
use tests::webhook::Webhook;

/// Other people's data and programs against Pons.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Maps every message below some folders; each must have an outcome, and the oracle must refuse no Bundle
    Map(Map),
    /// Clients that we did not write: PyPI hl7 (mllp_send, hl7.mllp) and npm @medplum/hl7 send, plain and over TLS; PyPI fhirpy and npm
    /// fhir-kit-client make, change and end a Subscription, and PyPI websockets is told over one
    Clients(Clients),
    /// Runs HL7's tests of FHIRPath; each failing case must have its reason
    Fhirpath(fhirpath::Suite),
}

#[derive(Args)]
struct Map {
    /// Folders or files of HL7 v2 messages
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// A command that takes a file of NDJSON Bundles and ends with 0 if it refuses none; may be given several times
    #[arg(long)]
    oracle: Vec<String>,
    /// Where to leave the Bundles; a temporary file if not given
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Say what became of each file
    #[arg(long)]
    verbose: bool,
}

#[derive(Args)]
struct Clients {
    /// Where to install the clients; kept for the next time
    #[arg(long)]
    cache: PathBuf,
    /// Messages for each client
    #[arg(long, default_value_t = 24)]
    messages: u32,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let good = match Arguments::parse().what {
        What::Map(arguments) => map(&arguments).await?,
        What::Clients(arguments) => clients(&arguments).await?,
        What::Fhirpath(arguments) => fhirpath::run(&arguments)?,
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn messages_below(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            messages_below(&entry?.path(), found)?;
        }
    } else if path.extension().is_some_and(|extension| extension == "hl7" || extension == "bin") {
        found.push(path.to_owned());
    }
    Ok(())
}

async fn map(arguments: &Map) -> Result<bool> {
    let pons = binary().await?;
    let mut files = Vec::new();
    for path in &arguments.paths {
        messages_below(path, &mut files)?;
    }
    files.sort();
    ensure!(!files.is_empty(), "no files .hl7 or .bin there");
    let mut bundles = String::new();
    let mut codes: BTreeMap<String, u32> = BTreeMap::new();
    let (mut mapped, mut wrong) = (0, Vec::new());
    for file in &files {
        let Output { status, stdout, stderr } = Command::new(pons).arg("map").arg(file).output()?;
        let (out, diagnostics) = (String::from_utf8(stdout)?, String::from_utf8_lossy(&stderr).into_owned());
        let code = status.code().map_or("killed".to_owned(), |code| code.to_string());
        let count = out.lines().count();
        if arguments.verbose {
            println!(
                "{}: exit {code}, {count} Bundles, {} diagnostics",
                file.display(),
                diagnostics.lines().count()
            );
        }
        let verdict = outcome(&code, &out, &diagnostics);
        if let Err(error) = verdict {
            wrong.push(format!("{}: {error:#}", file.display()));
        }
        *codes.entry(code).or_default() += 1;
        mapped += count;
        bundles.push_str(&out);
    }
    println!(
        "{} files, {mapped} Bundles, exit codes {codes:?}, {} without a proper outcome",
        files.len(),
        wrong.len()
    );
    for line in &wrong {
        println!("  {line}");
    }
    let temporary = tempfile::NamedTempFile::new()?;
    let kept = arguments.keep.as_deref().unwrap_or(temporary.path());
    fs::write(kept, &bundles)?;
    let mut good = wrong.is_empty();
    for oracle in &arguments.oracle {
        let mut words = oracle.split_whitespace();
        let mut command = Command::new(words.next().context("an oracle's command")?);
        let status =
            command.args(words).arg(kept).status().with_context(|| format!("{oracle} cannot be run"))?;
        println!("{oracle}: {status}");
        good &= status.success();
    }
    Ok(good)
}

/// What every file must have: Bundles or diagnostics, one JSON document a line each, and never a panic.
fn outcome(code: &str, out: &str, diagnostics: &str) -> Result<()> {
    ensure!(!diagnostics.contains("panicked"), "a panic");
    ensure!(["0", "1", "65"].contains(&code), "exit {code}");
    for line in out.lines() {
        let bundle: serde_json::Value = serde_json::from_str(line).context("a Bundle that is no JSON")?;
        ensure!(bundle["resourceType"] == "Bundle", "something that is no Bundle");
    }
    for line in diagnostics.lines() {
        serde_json::from_str::<serde_json::Value>(line).context("a diagnostic that is no JSON")?;
    }
    if out.is_empty() && diagnostics.is_empty() {
        bail!("neither a Bundle nor a diagnostic");
    }
    Ok(())
}

/// A certificate for `localhost`, and the authority that signed it, as files in a folder.
fn certificates(folder: &Path) -> Result<()> {
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(rcgen::DnType::CommonName, "TEST authority");
    let authority_key = rcgen::KeyPair::generate()?;
    let certificate = authority.self_signed(&authority_key)?;
    fs::write(folder.join("ca.pem"), certificate.pem())?;
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let mut server = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    // Python's strict verification wants it.
    server.use_authority_key_identifier_extension = true;
    let key = rcgen::KeyPair::generate()?;
    fs::write(folder.join("server.pem"), server.signed_by(&key, &issuer)?.pem())?;
    fs::write(folder.join("server.key"), key.serialize_pem())?;
    Ok(())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {error}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Installs the clients, if they are not there yet: a Python environment and a folder of Node modules.
fn install(cache: &Path) -> Result<()> {
    fs::create_dir_all(cache)?;
    if !cache.join("venv/bin/mllp_send").exists() || !cache.join("websockets").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(cache.join("venv")))?;
        run(Command::new(cache.join("venv/bin/pip")).args([
            "install",
            "--quiet",
            "hl7",
            "fhirpy",
            "websockets",
        ]))?;
        fs::write(cache.join("websockets"), "")?;
    }
    let modules = cache.join("node_modules");
    if !modules.join("@medplum/hl7").exists() || !modules.join("fhir-kit-client").exists() {
        run(Command::new("npm")
            .args(["install", "--silent", "--ignore-scripts", "--prefix"])
            .arg(cache)
            .args(["@medplum/hl7", "fhir-kit-client"]))?;
    }
    Ok(())
}

async fn clients(arguments: &Clients) -> Result<bool> {
    install(&arguments.cache)?;
    let folder = tempfile::tempdir()?;
    certificates(folder.path())?;
    let at = |name: &str| folder.path().join(name);
    let tls = format!(
        ", tls: {{certificate: '{}', key: '{}'}}",
        at("server.pem").display(),
        at("server.key").display()
    );
    let plain = Gateway::start(&Setup::default()).await?;
    let secured = Gateway::start(&Setup { source: tls, ..Setup::default() }).await?;
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    // Node looks for its modules beside the script.
    fs::copy(clients.join("medplum.mjs"), arguments.cache.join("medplum.mjs"))?;
    let ca = at("ca.pem");
    let mut good = true;
    for (name, over_tls) in
        [("mllp_send", false), ("@medplum/hl7", false), ("hl7.mllp", true), ("@medplum/hl7", true)]
    {
        let gateway = if over_tls { &secured } else { &plain };
        let mut population = Population::new(Run::fresh(), 1, 4);
        let messages: Vec<_> = (0..arguments.messages)
            .map(|n| {
                let kind = population.next_kind(n % 4);
                population.message(kind, n % 4)
            })
            .collect();
        let file = at("messages");
        let port = gateway.mllp.port().to_string();
        let mut command = match name {
            "mllp_send" => {
                let mut command = Command::new(arguments.cache.join("venv/bin/mllp_send"));
                command.args(["--port", &port, "--file"]).arg(&file).arg("127.0.0.1");
                command
            }
            "hl7.mllp" => {
                let mut command = Command::new(arguments.cache.join("venv/bin/python"));
                command.arg(clients.join("python_hl7.py")).args(["localhost", &port]).arg(&file);
                command
            }
            _ => {
                let mut command = Command::new("node");
                command.arg(arguments.cache.join("medplum.mjs")).args(["localhost", &port]).arg(&file);
                command
            }
        };
        if over_tls {
            command.arg(&ca);
        }
        let framed = name == "mllp_send";
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|message| {
                let (begin, end): (&[u8], &[u8]) = if framed { (b"\x0B", b"\x1C\r") } else { (b"", b"") };
                [begin, &message.bytes, end].concat()
            })
            .collect();
        fs::write(&file, bytes)?;
        let printed = run(&mut command)?;
        let expected = messages.iter().filter(|message| acknowledged(&printed, &message.control_id)).count();
        let wire = if over_tls { "TLS" } else { "plain" };
        println!("{name}, {wire}: {expected} of {} messages acknowledged", messages.len());
        good &= expected == messages.len();
    }
    Ok(subscribers(&arguments.cache, &clients).await? && good)
}

/// Clients of FHIR, each of which leads a Subscription through its life.
async fn subscribers(cache: &Path, clients: &Path) -> Result<bool> {
    let hook = Webhook::start(Run::fresh()).await?;
    let sender = format!(
        "{{name: payer, token: {{file: payer.token}}, subscribes: {{topics: '*', senders: [genhosp], endpoints: '{}'}}}}",
        hook.url()
    );
    let mut gateway = Gateway::configure(&Setup { senders: vec![sender], ..Setup::default() })?;
    fs::write(gateway.config().with_file_name("payer.token"), "payer-t0ken")?;
    gateway.spawn().await?;
    gateway.ready(Duration::from_secs(60)).await?;
    let base = format!("http://{}/fhir", gateway.http);
    fs::copy(clients.join("fhir_kit_subscription.mjs"), cache.join("fhir_kit_subscription.mjs"))?;
    let mut python = Command::new(cache.join("venv/bin/python"));
    python.arg(clients.join("fhirpy_subscription.py"));
    let mut node = Command::new("node");
    node.arg(cache.join("fhir_kit_subscription.mjs"));
    let mut good = true;
    for (name, mut command) in [("fhirpy", python), ("fhir-kit-client", node)] {
        let before = hook.requests();
        let printed = run(command.args([&base, "payer-t0ken", &hook.url()]))?;
        let steps: Vec<&str> = printed.lines().collect();
        println!("{name}: {}; {} handshakes", steps.join(", "), hook.requests() - before);
        good &= steps.last() == Some(&"deleted") && hook.requests() > before;
    }
    Ok(good)
}

/// Whether a client printed a positive acknowledgement of a message, as `AA id` or as the whole MSA segment.
fn acknowledged(printed: &str, control_id: &str) -> bool {
    ["AA", "CA"].iter().any(|code| {
        printed.contains(&format!("{code} {control_id}"))
            || printed.contains(&format!("MSA|{code}|{control_id}"))
    })
}
