-- What a drill's requests do: each leaves a row, so that every effect can be counted. There is no
-- unique key, for that would hide a second one. `scratch.` becomes the drill's own schema.

create table scratch.effects (
    id         bigint generated always as identity primary key,
    request_id text        not null,
    at         timestamptz not null default clock_timestamp()
);

create function scratch.write(request jsonb) returns jsonb
language plpgsql volatile as $$
begin
    insert into scratch.effects (request_id) values (request ->> 'request_id');
    if request #> '{payload,refuse}' is not null then
        raise exception 'refused, as the drill wants it' using errcode = 'invalid_parameter_value';
    end if;
    return jsonb_build_object('number', request #> '{payload,number}');
end $$;

create function scratch.write_answer(request jsonb, response jsonb) returns jsonb
language plpgsql volatile as $$
begin
    if response -> 'ok' is null then
        raise exception 'this is not the answer of the stub' using errcode = 'invalid_parameter_value';
    end if;
    return scratch.write(request);
end $$;
