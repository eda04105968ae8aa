-- One index finds what is about a patient, and what of it was in an encounter: each index of this table costs every resource of every
-- message.
DROP INDEX resource_encounter;
DROP INDEX resource_unasked;
DROP INDEX resource_patient;
CREATE INDEX resource_whose ON resource (patient, encounter, resource_type) WHERE patient IS NOT NULL;

-- When this version was recorded; NULL for what was written before this was asked.
ALTER TABLE resource ADD COLUMN recorded_us bigint;
