//! The identities that a message carries along the path.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// One stored message. A UUIDv7, so that ids of a day lie together and a day can be dropped as a whole.
/// It never decides an order: [`Seq`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MessageId(pub Uuid);

/// The place of a message in the order of the store: the order in which messages were committed.
/// If one message was acknowledged before another arrived, its sequence is lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seq(pub i64);

/// One event to one subscription: UUIDv5 of (message, subscription, revision), constant while the content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeliveryId(pub Uuid);

impl DeliveryId {
    /// The id of a delivery. `namespace` is the installation's secret namespace.
    pub fn of(namespace: Uuid, message: MessageId, subscription: &str, revision: u32) -> Self {
        let name = format!("delivery|{}|{}:{subscription}|{revision}", message.0, subscription.len());
        DeliveryId(Uuid::new_v5(&namespace, name.as_bytes()))
    }
}

macro_rules! display_uuid {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map($name)
            }
        }
    )*};
}
display_uuid!(MessageId, DeliveryId);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key by which messages are kept in order: a hash of one patient (or, without a patient, of the sender).
/// 64 bits: a collision makes two patients wait for each other, never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OrderKey(pub i64);

impl OrderKey {
    /// Hashes the parts that name a patient or a sender. Each part is prefixed by its length, so that
    /// `("AB", "C")` and `("A", "BC")` differ. Frozen: stored rows depend on it.
    pub fn of(parts: &[&str]) -> Self {
        let mut name = Vec::with_capacity(64);
        for part in parts {
            name.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            name.extend_from_slice(part.as_bytes());
        }
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, &name).into_bytes();
        let (head, _) = hash.split_at(8);
        OrderKey(i64::from_be_bytes(head.try_into().expect("eight bytes were split off")))
    }

    /// The lane of this key: lanes only schedule, so their number may change between starts of a whole installation.
    pub fn lane(self) -> u32 {
        (self.0.cast_unsigned() % u64::from(LANES)) as u32
    }
}

/// How many lanes the ordering keys are spread over. Fits the bits of a [`LaneSet`].
pub const LANES: u32 = 32;

/// A set of lanes, one bit a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LaneSet(pub i64);

impl LaneSet {
    /// Every lane.
    pub const ALL: LaneSet = LaneSet((1 << LANES) - 1);

    /// The lanes of some keys.
    pub fn of(keys: &[OrderKey]) -> Self {
        LaneSet(keys.iter().fold(0, |set, key| set | 1 << key.lane()))
    }

    /// Whether the two sets share a lane.
    pub fn overlaps(self, other: LaneSet) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether every lane of `other` is in this set.
    pub fn contains(self, other: LaneSet) -> bool {
        other.0 & !self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_id_depends_on_each_part_and_on_nothing_else() {
        let (space, message) = (Uuid::from_u128(1), MessageId(Uuid::from_u128(2)));
        let id = DeliveryId::of(space, message, "lab", 0);
        assert_eq!(id, DeliveryId::of(space, message, "lab", 0));
        for other in [
            DeliveryId::of(Uuid::from_u128(9), message, "lab", 0),
            DeliveryId::of(space, MessageId(Uuid::from_u128(9)), "lab", 0),
            DeliveryId::of(space, message, "lab2", 0),
            DeliveryId::of(space, message, "lab", 1),
        ] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn an_order_key_keeps_the_borders_of_its_parts() {
        assert_ne!(OrderKey::of(&["AB", "C"]), OrderKey::of(&["A", "BC"]));
        assert_eq!(
            OrderKey::of(&["GENHOSP", "1234"]).0,
            -7_021_304_086_620_121_235,
            "frozen: stored rows depend on it"
        );
    }

    #[test]
    fn lanes_fit_their_set() {
        for n in 0..1000 {
            let key = OrderKey::of(&[&n.to_string()]);
            assert!(key.lane() < LANES);
            assert!(LaneSet::ALL.contains(LaneSet::of(&[key])));
        }
        assert!(!LaneSet(0b01).overlaps(LaneSet(0b10)));
    }
}
