-- Which key the secrets are sealed with that control has to read again, so that a control with another
-- key says so at its start. The key itself is in a file.

CREATE TABLE secrets_key (
    id TEXT PRIMARY KEY NOT NULL,     -- eight bytes of its SHA-256, hexadecimal; one row at most
    since BIGINT NOT NULL               -- microseconds; when it was first used
);
