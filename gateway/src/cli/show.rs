//! `pons show ID`: what happened to one message, and why.

use super::search::word;
use super::{ConfigArgument, Exit, Failure, Outcome, beside, block_on, print};
use crate::store::Timeline;
use clap::Args;
use schemas::message::MessageId;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// The message's id, as `pons search` and every log line name it
    id: MessageId,
    /// Show the message itself and the Bundle made of it: a patient's data
    #[arg(long)]
    show_phi: bool,
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    let found = block_on(async { Ok(beside(&arguments.config).await?.timeline(arguments.id).await?) })?;
    let Some(timeline) = found else {
        return Err(Failure::new(Exit::Failed, format!("there is no message {}", arguments.id)));
    };
    for line in lines(&timeline) {
        print(&line)?;
    }
    if arguments.show_phi {
        print("")?;
        let text = schemas::hl7v2::charset::decode(&timeline.bytes, None);
        for line in text.text.split(['\r', '\n']).filter(|line| !line.is_empty()) {
            print(&format!("  {line}"))?;
        }
        if let Some((_, result)) = timeline.results.last().filter(|(_, result)| !result.bundle.is_empty()) {
            print("")?;
            print(&String::from_utf8_lossy(&result.bundle))?;
        }
    }
    Ok(Exit::Ok)
}

/// The timeline in lines, oldest first. Ids, names, codes and places; no values.
fn lines(timeline: &Timeline) -> Vec<String> {
    let summary = &timeline.summary;
    let mut lines = vec![
        format!("message     {}", summary.id),
        format!("sequence    {}", summary.seq),
        format!("type        {} (version {})", summary.message_type, timeline.version),
        format!("control id  {}", summary.control_id),
        format!("sender      {} by source {}", summary.sender, timeline.source),
        format!("state       {}", summary.state),
        String::new(),
        format!("{}  received, {} bytes", summary.received_at, timeline.bytes.len()),
    ];
    if timeline.control_id_reused {
        lines.push("    the control id had come before with other content".to_owned());
    }
    if let Some(refused) = &timeline.rejected {
        let answer = if refused.answer.is_empty() { "closed without an answer" } else { &refused.answer };
        let at =
            if refused.location.is_empty() { String::new() } else { format!(" at {}", refused.location) };
        lines.push(format!("    refused: {answer}, code {}{at}: {}", refused.code, refused.text));
    }
    for (at, result) in &timeline.results {
        let revision =
            if result.revision == 0 { String::new() } else { format!(", replay {}", result.revision) };
        match &result.quarantined {
            None => lines.push(format!("{at}  mapped by {}{revision}", result.mapping)),
            Some(why) => lines.push(format!("{at}  put into quarantine{revision}: {why}")),
        }
        lines.extend(result.issues.iter().map(|issue| format!("    {issue}")));
    }
    for one in &timeline.deliveries {
        let delivery = &one.delivery;
        lines.push(String::new());
        lines.push(format!(
            "to {}  event {} ({})",
            one.subscription,
            delivery.number,
            delivery.matched.topics.join(", ")
        ));
        lines.push(format!("    delivery {}", delivery.id));
        if let Some(references) = &delivery.matched.references {
            let about = references.first().map_or("nothing that may be told", String::as_str);
            let along = references.len().saturating_sub(1);
            lines.push(format!("    about {about}, and {along} resources along with it"));
        }
        for attempt in &one.attempts {
            lines.push(format!(
                "    {}  attempt {}: {} after {} ms",
                attempt.began_at,
                attempt.number,
                attempt.answer,
                attempt.took.as_millis()
            ));
        }
        let reason = one.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        lines.push(format!("    {}  {}{reason}", one.changed_at, word(delivery.state)));
    }
    lines
}
