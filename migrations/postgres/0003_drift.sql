-- What the reconciler found to differ between the database, the bus and the edges, and when it was
-- mended. The newest 10,000 are kept.

CREATE TABLE drift (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in the order of finding
    environment_id TEXT COLLATE "C" NOT NULL,               -- where; the environment may be gone since
    kind TEXT COLLATE "C" NOT NULL,                         -- unpublished, bus-missing, bus-older, edge-behind, edge-ahead, edge-diverged
    subject TEXT COLLATE "C" NOT NULL,                      -- of edges: edge and key id; else empty
    detail TEXT COLLATE "C" NOT NULL,                       -- for people
    found_at BIGINT NOT NULL,                   -- microseconds
    mended_at BIGINT                            -- microseconds; absent while it lasts
);
CREATE UNIQUE INDEX drift_open ON drift (environment_id, kind, subject) WHERE mended_at IS NULL;
