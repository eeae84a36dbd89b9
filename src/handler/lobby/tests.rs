use super::*;
use crate::ledger::Fence;

const PATIENCE: Duration = Duration::from_secs(6);

/// So many get in within the next second.
async fn get_in(bounds: &Bounds, many: usize) {
    for _ in 0..many {
        assert!(bounds.enter(false).await.is_some());
    }
    tokio::time::advance(LATELY).await;
}

/// How many may wait for it, one after the other.
fn wait(lobby: &Lobby, bounds: &Bounds) -> usize {
    let one = || {
        let aside = lobby.aside(&Full::Bounds(bounds), "u", Hold::Claimed(Fence(1)), PATIENCE)?;
        Some((aside, bounds.in_line(false)))
    };
    std::iter::from_fn(one).collect::<Vec<_>>().len()
}

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_get_in_within_half_their_patience() {
    let lobby = Lobby::new(8, None, 200);
    let bounds = Bounds::new("kind:k", Some(1), None, WhenFull::Wait);
    assert_eq!(wait(&lobby, &bounds), A_FEW, "nobody has got in yet");
    assert!(bounds.enter(false).await.is_some());
    assert_eq!(wait(&lobby, &bounds), 100, "half of all, while nobody knows the pace");
    get_in(&bounds, 9).await;
    assert_eq!(wait(&lobby, &bounds), 30, "ten a second");
    get_in(&bounds, 50).await;
    assert_eq!(wait(&lobby, &bounds), 100);
    let park = Bounds::new("kind:p", Some(1), None, WhenFull::Park);
    assert_eq!(wait(&lobby, &park), 0);
    tokio::time::advance(2 * LATELY).await;
    assert_eq!(wait(&lobby, &bounds), A_FEW, "it has come to a halt");
}

#[tokio::test(start_paused = true)]
async fn where_all_that_comes_is_for_it_any_number_waits_for_a_while_and_not_only_the_first() {
    let lobby = Lobby::new(8, None, 200);
    let bounds = Bounds::new("kind:k", Some(1), None, WhenFull::Wait);
    assert!(bounds.enter(false).await.is_some());
    let fresh = |_| {
        lobby.comes();
        bounds.comes();
        let aside = lobby.aside(&Full::Bounds(&bounds), "u", Hold::Fresh(Fence(1)), PATIENCE)?;
        Some((aside, bounds.in_line(false)))
    };
    let waiting: Vec<_> = (0..500).map_while(fresh).collect();
    let patient = waiting.iter().filter(|(aside, _)| aside.most.is_none()).count();
    assert_eq!((waiting.len(), patient), (500, 100));
}
