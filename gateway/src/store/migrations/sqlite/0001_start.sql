-- The first schema. Times are microseconds since 1970; ids are 16 bytes.

CREATE TABLE installation (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    namespace BLOB NOT NULL,
    bus_epoch TEXT
);

CREATE TABLE intake (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    last_seq INTEGER NOT NULL
);
INSERT INTO intake VALUES (1, 0);

-- Written once, never changed.
CREATE TABLE message (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    received_us INTEGER NOT NULL,
    repeat_hash INTEGER,
    content_hash INTEGER,
    format INTEGER NOT NULL,
    reused INTEGER NOT NULL,
    sender TEXT NOT NULL,
    source TEXT NOT NULL,
    control_id TEXT NOT NULL,
    message_type TEXT NOT NULL,
    version TEXT NOT NULL,
    keys BLOB NOT NULL,
    rejected TEXT,
    context TEXT NOT NULL,
    bytes BLOB NOT NULL
);
CREATE INDEX message_repeat ON message (repeat_hash, content_hash) WHERE repeat_hash IS NOT NULL;
CREATE INDEX message_rejected ON message (seq) WHERE rejected IS NOT NULL;

CREATE TABLE message_patient (
    hash INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (hash, seq)
) WITHOUT ROWID;
CREATE INDEX message_patient_seq ON message_patient (seq);

CREATE TABLE sender (
    name TEXT PRIMARY KEY
) WITHOUT ROWID;

-- One small row for each message that waits to be normalized; deleted with its result.
CREATE TABLE inbox (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    lanes INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    size INTEGER NOT NULL,
    keys BLOB NOT NULL
);

-- How normalizing ended, one row a revision. The Bundles are the history of every resource.
CREATE TABLE result (
    message BLOB NOT NULL,
    revision INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    recorded_us INTEGER NOT NULL,
    mapping TEXT NOT NULL,
    quarantined TEXT,
    issues TEXT,
    bundle BLOB NOT NULL,
    PRIMARY KEY (message, revision)
);

-- The messages in quarantine, under each of their keys.
CREATE TABLE quarantine (
    key INTEGER NOT NULL,
    message BLOB NOT NULL,
    PRIMARY KEY (key, message)
) WITHOUT ROWID;
CREATE INDEX quarantine_message ON quarantine (message);

CREATE TABLE resource (
    id BLOB PRIMARY KEY,
    version INTEGER NOT NULL,
    replaced_by BLOB,
    patient BLOB,
    message BLOB NOT NULL,
    resource_type TEXT NOT NULL,
    state BLOB NOT NULL
);
CREATE INDEX resource_patient ON resource (patient) WHERE patient IS NOT NULL;
CREATE INDEX resource_replaced ON resource (replaced_by) WHERE replaced_by IS NOT NULL;

-- Identifiers; `id` is a UUIDv5 of the three parts.
CREATE TABLE alias (
    id BLOB PRIMARY KEY,
    resource BLOB NOT NULL,
    value_hash INTEGER NOT NULL,
    resource_type TEXT NOT NULL,
    system TEXT NOT NULL,
    value TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX alias_value ON alias (value_hash);
CREATE INDEX alias_resource ON alias (resource);

CREATE TABLE subscription (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    last INTEGER NOT NULL
);

CREATE TABLE delivery (
    message BLOB NOT NULL,
    id BLOB NOT NULL,
    number INTEGER NOT NULL,
    key INTEGER NOT NULL,
    due_us INTEGER NOT NULL,
    changed_us INTEGER NOT NULL,
    began_us INTEGER,
    took_us INTEGER,
    subscription INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    state INTEGER NOT NULL,
    topics TEXT NOT NULL,
    reason TEXT,
    answer TEXT,
    PRIMARY KEY (message, id)
) WITHOUT ROWID;
CREATE INDEX delivery_open ON delivery (subscription, number) WHERE state IN (0, 1, 2);
CREATE INDEX delivery_parked ON delivery (subscription, number) WHERE state = 5;

-- Attempts that failed; the one that succeeded lies in its delivery's row.
CREATE TABLE attempt (
    message BLOB NOT NULL,
    delivery BLOB NOT NULL,
    number INTEGER NOT NULL,
    began_us INTEGER NOT NULL,
    took_us INTEGER NOT NULL,
    answer TEXT NOT NULL
);
CREATE INDEX attempt_message ON attempt (message);

CREATE TABLE lease (
    name TEXT PRIMARY KEY,
    replica BLOB,
    fence INTEGER NOT NULL,
    until_us INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE replica (
    id BLOB PRIMARY KEY,
    until_us INTEGER NOT NULL
) WITHOUT ROWID;

-- What a person asked for; kept as the record of who did.
CREATE TABLE request (
    id INTEGER PRIMARY KEY,
    asked_us INTEGER NOT NULL,
    done_us INTEGER,
    done INTEGER,
    kind INTEGER NOT NULL,
    message BLOB NOT NULL,
    delivery BLOB,
    who TEXT NOT NULL,
    why TEXT
);
CREATE INDEX request_open ON request (id) WHERE done_us IS NULL;

-- What retention let go, so that the books stay true.
CREATE TABLE let_go (
    sender TEXT PRIMARY KEY,
    routed INTEGER NOT NULL,
    rejected INTEGER NOT NULL
) WITHOUT ROWID;
