//! The main job: every connection of the pool live and streaming, nothing lost, nothing silent.

mod support;

use std::time::Duration;

use exchange_sim::ExchangeConfig;
use kalshi_feed::PoolLayout;
use support::Rig;

#[test]
fn the_whole_pool_streams_and_every_frame_is_accounted_for() {
    let exchange =
        ExchangeConfig { markets: 500, rate_per_second: 5_000, ..ExchangeConfig::default() };
    let mut rig = Rig::start(exchange, PoolLayout::default(), |settings| settings);
    rig.all_confirmed(500);
    rig.consume_for(Duration::from_secs(2), |_| {});
    let before = rig.handle.stats();
    assert_eq!(before.connections_healthy, 150);
    assert_eq!(before.subscriptions_total, 150);
    let (verdict, report) = rig.settle();
    assert_eq!(verdict.unaccounted, 0, "{:#?}", verdict.findings);
    assert!(verdict.delivered > 5_000, "{verdict:?}");
    assert_eq!((verdict.sent, verdict.covered), (verdict.delivered, 0));
    let stats = report.stats;
    assert_eq!(stats.messages_dropped, 0);
    assert_eq!(
        stats.messages_received,
        stats.messages_forwarded + stats.lifecycle_forwarded + stats.lifecycle_discarded
    );
    assert_eq!(stats.messages_consumed, stats.messages_forwarded);
    assert_eq!((report.stuck.len(), report.panicked.len(), report.untold.len()), (0, 0, 0));
    assert_eq!(stats.reports_lost, 0);
}
