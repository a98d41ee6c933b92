//! Every input of the corpus, and many that are made of them, on every run.

use drover_fuzz::{ALLOCATED_BYTES_MAX, Counting, TARGETS, Target, peak_of};
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Changed inputs for each target, from seed 0 on. With `DROVER_FUZZ_S` as many as are run in so many seconds, from a seed of
/// the clock or `DROVER_SEED` on.
const CHANGED: u64 = 4_000;

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Name and bytes, in the order of the names.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder(target)).unwrap_or_else(|error| panic!("{}: {error}", folder(target).display()));
    let mut inputs: Vec<_> = files
        .map(|file| file.unwrap())
        .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

fn run(target: &Target, name: &str, bytes: &[u8]) {
    let peak = catch_unwind(|| peak_of(|| (target.run)(bytes)));
    let peak = peak.unwrap_or_else(|_| panic!("{}: {name} breaks it: {}", target.name, hex(bytes)));
    assert!(peak <= ALLOCATED_BYTES_MAX, "{}: {name} has {peak} bytes allocated: {}", target.name, hex(bytes));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Written anew with `DROVER_WRITE_CORPUS=1`; else compared, so that what is good stays among them as formats change.
#[test]
fn good_values_are_in_the_corpus() {
    for target in &TARGETS {
        let seeds = (target.seeds)();
        assert!(seeds.len() >= 5, "{}", target.name);
        for (index, seed) in seeds.iter().enumerate() {
            let path = folder(target).join(format!("good-{index:02}"));
            if std::env::var_os("DROVER_WRITE_CORPUS").is_some() {
                fs::create_dir_all(folder(target)).unwrap();
                fs::write(&path, seed).unwrap();
            }
            let is_there = fs::read(&path).is_ok_and(|bytes| bytes == *seed);
            assert!(is_there, "{}: write it anew with DROVER_WRITE_CORPUS=1", path.display());
        }
    }
}

#[test]
fn nothing_of_the_corpus_breaks_a_target() {
    for target in &TARGETS {
        for (name, bytes) in corpus(target) {
            run(target, &name, &bytes);
        }
    }
}

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// One to eight changes: bits, bytes, lengths, what is left out, repeated, or comes from another input.
fn change(bytes: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
    const LENGTHS: [u64; 8] = [0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 32, u64::MAX, i64::MAX as u64, 0x2_0000];
    for _ in 0..1 + numbers.below(8) {
        let (at, len) = (numbers.below(bytes.len()), numbers.below(64));
        let end = (at + len).min(bytes.len());
        match numbers.below(7) {
            _ if bytes.is_empty() => bytes.push(numbers.next() as u8),
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = numbers.next() as u8,
            2 => {
                let value = LENGTHS[numbers.below(LENGTHS.len())];
                let width = 1 << numbers.below(4);
                let coded = if numbers.below(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
                let coded = if numbers.below(2) == 0 { &coded[8 - width..] } else { &coded[..width] };
                coded.iter().zip(&mut bytes[at..]).for_each(|(new, old)| *old = *new);
            }
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 => bytes.truncate(at),
            _ => {
                let from = numbers.below(other.len());
                let part = other[from..(from + len).min(other.len())].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

#[test]
fn nothing_that_is_made_of_the_corpus_breaks_a_target() {
    let within = number("DROVER_FUZZ_S").map(Duration::from_secs);
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let first = number("DROVER_SEED").unwrap_or_else(|| if within.is_some() { clock() } else { 0 });
    for target in &TARGETS {
        let (inputs, begin) = (corpus(target), Instant::now());
        let mut count = 0;
        while within.map_or(count < CHANGED, |within| begin.elapsed() < within) {
            let seed = first.wrapping_add(count);
            let mut numbers = Numbers(seed);
            let mut bytes = inputs[numbers.below(inputs.len())].1.clone();
            let other = &inputs[numbers.below(inputs.len())].1;
            change(&mut bytes, other, &mut numbers);
            run(target, &format!("seed {seed}"), &bytes);
            count += 1;
        }
        println!("{}: {count} inputs from seed {first} on", target.name);
    }
}

/// A length that is trusted must show, or the tests above could not fail for it.
#[test]
fn what_is_allocated_is_counted() {
    assert!(peak_of(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(100 << 20)))) >= 100 << 20);
    assert!(peak_of(|| ()) < 1000);
}
