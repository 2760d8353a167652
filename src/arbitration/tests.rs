//! Which policies a pool can have, and how they are written.

use super::*;

#[test]
fn first_wins_takes_two_lines_on_one_shard() {
    let check = |policy: ArbitrationPolicy, pool: (u16, u16, u16)| {
        policy.check(PoolLayout::new(pool.0, pool.1, pool.2, 9))
    };
    let all = ArbitrationPolicy::from(Arbitration::FirstWins);
    assert_eq!(check(all, (2, 2, 2)), Ok(()));
    let trade = ArbitrationPolicy { trade: Arbitration::FirstWins, ..Default::default() };
    assert_eq!(check(trade, (4, 2, 0)), Ok(()));
    assert_eq!(check(ArbitrationPolicy::default(), (1, 0, 3)), Ok(()));
    for (policy, pool, part) in [
        (all, (2, 1, 2), "trade has 1"),
        (all, (3, 2, 2), "ticker has 3"),
        (trade, (1, 2, 1), "two shards"),
        (trade, (2, 0, 2), "trade has 0"),
    ] {
        let problem = check(policy, pool).unwrap_err();
        assert!(problem.contains(part), "{problem}");
    }
}

#[test]
fn a_policy_is_one_word_or_one_for_each_role() {
    let read = |text: &str| serde_json::from_str::<ArbitrationPolicy>(text);
    assert_eq!(read(r#""first-wins""#).unwrap(), Arbitration::FirstWins.into());
    let policy = read(r#"{ "ticker": "first-wins" }"#).unwrap();
    assert_eq!((policy.ticker, policy.trade), (Arbitration::FirstWins, Arbitration::Both));
    assert_eq!(policy.of(Role::Orderbook), Arbitration::Both);
    assert!(read(r#"{ "orderbook": "first-wins" }"#).is_err());
    assert!(read(r#""second-wins""#).is_err());
}
