//! `check`: connects once and says how far it came, step by step, and what to do. It subscribes
//! to one channel and takes no messages.

use std::io::{self, Write};
use std::time::Duration;

use kalshi_feed::{
    Cause, Event, Events, ExchangeCode, Handle, Manager, PoolLayout, Stage, StartError,
    StaticRegistry, Warning,
};
use serde::Serialize;

use crate::args::Check;
use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// Between two looks for events.
const LOOK: Duration = Duration::from_millis(50);
/// How long the engine may take to stop.
const STOP: Duration = Duration::from_secs(2);

/// A step of connecting, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Lookup,
    Tcp,
    Tls,
    Upgrade,
    Subscribe,
}

impl Step {
    const ALL: [Self; 5] = [Self::Lookup, Self::Tcp, Self::Tls, Self::Upgrade, Self::Subscribe];

    fn name(self) -> &'static str {
        match self {
            Self::Lookup => "name lookup",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Upgrade => "upgrade",
            Self::Subscribe => "subscribe",
        }
    }
}

/// What came of a step.
#[derive(Debug, Serialize)]
struct Verdict {
    step: Step,
    /// `None`: never reached.
    ok: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Where it failed and why.
#[derive(Debug)]
struct Problem {
    step: Step,
    text: String,
}

/// Runs the check.
///
/// # Errors
/// Bad settings, or the step that failed.
pub(crate) fn run(flags: &Check) -> Result<(), Failure> {
    let settings = flags.engine.apply(flags.exchange.settings()?);
    let config = settings.pool(PoolLayout::new(1, 0, 0, 0)).min_healthy(1).build()?;
    let interrupt = Interrupt::install()?;
    let mut manager = Manager::new(config, StaticRegistry::default());
    let (handle, events) = (manager.handle(), manager.events()?);
    let (started, seen) = std::thread::scope(|scope| {
        let start = scope.spawn(|| interrupt.start(&mut manager));
        let seen = watch(&events, &handle, || start.is_finished());
        (start.join(), seen)
    });
    let started = started.map_err(|_| Failure::job("the check ended by a bug"))?;
    manager.stop(STOP);
    let warnings = manager.warnings();
    let problem = match started {
        Ok(()) => None,
        Err(error) => Some(problem(error, seen)?),
    };
    show(flags.json, &verdicts(problem.as_ref()), &warnings)?;
    match problem {
        None => Ok(()),
        Some(problem) => {
            Err(Failure::job(format!("{} failed: {}", problem.step.name(), problem.text)))
        }
    }
}

/// Waits for the end of the start, or ends it at the first thing that goes wrong.
fn watch(events: &Events, handle: &Handle, finished: impl Fn() -> bool) -> Seen {
    let mut seen = Seen::default();
    loop {
        // Asked before the last look, so that nothing said before the end is missed.
        let over = finished();
        while let Ok(event) = events.recv_timeout(if over { Duration::ZERO } else { LOOK }) {
            match event {
                Event::Up { .. } => seen.upgraded = true,
                Event::AttemptFailed { cause, .. }
                | Event::Down { cause, .. }
                | Event::Halted { cause, .. } => {
                    if seen.cause.is_none() && cause != Cause::Stopped {
                        seen.cause = Some(cause);
                    }
                    handle.request_stop();
                }
                Event::Refused { code, .. } => seen.code = Some(code),
                _ => {}
            }
        }
        if over {
            return seen;
        }
    }
}

/// What the events said.
#[derive(Debug, Default)]
struct Seen {
    upgraded: bool,
    cause: Option<Cause>,
    code: Option<ExchangeCode>,
}

/// Where the start failed.
fn problem(error: StartError, seen: Seen) -> Result<Problem, Failure> {
    let told = match &error {
        StartError::Timeout { causes, .. } | StartError::Halted { causes, .. } => {
            causes.first().map(|(_, cause)| cause.clone())
        }
        _ => None,
    };
    if let Some(cause) = seen.cause.or(told) {
        let step = if seen.upgraded { Step::Subscribe } else { step(&cause) };
        return Ok(Problem { step, text: cause.to_string() });
    }
    match error {
        StartError::GlobalRejected { .. } | StartError::Timeout { .. } if seen.upgraded => {
            let code = seen.code.map(|code| format!(" (code {code})")).unwrap_or_default();
            let text = match error {
                StartError::Timeout { .. } => {
                    format!("no acknowledgement in time{code}; try again, or ask the exchange")
                }
                other => other.to_string(),
            };
            Ok(Problem { step: Step::Subscribe, text })
        }
        StartError::GlobalRejected { .. } => {
            Ok(Problem { step: Step::Subscribe, text: error.to_string() })
        }
        other => Err(other.into()),
    }
}

/// The step a cause belongs to.
fn step(cause: &Cause) -> Step {
    match cause {
        Cause::Resolve { .. } | Cause::Timeout { stage: Stage::Resolving } => Step::Lookup,
        Cause::Tcp { .. } | Cause::Timeout { stage: Stage::Connecting } => Step::Tcp,
        Cause::Tls { .. }
        | Cause::Certificate { .. }
        | Cause::Timeout { stage: Stage::Securing } => Step::Tls,
        Cause::Upgrade { .. }
        | Cause::Handshake { .. }
        | Cause::Extension { .. }
        | Cause::Timeout { stage: Stage::Upgrading } => Step::Upgrade,
        // A connection lost before it was live says no more than that it had been made.
        Cause::Ended | Cause::Reset => Step::Tls,
        _ => Step::Subscribe,
    }
}

fn verdicts(problem: Option<&Problem>) -> Vec<Verdict> {
    let verdict = |step| match problem {
        Some(problem) if problem.step == step => {
            Verdict { step, ok: Some(false), problem: Some(problem.text.clone()) }
        }
        Some(problem) if problem.step < step => Verdict { step, ok: None, problem: None },
        _ => Verdict { step, ok: Some(true), problem: None },
    };
    Step::ALL.into_iter().map(verdict).collect()
}

fn show(json: bool, verdicts: &[Verdict], warnings: &[Warning]) -> Result<(), Failure> {
    let mut text = String::new();
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    if json {
        let ok = verdicts.iter().all(|verdict| verdict.ok == Some(true));
        text = serde_json::json!({ "ok": ok, "steps": verdicts, "warnings": warnings }).to_string()
            + "\n";
    } else {
        for Verdict { step, ok, .. } in verdicts {
            let word = match ok {
                Some(true) => "ok",
                Some(false) => "failed",
                None => "not reached",
            };
            text += &format!("{:<12} {word}\n", step.name());
        }
        text.extend(warnings.iter().map(|warning| format!("warning      {warning}\n")));
    }
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::job(format!("cannot write the verdict: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_before_the_failing_one_were_ok_those_after_not_reached() {
        let problem = Problem { step: Step::Tls, text: "no".into() };
        let oks: Vec<_> = verdicts(Some(&problem)).iter().map(|verdict| verdict.ok).collect();
        assert_eq!(oks, [Some(true), Some(true), Some(false), None, None]);
        assert!(verdicts(None).iter().all(|verdict| verdict.ok == Some(true)));
    }

    #[test]
    fn causes_belong_to_steps() {
        let resolve = Cause::Resolve { host: "x".into(), message: "y".into() };
        assert_eq!(step(&resolve), Step::Lookup);
        let tls = Cause::Timeout { stage: Stage::Securing };
        assert_eq!(step(&tls), Step::Tls);
        let upgrade = Cause::Upgrade { status: 401, detail: String::new(), retry_after: None };
        assert_eq!(step(&upgrade), Step::Upgrade);
    }

    #[test]
    fn a_refusal_is_the_subscriptions() {
        let error =
            StartError::GlobalRejected { channel: "ticker", code: ExchangeCode::UnknownChannel };
        let seen = Seen { upgraded: true, ..Seen::default() };
        let problem = problem(error, seen).unwrap();
        assert_eq!(problem.step, Step::Subscribe);
        assert!(problem.text.contains("ticker"));
    }
}
