//! One direction of a proxied connection: bytes on their way, when each may go on, and how the
//! stream ends. Pure: time is given to it, and it touches no socket.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::wire::Lane;

/// Most bytes on their way: a slow lane pushes back.
pub(crate) const BOUND: usize = 256 * 1024;
/// With a bandwidth, this much time's worth of bytes goes at once.
const GULP: Duration = Duration::from_millis(5);

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// What may be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// Write these, or some of them.
    Bytes(&'a [u8]),
    /// All bytes are through, and so is the end.
    End(End),
    /// The lane's limit is reached.
    Limit,
    /// Nothing before this time.
    Later(Instant),
    /// Nothing at all.
    Nothing,
}

/// Bytes on their way.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    /// Bytes of the first chunk that are through.
    head: usize,
    held: usize,
    passed: u64,
    /// No byte before this time, by bandwidth and slices.
    free_at: Option<Instant>,
    end: Option<(Instant, End)>,
}

impl Pipe {
    /// How many more bytes it takes; none after the end.
    pub(crate) fn room(&self) -> usize {
        if self.end.is_some() { 0 } else { BOUND.saturating_sub(self.held) }
    }

    /// Whether nothing is on its way, the end aside.
    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Whether its end has come in.
    pub(crate) fn ended(&self) -> bool {
        self.end.is_some()
    }

    pub(crate) fn push(&mut self, bytes: &[u8], lane: &Lane, rng: &mut Rng, now: Instant) {
        let due = self.after_the_last(now + lane.latency + draw(lane.jitter, rng));
        self.held += bytes.len();
        self.chunks.push_back((due, bytes.to_vec()));
    }

    pub(crate) fn finish(&mut self, end: End, lane: &Lane, slow_close: Duration, now: Instant) {
        let due = self.after_the_last(now + lane.latency) + slow_close;
        self.end.get_or_insert((due, end));
    }

    /// Times never run backwards: the order of bytes stays.
    fn after_the_last(&self, due: Instant) -> Instant {
        self.chunks.back().map_or(due, |(last, _)| due.max(*last))
    }

    pub(crate) fn next(&self, lane: &Lane, now: Instant) -> Next<'_> {
        if lane.limit.is_some_and(|limit| self.passed >= limit) {
            return Next::Limit;
        }
        let Some((due, bytes)) = self.chunks.front() else {
            return match self.end {
                Some((due, _)) if due > now => Next::Later(due),
                Some((_, end)) => Next::End(end),
                None => Next::Nothing,
            };
        };
        let due = self.free_at.map_or(*due, |free| free.max(*due));
        if due > now {
            return Next::Later(due);
        }
        let left = bytes.get(self.head..).unwrap_or_default();
        let gulp = lane.bandwidth.map_or(usize::MAX, |rate| {
            usize::try_from(rate / (1_000 / GULP.as_millis() as u64)).unwrap_or(usize::MAX).max(1)
        });
        let limit = lane.limit.map_or(u64::MAX, |limit| limit - self.passed);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let most = left.len().min(gulp).min(limit).min(lane.slice.unwrap_or(usize::MAX));
        Next::Bytes(left.get(..most).unwrap_or(left))
    }

    /// Some bytes went on.
    pub(crate) fn took(&mut self, count: usize, lane: &Lane, now: Instant) {
        self.head += count;
        self.held -= count.min(self.held);
        self.passed += count as u64;
        let paced = lane.bandwidth.map_or(Duration::ZERO, |rate| {
            Duration::from_nanos((count as u64).saturating_mul(1_000_000_000) / rate)
        });
        let pause = if lane.slice.is_some() { lane.slice_pause } else { Duration::ZERO };
        let wait = paced.max(pause);
        if wait > Duration::ZERO {
            // Late wake-ups do not add up: what is left of a short delay counts.
            let since = self.free_at.filter(|&free| free + GULP >= now).unwrap_or(now);
            self.free_at = Some(since + wait);
        }
        if self.chunks.front().is_some_and(|(_, bytes)| self.head >= bytes.len()) {
            self.chunks.pop_front();
            self.head = 0;
        }
    }
}

fn draw(most: Duration, rng: &mut Rng) -> Duration {
    if most.is_zero() { most } else { most.mul_f64(rng.f64()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Takes whatever may go at `now`.
    fn drain(pipe: &mut Pipe, lane: &Lane, now: Instant) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        while let Next::Bytes(bytes) = pipe.next(lane, now) {
            let bytes = bytes.to_vec();
            pipe.took(bytes.len(), lane, now);
            got.push(bytes);
        }
        got
    }

    #[test]
    fn latency_holds_bytes_and_their_end_back() {
        let (start, mut rng) = (Instant::now(), Rng::with_seed(1));
        let lane = Lane { latency: ms(10), ..Lane::default() };
        let mut pipe = Pipe::default();
        pipe.push(b"ab", &lane, &mut rng, start);
        pipe.finish(End::Fin, &lane, ms(5), start + ms(1));
        assert_eq!(pipe.next(&lane, start + ms(9)), Next::Later(start + ms(10)));
        assert_eq!(drain(&mut pipe, &lane, start + ms(10)), [b"ab"]);
        assert_eq!(pipe.next(&lane, start + ms(15)), Next::Later(start + ms(16)));
        assert_eq!(pipe.next(&lane, start + ms(16)), Next::End(End::Fin));
        assert_eq!(pipe.room(), 0);
    }

    #[test]
    fn jitter_never_turns_the_order_around() {
        let (start, mut rng) = (Instant::now(), Rng::with_seed(2));
        let lane = Lane { jitter: ms(50), ..Lane::default() };
        let mut pipe = Pipe::default();
        for byte in 0..100 {
            pipe.push(&[byte], &lane, &mut rng, start + ms(u64::from(byte) / 4));
        }
        let mut got = Vec::new();
        for millis in 0..100 {
            got.extend(drain(&mut pipe, &lane, start + ms(millis)).concat());
        }
        assert_eq!(got, (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn bandwidth_is_what_it_says() {
        let (start, mut rng) = (Instant::now(), Rng::with_seed(3));
        let lane = Lane { bandwidth: Some(10_000), ..Lane::default() };
        let mut pipe = Pipe::default();
        pipe.push(&[7; 5_000], &lane, &mut rng, start);
        let mut got = 0;
        for millis in 0..=250 {
            got += drain(&mut pipe, &lane, start + ms(millis)).concat().len();
        }
        assert!((2_400..=2_600).contains(&got), "{got} bytes in 250 ms");
    }

    #[test]
    fn slices_are_small_and_paused_between() {
        let (start, mut rng) = (Instant::now(), Rng::with_seed(4));
        let lane = Lane { slice: Some(3), slice_pause: ms(2), ..Lane::default() };
        let mut pipe = Pipe::default();
        pipe.push(b"abcdefg", &lane, &mut rng, start);
        assert_eq!(drain(&mut pipe, &lane, start), [b"abc"]);
        assert_eq!(drain(&mut pipe, &lane, start + ms(1)), Vec::<Vec<u8>>::new());
        assert_eq!(drain(&mut pipe, &lane, start + ms(2)), [b"def"]);
        assert_eq!(drain(&mut pipe, &lane, start + ms(4)), [b"g"]);
        assert!(pipe.is_empty());
    }

    #[test]
    fn a_limit_cuts_at_the_byte() {
        let (start, mut rng) = (Instant::now(), Rng::with_seed(5));
        let lane = Lane { limit: Some(5), ..Lane::default() };
        let mut pipe = Pipe::default();
        pipe.push(b"abc", &lane, &mut rng, start);
        pipe.push(b"def", &lane, &mut rng, start);
        assert_eq!(drain(&mut pipe, &lane, start).concat(), b"abcde");
        assert_eq!(pipe.next(&lane, start), Next::Limit);
    }

    #[test]
    fn it_is_bounded() {
        let (start, mut rng) = (Instant::now(), Rng::with_seed(6));
        let mut pipe = Pipe::default();
        pipe.push(&vec![0; BOUND - 1], &Lane::default(), &mut rng, start);
        assert_eq!(pipe.room(), 1);
    }
}
