//! Which faults met a migration in which phase: what was never met was never tested.

use drover_types::Phase;
use std::{collections::BTreeMap, fmt};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Killed,
    PowerLost,
    ControlKilled,
    /// A process stands still, for less than a lease lives.
    Paused,
    PausedPastLease,
    Cut,
    CutOneWay,
    ConnectionsReset,
    SlowNetwork,
}

impl Fault {
    pub const ALL: [Fault; 9] = [
        Self::Killed,
        Self::PowerLost,
        Self::ControlKilled,
        Self::Paused,
        Self::PausedPastLease,
        Self::Cut,
        Self::CutOneWay,
        Self::ConnectionsReset,
        Self::SlowNetwork,
    ];
}

/// Those that a migration passes through; in the others nothing moves any more.
const PHASES: [Phase; 7] = [
    Phase::Tracking,
    Phase::Copying,
    Phase::Converging,
    Phase::Mirroring,
    Phase::Flipping,
    Phase::Settling,
    Phase::RollingBack,
];

/// How often each fault began in each phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met(BTreeMap<(Phase, Fault), u64>);

impl Met {
    pub fn note(&mut self, phase: Phase, fault: Fault) {
        *self.0.entry((phase, fault)).or_default() += 1;
    }

    pub fn add(&mut self, other: &Met) {
        for (cell, count) in &other.0 {
            *self.0.entry(*cell).or_default() += count;
        }
    }

    /// What should have been met and never was.
    pub fn missing(&self) -> Vec<(Phase, Fault)> {
        let cells = PHASES.into_iter().flat_map(|phase| Fault::ALL.map(|fault| (phase, fault)));
        cells.filter(|cell| !self.0.contains_key(cell)).collect()
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<17}", "faults met in")?;
        PHASES.iter().try_for_each(|phase| write!(f, "{:>13}", phase.name()))?;
        for fault in Fault::ALL {
            write!(f, "\n{:<17}", format!("{fault:?}"))?;
            let count = |phase| self.0.get(&(phase, fault)).copied().unwrap_or(0);
            PHASES.into_iter().try_for_each(|phase| write!(f, "{:>13}", count(phase)))?;
        }
        Ok(())
    }
}
