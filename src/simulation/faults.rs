//! What goes wrong: which classes of fault a seed has, how often each strikes, and how often each
//! did. Swarm style: each class is off in most seeds, so that no two classes always come together.

use std::time::Duration;

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident = $per_mille:literal;)+) => {
        /// A class of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Fault { $($(#[doc = $doc])+ $name,)+ }

        impl Fault {
            pub(super) const ALL: &'static [Self] = &[$(Self::$name),+];
            /// How often it strikes at most, in a thousand chances.
            const RATES: &'static [u32] = &[$($per_mille),+];
        }
    };
}

faults! {
    /// The name service has no answer.
    ResolveFails = 300;
    /// The name service takes seconds.
    ResolveSlow = 300;
    /// Nobody listens.
    ConnectRefused = 400;
    /// Nobody answers.
    ConnectHangs = 300;
    /// 401, our clock is off.
    UpgradeExpired = 300;
    /// 429 with Retry-After.
    UpgradeTooMany = 300;
    /// 503.
    UpgradeUnavailable = 400;
    /// 403, which halts after three.
    UpgradeForbidden = 100;
    /// Not HTTP.
    UpgradeGarbage = 200;
    /// Part of an answer, then silence.
    UpgradeHangs = 200;
    /// Part of an answer, then the end.
    UpgradeCut = 200;
    /// The first frames come with the 101.
    UpgradeGlued = 1000;
    /// The end right behind the 101.
    UpgradeInVain = 200;
    /// A message of several kilobytes.
    Large = 30;
    /// A message in several frames, a ping between them.
    Fragmented = 100;
    /// What is sent arrives in pieces.
    Sliced = 700;
    /// What is sent takes its time.
    Delayed = 400;
    /// A number is used up and its message never sent.
    Withheld = 60;
    /// A message comes twice.
    Repeated = 60;
    /// Older messages come again.
    Backward = 40;
    /// Two messages change places.
    Swapped = 40;
    /// Books do not come.
    BookWithheld = 300;
    /// Carried out, and the reply comes late.
    ReplyDelayed = 300;
    /// Carried out, and the reply never comes.
    ReplyLost = 200;
    /// Carried out, and the reply comes twice.
    ReplyDoubled = 200;
    /// Neither carried out nor answered.
    CommandLost = 150;
    /// Carried out long after, out of order.
    CommandSlow = 250;
    /// Refused: out of order at the exchange.
    CommandFails = 150;
    /// Refused: too many markets.
    CommandTooLong = 60;
    /// Refused: too fast.
    CommandTooFast = 250;
    /// Carried out, and answered with a timeout.
    CommandTimeout = 250;
    /// A reply to nothing that was asked.
    ReplyStray = 100;
    /// The end in the middle of a frame.
    CutMidFrame = 400;
    /// A reset.
    Reset = 400;
    /// The end without a Close.
    Fin = 400;
    /// A Close frame.
    Closed = 400;
    /// A frame no server may send.
    Malformed = 200;
    /// Nothing passes any more, and nobody is told.
    HalfOpen = 300;
    /// The exchange does nothing for seconds.
    ExchangeStalls = 300;
    /// All connections end at once.
    MassDrop = 100;
    /// A frame whose rest does not come.
    SlowFrame = 150;
    /// The exchange ends a subscription.
    Terminated = 300;
    /// Our bytes are not taken for a while.
    WriteBlocked = 300;
    /// A reset right behind a reply.
    ResetAfterReply = 150;
    /// A shard that has just lost a connection is not scheduled for a while.
    PausedAtLoss = 600;
    /// A thread's next turn comes late.
    TurnDelayed = 60;
    /// Orders come when a thread has just looked for them, and wait for its next turn.
    TurnOverlaps = 500;
    /// A thread is not scheduled for a while.
    ThreadPaused = 400;
    /// The process is stopped for up to a minute.
    ProcessPaused = 100;
    /// People's clock jumps an hour.
    WallJumps = 300;
    /// The host takes nothing for a while.
    HostStalls = 300;
    /// The host is slow.
    HostSlow = 300;
    /// The registry takes no lifecycle messages for a while.
    RegistryStalls = 300;
    /// Markets come and go.
    MarketChurn = 900;
    /// A bug of the engine's amid a shard's turn, with a read or a takeover. Rare, and drawn apart:
    /// see `World::drawn`.
    ShardFails = 0;
    /// A message is lost on one line of a pair. This and what follows is drawn apart, too.
    LineLoses = 0;
    /// … on both.
    PairLoses = 0;
    /// One line stands still for seconds.
    LineStalls = 0;
    /// One line of a pair is cut.
    LineCut = 0;
    /// Both are.
    PairCut = 0;
}

/// The faults of one seed.
#[derive(Debug)]
pub(super) struct Faults {
    rates: Vec<u32>,
    pub(super) counts: Vec<u64>,
    pub(super) active: bool,
    random: fastrand::Rng,
}

impl Faults {
    /// None at all.
    pub(super) fn none(random: fastrand::Rng) -> Self {
        let count = Fault::ALL.len();
        Self { rates: vec![0; count], counts: vec![0; count], active: true, random }
    }

    /// Some classes, each with a rate of its own.
    pub(super) fn drawn(mut random: fastrand::Rng) -> Self {
        // From nearly none of them to nearly all.
        let share = random.u32(5..90);
        let rate = |&most: &u32| {
            if most > 0 && random.u32(0..100) < share { random.u32(1..=most) } else { 0 }
        };
        let rates = Fault::RATES.iter().map(rate).collect();
        Self { rates, ..Self::none(random) }
    }

    /// How often it strikes from now on, in a thousand chances.
    pub(super) fn set(&mut self, fault: Fault, per_mille: u32) {
        *self.rate(fault) = per_mille;
    }

    fn rate(&mut self, fault: Fault) -> &mut u32 {
        let index = Fault::ALL.iter().position(|&other| other == fault).unwrap();
        &mut self.rates[index]
    }

    /// Whether it strikes now; counted if it does.
    pub(super) fn strikes(&mut self, fault: Fault) -> bool {
        let rate = *self.rate(fault);
        let strikes = self.active && rate > 0 && self.random.u32(0..1_000) < rate;
        if strikes {
            self.count(fault);
        }
        strikes
    }

    pub(super) fn count(&mut self, fault: Fault) {
        let index = Fault::ALL.iter().position(|&other| other == fault).unwrap();
        self.counts[index] += 1;
    }

    pub(super) fn struck(&self, fault: Fault) -> u64 {
        Fault::ALL
            .iter()
            .zip(&self.counts)
            .find(|(other, _)| **other == fault)
            .unwrap()
            .1
            .to_owned()
    }

    /// Something between these many milliseconds.
    pub(super) fn between_ms(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.random.u64(least * 1_000..=most * 1_000))
    }

    pub(super) fn below(&mut self, count: usize) -> usize {
        self.random.usize(0..count)
    }
}
