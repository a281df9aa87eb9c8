-- What a team would have without runspan, and a trigger that does nothing.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    event text NOT NULL,
    payload jsonb NOT NULL
);
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
    RETURN NULL;
END
$function$;
