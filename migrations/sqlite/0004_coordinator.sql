-- Epochs stay monotone when another coordinator is adopted, whose own numbers may be smaller.

ALTER TABLE leader ADD COLUMN base BIGINT NOT NULL DEFAULT 0;   -- added to an etcd's revisions
