-- The example service: what Longshore applies for its four kinds.
-- A function gets {"request_id", "kind", "user_id", "payload"} and returns jsonb, which becomes the
-- request's result. It runs in the transaction that writes the ledger: either both are kept or neither.

create schema if not exists app;

create table if not exists app.users (
    user_id    text        primary key,
    email      text,
    name       text,
    locale     text,
    -- One more for each update applied, so that anyone can count them.
    version    bigint      not null default 0,
    updated_at timestamptz not null default now()
);

create table if not exists app.addresses (
    user_id    text        primary key,
    address    text        not null,
    verified   boolean     not null,
    request_id text        not null,
    updated_at timestamptz not null default now()
);

create or replace function app.update_profile(request jsonb) returns jsonb
language plpgsql volatile as $$
declare
    payload jsonb := request -> 'payload';
    result  jsonb;
begin
    if jsonb_typeof(payload) is distinct from 'object' then
        raise exception 'payload must be an object' using errcode = 'invalid_parameter_value';
    end if;
    if payload ->> 'email' not like '%_@_%' then
        raise exception 'payload.email is not an address' using errcode = 'invalid_parameter_value';
    end if;
    insert into app.users as u (user_id, email, name, locale, version)
    values (request ->> 'user_id', payload ->> 'email', payload ->> 'name', payload ->> 'locale', 1)
        on conflict (user_id) do update
       set email      = coalesce(excluded.email, u.email),
           name       = coalesce(excluded.name, u.name),
           locale     = coalesce(excluded.locale, u.locale),
           version    = u.version + 1,
           updated_at = now()
    returning jsonb_build_object('version', version) into result;
    return result;
end $$;

-- Later objects over earlier ones.
create or replace aggregate app.merged(jsonb) (sfunc = jsonb_concat, stype = jsonb);

-- The same for many requests at once (`apply_batch`), ordered by user, and those of one user as they
-- came. A user may be among them more than once, and a row can be written once by a statement: so
-- what is asked for each is put together first. Whatever is refused here fails all of them, and
-- Longshore then applies them one by one.
create or replace function app.update_profiles(requests jsonb[]) returns jsonb[]
language plpgsql volatile as $$
begin
    if exists (select from unnest(requests) as request
                where jsonb_typeof(request -> 'payload') is distinct from 'object'
                   or request -> 'payload' ->> 'email' not like '%_@_%') then
        raise exception 'a payload is no object, or its email is not an address'
              using errcode = 'invalid_parameter_value';
    end if;
    insert into app.users as u (user_id, email, name, locale, version)
    select user_id, asked ->> 'email', asked ->> 'name', asked ->> 'locale', times
      from (select user_id, count(*) as times, app.merged(payload) as asked
              from (select request ->> 'user_id' collate "C" as user_id,
                           jsonb_strip_nulls(request -> 'payload') as payload
                      from unnest(requests) with ordinality as r(request, nth)
                     order by 1, nth) in_order
             group by user_id) by_user
     order by user_id
        on conflict (user_id) do update
       set email      = coalesce(excluded.email, u.email),
           name       = coalesce(excluded.name, u.name),
           locale     = coalesce(excluded.locale, u.locale),
           version    = u.version + excluded.version,
           updated_at = now();
    -- No results. A function that has some returns one for each request, in their order.
    return null;
end $$;

create or replace function app.get_profile(request jsonb) returns jsonb
language sql volatile as $$
    select jsonb_build_object(
               'user_id', request ->> 'user_id',
               'profile', (select to_jsonb(u) - 'user_id' from app.users u where u.user_id = request ->> 'user_id'),
               'address', (select to_jsonb(a) - 'user_id' from app.addresses a where a.user_id = request ->> 'user_id'))
$$;

create or replace function app.verify_address(request jsonb, response jsonb) returns jsonb
language plpgsql volatile as $$
begin
    if response ->> 'address' is null then
        raise exception 'the geocoder answered without an address' using errcode = 'invalid_parameter_value';
    end if;
    insert into app.addresses (user_id, address, verified, request_id)
    values (request ->> 'user_id', response ->> 'address',
            coalesce((response ->> 'verified')::boolean, false), request ->> 'request_id')
        on conflict (user_id) do update
       set address = excluded.address, verified = excluded.verified,
           request_id = excluded.request_id, updated_at = now();
    return jsonb_build_object('verified', coalesce((response ->> 'verified')::boolean, false));
end $$;
