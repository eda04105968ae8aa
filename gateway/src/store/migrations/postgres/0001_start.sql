-- The first schema. Times are microseconds since 1970. Tables of messages are partitioned by day over the time in their UUIDv7.

-- One row: what this installation is.
CREATE TABLE installation (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    namespace uuid NOT NULL,
    bus_epoch text
);

-- One row, locked by every append until its commit: sequence order is commit order.
CREATE TABLE intake (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    last_seq bigint NOT NULL
);
INSERT INTO intake (last_seq) VALUES (0);

-- Written once, never changed. `bytes` is compressed by us and kept in line up to a page.
CREATE TABLE message (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    received_us bigint NOT NULL,
    repeat_hash bigint,
    content_hash bigint,
    format smallint NOT NULL,
    reused boolean NOT NULL,
    sender text NOT NULL,
    source text NOT NULL,
    control_id text NOT NULL,
    message_type text NOT NULL,
    version text NOT NULL,
    keys bytea NOT NULL,
    patient_hashes bigint[] NOT NULL,
    rejected text,
    context text NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
ALTER TABLE message ALTER COLUMN bytes SET STORAGE EXTERNAL;
CREATE INDEX message_repeat ON message (repeat_hash, content_hash);
CREATE INDEX message_patient ON message USING gin (patient_hashes) WITH (fastupdate = on, gin_pending_list_limit = 512);

CREATE INDEX message_rejected ON message (id) WHERE rejected IS NOT NULL;

-- Every sender that ever sent something.
CREATE TABLE sender (
    name text PRIMARY KEY
);

-- One small row for each message that waits to be normalized; deleted with its result.
CREATE TABLE inbox (
    seq bigint PRIMARY KEY,
    id uuid NOT NULL,
    lanes bigint NOT NULL,
    revision integer NOT NULL,
    size integer NOT NULL,
    keys bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000);

-- How normalizing ended, one row a revision. The Bundles are the history of every resource.
CREATE TABLE result (
    message uuid NOT NULL,
    revision integer NOT NULL,
    seq bigint NOT NULL,
    recorded_us bigint NOT NULL DEFAULT (extract(epoch from clock_timestamp()) * 1000000)::bigint,
    mapping text NOT NULL,
    quarantined text,
    issues text,
    bundle bytea NOT NULL,
    PRIMARY KEY (message, revision)
) PARTITION BY RANGE (message);
ALTER TABLE result ALTER COLUMN bundle SET STORAGE EXTERNAL;

-- The messages in quarantine, under each of their keys.
CREATE TABLE quarantine (
    key bigint NOT NULL,
    message uuid NOT NULL,
    PRIMARY KEY (key, message)
);
CREATE INDEX quarantine_message ON quarantine (message);

-- The current version of each resource. `patient`: whom it is about.
CREATE TABLE resource (
    id uuid PRIMARY KEY,
    version bigint NOT NULL,
    replaced_by uuid,
    patient uuid,
    message uuid NOT NULL,
    resource_type text NOT NULL,
    state bytea NOT NULL
) WITH (fillfactor = 90, toast_tuple_target = 8160);
ALTER TABLE resource ALTER COLUMN state SET STORAGE EXTERNAL;
CREATE INDEX resource_patient ON resource (patient) WHERE patient IS NOT NULL;
CREATE INDEX resource_replaced ON resource (replaced_by) WHERE replaced_by IS NOT NULL;

-- Identifiers; `id` is a UUIDv5 of the three parts.
CREATE TABLE alias (
    id uuid PRIMARY KEY,
    resource uuid NOT NULL,
    value_hash bigint NOT NULL,
    resource_type text NOT NULL,
    system text NOT NULL,
    value text NOT NULL
);
CREATE INDEX alias_value ON alias (value_hash);
CREATE INDEX alias_resource ON alias (resource);

-- `last`: the newest event number; its row lock orders the commits. No delivery below `floor` is open unless it is `held`.
CREATE TABLE subscription (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    last bigint NOT NULL,
    floor bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 50);

-- One row a delivery. No index holds a column that its usual life changes, so that the change stays within its page.
-- `held` is set from the first failure until the end: those are found by their own index.
CREATE TABLE delivery (
    message uuid NOT NULL,
    id uuid NOT NULL,
    number bigint NOT NULL,
    key bigint NOT NULL,
    due_us bigint NOT NULL,
    changed_us bigint NOT NULL,
    began_us bigint,
    took_us bigint,
    subscription integer NOT NULL,
    revision integer NOT NULL,
    attempts integer NOT NULL,
    state smallint NOT NULL,
    held boolean,
    topics text NOT NULL,
    reason text,
    answer text
) PARTITION BY RANGE (message);
CREATE INDEX delivery_message ON delivery (message, subscription);
CREATE INDEX delivery_number ON delivery (subscription, number);
CREATE INDEX delivery_held ON delivery (subscription, number) WHERE held;

-- Attempts that failed; the one that succeeded lies in its delivery's row.
CREATE TABLE attempt (
    message uuid NOT NULL,
    delivery uuid NOT NULL,
    number integer NOT NULL,
    began_us bigint NOT NULL,
    took_us bigint NOT NULL,
    answer text NOT NULL
) PARTITION BY RANGE (message);
CREATE INDEX attempt_message ON attempt (message);

-- Who works what; `until_us` by the database's clock.
CREATE TABLE lease (
    name text PRIMARY KEY,
    replica uuid,
    fence bigint NOT NULL,
    until_us bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE replica (
    id uuid PRIMARY KEY,
    until_us bigint NOT NULL
) WITH (fillfactor = 50);

-- What a person asked for; kept as the record of who did.
CREATE TABLE request (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    asked_us bigint NOT NULL,
    done_us bigint,
    done boolean,
    kind smallint NOT NULL,
    message uuid NOT NULL,
    delivery uuid,
    who text NOT NULL,
    why text
);
CREATE INDEX request_open ON request (id) WHERE done_us IS NULL;
CREATE INDEX request_message ON request (message);

-- What retention let go, so that the books stay true.
CREATE TABLE let_go (
    sender text PRIMARY KEY,
    routed bigint NOT NULL,
    rejected bigint NOT NULL
);

-- Whatever lies outside of the days that are there, and the rows of let-go days that wait for a person.
CREATE TABLE message_rest PARTITION OF message DEFAULT WITH (toast_tuple_target = 8160);
CREATE TABLE result_rest PARTITION OF result DEFAULT WITH (toast_tuple_target = 8160);
CREATE TABLE delivery_rest PARTITION OF delivery DEFAULT WITH (fillfactor = 50);
CREATE TABLE attempt_rest PARTITION OF attempt DEFAULT;

-- Takes in a batch and answers its last sequence number; or writes no message and answers NULL, because the batch has to be compared
-- with earlier ones first: with `compared_to` NULL if any since `repeat_floor` has the `repeat_hash` of one of them, else only if one
-- above that sequence number has its `content_hash` too. The row of `intake` is locked first, so that the statements after it see
-- every batch before this one. `OFFSET 0` keeps the lookup a lookup for each row: turned into a join it reads all of the week once it
-- is planned on an empty day.
CREATE FUNCTION append(ids uuid[], received_us bigint[], repeat_hashes bigint[], content_hashes bigint[], formats smallint[],
    reused boolean[], senders text[], sources text[], control_ids text[], message_types text[], versions text[], keys bytea[],
    patient_hashes text[], rejected text[], contexts text[], bytes bytea[], lanes bigint[], sizes integer[], repeat_floor uuid,
    compared_to bigint, new_senders text[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    last bigint;
    before bigint;
BEGIN
    UPDATE intake SET last_seq = last_seq + cardinality(ids) RETURNING last_seq, last_seq - cardinality(ids) INTO last, before;
    IF compared_to IS NULL THEN
        PERFORM FROM unnest(repeat_hashes) AS new(hash) CROSS JOIN LATERAL (
            SELECT FROM message AS m WHERE m.repeat_hash = new.hash AND m.id >= repeat_floor LIMIT 1
        ) AS earlier LIMIT 1;
    ELSE
        PERFORM FROM unnest(repeat_hashes, content_hashes) AS new(hash, content) CROSS JOIN LATERAL (
            SELECT FROM message AS m
            WHERE m.repeat_hash = new.hash AND m.content_hash = new.content AND m.id >= repeat_floor AND m.seq > compared_to OFFSET 0
        ) AS earlier LIMIT 1;
    END IF;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO message (id, seq, received_us, repeat_hash, content_hash, format, reused, sender, source, control_id, message_type,
        version, keys, patient_hashes, rejected, context, bytes)
    SELECT n.id, before + n.place, n.received_us, n.repeat_hash, n.content_hash, n.format, n.reused, n.sender, n.source, n.control_id,
        n.message_type, n.version, n.keys, n.patient_hashes::bigint[], n.rejected, n.context, n.bytes
    FROM unnest(ids, received_us, repeat_hashes, content_hashes, formats, reused, senders, sources, control_ids, message_types, versions,
        keys, patient_hashes, rejected, contexts, bytes) WITH ORDINALITY
        AS n(id, received_us, repeat_hash, content_hash, format, reused, sender, source, control_id, message_type, version, keys,
        patient_hashes, rejected, context, bytes, place);
    INSERT INTO inbox (seq, id, lanes, revision, size, keys)
    SELECT before + n.place, n.id, n.lanes, 0, n.size, n.keys
    FROM unnest(ids, lanes, sizes, keys, rejected) WITH ORDINALITY AS n(id, lanes, size, keys, rejected, place)
    WHERE n.rejected IS NULL;
    IF cardinality(new_senders) > 0 THEN
        INSERT INTO sender SELECT n.name FROM unnest(new_senders) AS n(name) ORDER BY n.name ON CONFLICT DO NOTHING;
    END IF;
    RETURN last;
END $$;
