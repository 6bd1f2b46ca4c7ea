-- Keys that expire, that replace each other, that have a limit of their own, and when each was used.

ALTER TABLE api_key ADD COLUMN expires_at BIGINT;               -- microseconds; none: valid until it is deleted
ALTER TABLE api_key ADD COLUMN per_second BIGINT;               -- requests at one edge; none: what that edge allows
ALTER TABLE api_key ADD COLUMN line TEXT COLLATE "C";         -- the first of the keys that replaced each other; none: this one
ALTER TABLE api_key ADD COLUMN replaces TEXT COLLATE "C";     -- the key that this one was made from; it may be gone

-- When edges said that a key was used last. Apart from the key, which is audited.
CREATE TABLE api_key_use (
    api_key_id TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES api_key (id) ON DELETE CASCADE, -- which
    last_minute BIGINT NOT NULL                 -- minutes since the epoch
);

ALTER TABLE edge_key ADD COLUMN expires_at BIGINT;              -- microseconds; none: valid until it is deleted
ALTER TABLE edge_key ADD COLUMN line TEXT COLLATE "C";        -- the first of the keys that replaced each other; none: this one
ALTER TABLE edge_key ADD COLUMN replaces TEXT COLLATE "C";    -- the key that this one was made from; it may be gone
ALTER TABLE edge_key ADD COLUMN last_used_at BIGINT;            -- microseconds, to the minute; none: never
