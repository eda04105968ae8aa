//! The real binary `pons` as a process: configured, started, watched, killed, started again.

use crate::checker::Account;
use crate::generate::Run;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

/// The binary under test: `PONS_TEST_BINARY` if set, else built by cargo once, in the profile of the caller.
///
/// # Errors
/// When it does not build.
pub async fn binary() -> Result<&'static Path> {
    static BINARY: OnceCell<PathBuf> = OnceCell::const_new();
    let path = BINARY
        .get_or_try_init(async || {
            if let Some(path) = std::env::var_os("PONS_TEST_BINARY") {
                return Ok(PathBuf::from(path));
            }
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args([
                "build",
                "--locked",
                "--package",
                "gateway",
                "--bin",
                "pons",
                "--message-format",
                "json",
            ]);
            if !cfg!(debug_assertions) {
                cargo.arg("--release");
            }
            let output =
                cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output().await;
            let output = output.context("cargo build")?;
            ensure!(output.status.success(), "pons does not build");
            let built = String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter_map(|built| built["executable"].as_str().map(PathBuf::from))
                .find(|path| path.file_stem().is_some_and(|stem| stem == "pons"));
            built.context("cargo names the binary that it built")
        })
        .await?;
    Ok(path)
}

/// One subscription in the configuration.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Its name.
    pub name: String,
    /// Its topics.
    pub topics: Vec<&'static str>,
    /// Its destination, as YAML in one line: `{adapter: rest-hook, url: ...}`.
    pub destination: String,
    /// Further keys, as YAML lines: `retry_cap: 1s`.
    pub settings: Vec<String>,
}

impl Subscription {
    /// A webhook that is tried again soon and never given up.
    pub fn webhook(name: &str, topics: &[&'static str], url: &str) -> Subscription {
        Subscription::patient(name, topics, format!("{{adapter: rest-hook, url: '{url}'}}"))
    }

    /// The subscriber's own queue on the broker.
    pub fn queue(name: &str, topics: &[&'static str], queue: &str) -> Subscription {
        Subscription::patient(name, topics, format!("{{adapter: amqp, queue: '{queue}'}}"))
    }

    fn patient(name: &str, topics: &[&'static str], destination: String) -> Subscription {
        let settings = ["attempts_max: 100000", "retry_base: 100ms", "retry_cap: 1s", "attempt_timeout: 5s"];
        Subscription {
            name: name.to_owned(),
            topics: topics.to_vec(),
            destination,
            settings: settings.map(str::to_owned).to_vec(),
        }
    }
}

/// What a gateway is configured with.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// A URL of PostgreSQL; the embedded store in `data_dir` without one.
    pub store: Option<String>,
    /// A URL of RabbitMQ; the embedded bus without one.
    pub bus: Option<String>,
    /// The folder of the embedded store; beside the configuration if not given.
    pub data_dir: Option<PathBuf>,
    /// Who is told of what.
    pub subscriptions: Vec<Subscription>,
    /// Further senders, as YAML in one line: `{name: payer, token: {file: payer.token}}`.
    pub senders: Vec<String>,
    /// Further keys of the MLLP source, as `, tls: {...}`.
    pub source: String,
    /// Further lines of YAML at the top level.
    pub settings: Vec<String>,
}

/// What a process used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in memory now.
    pub memory: u64,
    /// The most bytes that were in memory at once.
    pub memory_peak: u64,
    /// Processor time, in user and system mode.
    pub processor: Duration,
}

/// Reads what a process used from /proc.
///
/// # Errors
/// When there is no such process.
pub fn usage(pid: u32) -> Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kibibytes = |name: &str| -> Result<u64> {
        let line =
            status.lines().find(|line| line.starts_with(name)).context("a line of /proc/PID/status")?;
        Ok(line.split_whitespace().nth(1).context("a value")?.parse::<u64>()? * 1024)
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a process name in brackets")?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut next = || ticks.next().context("user and system time")?.context("a number");
    // The kernel counts for user space in hundredths of a second, on every architecture that we build for.
    let processor = Duration::from_millis((next()? + next()?) * 10);
    Ok(Usage { memory: kibibytes("VmRSS:")?, memory_peak: kibibytes("VmHWM:")?, processor })
}

/// A port that nobody listens on, below the range from which the kernel takes ports for outgoing connections.
///
/// # Errors
/// When none is found.
pub fn free_port() -> Result<u16> {
    let mut rng = crate::generate::Rng::new(uuid::Uuid::now_v7().as_u128() as u64);
    (0..200)
        .map(|_| 10_000 + rng.below(8_000) as u16)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no free port")
}

/// A gateway process with its own folder, ports and log. It is killed when this is dropped.
#[derive(Debug)]
pub struct Gateway {
    folder: tempfile::TempDir,
    child: Option<Child>,
    /// Where its MLLP source listens.
    pub mllp: SocketAddr,
    /// Where its HTTP listener is.
    pub http: SocketAddr,
    /// How long the last start took until it was ready.
    pub started_in: Duration,
    /// Processor time of its earlier lives, as last read before each kill.
    past: Duration,
}

impl Gateway {
    /// Writes a configuration into a new folder; starts nothing.
    ///
    /// # Errors
    /// When no port or folder is to be had.
    pub fn configure(setup: &Setup) -> Result<Gateway> {
        let folder = tempfile::Builder::new().prefix("pons-lab.").tempdir().context("a folder")?;
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let gateway = Gateway {
            mllp: at(free_port()?),
            http: at(free_port()?),
            folder,
            child: None,
            started_in: Duration::ZERO,
            past: Duration::ZERO,
        };
        std::fs::write(gateway.config(), gateway.yaml(setup))?;
        std::fs::write(gateway.token(), TOKEN)?;
        Ok(gateway)
    }

    /// Configures a gateway, starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; the message ends with the end of its log.
    pub async fn start(setup: &Setup) -> Result<Gateway> {
        let mut gateway = Gateway::configure(setup)?;
        gateway.spawn().await?;
        gateway.ready(Duration::from_secs(60)).await?;
        Ok(gateway)
    }

    fn yaml(&self, setup: &Setup) -> String {
        let mut yaml = String::new();
        let mut line = |text: String| {
            yaml.push_str(&text);
            yaml.push('\n');
        };
        if let Some(store) = &setup.store {
            line(format!("store: '{store}'"));
        }
        if let Some(bus) = &setup.bus {
            line(format!("bus: '{bus}'"));
        }
        let data = setup.data_dir.clone().unwrap_or_else(|| self.folder.path().join("data"));
        line(format!("data_dir: '{}'", data.display()));
        line(format!("http: {{listen: '{0}', base_url: 'http://{0}/fhir'}}", self.http));
        for setting in &setup.settings {
            line(setting.clone());
        }
        line("sources:".to_owned());
        let extra = &setup.source;
        line(format!(
            "  - {{name: main, adapter: mllp, listen: '{}', zone: Europe/Berlin, connections_per_peer_max: 4096{extra}}}",
            self.mllp
        ));
        line("senders:".to_owned());
        // By its whole path: tests read this configuration from other folders too.
        let token = self.token().display().to_string();
        line(format!(
            "  - {{name: genhosp, application: ADT1, facility: GENHOSP, token: {{file: '{token}'}}}}"
        ));
        for sender in &setup.senders {
            line(format!("  - {sender}"));
        }
        if !setup.subscriptions.is_empty() {
            line("subscriptions:".to_owned());
        }
        for subscription in &setup.subscriptions {
            line(format!("  - name: {}", subscription.name));
            line(format!("    topics: [{}]", subscription.topics.join(", ")));
            line("    senders: [genhosp]".to_owned());
            line(format!("    destination: {}", subscription.destination));
            for setting in &subscription.settings {
                line(format!("    {setting}"));
            }
        }
        yaml
    }

    /// The file of the sender's token.
    fn token(&self) -> PathBuf {
        self.config().with_file_name("genhosp.token")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("pons.yaml")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("pons.log")
    }

    /// Everything that it has logged, over all its lives.
    pub fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Starts the process; does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file()).context("the log")?;
        let child = Command::new(binary().await?)
            .arg("run")
            .arg("--config")
            .arg(self.config())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("start pons")?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When the process ends, or time is up.
    pub async fn ready(&mut self, within: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            if let Ok((200, _)) = self.get("/readyz").await {
                self.started_in = began.elapsed();
                return Ok(());
            }
            let child = self.child.as_mut().context("not started")?;
            if let Some(status) = child.try_wait()? {
                bail!("pons ended with {status}:\n{}", self.log_end());
            }
            if began.elapsed() > within {
                bail!("pons is not ready after {within:?}:\n{}", self.log_end());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The last lines that it logged.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Ends it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it was not running.
    pub async fn kill(&mut self) -> Result<()> {
        self.past += self.usage().map(|usage| usage.processor).unwrap_or_default();
        let mut child = self.child.take().context("not running")?;
        child.kill().await.context("kill")
    }

    /// Whether it was started and has ended by itself.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(match &mut self.child {
            Some(child) => child.try_wait()?.is_some(),
            None => false,
        })
    }

    /// Leaves its folder with configuration and log for a person to look at; answers where it is.
    pub fn keep_folder(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    /// Asks it to end, with SIGTERM, and waits until it does; answers its exit code.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self, within: Duration) -> Result<Option<i32>> {
        let pid = self.pid().context("not running")?;
        let status = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await.context("kill")?;
        ensure!(status.success(), "kill -TERM failed");
        let mut child = self.child.take().context("not running")?;
        let status = tokio::time::timeout(within, child.wait()).await.context("pons does not end")??;
        Ok(status.code())
    }

    /// Ends it with SIGKILL and starts it again, without waiting for it to be ready.
    ///
    /// # Errors
    /// When it was not running or does not start.
    pub async fn kill_and_start(&mut self) -> Result<()> {
        self.kill().await?;
        self.spawn().await
    }

    /// What it uses.
    ///
    /// # Errors
    /// When it does not run.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.pid().context("not running")?)
    }

    /// Processor time over all its lives.
    pub fn processor(&self) -> Duration {
        self.past + self.usage().map(|usage| usage.processor).unwrap_or_default()
    }

    /// Asks its HTTP listener for a path; answers status and body.
    ///
    /// # Errors
    /// When nothing answers within five seconds.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        tokio::time::timeout(Duration::from_secs(5), get(self.http, path))
            .await
            .context("no answer in time")?
    }

    /// Runs another subcommand of the binary with this configuration; answers exit code and standard output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn pons(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let (verb, rest) = arguments.split_first().context("a subcommand")?;
        let output = Command::new(binary().await?)
            .arg(verb)
            .arg("--config")
            .arg(self.config())
            .args(rest)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .await
            .context("run pons")?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// What the store says about a run, by `pons search`.
    ///
    /// # Errors
    /// When the search fails.
    pub async fn account(&self, run: Run) -> Result<Account> {
        let (code, found) = self.pons(&["search", "--format", "json", "--limit", "10000000"]).await?;
        ensure!(code == Some(0), "pons search ended with {code:?}");
        let mut account = Account::default();
        for line in found.lines() {
            let row: serde_json::Value = serde_json::from_str(line).context("a line of pons search")?;
            let control_id = row["control_id"].as_str().context("a control id")?;
            let Some(marker) = run.newest(control_id.as_bytes()) else { continue };
            account.messages.push((marker, row["state"].as_str().context("a state")?.to_owned()));
            let none = serde_json::Map::new();
            for (state, count) in row["deliveries"].as_object().unwrap_or(&none) {
                let count = count.as_i64().context("a count")?;
                match state.as_str() {
                    "delivered" => {}
                    "parked" | "suppressed" | "skipped" => {
                        *account.excused.entry(marker).or_default() += count
                    }
                    open => *account.open.entry(open.to_owned()).or_default() += count,
                }
            }
        }
        Ok(account)
    }

    /// What `/metrics` shows: each value by its name and labels.
    ///
    /// # Errors
    /// When `/metrics` does not answer.
    pub async fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let (status, text) = self.get("/metrics").await?;
        ensure!(status == 200, "/metrics answered {status}");
        let lines =
            text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        Ok(lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// Asserts that nothing of the patients stands in the log.
    ///
    /// # Errors
    /// With the number of the first line that holds a canary; never the line itself.
    pub fn no_canary_logged(&self, canaries: &[String]) -> Result<()> {
        no_canary(&self.log(), canaries)
    }
}

fn no_canary(log: &str, canaries: &[String]) -> Result<()> {
    // Every line is looked at once for the few letters that all canaries of a kind share, before it is compared in full.
    for (number, line) in log.lines().enumerate() {
        let suspicious = ["TEST", "JANEVW", "ZZYX", "555-0"].iter().any(|part| line.contains(part));
        if suspicious && canaries.iter().any(|canary| line.contains(canary.as_str())) {
            bail!("line {} of the log holds a patient's value", number + 1);
        }
    }
    Ok(())
}

/// The token of the sender in the configuration.
pub const TOKEN: &str = "a-token-of-the-laboratory";

/// One HTTP GET on a connection of its own, as that sender.
async fn get(at: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(at).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {at}\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Population;

    #[test]
    fn a_canary_in_a_log_is_found_in_every_kind() {
        let canaries = Population::new(Run::new(1), 1, 50).canaries();
        for canary in &canaries {
            assert!(no_canary(&format!("fine\nvalue {canary} there\n"), &canaries).is_err(), "{canary}");
        }
        assert!(no_canary("fine\nTEST and 555-0\n", &canaries).is_ok());
    }

    #[test]
    fn our_own_use_is_read() {
        let used = usage(std::process::id()).unwrap();
        assert!(used.memory > 100_000 && used.memory_peak >= used.memory);
        assert!(usage(u32::MAX).is_err());
    }
}
