//! A RabbitMQ of the test's own, to kill and to wipe: own node name, ports and folders, nothing left running.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Debian's; the wrapper in `/usr/sbin` would change the user.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

pub(super) struct Broker {
    folder: TempDir,
    port: u16,
    distribution_port: u16,
    epmd_port: u16,
    process: Option<Child>,
}

impl Broker {
    /// Starts one; answers once it takes connections.
    pub(super) async fn start() -> Broker {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut broker = Broker {
            folder,
            port: free_port(),
            distribution_port: free_port(),
            epmd_port: free_port(),
            process: None,
        };
        for sub in ["home", "mnesia", "log"] {
            std::fs::create_dir(broker.path(sub)).expect("a folder can be made");
        }
        let conf = format!("listeners.tcp.default = 127.0.0.1:{}\n", broker.port);
        std::fs::write(broker.path("rabbitmq.conf"), conf).expect("a file can be written");
        std::fs::write(broker.path("enabled_plugins"), "[].\n").expect("a file can be written");
        broker.again().await;
        broker
    }

    pub(super) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Starts it again on the data that is there.
    pub(super) async fn again(&mut self) {
        let log = std::fs::File::create(self.path("log/out")).expect("a file can be written");
        let mut command = Command::new(SERVER);
        command
            .env("HOME", self.path("home"))
            .env("RABBITMQ_NODENAME", format!("pons{}@localhost", self.port))
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf"))
            .env("RABBITMQ_MNESIA_BASE", self.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", self.path("log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", self.path("pid"))
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log);
        self.process = Some(command.spawn().expect("rabbitmq-server is installed"));
        let up = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), up).await.expect("the broker starts");
    }

    /// Ends it with SIGKILL.
    pub(super) fn kill(&mut self) {
        let pid = std::fs::read_to_string(self.path("pid")).expect("a broker that runs has written its pid");
        signal("KILL", pid.trim());
        if let Some(mut process) = self.process.take() {
            process.wait().expect("it was started here");
        }
    }

    /// Deletes its data; it must not run.
    pub(super) fn wipe(&self) {
        std::fs::remove_dir_all(self.path("mnesia")).expect("its data is there");
        std::fs::create_dir(self.path("mnesia")).expect("a folder can be made");
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

/// The broker, and the port mapper that outlives it.
impl Drop for Broker {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let own = format!("ERL_EPMD_PORT={}\0", self.epmd_port);
            let ours = environment.windows(own.len()).any(|window| window == own.as_bytes());
            if ours && is_port_mapper(&entry.path()) {
                signal("KILL", &entry.file_name().to_string_lossy());
            }
        }
    }
}

fn is_port_mapper(process: &Path) -> bool {
    std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "epmd")
}

fn signal(signal: &str, pid: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), pid]).status();
    assert!(sent.is_ok_and(|status| status.success()), "it was started here");
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}
