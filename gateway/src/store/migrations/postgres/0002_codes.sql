-- Codes that no table translates, once for each message that has one.
CREATE TABLE unmapped_code (
    sender text NOT NULL,
    code_table text NOT NULL,
    code text NOT NULL,
    message uuid NOT NULL,
    PRIMARY KEY (sender, code_table, code, message)
);
CREATE INDEX unmapped_code_message ON unmapped_code (message);

-- What people have said of single codes, and how often that changed.
CREATE TABLE site_code (
    sender text NOT NULL,
    code_table text NOT NULL,
    code text NOT NULL,
    system text NOT NULL,
    target text NOT NULL,
    display text,
    who text NOT NULL,
    said_us bigint NOT NULL,
    PRIMARY KEY (sender, code_table, code)
);

CREATE TABLE site_codes (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL
);
INSERT INTO site_codes (version) VALUES (0);
