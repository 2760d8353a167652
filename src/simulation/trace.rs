//! What happened, line by line: the last lines for people, and one number over all of them to
//! compare two runs by.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

const LINES_KEPT: usize = 50;

#[derive(Debug)]
pub(super) struct Trace {
    pub(super) hash: u64,
    pub(super) lines: u64,
    last: VecDeque<(Duration, String)>,
    aloud: bool,
}

impl Trace {
    pub(super) fn new() -> Self {
        let aloud = std::env::var_os("SIM_TRACE").is_some();
        Self { hash: 0xCBF2_9CE4_8422_2325, lines: 0, last: VecDeque::new(), aloud }
    }

    pub(super) fn note(&mut self, at: Duration, what: fmt::Arguments<'_>) {
        use fmt::Write;
        let mut line = match self.last.len() {
            LINES_KEPT.. => self.last.pop_front().unwrap().1,
            _ => String::new(),
        };
        line.clear();
        write!(line, "{what}").unwrap();
        if self.aloud {
            println!("{at:>12.6?} {line}");
        }
        let time = u64::try_from(at.as_nanos()).unwrap();
        self.mix(time);
        for piece in line.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.mix(u64::from_le_bytes(word));
        }
        self.lines += 1;
        self.last.push_back((at, line));
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, line) in &self.last {
            writeln!(f, "{:>12.6} {line}", at.as_secs_f64())?;
        }
        Ok(())
    }
}
