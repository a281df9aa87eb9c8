//! How far the journal is read.

/// How far the journal is read: a low-water mark, which outlives the relay, and the unread ranges above it, so
/// that PostgreSQL does not look again at the dead rows of what was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Every entry up to here is consumed, and none can appear any more.
    pub low: i64,
    /// What the mark moves to next.
    pub pending: Option<Pending>,
    /// Never empty, in order, and disjoint: the last one has no end.
    unread: Vec<Unread>,
}

/// A position that becomes the low-water mark once every transaction that could still write below it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The last entry of a batch.
    pub seq: i64,
    /// A transaction id that was drawn after that batch was read: whoever drew a position at or below `seq` has a
    /// lower one. (The `xmax` of the snapshot would not do: it is one past the last id that has *ended*.)
    pub bound: i64,
}

/// The positions between these two, without them: nothing that appears there has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The one before the first.
    pub above: i64,
    /// The one after the last.
    pub below: i64,
}

/// With more places to look at, it is better to look again at what was read between some of them. Each costs a descent
/// of the index; they come from transactions that were rolled back while another one stays open.
const MAX_UNREAD: usize = 1_000;

impl Default for Position {
    fn default() -> Self {
        Self::from_mark(0, None)
    }
}

impl Position {
    /// The position of a relay that has just begun.
    pub fn from_mark(low: i64, pending: Option<Pending>) -> Self {
        Self { low, pending, unread: vec![Unread { above: low, below: i64::MAX }] }
    }

    /// Where to look for entries.
    pub fn unread(&self) -> &[Unread] {
        &self.unread
    }

    /// The last position that was read.
    pub fn highest(&self) -> i64 {
        self.unread.last().map_or(self.low, |unread| unread.above)
    }

    /// The position once `batch` is read, in order, of what is unread, in a snapshot that begins at `xmin`; `bound` was
    /// drawn after it.
    #[must_use]
    pub fn advance(self, batch: &[i64], xmin: i64, bound: i64) -> Self {
        let Some(&last) = batch.last() else { return self };
        // A batch that ends below it may have been cut off there: late entries can be many.
        let reached = self.pending.filter(|pending| xmin >= pending.bound && last >= pending.seq);
        let mut low = reached.map_or(self.low, |pending| pending.seq);
        if xmin >= bound {
            // No transaction in progress could still write up to here. (On SQLite none ever could: both are 0.)
            low = low.max(last);
        }
        let waiting = if reached.is_some() { None } else { self.pending }.filter(|pending| pending.seq > low);
        // One at a time: a newer one would only ever be later.
        let pending = waiting.or_else(|| (last > low).then_some(Pending { seq: last, bound }));
        Self { low, pending, unread: without(&self.unread, batch, low) }
    }

    /// Whether there are too many places to look at.
    pub fn has_too_many_gaps(&self) -> bool {
        self.unread.len() > MAX_UNREAD
    }

    /// Joins the nearest of too many places. What was read between them has to be gone from the journal, or it is read
    /// again.
    pub fn merge_gaps(&mut self) {
        if !self.has_too_many_gaps() {
            return;
        }
        let between = |place: usize| self.unread[place].above - self.unread[place - 1].below;
        let mut nearest: Vec<usize> = (1..self.unread.len()).collect();
        nearest.sort_by_key(|&place| between(place));
        nearest.truncate(self.unread.len() - MAX_UNREAD / 2);
        nearest.sort_unstable();
        let mut joins = nearest.into_iter().peekable();
        let mut gathered: Vec<Unread> = Vec::with_capacity(MAX_UNREAD);
        for (place, &unread) in self.unread.iter().enumerate() {
            match gathered.last_mut() {
                Some(before) if joins.next_if_eq(&place).is_some() => before.below = unread.below,
                _ => gathered.push(unread),
            }
        }
        self.unread = gathered;
    }
}

/// `unread` without `batch`, and without everything up to `low`.
fn without(unread: &[Unread], batch: &[i64], low: i64) -> Vec<Unread> {
    let mut batch = batch.iter().copied().peekable();
    let mut left = Vec::with_capacity(unread.len());
    let mut keep = |above: i64, below: i64| {
        let above = above.max(low);
        if below.saturating_sub(above) > 1 {
            left.push(Unread { above, below });
        }
    };
    for &Unread { mut above, below } in unread {
        while let Some(seq) = batch.next_if(|seq| *seq < below) {
            keep(above, seq);
            above = seq;
        }
        keep(above, below);
    }
    left
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn mark(position: &Position) -> (i64, Option<Pending>) {
        (position.low, position.pending)
    }

    fn unread(position: &Position) -> String {
        let end = |below: i64| if below == i64::MAX { "…".to_owned() } else { (below - 1).to_string() };
        let each = position.unread.iter().map(|unread| format!("{}-{}", unread.above + 1, end(unread.below)));
        each.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_mark_waits_for_every_transaction_that_could_still_write_below_it() {
        let read = Position::default().advance(&[10], 100, 105);
        assert_eq!(mark(&read), (0, Some(Pending { seq: 10, bound: 105 })));
        // A transaction below 105 is still running: entries up to 10 may yet appear.
        let waiting = read.advance(&[30], 104, 120);
        assert_eq!(mark(&waiting), (0, Some(Pending { seq: 10, bound: 105 })));
        // All of them have ended, but the batch ends below what they may have written.
        let waiting = waiting.advance(&[9], 105, 125);
        assert_eq!(mark(&waiting), (0, Some(Pending { seq: 10, bound: 105 })));
        // And now all of it is read.
        let moved = waiting.advance(&[40], 105, 130);
        assert_eq!(mark(&moved), (10, Some(Pending { seq: 40, bound: 130 })));
        // Nothing new: nothing to wait for.
        assert_eq!(mark(&moved.advance(&[], 130, 140)), (10, Some(Pending { seq: 40, bound: 130 })));
    }

    #[test]
    fn what_was_read_is_not_looked_at_again_though_the_mark_waits() {
        let read = Position::default().advance(&[1, 2, 3, 5, 6, 9], 100, 105);
        assert_eq!(unread(&read), "4-4 7-8 10-…");
        let late = read.advance(&[8, 10, 11], 100, 110);
        assert_eq!(unread(&late), "4-4 7-7 12-…");
        assert_eq!(late.highest(), 11);
        // The mark moves to 9: whatever is missing below it was rolled back.
        let moved = late.advance(&[12], 105, 115);
        assert_eq!((moved.low, unread(&moved).as_str()), (9, "13-…"));
    }

    #[test]
    fn the_mark_waits_for_no_one_where_no_transaction_was_under_way() {
        let read = Position::default().advance(&[5, 7], 100, 100);
        assert_eq!((mark(&read), unread(&read).as_str()), ((7, None), "8-…"));
        // Only 9 is committed late; everything above 9 has been read.
        let late = read.advance(&[8, 10, 11], 100, 101);
        assert_eq!(mark(&late), (7, Some(Pending { seq: 11, bound: 101 })));
        let late = late.advance(&[9], 102, 102);
        assert_eq!(
            (mark(&late), unread(&late).as_str()),
            ((9, Some(Pending { seq: 11, bound: 101 })), "12-…")
        );
    }

    #[test]
    fn too_many_places_are_joined_where_least_was_read_between_them() {
        // Two of three, and then one long stretch.
        let batch: Vec<i64> = (0..1_500).flat_map(|n| [3 * n + 1, 3 * n + 2]).chain(4_501..9_000).collect();
        let mut position = Position::default().advance(&batch, 100, 105);
        assert!(position.has_too_many_gaps());
        position.merge_gaps();
        assert!(!position.has_too_many_gaps());
        assert_eq!(position.unread.last(), Some(&Unread { above: 8_999, below: i64::MAX }));
        let kept = position.clone();
        position.merge_gaps();
        assert_eq!(position, kept);
    }

    proptest! {
        /// Whatever appears in whichever order, every position is read once.
        #[test]
        fn every_position_is_read_once(
            appear in vec(btree_set(1_i64..200, 0..40), 0..20),
            limit in 1_usize..50,
            ended in vec(any::<bool>(), 20),
            is_idle in vec(prop::bool::weighted(0.2), 20),
        ) {
            let (mut written, mut read) = (BTreeSet::new(), BTreeSet::new());
            let mut position = Position::default();
            for (round, new) in (0_i64..).zip(&appear) {
                // Nothing appears below the mark, by its definition.
                written.extend(new.iter().filter(|seq| **seq > position.low));
                let is_unread = |seq: &i64| {
                    position.unread().iter().any(|unread| unread.above < *seq && *seq < unread.below)
                };
                let batch: Vec<i64> = written.iter().copied().filter(is_unread).take(limit).collect();
                for seq in &batch {
                    prop_assert!(read.insert(*seq), "{seq} is read twice");
                }
                let all_ended = ended[usize::try_from(round).unwrap()];
                let idle = is_idle[usize::try_from(round).unwrap()];
                let xmin = if idle { 2 * round + 1 } else if all_ended { 2 * round } else { 0 };
                position = position.advance(&batch, xmin, 2 * round + 1);
                let due = written.iter().filter(|seq| !read.contains(seq));
                prop_assert!(due.clone().all(|seq| *seq > position.low), "the mark has passed what is not read");
                prop_assert_eq!(due.copied().find(|seq| !position.unread().iter().any(|u| u.above < *seq && *seq < u.below)), None);
                prop_assert!(position.unread().windows(2).all(|two| two[0].below <= two[1].above));
            }
        }

        /// To look at fewer places is to look at more positions, and never at fewer.
        #[test]
        fn to_gather_hides_nothing(gone in btree_set(1_i64..100_000, 0..6_000)) {
            let batch: Vec<i64> = gone.into_iter().collect();
            let before = Position::default().advance(&batch, 0, 1);
            let mut after = before.clone();
            after.merge_gaps();
            prop_assert!(!after.has_too_many_gaps());
            let is_within = |one: &Unread| {
                after.unread.iter().any(|all| all.above <= one.above && one.below <= all.below)
            };
            prop_assert!(before.unread.iter().all(is_within));
            prop_assert!(after.unread.windows(2).all(|two| two[0].below <= two[1].above));
        }
    }
}
