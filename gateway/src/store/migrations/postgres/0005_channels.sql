-- Tokens by which a WebSocket is bound to subscriptions, each by its SHA-256.
CREATE TABLE socket_token (
    hash bytea PRIMARY KEY,
    owner text NOT NULL,
    subscriptions text NOT NULL,
    until_us bigint NOT NULL
);

-- At which version of them all each changed last, and at which one was forgotten last: whoever has read them before reads what is new.
ALTER TABLE requested_subscription ADD COLUMN changed bigint NOT NULL DEFAULT 0;
ALTER TABLE requested_subscriptions ADD COLUMN forgotten bigint NOT NULL DEFAULT 0;

-- What of a type is about a patient, without a look at the rest of the record.
DROP INDEX resource_patient;
CREATE INDEX resource_patient ON resource (patient, resource_type, id) WHERE patient IS NOT NULL;
