use super::*;

/// Bytes by a generator that no crate changes.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Cut points have drifted between versions of the crate: then nothing that was indexed before is found.
#[test]
fn cut_points_stay_where_they_are() {
    assert_eq!(cut(&noise(1 << 20)), GOLDEN);
}

#[test]
fn cuts_follow_the_content() {
    let content = noise(2 << 20);
    let ends = |from: usize| {
        let mut at = from;
        cut(&content[from..])
            .into_iter()
            .map(|len| {
                at += len;
                at
            })
            .collect::<Vec<_>>()
    };
    let (whole, shifted) = (ends(0), ends(5000));
    let shared = whole.iter().filter(|end| shifted.contains(end)).count();
    assert!(shared * 10 >= whole.len() * 8, "{shared} of {}", whole.len());
    assert!(cut(&content).iter().all(|len| *len <= CHUNK_BYTES_MAX));
}

#[test]
fn places_read_back_and_what_is_not_understood_is_no_place() {
    let runs = vec![Run { at: Some((0, 8192)), len: 65_536 }, Run { at: None, len: 4096 }];
    let place = Place { skip: 700, runs };
    let (tag, value) = ([3; TAG_BYTES], place.encode(&[3; TAG_BYTES]));
    assert_eq!(Place::decode(&value, &tag, 1), Some(place.clone()));
    assert_eq!(Place::decode(&value, &[4; TAG_BYTES], 1), None);
    assert_eq!(Place::decode(&value, &tag, 0), None, "a device that is gone");
    for len in 0..value.len() {
        assert_eq!(Place::decode(&value[..len], &tag, 1), None);
    }
    let odd = Place { runs: vec![Run { at: Some((0, 100)), len: 4096 }], ..place };
    assert_eq!(Place::decode(&odd.encode(&tag), &tag, 1), None);
}

const GOLDEN: &[usize] =
    &[71_088, 66_480, 100_652, 128_639, 102_442, 92_174, 121_669, 113_315, 77_339, 74_154, 100_624];
