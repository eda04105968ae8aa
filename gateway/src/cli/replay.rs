//! `pons replay`: asks the running gateway to process messages or dead letters again.

use super::search::{Criteria, table};
use super::{ConfigArgument, Exit, Failure, Outcome, beside, block_on, complain};
use crate::store::{DeliveryState, Request, Summary, Timeline};
use clap::Args;
use schemas::message::MessageId;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Ids of messages; without any, the search options choose
    ids: Vec<MessageId>,
    #[command(flatten)]
    criteria: Criteria,
    /// Do it; without this, only say what would be done
    #[arg(long)]
    yes: bool,
}

pub(super) fn main(arguments: &Arguments) -> Outcome {
    if arguments.ids.is_empty() && arguments.criteria.is_empty() {
        return Err(Failure::new(Exit::Usage, "name messages, or search for them: see pons replay --help"));
    }
    block_on(async {
        let store = beside(&arguments.config).await?;
        let mut ids = arguments.ids.clone();
        if ids.is_empty() {
            ids =
                store.search(&arguments.criteria.query()?).await?.iter().map(|summary| summary.id).collect();
        }
        let (mut requests, mut chosen, mut missing) = (Vec::new(), Vec::new(), 0);
        for id in ids {
            match store.timeline(id).await? {
                Some(timeline) => {
                    requests.extend(requests_for(&timeline));
                    chosen.push(timeline.summary);
                }
                None => {
                    complain(&format!("there is no message {id}"));
                    missing += 1;
                }
            }
        }
        chosen.sort_by_key(|summary: &Summary| summary.seq);
        table(&chosen)?;
        let (deliveries, messages): (Vec<_>, Vec<_>) =
            requests.iter().partition(|request| matches!(request, Request::Deliver(..)));
        let counts = format!(
            "{} to be mapped again, {} dead letters to be sent again",
            messages.len(),
            deliveries.len()
        );
        if arguments.yes {
            store.request("pons replay", &requests).await?;
            complain(&format!("asked for: {counts}; the running gateway carries it out"));
        } else {
            complain(&format!("dry run: {counts}; --yes does it"));
        }
        Ok(if missing > 0 { Exit::Failed } else { Exit::Ok })
    })
}

/// Dead letters are sent again as they are; a message without any is mapped again. A refused one is its sender's.
fn requests_for(timeline: &Timeline) -> Vec<Request> {
    let parked = timeline.deliveries.iter().filter(|one| one.delivery.state == DeliveryState::Parked);
    let parked: Vec<Request> =
        parked.map(|one| Request::Deliver(one.delivery.id, timeline.summary.id)).collect();
    if parked.is_empty() && timeline.rejected.is_none() && !timeline.results.is_empty() {
        return vec![Request::Normalize(timeline.summary.id)];
    }
    parked
}
