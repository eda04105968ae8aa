-- Which message made which version of a resource, so that earlier ones are found in the Bundles of the results. It has the days of those.
CREATE TABLE resource_version (
    resource uuid NOT NULL,
    message uuid NOT NULL,
    version bigint NOT NULL,
    revision integer NOT NULL
) PARTITION BY RANGE (message);
CREATE INDEX resource_version_resource ON resource_version (resource, version);
CREATE TABLE resource_version_rest PARTITION OF resource_version DEFAULT;
DO $$
DECLARE
    day record;
BEGIN
    FOR day IN
        SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'message'::regclass AND c.relname <> 'message_rest'
    LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF resource_version %s',
            regexp_replace(day.name, '^message', 'resource_version'), day.bounds);
    END LOOP;
END $$;

-- The encounter in which it was; the nil UUID for none, NULL for what was written before this was asked.
ALTER TABLE resource ADD COLUMN encounter uuid;
CREATE INDEX resource_encounter ON resource (encounter, resource_type, id)
    WHERE encounter IS NOT NULL AND encounter <> '00000000-0000-0000-0000-000000000000';
CREATE INDEX resource_unasked ON resource (patient, resource_type, id) WHERE encounter IS NULL AND patient IS NOT NULL;
