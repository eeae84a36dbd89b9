-- One refused request must not undo the batch it shares: where a batch has failed, its functions are
-- called through this one, and what a function refuses is told beside what the others returned.

-- What a function returned, or the error that it raised: SQLSTATE, words, and whether they are its own.
create type longshore.tried as (result jsonb, state text, message text, raised boolean);

-- Calls `function` with the request, and with the response where it takes one. What it raises is
-- caught, and all that it wrote is undone, unless it may pass or says that the server is in trouble:
-- then the whole batch fails, as it would without this.
create function longshore.try_apply(
    function text, takes_response boolean, id text, kind text, user_id text, payload text,
    response text)
returns longshore.tried language plpgsql volatile as $$
declare
    request jsonb;
    context text;
    tried   longshore.tried;
begin
    request := jsonb_build_object('request_id', id, 'kind', kind, 'user_id', user_id,
                                  'payload', payload::jsonb);
    if takes_response then
        execute 'select ' || function || '($1, $2)' into tried.result using request, response::jsonb;
    else
        execute 'select ' || function || '($1)' into tried.result using request;
    end if;
    return tried;
exception when others then
    get stacked diagnostics
        tried.state = returned_sqlstate, tried.message = message_text,
        context = pg_exception_context;
    if left(tried.state, 2) in ('08', '40', '53', '57', '58') or tried.state = '55P03' then
        raise;
    end if;
    tried.result := null;
    tried.raised := split_part(context, E'\n', 1) like '% at RAISE';
    return tried;
end $$;

comment on function longshore.try_apply is
    'Applies a request without failing the batch it shares: what is refused is told by its SQLSTATE';
