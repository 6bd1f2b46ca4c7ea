-- What the reconciler found to differ between the database, the bus and the edges, and when it was
-- mended. The newest 10,000 are kept.

CREATE TABLE drift (
    id INTEGER PRIMARY KEY AUTOINCREMENT,       -- in the order of finding
    environment_id TEXT NOT NULL,               -- where; the environment may be gone since
    kind TEXT NOT NULL,                         -- unpublished, bus-missing, bus-older, edge-behind, edge-ahead, edge-diverged
    subject TEXT NOT NULL,                      -- of edges: edge and key id; else empty
    detail TEXT NOT NULL,                       -- for people
    found_at BIGINT NOT NULL,                   -- microseconds
    mended_at BIGINT                            -- microseconds; absent while it lasts
);
CREATE UNIQUE INDEX drift_open ON drift (environment_id, kind, subject) WHERE mended_at IS NULL;
