//! The fault laboratory: the real binary on a real PostgreSQL and RabbitMQ under load, while each is killed at random
//! moments, the broker's data are thrown away and the wire is spoiled; then the checker judges.
//!
//! SIGKILL keeps what the kernel has taken over, so this proves that a crash of any process loses nothing; it cannot speak
//! of a power failure.

use crate::amqp::Subscriber;
use crate::checker::{self, Seen, Sent, Verdict};
use crate::gateway::{Gateway, Setup, Subscription};
use crate::generate::{Population, Rng, Run};
use crate::proxy::{Fault, FaultProxy};
use crate::receiver::Receiver;
use crate::requested::{Listening, Requested};
use crate::sender::{self, Load, Stop};
use crate::services::{OwnServices, Part};
use crate::webhook::Webhook;
use anyhow::{Context, Result, bail};
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

/// What a run does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides the messages, the moments and the targets.
    pub seed: u64,
    /// How many kills.
    pub kills: u32,
    /// How often the broker is wiped, between kills.
    pub wipes: u32,
    /// At least so many messages; sending goes on until the kills are done.
    pub messages: u64,
    /// Messages a second at most; `None` sends as fast as it is answered.
    pub rate: Option<f64>,
    /// How many patients.
    pub patients: u32,
    /// How many connections of the sender.
    pub connections: u32,
    /// How many gateways share the database and the broker.
    pub replicas: u32,
    /// How many subscribers ask for their subscriptions over `/fhir`, over every channel in turn.
    pub requested: u32,
    /// Whether the sender's connections run through a proxy that spoils them now and then.
    pub network: bool,
    /// The mean pause between two faults.
    pub pause: Duration,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            seed: 1,
            kills: 20,
            wipes: 1,
            messages: 1_000,
            rate: Some(150.0),
            patients: 200,
            connections: 16,
            replicas: 1,
            requested: 0,
            network: false,
            pause: Duration::from_millis(700),
        }
    }
}

/// One thing that is done to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Gateway,
    Database,
    Broker,
    Wipe,
}

/// The acts of a plan in a seeded order: of the kills seven tenths hit a gateway, the others the database and the broker alike.
fn acts(plan: &Plan, rng: &mut Rng) -> Vec<Act> {
    let others = plan.kills * 3 / 20;
    let mut acts = Vec::new();
    for (act, count) in [
        (Act::Gateway, plan.kills - 2 * others),
        (Act::Database, others),
        (Act::Broker, others),
        (Act::Wipe, plan.wipes),
    ] {
        acts.extend(std::iter::repeat_n(act, count as usize));
    }
    for at in (1..acts.len()).rev() {
        acts.swap(at, rng.below(at as u64 + 1) as usize);
    }
    acts
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The checker's word.
    pub verdict: Verdict,
    /// How many faults of each kind were done.
    pub gateway_kills: u32,
    /// SIGKILLs of the postmaster.
    pub database_kills: u32,
    /// SIGKILLs of the broker.
    pub broker_kills: u32,
    /// Times that the broker's data were thrown away.
    pub wipes: u32,
    /// What a gateway logged last that ended by itself and was started again, as a supervisor would.
    pub gateway_exits: Vec<String>,
    /// How long messages were sent for.
    pub sending: Duration,
    /// How long it took after the last fault and the last message until everything had arrived.
    pub draining: Duration,
    /// How long an acknowledged message waited for its acknowledgement in its last attempt: median, 99th percentile and longest.
    pub waited: [Duration; 3],
    /// The slowest start of a gateway after a kill until it was ready, of those that were waited for.
    pub slowest_start: Duration,
    /// A patient's value in a gateway's log, if there was one.
    pub leak: Option<String>,
}

impl Report {
    /// Whether the run was good.
    pub fn good(&self) -> bool {
        self.verdict.findings.is_empty() && self.leak.is_none() && self.verdict.delivered > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kills = self.gateway_kills + self.database_kills + self.broker_kills;
        writeln!(
            f,
            "{kills} kills (gateway {}, PostgreSQL {}, RabbitMQ {}), broker wiped {} times, gateway ended by itself {} times",
            self.gateway_kills,
            self.database_kills,
            self.broker_kills,
            self.wipes,
            self.gateway_exits.len()
        )?;
        for last in &self.gateway_exits {
            writeln!(f, "  it had logged: {last}")?;
        }
        let rate = self.verdict.acknowledged as f64 / self.sending.as_secs_f64();
        writeln!(
            f,
            "sent for {:.1} s at {rate:.0} messages/s, drained {:.1} s later; ACK p50 {:.1?}, p99 {:.1?}, longest {:.1?}; slowest start {:.2?}",
            self.sending.as_secs_f64(),
            self.draining.as_secs_f64(),
            self.waited[0],
            self.waited[1],
            self.waited[2],
            self.slowest_start
        )?;
        write!(f, "{}", self.verdict)?;
        if let Some(leak) = &self.leak {
            write!(f, "\n  leak: {leak}")?;
        }
        Ok(())
    }
}

/// The 50th and 99th percentile and the longest of some times.
pub fn percentiles(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort_unstable();
    [50, 99, 100].map(|percent| {
        let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(at).copied().unwrap_or_default()
    })
}

const ALL: [&str; 3] = ["encounter-start", "encounter-end", "result-final"];
const ARCHIVE: [&str; 2] = ["encounter-start", "result-final"];
const WARD: [&str; 2] = ["encounter-start", "encounter-end"];

/// Everything around the gateways, and the gateways.
struct Scene {
    services: OwnServices,
    gateways: Vec<Gateway>,
    proxies: Vec<FaultProxy>,
    hook: Webhook,
    queue: Subscriber,
    receiver: Receiver,
    requested: Vec<Requested>,
    report: Report,
    _folder: tempfile::TempDir,
}

/// Runs a plan and judges it. `say` is told what happens.
///
/// # Errors
/// When something of the laboratory itself does not work; what the gateway does wrong stands in the report.
pub async fn run(plan: &Plan, say: &(dyn Fn(&str) + Sync)) -> Result<Report> {
    let run = Run::fresh();
    let population = Population::new(run, plan.seed, plan.patients);
    say(&format!("seed {}, run {}: starting PostgreSQL and RabbitMQ", plan.seed, run.name()));
    let mut scene = Scene::set(plan, run).await?;
    let load = Load {
        to: scene.proxies.iter().map(FaultProxy::address).collect(),
        connections: plan.connections,
        patients: plan.patients,
        rate: plan.rate,
        kind: None,
        patience: Duration::from_secs(12),
    };
    let stop = Stop::after(u64::MAX);
    let began = Instant::now();
    let sending = tokio::spawn({
        let (population, stop) = (population.clone(), stop.clone());
        // Bounds a run whose gateway never comes back: what is not acknowledged then stands in the sender's log as such.
        let deadline = began + Duration::from_secs(3 * 3600);
        async move { sender::run(load, &population, stop, deadline).await }
    });
    let mut rng = Rng::new(plan.seed ^ 0xFA17);
    for act in acts(plan, &mut rng) {
        scene.pause(plan, &mut rng).await?;
        say(&format!(
            "{:6.1} s, {} acknowledged: {act:?}",
            began.elapsed().as_secs_f64(),
            stop.acknowledged()
        ));
        scene.act(act, plan, &mut rng).await?;
    }
    for proxy in &scene.proxies {
        proxy.set(Fault::None);
    }
    let mut last = (Instant::now(), stop.acknowledged());
    while stop.acknowledged() < plan.messages && last.0.elapsed() < Duration::from_secs(60) {
        scene.revive().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        if stop.acknowledged() > last.1 {
            last = (Instant::now(), stop.acknowledged());
        }
    }
    stop.ask();
    // Whoever still waits for an acknowledgement has a while to get it.
    let log = tokio::time::timeout(Duration::from_secs(120), scene.reviving(sending)).await;
    let Ok(log) = log else {
        bail!("the senders did not come to rest\n{}", scene.kept());
    };
    let log = log?;
    scene.report.sending = began.elapsed();
    scene.settle(&log, say).await?;
    scene.judge(run, &population, &log, say).await
}

impl Scene {
    async fn set(plan: &Plan, run: Run) -> Result<Scene> {
        let folder = tempfile::Builder::new().prefix("pons-faults.").tempdir().context("a folder")?;
        let services = OwnServices::start(folder.path()).await?;
        let database = services.urls.new_database("lab").await?;
        let (hook, receiver) = (Webhook::start(run).await?, Receiver::start(run).await?);
        let queue = format!("subscriber-{}", run.name());
        let mllp = format!("{{adapter: mllp, connect: '{}'}}", receiver.address());
        let mut ward = Subscription::webhook("ward", &WARD, "");
        ward.destination = mllp;
        let listening = Listening::start(run, plan.requested).await?;
        let senders = match plan.requested {
            0 => Vec::new(),
            _ => vec![listening.sender(folder.path())?],
        };
        let setup = Setup {
            senders,
            settings: vec![format!("bus_management: '{}'", services.urls.management)],
            store: Some(database),
            bus: Some(services.urls.amqp.clone()),
            subscriptions: vec![
                Subscription::webhook("insurer", &ALL, &hook.url()),
                Subscription::queue("archive", &ARCHIVE, &queue),
                ward,
            ],
            ..Setup::default()
        };
        let (mut gateways, mut proxies) = (Vec::new(), Vec::new());
        for _ in 0..plan.replicas {
            let gateway = Gateway::start(&setup).await?;
            proxies.push(FaultProxy::start(gateway.mllp).await?);
            gateways.push(gateway);
        }
        let report = Report {
            verdict: Verdict::default(),
            gateway_kills: 0,
            database_kills: 0,
            broker_kills: 0,
            wipes: 0,
            gateway_exits: Vec::new(),
            sending: Duration::ZERO,
            draining: Duration::ZERO,
            waited: [Duration::ZERO; 3],
            slowest_start: Duration::ZERO,
            leak: None,
        };
        let queue = Subscriber::start(services.urls.amqp.clone(), queue, run);
        let requested = listening.ask(&gateways).await?;
        Ok(Scene { services, gateways, proxies, hook, queue, receiver, requested, report, _folder: folder })
    }

    /// Lets some time go by, at random between nothing and twice the mean; spoils the wire meanwhile if the plan says so.
    async fn pause(&mut self, plan: &Plan, rng: &mut Rng) -> Result<()> {
        if plan.network {
            let fault = *rng.pick(&[
                Fault::None,
                Fault::None,
                Fault::Slices,
                Fault::Latency(Duration::from_millis(20)),
                Fault::CutAfter(5_000),
                Fault::ResetAfter(3_000),
                Fault::BlackHole,
            ]);
            for proxy in &self.proxies {
                proxy.set(fault);
            }
        }
        let pause = plan.pause.mul_f64(rng.below(2_000) as f64 / 1_000.0);
        tokio::time::sleep(pause).await;
        self.revive().await
    }

    async fn act(&mut self, act: Act, plan: &Plan, rng: &mut Rng) -> Result<()> {
        match act {
            Act::Gateway => {
                let which = rng.below(u64::from(plan.replicas)) as usize;
                let gateway = &mut self.gateways[which];
                gateway.kill_and_start().await?;
                self.report.gateway_kills += 1;
                // Half of the time the next fault may hit it while it starts.
                if rng.below(2) == 0 && gateway.ready(Duration::from_secs(60)).await.is_ok() {
                    self.report.slowest_start = self.report.slowest_start.max(gateway.started_in);
                }
            }
            Act::Database => {
                self.services.kill(Part::Postgres).await?;
                self.services.restart(Part::Postgres).await?;
                self.report.database_kills += 1;
            }
            Act::Broker => {
                self.services.kill(Part::Rabbitmq).await?;
                self.services.restart(Part::Rabbitmq).await?;
                self.report.broker_kills += 1;
            }
            Act::Wipe => {
                self.services.wipe_broker().await?;
                self.services.restart(Part::Rabbitmq).await?;
                self.report.wipes += 1;
            }
        }
        Ok(())
    }

    /// Starts whatever ended by itself again, as a supervisor would, and counts it.
    async fn revive(&mut self) -> Result<()> {
        for gateway in &mut self.gateways {
            if gateway.ended()? {
                self.report.gateway_exits.push(gateway.log_end());
                gateway.spawn().await?;
            }
        }
        Ok(())
    }

    async fn reviving<T>(&mut self, mut task: tokio::task::JoinHandle<T>) -> Result<T> {
        loop {
            tokio::select! {
                done = &mut task => return done.context("the senders"),
                () = tokio::time::sleep(Duration::from_millis(100)) => self.revive().await?,
            }
        }
    }

    fn seen(&self) -> Vec<Seen> {
        let configured = [
            self.hook.seen("insurer", &ALL),
            self.queue.seen("archive", &ARCHIVE),
            self.receiver.seen("ward", &WARD),
        ];
        configured.into_iter().chain(self.requested.iter().map(Requested::seen)).collect()
    }

    fn arrived(&self) -> usize {
        let requested: usize = self.requested.iter().map(Requested::accepted).sum();
        self.hook.accepted() + self.queue.accepted() + self.receiver.accepted() + requested
    }

    /// Waits until nothing is missing, or nothing has come for a minute.
    async fn settle(&mut self, log: &[Sent], say: &(dyn Fn(&str) + Sync)) -> Result<()> {
        let began = Instant::now();
        let mut told = began;
        let mut last = (Instant::now(), self.arrived());
        loop {
            self.revive().await?;
            let missing = checker::check(log, &self.seen(), None).counts()[0].1;
            self.report.draining = began.elapsed();
            if missing == 0 || last.0.elapsed() > Duration::from_secs(60) {
                break;
            }
            if self.arrived() > last.1 {
                last = (Instant::now(), self.arrived());
            }
            if told.elapsed() > Duration::from_secs(5) {
                let [hook, queue, ward] =
                    [self.hook.accepted(), self.queue.accepted(), self.receiver.accepted()];
                say(&format!(
                    "{:6.1} s later, {missing} to come: webhook {hook}, queue {queue}, MLLP {ward}, requested {:?} so far",
                    began.elapsed().as_secs_f64(),
                    self.requested.iter().map(Requested::accepted).collect::<Vec<usize>>()
                ));
                told = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for gateway in &mut self.gateways {
            gateway.ready(Duration::from_secs(60)).await?;
        }
        Ok(())
    }

    async fn judge(
        mut self,
        run: Run,
        population: &Population,
        log: &[Sent],
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<Report> {
        // The last outcomes are recorded in a batch after the subscriber has answered.
        let began = Instant::now();
        let account = loop {
            let account = self.gateways[0].account(run).await?;
            let rest =
                account.open.is_empty() && account.messages.iter().all(|(_, state)| state != "received");
            if rest || began.elapsed() > Duration::from_secs(30) {
                break account;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        };
        self.report.verdict = checker::check(log, &self.seen(), Some(&account));
        self.report.waited = percentiles(log.iter().filter_map(|sent| sent.acknowledged).collect());
        let canaries = population.canaries();
        for gateway in &self.gateways {
            if let Err(leak) = gateway.no_canary_logged(&canaries) {
                self.report.leak = Some(leak.to_string());
            }
        }
        if !self.report.good() {
            say(&self.kept());
        }
        Ok(self.report)
    }

    /// Keeps the gateways' folders for a person to look at; tells where they are and how each log ends.
    fn kept(&mut self) -> String {
        let mut told = String::new();
        for gateway in &mut self.gateways {
            let log_end = gateway.log_end();
            let _ = writeln!(told, "{}\n{log_end}", gateway.keep_folder().display());
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_carried_out_in_full_and_the_same_seed_gives_the_same_order() {
        let plan = Plan { kills: 100, wipes: 2, ..Plan::default() };
        let order = acts(&plan, &mut Rng::new(5));
        let count = |act| order.iter().filter(|one| **one == act).count();
        assert_eq!(
            [count(Act::Gateway), count(Act::Database), count(Act::Broker), count(Act::Wipe)],
            [70, 15, 15, 2]
        );
        assert_eq!(order, acts(&plan, &mut Rng::new(5)));
        assert_ne!(order, acts(&plan, &mut Rng::new(6)));
    }

    #[test]
    fn percentiles_of_few_and_of_many() {
        assert_eq!(percentiles(Vec::new()), [Duration::ZERO; 3]);
        let times = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentiles(times), [51, 100, 100].map(Duration::from_millis));
    }
}
