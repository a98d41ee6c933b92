//! Breadth-first search of a state space: the shortest way to a broken state, or the proof that there is none.

use crate::runtime::mix;
use std::{
    collections::HashMap,
    fmt::Debug,
    hash::{BuildHasherDefault, Hash, Hasher},
};

/// A system whose states are searched.
pub trait Model {
    type State: Clone + Hash + Debug;
    type Action: Clone + Debug;

    fn start(&self) -> Self::State;
    /// Every step possible in `state`, in a fixed order.
    fn steps(&self, state: &Self::State, add: &mut dyn FnMut(Step<Self::Action, Self::State>));
    /// What is wrong with `state`, if anything.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;
    /// Whether the system has come to its end.
    fn is_end(&self, state: &Self::State) -> bool;
}

pub struct Step<A, S> {
    pub action: A,
    pub to: S,
    /// A fault cannot be relied upon to come to an end.
    pub is_fault: bool,
}

/// What a search has found.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub states: usize,
    pub failure: Option<Failure>,
}

#[derive(Clone, Debug)]
pub struct Failure {
    pub what: &'static str,
    /// The shortest way there: one action a line, then the state.
    pub trace: Vec<String>,
}

/// Mixes whatever it is fed, eight bytes at once; two states collide with a probability of 2^-64.
/// The states are made of small numbers: each is taken for one byte.
#[derive(Default)]
struct Fingerprint {
    mixed: u64,
    word: u64,
    bytes: u32,
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        mix(self.mixed ^ self.word)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }
    fn write_u8(&mut self, byte: u8) {
        self.word = self.word << 8 | u64::from(byte);
        self.bytes += 1;
        if self.bytes == 8 {
            self.mixed = mix(self.mixed ^ self.word);
            (self.word, self.bytes) = (0, 0);
        }
    }
    fn write_usize(&mut self, number: usize) {
        self.write_u8(u8::try_from(number).expect("states are made of small numbers"));
    }
    fn write_isize(&mut self, number: isize) {
        self.write_u8(u8::try_from(number).expect("states are made of small numbers"));
    }
}

/// Keys are fingerprints already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

struct Search<M: Model> {
    states: Vec<M::State>,
    /// How each state was first reached.
    from: Vec<(u32, Option<M::Action>)>,
    known: HashMap<u64, u32, BuildHasherDefault<Identity>>,
    /// Steps that are no faults, as (to, from).
    sound: Vec<(u32, u32)>,
}

/// Visits every reachable state, at most `states_max`.
///
/// # Panics
/// When there are more: a model that outgrew its test.
pub fn search<M: Model>(model: &M, states_max: usize) -> Outcome {
    let mut search = Search::<M> { states: Vec::new(), from: Vec::new(), known: HashMap::default(), sound: Vec::new() };
    search.add(model.start(), 0, None);
    let mut at = 0;
    while at < search.states.len() {
        let state = search.states[at].clone();
        if let Some(what) = model.broken(&state) {
            return search.outcome(Some((what, at as u32)));
        }
        model.steps(&state, &mut |step| {
            let to = search.add(step.to, at as u32, Some(step.action));
            if !step.is_fault {
                search.sound.push((to, at as u32));
            }
        });
        assert!(search.states.len() <= states_max, "more than {states_max} states");
        at += 1;
    }
    let stuck = search.stuck(model);
    search.outcome(stuck.map(|state| ("from here the end cannot be reached without a fault", state)))
}

impl<M: Model> Search<M> {
    fn add(&mut self, state: M::State, from: u32, action: Option<M::Action>) -> u32 {
        let mut fingerprint = Fingerprint::default();
        state.hash(&mut fingerprint);
        let next = self.states.len() as u32;
        let index = *self.known.entry(fingerprint.finish()).or_insert(next);
        if index == next {
            self.states.push(state);
            self.from.push((from, action));
        }
        index
    }

    /// The first state from which no sound way leads to an end.
    fn stuck(&mut self, model: &M) -> Option<u32> {
        self.sound.sort_unstable();
        let mut ends: Vec<bool> = self.states.iter().map(|state| model.is_end(state)).collect();
        let mut work: Vec<u32> = (0..self.states.len() as u32).filter(|index| ends[*index as usize]).collect();
        while let Some(state) = work.pop() {
            let first = self.sound.partition_point(|(to, _)| *to < state);
            for (_, from) in self.sound[first..].iter().take_while(|(to, _)| *to == state) {
                if !std::mem::replace(&mut ends[*from as usize], true) {
                    work.push(*from);
                }
            }
        }
        ends.iter().position(|ends| !ends).map(|index| index as u32)
    }

    fn outcome(&self, failure: Option<(&'static str, u32)>) -> Outcome {
        let failure = failure.map(|(what, state)| {
            let mut trace = vec![format!("{:?}", self.states[state as usize])];
            let mut at = state;
            while let (from, Some(action)) = &self.from[at as usize] {
                trace.push(format!("{action:?}"));
                at = *from;
            }
            trace.reverse();
            Failure { what, trace }
        });
        Outcome { states: self.states.len(), failure }
    }
}
