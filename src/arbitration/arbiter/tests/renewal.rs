//! A line whose subscription ends and is renewed while the line stays up. It owns that one step of
//! a line's life; what is lost and filled otherwise is told next door.

use super::*;

impl Pair {
    /// A line's subscription ends, with a number of its own, and is renewed.
    fn renew(&mut self, line: Line) {
        self.reply(line, false);
        self.read(line, usize::MAX, 0);
        let wire = &mut self.wires[line.index()];
        wire.sequences.retire(SID);
        wire.sequences.open(SID, None);
        wire.seq = 0;
    }
}

#[test]
fn what_a_subscription_lacked_at_its_end_the_other_line_fills() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.read_all();
    pair.send(2, ON_B);
    pair.send(3, ON_BOTH);
    pair.send(4, ON_B);
    pair.renew(Line::B);
    // B is ahead with its new subscription, and where that lies is not known before A brings 5.
    pair.send(5, NONE);
    pair.read(Line::B, 1, 0);
    assert_eq!(pair.marks.last(), Some(&(Continuity::Next, 0)), "what it lacks waits for A");
    pair.read(Line::A, 2, 0);
    pair.later(600);
    pair.send(6, NONE);
    pair.read(Line::B, 1, 0);
    assert_eq!(pair.marks.last(), Some(&(Continuity::Gap, 1)), "of the three A lacks one");
    pair.read_all();
    assert_eq!(pair.delivered, [1, 5, 2, 4, 6]);
    assert_eq!((pair.told, pair.finish()), (1, 0));
}

#[test]
fn what_a_new_subscription_lacks_at_its_start_is_its_own() {
    let mut pair = Pair::new(Role::Trade);
    pair.send(1, NONE);
    pair.read_all();
    pair.send(2, ON_B);
    pair.renew(Line::B);
    pair.send(3, ON_BOTH);
    pair.send(4, NONE);
    pair.read_all();
    pair.send(5, NONE);
    pair.read_all();
    assert_eq!(pair.delivered, [1, 2, 4, 5]);
    assert_eq!((pair.told, pair.finish()), (1, 0), "two was filled, three is lost");
}
