-- Subscriptions that their owners asked for over FHIR, and how often any of them changed. What `standing` means: store::Standing.
CREATE TABLE requested_subscription (
    id uuid PRIMARY KEY,
    owner text NOT NULL,
    version bigint NOT NULL,
    written bigint NOT NULL,
    standing smallint NOT NULL,
    live boolean NOT NULL,
    error text NOT NULL,
    resource text NOT NULL,
    changed_us bigint NOT NULL
);

CREATE TABLE requested_subscriptions (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL
);
INSERT INTO requested_subscriptions (version) VALUES (0);
