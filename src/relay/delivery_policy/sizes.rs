//! How large requests of the outbox may be, as far as a receiver's answers show it.

use std::collections::{BTreeMap, HashMap};

use super::Facts;

/// How often a request is refused as too large before it is halved.
const REFUSALS: u32 = 2;
/// The same for one that is not larger than another one that was accepted: the receiver is probably busy.
const REFUSALS_WHEN_BUSY: u32 = 8;

/// What was accepted and what was not, in items.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// The largest request that was accepted, or 0.
    accepted: usize,
    /// The smallest one that is known to be too large: it was refused, and a part of it accepted.
    too_large: Option<usize>,
    /// How often a request was refused.
    refusals: HashMap<i64, u32>,
    /// By place the smallest request that was halved.
    halved: BTreeMap<i64, usize>,
}

impl Sizes {
    /// A request was refused as too large: whether to halve it.
    pub(super) fn refused(&mut self, request: Facts) -> bool {
        let refusals = self.refusals.entry(request.id).or_default();
        *refusals += 1;
        let enough = match self.too_large {
            Some(size) if request.items >= size => 1,
            _ if request.items <= self.accepted => REFUSALS_WHEN_BUSY,
            _ => REFUSALS,
        };
        if *refusals < enough {
            return false;
        }
        self.refusals.remove(&request.id);
        let smallest = self.halved.entry(request.place).or_insert(request.items);
        *smallest = request.items.min(*smallest);
        true
    }

    pub(super) fn accepted(&mut self, request: Facts) {
        self.refusals.remove(&request.id);
        match self.halved.get(&request.place) {
            Some(&size) if request.items < size => {
                self.too_large = Some(self.too_large.map_or(size, |known| known.min(size)));
                // What was accepted before the limit was lowered counts no more.
                self.accepted = request.items;
            }
            _ => self.accepted = self.accepted.max(request.items),
        }
        // The limit was raised, or there never was one, only a busy receiver.
        self.too_large = self.too_large.filter(|size| *size > self.accepted);
    }

    /// No request before this place will be sent again.
    pub(super) fn settled_before(&mut self, place: i64) {
        self.halved = self.halved.split_off(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: i64, items: usize) -> Facts {
        Facts { id, place: id, items }
    }

    fn refusals_until_halved(sizes: &mut Sizes, request: Facts) -> u32 {
        let mut refusals = 1;
        while !sizes.refused(request) {
            refusals += 1;
        }
        refusals
    }

    #[test]
    fn the_same_request_is_refused_twice_before_it_is_halved() {
        let mut sizes = Sizes::default();
        assert!(!sizes.refused(request(1, 100)));
        assert!(!sizes.refused(request(2, 100)), "another request");
        assert!(sizes.refused(request(1, 100)));
    }

    #[test]
    fn a_size_that_was_accepted_before_is_halved_late() {
        let mut sizes = Sizes::default();
        sizes.accepted(request(1, 100));
        assert_eq!(refusals_until_halved(&mut sizes, request(2, 100)), REFUSALS_WHEN_BUSY);
        assert_eq!(refusals_until_halved(&mut sizes, request(3, 101)), REFUSALS);
    }

    #[test]
    fn a_known_limit_costs_no_second_refusal_until_it_is_raised() {
        let mut sizes = Sizes::default();
        sizes.accepted(request(1, 400));
        assert_eq!(refusals_until_halved(&mut sizes, request(2, 300)), REFUSALS_WHEN_BUSY);
        sizes.accepted(Facts { id: 3, place: 2, items: 150 });
        assert_eq!(refusals_until_halved(&mut sizes, request(4, 300)), 1);
        assert_eq!(refusals_until_halved(&mut sizes, request(5, 299)), REFUSALS);
        assert_eq!(refusals_until_halved(&mut sizes, request(6, 150)), REFUSALS_WHEN_BUSY);
        sizes.accepted(request(7, 500));
        assert_eq!(refusals_until_halved(&mut sizes, request(8, 400)), REFUSALS_WHEN_BUSY);
    }
}
