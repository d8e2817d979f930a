//! The keys that detach: Ctrl-\ and then d. Ctrl-\ twice is one for the session; with any other key behind it, both go there.

/// Ctrl-\, which terminals send for SIGQUIT and no program waits for as input.
const PREFIX: u8 = 0x1c;
const DETACH: u8 = b'd';

/// What has been typed so far.
#[derive(Debug, Default)]
pub struct DetachKeys {
    prefixed: bool,
}

/// What is to be done with keys.
#[derive(Debug, PartialEq, Eq)]
pub enum Keys {
    Pass(Vec<u8>),
    /// These are still for the session, and then it is left.
    Detach(Vec<u8>),
}

impl DetachKeys {
    /// What of these keys is for the session: at most one more than were typed now.
    pub fn filter(&mut self, typed: &[u8]) -> Keys {
        let mut pass = Vec::with_capacity(typed.len() + 1);
        for key in typed {
            match (self.prefixed, *key) {
                (false, PREFIX) => self.prefixed = true,
                (false, key) => pass.push(key),
                (true, DETACH) => return Keys::Detach(pass),
                (true, key) => {
                    self.prefixed = false;
                    pass.push(PREFIX);
                    if key != PREFIX {
                        pass.push(key);
                    }
                }
            }
        }
        Keys::Pass(pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_prefix_and_d_detach() {
        let filtered = |pieces: &[&[u8]]| {
            let mut keys = DetachKeys::default();
            pieces.iter().map(|piece| keys.filter(piece)).collect::<Vec<_>>()
        };
        let pass = |bytes: &[u8]| Keys::Pass(bytes.to_vec());
        assert_eq!(filtered(&[b"ls d\r"]), [pass(b"ls d\r")]);
        assert_eq!(filtered(&[b"x\x1cd"]), [Keys::Detach(b"x".to_vec())]);
        assert_eq!(filtered(&[b"x\x1c", b"d"]), [pass(b"x"), Keys::Detach(Vec::new())]);
        assert_eq!(filtered(&[b"\x1c\x1cd"]), [pass(b"\x1cd")]);
        assert_eq!(filtered(&[b"\x1c", b"q"]), [pass(b""), pass(b"\x1cq")]);
    }
}
