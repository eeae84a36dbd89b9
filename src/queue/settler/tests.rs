//! The desk and its settler, without a broker.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, future::poll_fn, pin::pin, task::Poll};

use super::*;

#[test]
fn what_cannot_be_told_any_more_is_counted_as_lost_once() {
    let lost = Arc::new(AtomicU64::new(0));
    let desk = Desk::new(1, lost.clone());
    (1..=3).for_each(|tag| desk.register(tag));
    desk.tell(2, Settlement::Ack);
    desk.close();
    desk.close();
    assert_eq!(lost.load(Ordering::Relaxed), 1, "told and unsent");
    desk.tell(1, Settlement::GiveBack);
    assert_eq!(lost.load(Ordering::Relaxed), 2, "told too late");
    assert!(!desk.is_open());
}

#[test]
fn a_sealed_desk_still_sends_what_was_told() {
    let desk = Desk::new(1, Arc::default());
    (1..=3).for_each(|tag| desk.register(tag));
    desk.tell(2, Settlement::Ack);
    desk.seal();
    let (batch, _, _) = desk.take(Duration::from_secs(60));
    assert_eq!(batch.singles, [(2, Settlement::Ack)], "nothing is held back any more");
    assert_eq!(desk.working(), 2);
}

/// A channel that notes what it is told, and takes its time: a frame is sent at the second look.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Noted>>);

#[derive(Clone, Default)]
struct Noted {
    singles: Vec<(u64, Settlement)>,
    up_to: Vec<u64>,
}

impl Notes {
    async fn slowly() {
        let mut looked = false;
        poll_fn(|context| {
            context.waker().wake_by_ref();
            if std::mem::replace(&mut looked, true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Frames for Notes {
    async fn settle(&self, tag: u64, settlement: Settlement) -> lapin::Result<()> {
        Self::slowly().await;
        self.0.lock().unwrap().singles.push((tag, settlement));
        Ok(())
    }

    async fn acknowledge_up_to(&self, tag: u64) -> lapin::Result<()> {
        Self::slowly().await;
        self.0.lock().unwrap().up_to.push(tag);
        Ok(())
    }
}

/// Five that end one millisecond after the other, and how many frames say so.
#[tokio::test(start_paused = true)]
async fn where_the_prefetch_leaves_room_acknowledgements_go_together() {
    for (ahead, frames) in [(ROOMY - 1, 5), (ROOMY, 2)] {
        let (notes, desk) = (Notes::default(), Desk::new(1, Arc::default()));
        desk.subscribed(ahead);
        (1..=5).for_each(|tag| desk.register(tag));
        let within = Duration::from_secs(60);
        let settler = tokio::spawn(run(desk.clone(), notes.clone(), within, within));
        for tag in 1..=5 {
            desk.tell(tag, Settlement::Ack);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(2 * REST).await;
        let Noted { up_to, .. } = notes.0.lock().unwrap().clone();
        assert_eq!((up_to.len(), up_to.last()), (frames, Some(&5)), "{ahead}: {up_to:?}");
        desk.seal();
        assert!(settler.await.unwrap().is_ok());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Tell(u64, Settlement),
    Seal,
    Close,
}

fn orders(acts: &[Act]) -> Vec<Vec<Act>> {
    if acts.is_empty() {
        return vec![Vec::new()];
    }
    (0..acts.len())
        .flat_map(|first| {
            let mut rest = acts.to_vec();
            let first = rest.remove(first);
            orders(&rest).into_iter().map(move |mut rest| {
                rest.insert(0, first);
                rest
            })
        })
        .collect()
}

/// Three tickets and the end of the channel, in every order, with the settler getting its turn after
/// each of them or not, and resting or not: the lock makes each a single step, so these are all the
/// ways there are.
#[tokio::test(start_paused = true)]
async fn whatever_the_order_each_ticket_is_sent_as_told_or_counted_as_lost() {
    let tickets = [(1, Settlement::Ack), (2, Settlement::Ack), (3, Settlement::GiveBack)];
    let mut acts: Vec<Act> = tickets.iter().map(|(tag, told)| Act::Tell(*tag, *told)).collect();
    let mut ways = 0;
    for end in [Act::Seal, Act::Close] {
        acts.push(end);
        for order in orders(&acts) {
            for (turns, ahead) in
                (0..1_u32 << (2 * order.len())).flat_map(|turns| [(turns, 0), (turns, ROOMY)])
            {
                ways += 1;
                let (lost, notes) = (Arc::new(AtomicU64::new(0)), Notes::default());
                let desk = Desk::new(1, lost.clone());
                desk.subscribed(ahead);
                (1..=3).for_each(|tag| desk.register(tag));
                let gap = Duration::from_secs(60);
                let mut settler = pin!(run(desk.clone(), notes.clone(), gap, gap));
                let mut over = false;
                for (at, act) in order.iter().enumerate() {
                    match act {
                        Act::Tell(tag, told) => desk.tell(*tag, *told),
                        Act::Seal => desk.seal(),
                        Act::Close => desk.close(),
                    }
                    // No turn, one in which it begins to send, or enough to send.
                    for _ in 0..turns >> (2 * at) & 0b11 {
                        over = over || futures_util::poll!(&mut settler).is_ready();
                    }
                }
                for _ in 0..12 {
                    over = over || futures_util::poll!(&mut settler).is_ready();
                }
                assert!(over, "the settler ends with the desk: {order:?}, {turns:b}");
                let Noted { singles, up_to } = notes.0.lock().unwrap().clone();
                let mut sent: BTreeMap<u64, Settlement> = BTreeMap::new();
                for (tag, told) in singles {
                    assert_eq!(sent.insert(tag, told), None, "{tag} twice");
                }
                for tag in (1..=3).filter(|tag| up_to.iter().any(|up_to| tag <= up_to)) {
                    sent.entry(tag).or_insert(Settlement::Ack);
                }
                for (tag, told) in &sent {
                    assert!(tickets.contains(&(*tag, *told)), "{order:?}, {turns:b}: {sent:?}");
                }
                let lost = lost.load(Ordering::Relaxed);
                assert_eq!(sent.len() as u64 + lost, 3, "{order:?}, {turns:b}: {sent:?}");
                if end == Act::Seal {
                    let before = order.iter().position(|act| *act == Act::Seal);
                    assert_eq!(Some(sent.len()), before, "what was told in time is sent");
                }
            }
        }
        acts.pop();
    }
    assert_eq!(ways, 2 * 2 * 24 * 256);
}
