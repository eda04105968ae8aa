-- Which versions of which resources a result made, and which message made the one before of each: what it was then stands in its Bundle.
ALTER TABLE result ADD COLUMN made BLOB;

-- The encounter in which it was; the nil UUID for none, NULL for what was written before this was asked.
ALTER TABLE resource ADD COLUMN encounter BLOB;
CREATE INDEX resource_encounter ON resource (encounter, resource_type, id)
    WHERE encounter IS NOT NULL AND encounter <> x'00000000000000000000000000000000';
CREATE INDEX resource_unasked ON resource (patient, resource_type, id) WHERE encounter IS NULL AND patient IS NOT NULL;
