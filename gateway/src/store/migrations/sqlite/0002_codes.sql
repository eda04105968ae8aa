-- Codes that no table translates, once for each message that has one.
CREATE TABLE unmapped_code (
    sender TEXT NOT NULL,
    code_table TEXT NOT NULL,
    code TEXT NOT NULL,
    message BLOB NOT NULL,
    PRIMARY KEY (sender, code_table, code, message)
) WITHOUT ROWID;
CREATE INDEX unmapped_code_message ON unmapped_code (message);

-- What people have said of single codes, and how often that changed.
CREATE TABLE site_code (
    sender TEXT NOT NULL,
    code_table TEXT NOT NULL,
    code TEXT NOT NULL,
    system TEXT NOT NULL,
    target TEXT NOT NULL,
    display TEXT,
    who TEXT NOT NULL,
    said_us INTEGER NOT NULL,
    PRIMARY KEY (sender, code_table, code)
) WITHOUT ROWID;

CREATE TABLE site_codes (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL
);
INSERT INTO site_codes VALUES (1, 0);
