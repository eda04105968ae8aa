-- What notifications bring along beside the Bundle of a message, as it stood then: a JSON array of resources, compressed.
ALTER TABLE result ADD COLUMN beside BLOB;

-- Notifications by their numbers: they are read again when their subscriber asks for them.
CREATE INDEX delivery_event ON delivery (subscription, number) WHERE instr(topics, '>') > 0;
