//! The packets of both versions, as far as a client that subscribes needs them.
//!
//! Invariant: a packet that is larger than the bound is not read into memory and does not end the connection, or the broker would hand
//! it over again for ever: its head is passed on, with its number.

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;
use std::io;
use std::num::NonZeroU16;
use std::time::Duration;
use tokio_util::codec::{Decoder, Encoder};

/// How much of a payload that is too large is passed on, in bytes.
const HEAD: usize = 64 << 10;
/// How much of its packet must be there to find that: topic, properties, and the head itself.
const HEAD_PACKET: usize = 4 * HEAD;
/// What stands in a packet beside its payload: the topic and, with their bound, the properties.
const BESIDE: usize = 2 * HEAD;
/// The control packet type PUBLISH, in the high half of its first byte.
const PUBLISH: u8 = 3;

/// What a broker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// The connection is taken.
    Accepted {
        /// Whether the broker has kept the session.
        session: bool,
        /// How often the broker wants to hear something, if it is not as often as we said.
        keep_alive: Option<Duration>,
    },
    /// The connection is not taken.
    Refused(String),
    /// What became of each filter: the quality of service, or why there is none.
    Subscribed(Vec<Result<u8, String>>),
    /// Something was published.
    Published(Published),
    /// The broker ends the connection.
    Closed(String),
    /// Nothing that matters but that it is there.
    Alive,
}

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Published {
    /// Its number until it is acknowledged; `None` with quality of service 0, of which nobody hears again.
    pub(super) number: Option<NonZeroU16>,
    /// Whether it may have been handed over before.
    pub(super) again: bool,
    pub(super) topic: String,
    pub(super) payload: Bytes,
    /// Whether the payload is its head alone.
    pub(super) is_cut: bool,
}

/// What a client says.
#[derive(Clone, Debug)]
pub(super) enum Outgoing<'o> {
    Connect(Hello<'o>),
    Subscribe(&'o [String]),
    Acknowledge(NonZeroU16),
    Ping,
    Disconnect,
}

/// Who connects, and how.
#[derive(Clone, Debug)]
pub(super) struct Hello<'o> {
    pub(super) client_id: &'o str,
    pub(super) username: &'o str,
    pub(super) password: &'o str,
    pub(super) keep_alive: Duration,
    pub(super) session: Duration,
    pub(super) in_flight_max: u16,
}

/// Reads and writes the packets of one version.
#[derive(Debug)]
pub(super) struct Codec {
    is_v5: bool,
    packet_max: usize,
    /// What is passed on once so many bytes have gone by.
    cut: Option<(Published, usize)>,
}

impl Codec {
    /// For payloads of so many bytes.
    pub(super) fn new(is_v5: bool, payload_max: usize) -> Codec {
        Codec { is_v5, packet_max: payload_max + BESIDE, cut: None }
    }

    /// Begins to pass by a packet that is too large.
    fn cut(&self, header: &Header, packet: &[u8]) -> io::Result<Published> {
        let mut rest = &packet[header.bytes..];
        let topic = (rest.len() >= 2).then(|| usize::from(rest.get_u16()));
        let topic = topic.filter(|length| *length <= rest.len()).ok_or_else(malformed)?;
        let (topic, mut rest) = rest.split_at(topic);
        let number = match header.first >> 1 & 3 {
            0 => None,
            _ if rest.len() < 2 => return Err(malformed()),
            _ => Some(NonZeroU16::new(rest.get_u16()).ok_or_else(malformed)?),
        };
        if self.is_v5 {
            let (bytes, length) = variable(rest)?.ok_or_else(malformed)?;
            rest = rest.get(bytes + length..).unwrap_or_default();
        }
        Ok(Published {
            number,
            again: header.first & 8 != 0,
            topic: String::from_utf8_lossy(topic).into_owned(),
            payload: Bytes::copy_from_slice(&rest[..rest.len().min(HEAD)]),
            is_cut: true,
        })
    }
}

/// The fixed header of a packet.
struct Header {
    first: u8,
    bytes: usize,
    remaining: usize,
}

impl Header {
    fn read(packet: &[u8]) -> io::Result<Option<Header>> {
        let Some((first, rest)) = packet.split_first() else { return Ok(None) };
        let length = variable(rest)?;
        Ok(length.map(|(bytes, remaining)| Header { first: *first, bytes: bytes + 1, remaining }))
    }

    fn packet(&self) -> usize {
        self.bytes + self.remaining
    }
}

/// A number of variable length and how many bytes it takes; `None` if it is not all there yet.
fn variable(bytes: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let mut number = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        number |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((index + 1, number)));
        }
    }
    if bytes.len() >= 4 { Err(malformed()) } else { Ok(None) }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a malformed packet")
}

fn wrong(error: &(dyn std::error::Error + Send + Sync)) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl Decoder for Codec {
    type Item = Incoming;
    type Error = io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<Incoming>> {
        if let Some((published, left)) = self.cut.take() {
            let now = left.min(from.len());
            from.advance(now);
            if now < left {
                self.cut = Some((published, left - now));
                return Ok(None);
            }
            return Ok(Some(Incoming::Published(published)));
        }
        let Some(header) = Header::read(from)? else { return Ok(None) };
        if header.remaining > self.packet_max {
            if header.first >> 4 != PUBLISH {
                return Err(malformed());
            }
            if from.len() < HEAD_PACKET.min(header.packet()) {
                return Ok(None);
            }
            let there = from.len().min(header.packet());
            self.cut = Some((self.cut(&header, &from[..there])?, header.packet()));
            return self.decode(from);
        }
        if from.len() < header.packet() {
            from.reserve(header.packet() - from.len());
            return Ok(None);
        }
        let size = header.packet();
        let incoming = match self.is_v5 {
            true => {
                let size = u32::try_from(size).unwrap_or(u32::MAX);
                of_v5(v5::Packet::read(from, Some(size)).map_err(|error| wrong(&error))?)
            }
            false => of_v4(v4::Packet::read(from, size).map_err(|error| wrong(&error))?),
        };
        Ok(Some(incoming))
    }
}

fn of_v4(packet: v4::Packet) -> Incoming {
    match packet {
        v4::Packet::ConnAck(answer) => match answer.code {
            v4::ConnectReturnCode::Success => {
                Incoming::Accepted { session: answer.session_present, keep_alive: None }
            }
            code => Incoming::Refused(format!("{code:?}")),
        },
        v4::Packet::SubAck(answer) => Incoming::Subscribed(
            answer
                .return_codes
                .into_iter()
                .map(|code| match code {
                    v4::SubscribeReasonCode::Success(quality) => Ok(quality as u8),
                    v4::SubscribeReasonCode::Failure => Err("refused".to_owned()),
                })
                .collect(),
        ),
        v4::Packet::Publish(publish) => Incoming::Published(Published {
            number: NonZeroU16::new(publish.pkid),
            again: publish.dup,
            topic: publish.topic,
            payload: publish.payload,
            is_cut: false,
        }),
        v4::Packet::Disconnect => Incoming::Closed("it ended the connection".to_owned()),
        _ => Incoming::Alive,
    }
}

fn of_v5(packet: v5::Packet) -> Incoming {
    match packet {
        v5::Packet::ConnAck(answer) => match answer.code {
            v5::ConnectReturnCode::Success => Incoming::Accepted {
                session: answer.session_present,
                keep_alive: answer
                    .properties
                    .and_then(|properties| properties.server_keep_alive)
                    .map(|seconds| Duration::from_secs(seconds.into())),
            },
            code => Incoming::Refused(format!("{code:?}")),
        },
        v5::Packet::SubAck(answer) => Incoming::Subscribed(
            answer
                .return_codes
                .into_iter()
                .map(|code| match code {
                    v5::SubscribeReasonCode::Success(quality) => Ok(quality as u8),
                    code => Err(format!("{code:?}")),
                })
                .collect(),
        ),
        v5::Packet::Publish(publish) => Incoming::Published(Published {
            number: NonZeroU16::new(publish.pkid),
            again: publish.dup,
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload,
            is_cut: false,
        }),
        v5::Packet::Disconnect(goodbye) => Incoming::Closed(format!("{:?}", goodbye.reason_code)),
        _ => Incoming::Alive,
    }
}

impl Encoder<Outgoing<'_>> for Codec {
    type Error = io::Error;

    fn encode(&mut self, packet: Outgoing<'_>, to: &mut BytesMut) -> io::Result<()> {
        let written = match self.is_v5 {
            true => in_v5(packet).write(to, None).map_err(|error| wrong(&error)),
            false => in_v4(packet).write(to, usize::MAX).map_err(|error| wrong(&error)),
        };
        written.map(drop)
    }
}

/// The number of the one subscription.
const SUBSCRIPTION: u16 = 1;

fn in_v4(packet: Outgoing<'_>) -> v4::Packet {
    match packet {
        Outgoing::Connect(hello) => {
            let mut connect = v4::Connect::new(hello.client_id);
            connect.keep_alive = seconds(hello.keep_alive);
            connect.clean_session = false;
            if !hello.username.is_empty() {
                connect.set_login(hello.username, hello.password);
            }
            v4::Packet::Connect(connect)
        }
        Outgoing::Subscribe(filters) => {
            let filters = filters.iter().map(|filter| v4::SubscribeFilter {
                path: filter.clone(),
                qos: rumqttc::mqttbytes::QoS::AtLeastOnce,
            });
            let mut subscribe = v4::Subscribe::new_many(filters);
            subscribe.pkid = SUBSCRIPTION;
            v4::Packet::Subscribe(subscribe)
        }
        Outgoing::Acknowledge(number) => v4::Packet::PubAck(v4::PubAck::new(number.get())),
        Outgoing::Ping => v4::Packet::PingReq,
        Outgoing::Disconnect => v4::Packet::Disconnect,
    }
}

fn in_v5(packet: Outgoing<'_>) -> v5::Packet {
    match packet {
        Outgoing::Connect(hello) => {
            let mut properties = v5::ConnectProperties::new();
            properties.session_expiry_interval = u32::try_from(hello.session.as_secs()).ok();
            properties.receive_maximum = Some(hello.in_flight_max);
            let connect = v5::Connect {
                keep_alive: seconds(hello.keep_alive),
                client_id: hello.client_id.to_owned(),
                clean_start: false,
                properties: Some(properties),
            };
            let login = (!hello.username.is_empty()).then(|| v5::Login::new(hello.username, hello.password));
            v5::Packet::Connect(connect, None, login)
        }
        Outgoing::Subscribe(filters) => {
            let filters = filters.iter().map(|filter| {
                let mut filter = v5::Filter::new(filter.as_str(), rumqttc::v5::mqttbytes::QoS::AtLeastOnce);
                // What is retained was handed over when the session began.
                filter.retain_forward_rule = v5::RetainForwardRule::OnNewSubscribe;
                filter
            });
            let mut subscribe = v5::Subscribe::new_many(filters, None);
            subscribe.pkid = SUBSCRIPTION;
            v5::Packet::Subscribe(subscribe)
        }
        Outgoing::Acknowledge(number) => v5::Packet::PubAck(v5::PubAck::new(number.get(), None)),
        Outgoing::Ping => v5::Packet::PingReq(v5::PingReq),
        Outgoing::Disconnect => {
            v5::Packet::Disconnect(v5::Disconnect::new(v5::DisconnectReasonCode::NormalDisconnection))
        }
    }
}

fn seconds(time: Duration) -> u16 {
    u16::try_from(time.as_secs()).unwrap_or(u16::MAX)
}
