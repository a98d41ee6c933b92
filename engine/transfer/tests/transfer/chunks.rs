//! Content that the destination has already: named instead of sent, never without being hashed and proven, and never that of
//! another tenant.

use crate::clients::Model;
use crate::pair::{Pair, options, run, run_each};
use crate::side::{Side, VOLUME_BYTES};
use drover_base::{ByteRange, IoError};
use drover_disk::Buffer;
use drover_sim::runtime::Sim;
use drover_store::{Unfenced, chunk_digest, chunk_proof, cut};
use drover_wire::admin::SendOptions;
use drover_wire::peer::{Answer, Assembly, ChunkName, Operation, Part, Payload};
use std::{rc::Rc, time::Duration};

const IMAGE_BYTES: usize = 6 << 20;
/// Neither a block's nor an extent's multiple.
const SHIFT: u64 = 3 * 4096 + 512;

/// What does not compress, and holds no chunk twice.
fn image(sim: &Sim) -> Vec<u8> {
    let mut random = sim.generator("image");
    (0..IMAGE_BYTES / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect()
}

/// A source that holds the image; the destination's other volumes are the caller's.
async fn pair_with_image(sim: &Sim, options: SendOptions) -> (Pair, Vec<u8>) {
    let from = Side::new(sim, "source").await;
    let image = image(sim);
    for (at, part) in image.chunks(1 << 20).enumerate() {
        from.volume.write(&Unfenced, (at as u64) << 20, Buffer::from_slice(part), false).await.unwrap();
    }
    let model = Rc::new(Model::default());
    model.adopt(&from.content().await);
    (Pair::of(sim, from, model, options).await, image)
}

#[test]
fn what_the_destination_has_elsewhere_is_named_instead_of_sent() {
    run(1, async |sim| {
        let (mut pair, image) = pair_with_image(&sim, options()).await;
        pair.to.with_copy("tenant", SHIFT, &image).await;
        pair.connect();
        pair.until_synced().await;
        let progress = pair.progress();
        // Chunks at the ends of regions are others.
        assert!(progress.deduplicated_bytes > IMAGE_BYTES as u64 * 8 / 10, "{progress:?}");
        assert!(progress.wire_bytes < IMAGE_BYTES as u64 / 4, "{progress:?}");
        assert!(progress.deduplicated_bytes < progress.logical_bytes);
        pair.drain_and_compare().await.unwrap();
    });
}

#[test]
fn nothing_is_named_where_that_is_not_wanted() {
    run(1, async |sim| {
        let (mut pair, image) = pair_with_image(&sim, SendOptions { dedup: false, ..options() }).await;
        pair.to.with_copy("tenant", SHIFT, &image).await;
        pair.connect();
        pair.until_synced().await;
        assert_eq!(pair.progress().deduplicated_bytes, 0);
        pair.drain_and_compare().await.unwrap();
    });
}

/// What arrives is indexed at once: content that a volume holds twice travels once, where the first has arrived.
#[test]
fn what_has_arrived_is_not_sent_again() {
    run(2, async |sim| {
        let (mut pair, _) = pair_with_image(&sim, options()).await;
        pair.connect();
        pair.until_synced().await;
        assert_eq!(pair.progress().deduplicated_bytes, 0);
        let names: Vec<ChunkName> = names(&image(&sim)[..1 << 20]);
        let offer = pair.receiver.handle(1 << 40, Operation::Offer { chunks: names.clone() }).await;
        let Ok(Answer::Offered(offered)) = offer else { panic!("{offer:?}") };
        let held = offered.held.iter().filter(|held| **held).count();
        assert!(held + 1 >= names.len(), "{held} of {}", names.len());
    });
}

/// Every second of what is indexed is written over, and some of it rots.
pub async fn index_is_stale(sim: Sim) -> Result<(), String> {
    let (mut pair, image) = pair_with_image(&sim, options()).await;
    let copy = pair.to.with_copy("tenant", SHIFT, &image).await;
    let mut random = sim.generator("stale");
    for block in 0..IMAGE_BYTES as u64 / 4096 {
        if random.below(20) == 0 {
            copy.write(&Unfenced, block * 4096, Buffer::from_slice(&[7; 4096]), false).await.unwrap();
        }
    }
    pair.connect();
    pair.until(|progress| progress.ready_to_mirror).await;
    pair.sleep(Duration::from_secs(1)).await;
    pair.drain_and_compare().await
}

/// What was named, but had to be sent after all, was not saved.
#[test]
fn what_was_named_in_vain_does_not_count() {
    run(5, async |sim| {
        let (mut pair, image) = pair_with_image(&sim, options()).await;
        let copy = pair.to.with_copy("tenant", 0, &image).await;
        for at in (0..IMAGE_BYTES as u64).step_by(1 << 16) {
            copy.write(&Unfenced, at, Buffer::from_slice(&[7; 4096]), false).await.unwrap();
        }
        pair.connect();
        pair.until_synced().await;
        let progress = pair.progress();
        assert_eq!(progress.deduplicated_bytes, 0, "{progress:?}");
        pair.drain_and_compare().await.unwrap();
    });
}

#[test]
fn what_the_index_is_wrong_about_is_sent() {
    run_each(0..8, index_is_stale);
}

/// Clients write, the link breaks, and a side dies while chunks are offered and named.
async fn interrupted(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("when");
    let (mut pair, image) = pair_with_image(&sim, options()).await;
    pair.to.with_copy("tenant", SHIFT, &image).await;
    pair.model.start(&pair.from);
    pair.connect();
    for _ in 0..random.below(4) {
        pair.sleep(Duration::from_micros(random.below(15_000))).await;
        pair.cut_and_connect().await;
    }
    if random.below(3) == 0 {
        pair.receiving_side_crashes().await;
        pair.connect();
    }
    pair.sleep(Duration::from_micros(random.below(15_000))).await;
    pair.until_synced().await;
    pair.drain_and_compare().await
}

#[test]
fn interruptions_and_writers_change_nothing() {
    run_each(0..12, interrupted);
}

/// Another tenant's volume has it all. Nothing may show it: not an answer, not a byte.
pub fn of_another_tenant() -> Result<(), String> {
    let sent = |is_same: bool| {
        run(7, async |sim| {
            let (mut pair, image) = pair_with_image(&sim, options()).await;
            let others: Vec<u8> = image.iter().map(|byte| byte ^ u8::from(!is_same)).collect();
            pair.to.with_copy("another", 0, &others).await;
            pair.connect();
            pair.until_synced().await;
            let progress = pair.progress();
            pair.drain_and_compare().await.map(|()| (progress.deduplicated_bytes, progress.wire_bytes))
        })
    };
    let (other, same) = (sent(false)?, sent(true)?);
    match other == same && other.0 == 0 {
        true => Ok(()),
        false => Err(format!("{other:?} bytes where it holds something else, {same:?} where it holds the same")),
    }
}

#[test]
fn what_another_tenant_has_is_sent_as_if_nobody_had_it() {
    of_another_tenant().unwrap();
}

fn names(content: &[u8]) -> Vec<ChunkName> {
    let mut at = 0;
    let name = |len: usize| {
        let digest = chunk_digest(&content[at..at + len]);
        at += len;
        ChunkName { digest, len: len as u32 }
    };
    cut(content).into_iter().map(name).collect()
}

/// How a proof is made of a chunk's bytes.
type Prove<'a> = &'a dyn Fn(&[u8]) -> [u8; 32];

/// One who knows what the tenant's volume holds by digest only asks for it to be put into a volume of its own.
pub async fn asked_without_proof(sim: Sim) -> Result<(), String> {
    let to = Side::new(&sim, "destination").await;
    let content = &image(&sim)[..1 << 20];
    to.with_copy("tenant", 0, content).await;
    let receiver = drover_transfer::Receiver::new(to.world.clone(), to.volume.clone(), Rc::new(Unfenced));
    let ask = async |sequence, operation| receiver.handle(sequence, operation).await;
    let names = names(content);
    let answer = ask(1, Operation::Offer { chunks: names.clone() }).await;
    let Ok(Answer::Offered(offered)) = answer else { return Err(format!("{answer:?}")) };
    assert!(offered.held.iter().filter(|held| **held).count() + 2 > names.len(), "{offered:?}");
    let assembly = |prove: Prove| {
        let (mut at, mut data, mut parts) = (0, Vec::new(), Vec::new());
        for (chunk, held) in names.iter().zip(&offered.held) {
            let bytes = &content[at..at + chunk.len as usize];
            at += bytes.len();
            if !held {
                data.extend_from_slice(bytes);
            }
            parts.push(Part { chunk: *chunk, proof: held.then(|| prove(bytes)) });
        }
        Operation::Assemble(Box::new(Assembly { offset: 1 << 22, parts, data: Payload::plain(data.into()) }))
    };
    let other = [1; 32];
    let proofs: [Prove; 3] = [&|_| [0; 32], &chunk_digest, &|bytes| chunk_proof(&other, bytes)];
    let range = ByteRange { offset: 1 << 22, len: content.len() as u64 };
    for (at, prove) in proofs.into_iter().enumerate() {
        let answer = ask(2 + at as u64, assembly(prove)).await;
        let guard = to.volume.enqueue(range).await;
        let there = to.volume.read_locked(&guard, range).await.unwrap();
        if answer != Ok(Answer::Lacking) || there.iter().any(|byte| *byte != 0) {
            return Err(format!("proof {at}: {answer:?}"));
        }
    }
    let answer = ask(9, assembly(&|bytes| chunk_proof(&offered.nonce, bytes))).await;
    assert_eq!(answer, Ok(Answer::Done));
    let guard = to.volume.enqueue(range).await;
    assert_eq!(&to.volume.read_locked(&guard, range).await.unwrap()[..], content);
    Ok(())
}

#[test]
fn a_digest_alone_gives_nothing() {
    run(3, asked_without_proof).unwrap();
}

/// What was sent is hashed on arrival, and what is out of the volume is refused.
#[test]
fn what_does_not_hold_what_it_says_is_refused() {
    run(4, async |sim| {
        let to = Side::new(&sim, "destination").await;
        let receiver = drover_transfer::Receiver::new(to.world.clone(), to.volume.clone(), Rc::new(Unfenced));
        let assembly = |offset, digest| {
            let part = Part { chunk: ChunkName { digest, len: 4096 }, proof: None };
            let data = Payload::plain(vec![5; 4096].into());
            Operation::Assemble(Box::new(Assembly { offset, parts: vec![part], data }))
        };
        let (right, wrong) = (chunk_digest(&[5; 4096]), chunk_digest(&[6; 4096]));
        assert_eq!(receiver.handle(1, assembly(0, wrong)).await, Err(IoError::Corrupt));
        for offset in [512, VOLUME_BYTES, u64::MAX - 4095] {
            let refused = receiver.handle(2, assembly(offset, right)).await;
            assert!(matches!(refused, Err(IoError::OutOfRange { .. })), "{offset}: {refused:?}");
        }
        assert!(to.content().await.iter().all(|byte| *byte == 0));
        assert_eq!(receiver.handle(3, assembly(0, right)).await, Ok(Answer::Done));
    });
}
