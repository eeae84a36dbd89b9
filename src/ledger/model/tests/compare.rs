//! Both tables, row by row.

use super::*;
use crate::ledger::model::line::NEVER;

impl Pair {
    /// Whether the tables say the same.
    pub(super) async fn compare(&self, after: &str) {
        let rows =
            "select request_id, state, attempt, fence, from_queue, coalesce(worker, ''), parked_on, error_code,
                           result::text, crashes, alone, body is null, digest,
                           case when due_at = 'infinity' then 'infinity'
                                else extract(epoch from due_at - now())::float8 end,
                           place is not null
                      from longshore.requests order by request_id";
        let theirs = self.client.query(rows, &[]).await.unwrap();
        let ids: Vec<String> = theirs.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids, self.model.rows.keys().cloned().collect::<Vec<_>>(), "{after}");
        for row in &theirs {
            let id: String = row.get(0);
            let ours = &self.model.rows[&id];
            let said = (
                (row.get(1), row.get(2), row.get(3), row.get(4), row.get::<_, String>(5)),
                (row.get(6), row.get(7), row.get(8)),
                (row.get(9), row.get(10), row.get::<_, bool>(11), row.get(12)),
            );
            let expected = (
                (
                    ours.state.to_owned(),
                    ours.attempt,
                    ours.fence,
                    ours.from_queue,
                    ours.worker.clone(),
                ),
                (ours.parked_on.clone(), ours.error_code.map(str::to_owned), ours.result.clone()),
                (
                    ours.crashes,
                    ours.alone,
                    ours.state == "done",
                    ours.request.message.digest().to_vec(),
                ),
            );
            assert_eq!(said, expected, "{id} after: {after}");
            let seconds: Option<f64> = row.get(13);
            assert_eq!(row.get::<_, bool>(14), ours.place.is_some(), "{id} after: {after}");
            let due_in = ours.due_at.map(|at| match at {
                NEVER => f64::INFINITY,
                at => at.as_secs_f64() - self.now().as_secs_f64(),
            });
            let same = seconds == due_in;
            let near = seconds.unwrap_or_default() - due_in.unwrap_or_default();
            assert!(
                same || seconds.is_some() == due_in.is_some() && near.abs() < 4.0,
                "{id}: {seconds:?}, {due_in:?}"
            );
        }
        let history =
            "select request_id, attempt, outcome from longshore.attempts order by 1, 2, 3";
        let theirs = self.client.query(history, &[]).await.unwrap();
        let theirs: Vec<(String, i32, String)> =
            theirs.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        let ours = self.model.history.iter();
        let mut ours: Vec<_> =
            ours.map(|(id, attempt, ended)| (id.clone(), *attempt, (*ended).to_owned())).collect();
        ours.sort();
        assert_eq!(theirs, ours, "history after: {after}");
        let effects = "select id, count(*)::int from effects group by 1 order by 1";
        let theirs = self.client.query(effects, &[]).await.unwrap();
        let theirs: Vec<(String, i32)> =
            theirs.iter().map(|row| (row.get(0), row.get(1))).collect();
        let ours = self.model.effects.iter().map(|(id, count)| (id.clone(), *count as i32));
        assert_eq!(theirs, ours.collect::<Vec<_>>(), "effects after: {after}");
        let counts = self.ledgers[0].counts().await.unwrap();
        let sorted = |mut counts: Counts| {
            counts.parked.sort();
            counts
        };
        assert_eq!(sorted(counts), sorted(self.model.counts()));
    }
}
