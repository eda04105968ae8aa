-- What notifications bring along beside the Bundle of a message, as it stood then: a JSON array of resources, compressed.
ALTER TABLE result ADD COLUMN beside bytea;
ALTER TABLE result ALTER COLUMN beside SET STORAGE EXTERNAL;
