//! Large buffers for bytes on their way, kept by each thread for whoever has some just now, so that idle connections hold
//! none. Contents are never cleared: whoever takes one sees only what it has read into it itself.

use std::cell::RefCell;

/// Size of a buffer. Four TLS records, the last one shorter: what is sealed of it fits one packet of a loopback interface and one
/// offloaded packet of any other, each of which carries some hundred bytes less than 64 KiB. With 64 KiB every write would
/// be followed by a packet for the rest.
pub(crate) const BUFFER: usize = 60 * 1024;
/// How many unused buffers a thread keeps.
const SPARE: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer, to be given back.
pub(crate) fn take() -> Box<[u8]> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

/// Gives one back, where there is one.
pub(crate) fn give_back(buffer: &mut Option<Box<[u8]>>) {
    if let Some(buffer) = buffer.take() {
        // Nobody else is in there on this thread; at the thread's end there is nothing to keep it for.
        let _ = BUFFERS.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        });
    }
}

/// How many this thread keeps now.
#[cfg(test)]
pub(crate) fn spare() -> usize {
    BUFFERS.with_borrow(Vec::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_taken_again_and_not_without_end() {
        let mut taken: Vec<_> = (0..SPARE + 4).map(|_| Some(take())).collect();
        let first = taken[0].as_ref().map(|buffer| buffer.as_ptr());
        give_back(&mut taken[0]);
        assert_eq!(Some(take().as_ptr()), first);
        taken.iter_mut().for_each(give_back);
        assert_eq!(spare(), SPARE);
    }
}
