#!/usr/bin/env bash
# Half-open connections on a real network: the exchange behind a veth pair in a network namespace of
# its own, kalshi-feed in front of it, and the link between them taken down, so that no end is told.
# Shows that both nets hold, each alone: pings without an answer (ping_idle + pong_timeout), then the
# kernel's TCP_USER_TIMEOUT. Needs no privilege where user namespaces are allowed; says what is
# missing otherwise (exit 2). Exit 1: a net did not hold.
set -euo pipefail
cd "$(dirname "$0")/.."

missing() { printf 'half_open.sh: %s\n' "$1" >&2; exit 2; }

if [ "${1:-}" != inside ]; then
    for tool in unshare nsenter; do
        command -v "$tool" >/dev/null || missing "$tool is missing; install util-linux"
    done
    for tool in ip ss; do
        command -v "$tool" >/dev/null || missing "$tool is missing; install iproute2"
    done
    unshare -rnm true 2>/dev/null || missing "user namespaces are not allowed here: \
as root, sysctl user.max_user_namespaces=10000 (Debian: kernel.unprivileged_userns_clone=1, \
Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0), or run this as root"
    unshare -rnm ip link add name near type veth peer name far 2>/dev/null \
        || missing "no veth pairs here: as root, modprobe veth"
    cargo build --quiet -p kalshi-feed-cli -p exchange-sim
    exec unshare -rnm bash tools/half_open.sh inside
fi

PATH="$PWD/${CARGO_TARGET_DIR:-target}/debug:$PATH"
CONNECTIONS=8
PORT=9443
ADDRESS=10.77.0.2
work=$(mktemp -d)
pids=()
clean() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    umount /etc/hosts 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT

now_ms() { echo $(( ${EPOCHREALTIME/[.,]/} / 1000 )); }
established() { ss -Htn state established "dport = :$PORT" | wc -l; }
# Waits until this command succeeds, for so many seconds.
until_true() {
    local end=$(( $(now_ms) + $1 * 1000 ))
    shift
    until "$@"; do
        [ "$(now_ms)" -lt "$end" ] || return 1
        sleep 0.02
    done
}
fails=0
fail() { printf 'FAILED: %s\n' "$1"; fails=$((fails + 1)); }

# The network: us, and the exchange behind the link.
unshare -n sleep 600 &
far=$!
pids+=("$far")
elsewhere() { [ "$(readlink "/proc/$far/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
until_true 5 elsewhere || missing "no second network namespace"
there() { nsenter --net="/proc/$far/ns/net" "$@"; }
ip link set lo up
ip link add name near type veth peer name far netns "$far"
ip address add 10.77.0.1/24 dev near
ip link set near up
there ip link set lo up
there ip address add "$ADDRESS/24" dev far
there ip link set far up
# Its certificate is for localhost; for us that is now there.
printf '%s localhost\n' "$ADDRESS" >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts

nsenter --net="/proc/$far/ns/net" exchange-sim --listen "$ADDRESS:$PORT" --markets 50 --rate 500 --ca-out "$work/ca" \
    --key-out "$work/key" --key-id-out "$work/id" --markets-out "$work/markets" >"$work/exchange" &
pids+=($!)
until_true 20 grep -q listening "$work/exchange" || { fail "the exchange does not start"; exit 1; }

# One net alone: its name, its settings, what the log says when it catches, and by when it must.
net() {
    local name=$1 settings=$2 says=$3 limit_ms=$4
    cat >"$work/config.toml" <<EOF
url = "wss://localhost:$PORT/trade-api/ws/v2"
ca_file = "$work/ca"
key_id = "$(cat "$work/id")"
key_file = "$work/key"
pool = { ticker = 1, trade = 1, lifecycle = 1, orderbook = 5 }
pin = false
shards = 1
reconnect_initial = "100ms"
reconnect_max = "500ms"
connect_timeout = "2s"
$settings
EOF
    printf '\n== %s: %s\n' "$name" "$(tr '\n' ' ' <<<"$settings")"
    RUST_LOG=info kalshi-feed run --config "$work/config.toml" --markets-file "$work/markets" \
        --output none --duration 0 >"$work/summary" 2>"$work/log" &
    local engine=$! down first="" gone
    pids+=("$engine")
    all() { [ "$(established)" -eq "$CONNECTIONS" ]; }
    until_true 20 all || { fail "it does not connect"; cat "$work/log"; return; }
    sleep 1
    all || { fail "connections fall before anything happens"; cat "$work/log"; return; }
    there ip link set far down
    down=$(now_ms)
    some_gone() { [ "$(established)" -lt "$CONNECTIONS" ]; }
    none_left() { [ "$(established)" -eq 0 ]; }
    until_true 60 some_gone && first=$(( $(now_ms) - down ))
    until_true 60 none_left || { fail "connections are held for more than a minute"; return; }
    gone=$(( $(now_ms) - down ))
    printf 'link down: the first connection is given up after %s ms, the last after %s ms (limit %s)\n' \
        "$first" "$gone" "$limit_ms"
    grep -m 1 ' lost: ' "$work/log" || true
    [ "$gone" -le "$limit_ms" ] || fail "$name took $gone ms, and has $limit_ms"
    grep -q " lost: .*$says" "$work/log" || { fail "no loss by $name"; cat "$work/log"; }
    there ip link set far up
    down=$(now_ms)
    until_true 30 all || { fail "it does not come back"; cat "$work/log"; return; }
    printf 'link up: all %s connections are back after %s ms\n' "$CONNECTIONS" \
        $(( $(now_ms) - down ))
    kill -INT "$engine"
    wait "$engine" || fail "kalshi-feed ended with $?"
}

# A second more than the settings: a frame may be on its way when the link goes, and the kernel's
# timers are coarse.
net "pings without an answer" $'ping_idle = "2s"\npong_timeout = "1s"\ntcp_user_timeout = "0s"' \
    "no answer to a ping" 4000
net "TCP_USER_TIMEOUT" $'ping_idle = "1s"\npong_timeout = "60s"\ntcp_user_timeout = "2s"' \
    "timed out" 4000

[ "$fails" -eq 0 ] || exit 1
printf '\nhalf_open.sh: both nets hold\n'
