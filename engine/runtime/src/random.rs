//! Chance from the kernel, fetched in pages.

#![allow(unsafe_code)] // std offers no random bytes.

use drover_base::world::Random;
use std::cell::RefCell;

/// Numbers fetched at once: 256 bytes are the most that getrandom gives without being interrupted.
const PAGE: usize = 32;

/// Numbers of `getrandom(2)`.
#[derive(Default)]
pub(crate) struct KernelRandom {
    page: RefCell<Vec<u64>>,
}

impl Random for KernelRandom {
    fn next_u64(&self) -> u64 {
        let mut page = self.page.borrow_mut();
        if let Some(number) = page.pop() {
            return number;
        }
        let mut bytes = [0u8; PAGE * 8];
        // SAFETY: the buffer is valid for writes of its whole length.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        assert_eq!(got, bytes.len() as isize, "getrandom gives 256 bytes or the machine has no randomness");
        let (words, _) = bytes.as_chunks::<8>();
        page.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        page.pop().expect("the page was just filled")
    }
}
