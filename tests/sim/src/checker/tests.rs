use super::*;

const CELL: usize = 4096;

/// A history of one cell, driven step by step.
struct One(History);

impl One {
    fn new() -> Self {
        Self(History::new(4, CELL))
    }
    fn begin(&mut self, client: u32) -> (WriteId, u64) {
        let (id, _) = self.0.begin_write(client, 1..2, false);
        (id, self.0.writes[id.0].tag)
    }
    fn ack(&mut self, id: WriteId) {
        self.0.end_write(id, Outcome::Acknowledged);
    }
    fn write(&mut self, client: u32) -> u64 {
        let (id, tag) = self.begin(client);
        self.ack(id);
        tag
    }
    fn flush(&mut self) {
        let id = self.0.begin_flush();
        self.0.end_flush(id, true);
    }
    fn read(&mut self, tag: u64) -> bool {
        let id = self.0.begin_read(1..2);
        self.end_read(id, tag)
    }
    fn end_read(&mut self, id: ReadId, tag: u64) -> bool {
        let mut bytes = vec![0; CELL];
        if tag != ZERO {
            fill(&mut bytes, 1, tag);
        }
        self.0.end_read(id, &bytes).is_ok()
    }
    /// Whether a read may return each of `tags`, without letting the history know that it did.
    fn may_read(&mut self, tags: &[u64]) -> Vec<bool> {
        let id = self.0.begin_read(1..2);
        let legal = self.0.legal(1, id.0);
        self.0.abandon_read(id);
        tags.iter().map(|tag| legal.iter().any(|id| self.0.writes[id.0].tag == *tag)).collect()
    }
}

#[test]
fn an_acknowledged_write_replaces_what_was() {
    let mut one = One::new();
    assert!(one.read(ZERO));
    let first = one.write(1);
    assert_eq!(one.may_read(&[ZERO, first]), [false, true]);
    let second = one.write(1);
    assert_eq!(one.may_read(&[ZERO, first, second]), [false, false, true]);
    let zero = one.0.begin_zero(1, 0..4, false);
    assert_eq!(one.may_read(&[ZERO, second]), [true, true]);
    one.ack(zero);
    assert_eq!(one.may_read(&[ZERO, second]), [true, false]);
}

#[test]
fn concurrent_writes_may_come_in_any_order() {
    let mut one = One::new();
    let ((a, first), (b, second)) = (one.begin(1), one.begin(2));
    assert_eq!(one.may_read(&[ZERO, first, second]), [true, true, true]);
    one.ack(a);
    assert_eq!(one.may_read(&[ZERO, first, second]), [false, true, true]);
    one.ack(b);
    assert_eq!(one.may_read(&[ZERO, first, second]), [false, true, true]);
    let third = one.write(1);
    assert_eq!(one.may_read(&[first, second, third]), [false, false, true]);
}

#[test]
fn a_read_may_return_what_was_there_when_it_began() {
    let mut one = One::new();
    let read = one.0.begin_read(1..2);
    let first = one.write(1);
    one.write(1);
    assert!(one.end_read(read, ZERO));
    let read = one.0.begin_read(1..2);
    assert!(!one.end_read(read, first));
}

#[test]
fn a_write_of_unknown_outcome_happened_before_its_end_or_never() {
    let mut one = One::new();
    let (id, lost) = one.begin(1);
    one.0.end_write(id, Outcome::Unknown);
    assert_eq!(one.may_read(&[ZERO, lost]), [true, true]);
    // Once it was read it is there.
    assert!(one.read(lost));
    assert_eq!(one.may_read(&[ZERO, lost]), [false, true]);
    let next = one.write(1);
    assert_eq!(one.may_read(&[lost, next]), [false, true]);
}

#[test]
fn a_write_under_way_may_come_late() {
    let mut one = One::new();
    let (_, slow) = one.begin(1);
    let next = one.write(2);
    assert_eq!(one.may_read(&[ZERO, slow, next]), [false, true, true]);
}

#[test]
fn a_crash_may_lose_each_unflushed_write_of_who_did_not_survive() {
    let mut one = One::new();
    let flushed = one.write(1);
    one.flush();
    let (second, third) = (one.write(1), one.write(1));
    one.0.crash(|_| true);
    assert_eq!(one.may_read(&[ZERO, flushed, second, third]), [false, true, true, true]);
    // What a read found after the crash is there; what was lost does not come back.
    assert!(one.read(second));
    assert_eq!(one.may_read(&[flushed, second, third]), [false, true, true]);
    let fourth = one.write(1);
    one.flush();
    one.0.crash(|_| true);
    assert_eq!(one.may_read(&[flushed, second, third, fourth]), [false, false, false, true]);
}

/// A crash may keep one block of a write and lose another.
#[test]
fn what_is_found_of_a_write_after_a_crash_tells_nothing_of_its_rest() {
    let mut one = One::new();
    let (id, bytes) = one.0.begin_write(1, 0..2, false);
    one.ack(id);
    let tag = one.0.writes[id.0].tag;
    one.0.crash(|_| true);
    let read = one.0.begin_read(0..1);
    assert_eq!(one.0.end_read(read, &bytes[..CELL]), Ok(()));
    assert_eq!(one.may_read(&[ZERO, tag]), [true, true]);
    assert!(one.read(tag));
    assert_eq!(one.may_read(&[ZERO, tag]), [false, true]);
}

/// An answer that was on its way when the node crashed tells nothing of what is there afterwards.
#[test]
fn a_read_from_before_a_crash_finds_nothing_after_it() {
    let mut one = One::new();
    let lost = one.write(1);
    let early = one.0.begin_read(1..2);
    one.0.crash(|_| true);
    assert!(one.end_read(early, lost));
    assert_eq!(one.may_read(&[ZERO, lost]), [true, true]);
}

#[test]
fn a_crash_loses_nothing_of_who_survived() {
    let mut one = One::new();
    let survives = one.write(7);
    one.0.crash(|client| client != 7);
    assert_eq!(one.may_read(&[ZERO, survives]), [false, true]);
}

#[test]
fn a_flush_covers_what_was_answered_before_it_began() {
    let mut one = One::new();
    let first = one.write(1);
    let flush = one.0.begin_flush();
    let second = one.write(1);
    one.0.end_flush(flush, true);
    one.0.crash(|_| true);
    assert_eq!(one.may_read(&[ZERO, first, second]), [false, true, true]);
}

#[test]
fn a_failed_flush_covers_nothing_and_fua_covers_itself() {
    let mut one = One::new();
    let first = one.write(1);
    let flush = one.0.begin_flush();
    one.0.end_flush(flush, false);
    one.0.crash(|_| true);
    assert_eq!(one.may_read(&[ZERO, first]), [true, true]);
    let (id, _) = one.0.begin_write(1, 1..2, true);
    let forced = one.0.writes[id.0].tag;
    one.ack(id);
    one.0.crash(|_| true);
    assert_eq!(one.may_read(&[ZERO, first, forced]), [false, false, true]);
}

#[test]
fn damage_shows() {
    let mut history = History::new(4, CELL);
    let (id, bytes) = history.begin_write(1, 1..3, false);
    history.end_write(id, Outcome::Acknowledged);
    let mut read = |bytes: &[u8]| {
        let id = history.begin_read(1..3);
        history.end_read(id, bytes).map_err(|violation| violation.found)
    };
    assert_eq!(read(&bytes), Ok(()));
    let mut torn = bytes.clone();
    torn[CELL - 512..CELL].fill(0);
    assert_eq!(read(&torn), Err(Err(Damage::Torn { line: (CELL - 512) / 16 })));
    let mut swapped = bytes.clone();
    swapped.rotate_left(CELL);
    assert_eq!(read(&swapped), Err(Err(Damage::Misplaced { of: 2, tag: 1 })));
    let mut rotten = bytes;
    rotten[CELL + 5] ^= 1;
    assert!(matches!(read(&rotten), Err(Err(Damage::Torn { .. }))));
    assert_eq!(
        inspect(&[0xa5; CELL], 1),
        Err(Damage::Misplaced { of: 0xa5a5_a5a5_a5a5_a5a5, tag: 0xa5a5_a5a5_a5a5_a5a5 })
    );
}

/// Against a plain register with a volatile cache: what it returns is always legal, also when writes were forgotten.
#[test]
fn an_honest_disk_is_never_accused() {
    for seed in 0..200 {
        let mut random = crate::runtime::Generator::new(seed, "disk");
        let mut one = One::new();
        let (mut live, mut durable, mut cached) = (ZERO, ZERO, vec![]);
        for _ in 0..300 {
            match random.below(10) {
                0..=4 => {
                    live = one.write(1);
                    cached.push(live);
                }
                5..=7 => assert!(one.read(live), "seed {seed}"),
                8 => {
                    one.flush();
                    (durable, cached) = (live, vec![]);
                }
                _ => {
                    one.0.crash(|_| true);
                    cached.push(durable);
                    live = *random.pick(&cached);
                    (durable, cached) = (live, vec![]);
                }
            }
        }
        assert!(one.0.cells[1].len() <= PRUNE_ABOVE * 8, "forgets: {}", one.0.cells[1].len());
    }
}

/// And a disk that loses flushed writes, or brings overwritten ones back, is found out.
#[test]
fn a_lying_disk_is_accused() {
    for seed in 0..100 {
        let mut random = crate::runtime::Generator::new(seed, "liar");
        let mut one = One::new();
        let mut tags = vec![ZERO];
        for _ in 0..random.between(2, 20) {
            tags.push(one.write(1));
            if random.below(3) == 0 {
                one.0.crash(|client| client == 2);
            }
        }
        one.flush();
        one.0.crash(|_| true);
        let last = tags.pop().unwrap();
        assert!(!one.read(*random.pick(&tags)), "seed {seed}");
        assert!(one.read(last));
    }
}
