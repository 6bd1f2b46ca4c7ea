-- Contexts that edges saw, redacted there, for previews of changes. Off unless somebody switches it
-- on for an environment, and then for a while.

CREATE TABLE sampling (
    environment_id TEXT COLLATE "C" PRIMARY KEY NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- of what
    per_minute BIGINT NOT NULL,                 -- contexts that each edge may take
    keep TEXT COLLATE "C" NOT NULL,                         -- JSON array of paths of attributes that may leave the edge
    until BIGINT NOT NULL,                      -- microseconds; nothing is taken after it
    set_by TEXT COLLATE "C" NOT NULL,                       -- who, as the audit names them
    set_at BIGINT NOT NULL                      -- microseconds
);

CREATE TABLE context_sample (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,               -- UUIDv7
    environment_id TEXT COLLATE "C" NOT NULL REFERENCES environment (id) ON DELETE CASCADE, -- where it was evaluated
    at BIGINT NOT NULL,                         -- microseconds, by the edge's clock
    context TEXT COLLATE "C" NOT NULL                       -- what the edge let out of it, a JSON object
);
CREATE INDEX context_sample_by_environment ON context_sample (environment_id, id);
