-- Subscriptions that their owners asked for over FHIR, and how often any of them changed. What `standing` means: store::Standing.
CREATE TABLE requested_subscription (
    id BLOB PRIMARY KEY,
    owner TEXT NOT NULL,
    version INTEGER NOT NULL,
    written INTEGER NOT NULL,
    standing INTEGER NOT NULL,
    live INTEGER NOT NULL,
    error TEXT NOT NULL,
    resource TEXT NOT NULL,
    changed_us INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE requested_subscriptions (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL
);
INSERT INTO requested_subscriptions VALUES (1, 0);
