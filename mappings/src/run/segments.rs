//! Writes the segments of a message of HL7 v2, in their order.

use super::{Frame, Halt, Run, WrittenSegment};
use crate::program::EntryCode;

impl<'r> Run<'r> {
    /// Writes the segments of the whole message.
    pub(super) fn write_message(
        &mut self,
        entries: &'r [EntryCode],
        written: &mut Vec<WrittenSegment>,
    ) -> Result<(), Halt> {
        self.checks()?;
        let frame = Frame { anchor: Some(0), ..self.root_frame() };
        self.write_entries(entries, &frame, written)
    }

    fn write_entries(
        &mut self,
        entries: &'r [EntryCode],
        frame: &Frame<'r, '_>,
        written: &mut Vec<WrittenSegment>,
    ) -> Result<(), Halt> {
        for entry in entries {
            self.step()?;
            let Some(from) = entry.from else {
                self.write_entry(entry, frame, written)?;
                continue;
            };
            let items = self.items(frame, from);
            let count = if entry.many { items.len() } else { 1 };
            let outer = frame.as_outer();
            for (nth, item) in (1..).zip(items).take(count) {
                let frame = Frame { outer: outer.as_ref().or(frame.outer), nth, ..self.at_item(frame, item) };
                self.write_entry(entry, &frame, written)?;
            }
        }
        Ok(())
    }

    fn write_entry(
        &mut self,
        entry: &'r EntryCode,
        frame: &Frame<'r, '_>,
        written: &mut Vec<WrittenSegment>,
    ) -> Result<(), Halt> {
        if entry.when.is_some_and(|when| !self.holds(frame, when)) {
            return Ok(());
        }
        if let Some((name, node)) = entry.segment {
            let fields = self.write_alone(frame, node)?;
            // What follows a segment would belong to another one.
            if fields.is_empty() {
                return Ok(());
            }
            written.push(WrittenSegment { name, fields });
        }
        self.write_entries(&entry.inner, frame, written)
    }
}
