-- Who answers for what a service token does, so that it is no second pair of eyes for its maker. It was
-- in the audit alone; of a token that was made by another one it is who made that.

ALTER TABLE access_token ADD COLUMN maker_key TEXT COLLATE "C"; -- service: who made it, kind and id, never another service token; none: personal, or not in the audit
UPDATE access_token SET maker_key = (
    WITH RECURSIVE maker (kind, id) AS (
        SELECT a.actor_kind, a.actor_id FROM audit a
            WHERE a.action = 'token.create' AND a.target = access_token.id
        UNION
        SELECT a.actor_kind, a.actor_id FROM maker m JOIN audit a
            ON a.action = 'token.create' AND m.kind = 'service' AND a.target = m.id
    ) SELECT MIN(kind || ':' || id) FROM maker WHERE kind <> 'service'
) WHERE namespace_id IS NOT NULL;

ALTER TABLE change_set_event ADD COLUMN maker_key TEXT COLLATE "C"; -- of a service token's: who made that token, kind and id
UPDATE change_set_event SET maker_key = (
    WITH RECURSIVE maker (kind, id) AS (
        SELECT a.actor_kind, a.actor_id FROM audit a
            WHERE a.action = 'token.create' AND 'service:' || a.target = change_set_event.actor_key
        UNION
        SELECT a.actor_kind, a.actor_id FROM maker m JOIN audit a
            ON a.action = 'token.create' AND m.kind = 'service' AND a.target = m.id
    ) SELECT MIN(kind || ':' || id) FROM maker WHERE kind <> 'service'
) WHERE actor_key LIKE 'service:%';
