-- Who finishes a claimed request does so by `insert … on conflict do update`, which needs no plan that
-- looks anything up. A row that is no longer there must not come into being by that.

create function longshore.gone(request_id text) returns boolean language plpgsql volatile as $$
begin
    raise exception 'request % was claimed and has no row', request_id using errcode = 'LS001';
end $$;

comment on function longshore.gone is
    'Fails the statement that would finish a claimed request whose row is no longer there';
