//! Settings that cannot work are refused by name; the environment overrides what it may.

use super::*;

fn refused(builder: ConfigBuilder, setting: &str) {
    let error = builder.build().unwrap_err().to_string();
    assert!(error.starts_with(setting), "{error}");
}

#[test]
fn j8_nonsense_is_refused_by_name() {
    let new = Config::builder;
    refused(new().url("http://localhost/"), "url");
    refused(new().url("ws://example.com/"), "url");
    refused(new().url("not a url"), "url");
    refused(new().url(""), "url");
    refused(new().url("wss://user@example.com/"), "url");
    refused(new().shards(0), "shards");
    refused(new().cores(vec![100_000]), "cores");
    refused(new().cores(vec![0]).shards(2), "cores");
    refused(new().chunk(0), "chunk");
    refused(new().recovery_rate(0), "recovery_rate");
    refused(new().turn_budget(0), "turn_budget");
    refused(new().handler_slow_threshold(Duration::ZERO), "handler_slow_threshold");
    refused(new().stall_threshold(Duration::ZERO), "stall_threshold");
    refused(new().message_timeout(Duration::ZERO), "message_timeout");
    refused(new().silent_after(Duration::ZERO).silent_reconnect(true), "silent_reconnect");
    refused(new().lag_threshold(Duration::MAX), "lag_threshold");
    refused(new().receive_buffer_bytes(100), "receive_buffer_bytes");
    refused(new().receive_buffer_bytes(usize::MAX), "receive_buffer_bytes");
    refused(new().busy_poll_us(2_000_000), "busy_poll_us");
    refused(new().tcp_user_timeout(Duration::from_micros(1)), "tcp_user_timeout");
    refused(new().tcp_user_timeout(Duration::MAX), "tcp_user_timeout");
    refused(new().bind_address([192, 0, 2, 1].into()), "bind_address");
    refused(new().bind_interface("no-such-if".into()), "bind_interface");
    refused(new().message_buffer(0), "message_buffer");
    refused(new().message_buffer_bytes(1_000), "message_buffer_bytes");
    refused(new().conflate_markets(0), "conflate_markets");
    refused(new().overflow(crate::overflow::Overflow::ConflateByMarket), "overflow");
    refused(new().connect_timeout(Duration::ZERO), "connect_timeout");
    refused(new().ping_idle(Duration::MAX), "ping_idle");
    refused(new().reconnect_max(Duration::from_millis(1)), "reconnect_max");
    refused(new().reconnect_factor(f64::NAN), "reconnect_factor");
    refused(new().min_healthy(151), "min_healthy");
    refused(new().pool(PoolLayout::new(0, 0, 0, 0)), "pool");
    refused(new().key_id("id".into()), "key_file");
    refused(new().ca_file(PathBuf::from("/no/such/file")), "ca_file");
    refused(new().ca_pem("nothing".into()), "ca_pem");
}

#[test]
fn j8_a_time_of_nothing_is_refused_by_name() {
    type Set = fn(ConfigBuilder, Duration) -> ConfigBuilder;
    let table: [(&str, Set); 9] = [
        ("connect_timeout", ConfigBuilder::connect_timeout),
        ("subscribe_timeout", ConfigBuilder::subscribe_timeout),
        ("start_timeout", ConfigBuilder::start_timeout),
        ("reconnect_initial", ConfigBuilder::reconnect_initial),
        ("ping_idle", ConfigBuilder::ping_idle),
        ("pong_timeout", ConfigBuilder::pong_timeout),
        ("write_timeout", ConfigBuilder::write_timeout),
        ("message_timeout", ConfigBuilder::message_timeout),
        ("stall_threshold", ConfigBuilder::stall_threshold),
    ];
    for (setting, set) in table {
        refused(set(Config::builder(), Duration::ZERO), setting);
    }
}

#[test]
fn the_kernel_gives_up_when_we_do() {
    let timeout = |builder: ConfigBuilder| builder.socket_options().user_timeout;
    let seconds = Duration::from_secs;
    assert_eq!(timeout(Config::builder()), seconds(25));
    assert_eq!(timeout(Config::builder().ping_idle(seconds(60))), seconds(70));
    assert_eq!(timeout(Config::builder().tcp_user_timeout(seconds(5))), seconds(5));
}

#[test]
fn h4_a_time_no_clock_could_hold_is_refused() {
    type Set = fn(ConfigBuilder, Duration) -> ConfigBuilder;
    let table: [(&str, Set); 17] = [
        ("connect_timeout", ConfigBuilder::connect_timeout),
        ("subscribe_timeout", ConfigBuilder::subscribe_timeout),
        ("start_timeout", ConfigBuilder::start_timeout),
        ("reconnect_initial", ConfigBuilder::reconnect_initial),
        ("reconnect_max", ConfigBuilder::reconnect_max),
        ("connect_interval", ConfigBuilder::connect_interval),
        ("ping_idle", ConfigBuilder::ping_idle),
        ("pong_timeout", ConfigBuilder::pong_timeout),
        ("write_timeout", ConfigBuilder::write_timeout),
        ("message_timeout", ConfigBuilder::message_timeout),
        ("silent_after", ConfigBuilder::silent_after),
        ("lag_threshold", ConfigBuilder::lag_threshold),
        ("stall_threshold", ConfigBuilder::stall_threshold),
        ("handler_slow_threshold", ConfigBuilder::handler_slow_threshold),
        ("tcp_user_timeout", ConfigBuilder::tcp_user_timeout),
        ("migrate_after", ConfigBuilder::migrate_after),
        ("wait", |new, spin| new.wait(Wait::Adaptive { spin })),
    ];
    for (setting, set) in table {
        for time in [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(90_000)] {
            refused(set(Config::builder(), time), setting);
        }
    }
    // The longest that are taken, and the sums made of them, fit every clock.
    let day = Duration::from_secs(86_400);
    let longest = Config::builder().ping_idle(day).pong_timeout(day);
    assert_eq!(longest.build().unwrap().socket.user_timeout, 2 * day);
}

#[test]
fn g7_cores_that_cannot_be_had_are_refused_and_never_replaced_in_silence() {
    let new = Config::builder;
    refused(new().cores(vec![100_000]), "cores");
    refused(new().cores(vec![0]).shards(2), "cores");
    refused(new().shards(65), "shards");
    // More shards than cores is allowed, and is a warning at the start (see `placement`).
    let many = new().shards(64).build().unwrap();
    assert_eq!(many.shards(), 64);
}

#[test]
fn the_environment_overrides_reconnecting() {
    let lookup = |name: &str| match name {
        "WS_RECONNECT_INITIAL" => Some("250ms".to_owned()),
        "WS_RECONNECT_FACTOR" => Some("1.5".to_owned()),
        _ => None,
    };
    let builder = Config::builder().environment(lookup).unwrap();
    assert_eq!(builder.reconnect_initial, Duration::from_millis(250));
    assert_eq!(builder.reconnect_max, Duration::from_secs(300));
    assert!((builder.reconnect_factor - 1.5).abs() < f64::EPSILON);
    let bad = |name: &str| (name == "WS_RECONNECT_MAX").then(|| "soon".to_owned());
    assert!(Config::builder().environment(bad).is_err());
}
