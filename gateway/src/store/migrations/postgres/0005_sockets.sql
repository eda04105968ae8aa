-- Tokens by which a WebSocket is bound to subscriptions, each by its SHA-256.
CREATE TABLE socket_token (
    hash bytea PRIMARY KEY,
    owner text NOT NULL,
    subscriptions text NOT NULL,
    until_us bigint NOT NULL
);
