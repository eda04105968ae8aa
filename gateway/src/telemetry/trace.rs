//! Traces: a message's way over ingest, normalize, route and deliver, with ids alone.
//!
//! What is handed on is a W3C `traceparent`: stored with the message, on the bus beside the delivery, in the request to
//! the destination. Invariant: without a collector no span is made and no id is drawn; what a client brought is passed on
//! as it came.
//!
//! # Source
//! W3C Trace Context, version 00.

use opentelemetry::trace::{Span as _, TracerProvider};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use std::sync::OnceLock;
use std::time::SystemTime;

/// Set while spans go to a collector.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// From now on spans are made.
pub(super) fn begin_tracing(provider: &SdkTracerProvider) {
    // Tracing begins once in a process; who comes second changes nothing.
    let _ = TRACER.set(provider.tracer("pons"));
}

/// One verb of the path at work on one message; ends when it is dropped.
#[derive(Debug)]
pub struct Verb(Span);

impl Verb {
    /// Begins a verb that began at this time; its parent is what came before it on the message's way, in whatever
    /// process. `None` when nobody traces.
    pub fn begin(name: &'static str, parent: Option<&str>, since: impl Into<SystemTime>) -> Option<Self> {
        let tracer = TRACER.get()?;
        let kind = match name {
            "ingest" => SpanKind::Server,
            "deliver" => SpanKind::Client,
            _ => SpanKind::Internal,
        };
        let before = match parent.and_then(read) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let builder = tracer.span_builder(name).with_kind(kind).with_start_time(since.into());
        Some(Verb(builder.start_with_context(tracer, &before)))
    }

    /// A verb that follows this one, beginning now.
    pub fn follow(&self, name: &'static str) -> Option<Self> {
        Verb::begin(name, Some(&self.traceparent()), SystemTime::now())
    }

    /// What the next one on the way continues.
    pub fn traceparent(&self) -> String {
        let context = self.0.span_context();
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
    }

    /// Notes an id or a word of ours; never a value of the message.
    pub fn note(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// Says that it did not go well; a word of ours.
    pub fn fail(&mut self, word: &'static str) {
        self.0.set_status(Status::error(word));
    }
}

/// A `traceparent` that may be continued; `None` if it is not one.
pub fn read(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let whole = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    // A later version may have more behind; this one has not.
    if !whole || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// The name of the trace in the context of a stored message.
const KEY: &str = "\"traceparent\":\"";
/// How long a `traceparent` of version 00 is.
const LENGTH: usize = 55;

/// The trace in the context of a stored message.
pub fn in_context(context: &str) -> Option<&str> {
    let at = memchr::memmem::find(context.as_bytes(), KEY.as_bytes())? + KEY.len();
    context.get(at..at + LENGTH)
}

/// The context of a message with this trace in it, in place of what was there.
pub fn into_context(context: &str, traceparent: &str) -> String {
    let mut object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(context).unwrap_or_default();
    object.insert("traceparent".to_owned(), traceparent.into());
    serde_json::Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_a_traceparent_is_continued() {
        let context = read(PARENT).expect("it is one");
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(context.is_sampled() && context.is_remote());
        assert!(read(&PARENT.replace("00-4", "01-4")).is_some(), "a later version begins like this one");
        for wrong in [
            "",
            "TEST^JANE",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_trace_is_found_in_the_context_beside_the_rest() {
        let with = into_context(r#"{"zone":"Europe/Berlin"}"#, PARENT);
        assert_eq!(in_context(&with), Some(PARENT));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&with).expect("JSON")["zone"], "Europe/Berlin");
        let other = PARENT.replace("4bf9", "0000");
        assert_eq!(in_context(&into_context(&with, &other)), Some(&*other));
        assert_eq!(in_context(&into_context("", PARENT)), Some(PARENT));
        for without in ["", "{}", r#"{"zone":"UTC"}"#, r#"{"traceparent":"x"}"#] {
            assert_eq!(in_context(without), None);
        }
    }

    #[test]
    fn nobody_traces_unless_told_to() {
        assert!(Verb::begin("ingest", Some(PARENT), SystemTime::now()).is_none());
    }
}
