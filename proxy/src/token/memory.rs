//! Tokens that were verified a moment ago, so that the next request with one of them costs a hash and a look-up. Of one worker:
//! no lock. Bounded; it holds no token, only SHA-256 of it, and forgets all when what is asked of tokens changes. A token that
//! was refused is not remembered: whoever floods the proxy with made-up ones must not push the good ones out.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use super::{Tokens, Verified};

/// Half of those that are remembered at the most.
const HALF: usize = 512;

type Hash = [u8; 32];

/// See the module.
#[derive(Debug, Default)]
pub struct Memory {
    of: Option<Arc<Tokens>>,
    young: HashMap<Hash, Arc<Verified>>,
    old: HashMap<Hash, Arc<Verified>>,
}

/// How a token is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Mark(Hash);

impl Memory {
    /// What a token was found to be, under the same conditions.
    pub fn find(&mut self, tokens: &Arc<Tokens>, token: &str) -> (Mark, Option<Arc<Verified>>) {
        if !self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, tokens)) {
            *self = Self { of: Some(Arc::clone(tokens)), ..Self::default() };
        }
        let mut hash = [0; 32];
        // As long as it is, by definition.
        hash.copy_from_slice(&digest(&SHA256, token.as_bytes()).as_ref()[..32]);
        let found = match self.young.get(&hash) {
            Some(found) => Some(Arc::clone(found)),
            None => self.old.remove(&hash).inspect(|found| self.put(hash, found)),
        };
        (Mark(hash), found)
    }

    /// Remembers it, after [`Memory::find`] under the same conditions.
    pub fn keep(&mut self, mark: Mark, verified: &Arc<Verified>) {
        self.put(mark.0, verified);
    }

    fn put(&mut self, hash: Hash, verified: &Arc<Verified>) {
        if self.young.len() >= HALF {
            // Those that were used since the last time are among the young ones.
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, Arc::clone(verified));
    }

    /// How many.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
