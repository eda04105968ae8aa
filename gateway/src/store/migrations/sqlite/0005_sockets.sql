-- Tokens by which a WebSocket is bound to subscriptions, each by its SHA-256.
CREATE TABLE socket_token (
    hash BLOB PRIMARY KEY,
    owner TEXT NOT NULL,
    subscriptions TEXT NOT NULL,
    until_us INTEGER NOT NULL
) WITHOUT ROWID;
