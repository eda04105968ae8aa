-- Which message made which version of a resource, so that earlier ones are found in the Bundles of the results.
CREATE TABLE resource_version (
    message BLOB NOT NULL,
    resource BLOB NOT NULL,
    version INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (message, resource, revision)
) WITHOUT ROWID;
CREATE INDEX resource_version_resource ON resource_version (resource, version);

-- The encounter in which it was; the nil UUID for none, NULL for what was written before this was asked.
ALTER TABLE resource ADD COLUMN encounter BLOB;
CREATE INDEX resource_encounter ON resource (encounter, resource_type, id)
    WHERE encounter IS NOT NULL AND encounter <> x'00000000000000000000000000000000';
CREATE INDEX resource_unasked ON resource (patient, resource_type, id) WHERE encounter IS NULL AND patient IS NOT NULL;
