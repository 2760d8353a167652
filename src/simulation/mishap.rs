//! What befalls connections, threads, clocks and hosts of their own accord, a little at a time.

use std::time::Duration;

use super::exchange::Phase;
use super::faults::Fault;
use super::network::{Event, Part};
use super::world::World;

const MISHAPS: [Fault; 19] = [
    Fault::CutMidFrame,
    Fault::Reset,
    Fault::Fin,
    Fault::Closed,
    Fault::Malformed,
    Fault::HalfOpen,
    Fault::ExchangeStalls,
    Fault::MassDrop,
    Fault::SlowFrame,
    Fault::Terminated,
    Fault::WriteBlocked,
    Fault::ThreadPaused,
    Fault::ProcessPaused,
    Fault::WallJumps,
    Fault::HostStalls,
    Fault::HostSlow,
    Fault::RegistryStalls,
    Fault::MarketChurn,
    Fault::MarketChurn,
];
/// Why an exchange closes; the last two halt who meets them three times in a row.
const CLOSE_CODES: [u16; 8] = [1000, 1001, 1011, 1012, 1013, 1002, 1008, 4001];

impl World {
    /// One class has its chance.
    pub(super) fn mishap(&mut self) {
        let which = self.network.borrow_mut().faults.below(MISHAPS.len());
        let fault = MISHAPS[which];
        if self.network.borrow_mut().faults.strikes(fault) {
            let now = self.now();
            self.network.borrow_mut().trace.note(now, format_args!("{fault:?}"));
            self.befall(fault);
        }
    }

    pub(super) fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::ThreadPaused => {
                let party = self.draw(self.asleep_until.len());
                let by = self.between_ms(10, 4_000);
                self.sleep(party, by);
            }
            Fault::ProcessPaused => {
                let by = self.between_ms(1_000, 60_000);
                (0..self.asleep_until.len()).for_each(|party| self.sleep(party, by));
                self.host.asleep_until = self.host.asleep_until.max(self.now() + by);
            }
            Fault::WallJumps => {
                let hours = [-3_600, 0, 3_600];
                let which = self.draw(hours.len());
                self.network.borrow_mut().clock.wall_shift = hours[which];
            }
            Fault::HostStalls => self.host.asleep_until = self.now() + self.between_ms(100, 8_000),
            Fault::HostSlow => {
                self.host.batch = 1 + self.draw(4);
                self.host.interval = self.between_ms(1, 300);
            }
            Fault::RegistryStalls => {
                self.host.registry_asleep_until = self.now() + self.between_ms(100, 8_000);
            }
            Fault::ExchangeStalls => {
                // Never longer than first said: what waits would change places.
                if self.exchange.stalled_until <= self.now() {
                    self.exchange.stalled_until = self.now() + self.between_ms(100, 9_000);
                }
            }
            Fault::MarketChurn => {
                let all = self.settings.pool.orderbook * 8;
                for _ in 0..=self.draw(6) {
                    let number = self.network.borrow_mut().faults.below(usize::from(all));
                    self.change(u16::try_from(number).unwrap());
                }
            }
            Fault::MassDrop => {
                for link in self.open_links() {
                    self.strike(link, Fault::Reset);
                }
            }
            other => {
                let links = self.open_links();
                if !links.is_empty() {
                    let which = self.draw(links.len());
                    self.strike(links[which], other);
                }
            }
        }
    }

    /// Something befalls one connection.
    fn strike(&mut self, link: usize, fault: Fault) {
        let network = &mut *self.network.borrow_mut();
        let exchange = &mut self.exchange;
        match fault {
            Fault::CutMidFrame => {
                let end = if network.faults.below(2) == 0 { Part::Fin } else { Part::Reset };
                exchange.cut(link, Some(end), network);
            }
            Fault::SlowFrame => exchange.cut(link, None, network),
            Fault::Reset => exchange.end(link, Part::Reset, network),
            Fault::Fin => exchange.end(link, Part::Fin, network),
            Fault::Closed => {
                let most = if network.faults.below(8) == 0 { CLOSE_CODES.len() } else { 6 };
                let code = CLOSE_CODES[network.faults.below(most)];
                exchange.close(link, code, network);
            }
            Fault::Malformed => exchange.malformed(link, network),
            Fault::HalfOpen => network.sockets[link].severed = true,
            Fault::Terminated => exchange.terminate(link, network),
            Fault::WriteBlocked => {
                let room = network.faults.below(60);
                network.block(link, room);
                let by = network.faults.between_ms(50, 6_000);
                network.later(by, Event::Unblocked { link });
            }
            other => panic!("{other:?} befalls no connection"),
        }
    }

    fn open_links(&self) -> Vec<usize> {
        let sessions = self.exchange.sessions.iter().enumerate();
        sessions.filter(|(_, s)| s.phase == Phase::Open).map(|(link, _)| link).collect()
    }

    /// A party is not scheduled for so long.
    pub(super) fn sleep(&mut self, party: usize, by: Duration) {
        let until = self.now() + by;
        self.asleep_until[party] = self.asleep_until[party].max(until);
        self.defer(party);
    }

    fn draw(&self, count: usize) -> usize {
        self.network.borrow_mut().faults.below(count)
    }

    fn between_ms(&self, least: u64, most: u64) -> Duration {
        self.network.borrow_mut().faults.between_ms(least, most)
    }
}
