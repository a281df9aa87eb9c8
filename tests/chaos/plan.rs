//! What a seed does: the same seed, the same plan.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use runspan::otlp::config::Protocol;

use crate::proxy::Cut;

/// What a seed does to its processes, and when.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) protocol: Protocol,
    pub(crate) gzip: bool,
    pub(crate) writers: usize,
    /// How long writers and faults go on.
    pub(crate) lasts: Duration,
    /// Hours by which the clocks of the two relays are wrong.
    pub(crate) clocks: [i32; 2],
    /// The same of the application's.
    pub(crate) app_clock: i32,
    /// What happens when, in order.
    pub(crate) events: Vec<(Duration, Event)>,
}

/// The faults, of which a seed has one or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Relays are killed.
    Relay,
    /// Writers are killed.
    Writer,
    /// PostgreSQL is killed, and recovers.
    Postgres,
    /// The lease's holder is stopped until another has taken the lease, and then goes on.
    Pause,
    /// The receiver answers otherwise than it should.
    Receiver,
    /// The connection to the receiver does.
    Link,
    /// The connection to PostgreSQL is cut at a statement.
    Cut,
    /// Nothing comes through to PostgreSQL for longer than the lease lasts, and then everything.
    Stall,
    /// The disk is full, for the journal.
    Full,
    /// The table's triggers are disabled, until `attach` enables them.
    Disabled,
    /// Another table takes the name, as an online schema change has it, until `attach` moves the trigger.
    Swapped,
    /// All sequences are set back to their beginning.
    SetBack,
    /// The receiver calls the runs of one workflow wrong.
    Poison,
    /// The clocks of the relays' hosts are wrong.
    Clock,
    /// The clock of the application is, which writes `created_at`.
    AppClock,
    /// PostgreSQL is read-only, as a primary that was demoted.
    ReadOnly,
    /// The relays come through `PgBouncer`, which pools transactions.
    Pooled,
    /// The receiver is the Collector, which comes and goes.
    Collector,
}

impl Kind {
    const ALL: [Self; 18] = [
        Self::Relay,
        Self::Writer,
        Self::Postgres,
        Self::Pause,
        Self::Receiver,
        Self::Link,
        Self::Cut,
        Self::Stall,
        Self::Full,
        Self::Disabled,
        Self::Swapped,
        Self::SetBack,
        Self::Poison,
        Self::Clock,
        Self::AppClock,
        Self::ReadOnly,
        Self::Pooled,
        Self::Collector,
    ];

    /// Whether the journal may miss transitions.
    pub(crate) const fn has_gaps(self) -> bool {
        matches!(self, Self::Full | Self::Disabled | Self::Swapped | Self::SetBack)
    }

    /// Whether no relay may do anything for seconds.
    const fn stops_relays(self) -> bool {
        matches!(self, Self::Pause | Self::Stall)
    }

    /// Whether it ends with an `attach`.
    const fn needs_attach(self) -> bool {
        matches!(self, Self::Disabled | Self::Swapped)
    }

    /// Whether it needs a receiver that does as it is told.
    const fn needs_own_receiver(self) -> bool {
        matches!(self, Self::Receiver | Self::Poison)
    }
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    KillRelay(Which),
    KillWriter(usize),
    KillPostgres,
    PauseHolder,
    ResumeHolder,
    /// From now on the receiver answers so, until [`Event::ReceiverBack`].
    Receiver(Answers),
    ReceiverBack,
    /// The same for the connections to it.
    Link(Break),
    LinkBack,
    Cut(Cut),
    Stall,
    StallEnds,
    Full,
    FullEnds,
    Disable,
    Swap,
    Attach,
    SetBack,
    ReadOnly,
    ReadOnlyEnds,
    CollectorAway,
    CollectorBack,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    Holder,
    Standby,
    Both,
}

/// How the receiver answers for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    Hang,
    /// In time, or too late.
    Late(Duration),
    /// 429 with `Retry-After`, or `RESOURCE_EXHAUSTED` with `RetryInfo`.
    TooMany,
    /// The same without.
    Busy,
    /// 503 or `UNAVAILABLE`.
    Unavailable,
    /// The same, to be tried again after 0 s.
    AtOnce,
    Partial,
    ResetUnread,
    AcceptThenReset,
}

/// What becomes of connections to the receiver for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// Nobody listens.
    Refused,
    /// Closed as soon as something is sent.
    ClosedAtRequest,
    /// Closed when the answer comes.
    ClosedAtAnswer,
    /// The answer is the end of the stream, but the connection stays.
    HalfClosed,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // Eighteen seeds in a row have each kind at least once.
        let count = u64::try_from(Kind::ALL.len()).expect("a few");
        let first = Kind::ALL[usize::try_from(seed % count).expect("a few")];
        let mut kinds = vec![first];
        // Singly and together.
        let more = *[0, 1, 1, 2, 2, 3, 4].choose(&mut random).expect("not empty");
        let mut others = Kind::ALL;
        others.shuffle(&mut random);
        for kind in others {
            let is_collector = |kinds: &[Kind]| kinds.contains(&Kind::Collector);
            let clashes = kind == Kind::Collector && kinds.iter().any(|kind| kind.needs_own_receiver())
                || kind.needs_own_receiver() && is_collector(&kinds)
                || kind == Kind::SetBack && kinds.iter().any(|kind| kind.stops_relays())
                || kind.stops_relays() && kinds.contains(&Kind::SetBack)
                // A relay that cannot write cannot move entries either: docs/guarantees.md, "set back".
                || kind == Kind::SetBack && kinds.contains(&Kind::ReadOnly)
                || kind == Kind::ReadOnly && kinds.contains(&Kind::SetBack)
                || kind == Kind::ReadOnly && kinds.iter().any(|kind| kind.needs_attach())
                || kind.needs_attach() && kinds.contains(&Kind::ReadOnly);
            if kinds.len() <= more && !kinds.contains(&kind) && !clashes {
                kinds.push(kind);
            }
        }
        let takes_long = kinds.iter().any(|kind| kind.stops_relays());
        let mut plan = Self {
            seed,
            protocol: if random.random() { Protocol::Grpc } else { Protocol::HttpProtobuf },
            gzip: random.random(),
            writers: random.random_range(2..=3),
            lasts: Duration::from_millis(if takes_long { 10_500 } else { 5_000 }),
            clocks: [0; 2],
            app_clock: 0,
            events: Vec::new(),
            kinds: kinds.clone(),
        };
        for kind in kinds {
            plan.add(kind, &mut random);
        }
        plan.events.sort_by_key(|(at, _)| *at);
        plan
    }

    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    /// Whether the journal may miss transitions.
    pub(crate) fn has_gaps(&self) -> bool {
        self.kinds.iter().any(|kind| kind.has_gaps())
    }

    fn add(&mut self, kind: Kind, random: &mut StdRng) {
        match kind {
            Kind::Relay => {
                for _ in 0..random.random_range(2..=4) {
                    let which = *[Which::Holder, Which::Holder, Which::Standby, Which::Both]
                        .choose(random)
                        .expect("not empty");
                    self.at(random, Event::KillRelay(which));
                }
            }
            Kind::Writer => {
                for _ in 0..random.random_range(2..=4) {
                    let writer = random.random_range(0..self.writers);
                    self.at(random, Event::KillWriter(writer));
                }
            }
            Kind::Postgres => {
                for _ in 0..random.random_range(1..=2) {
                    self.at(random, Event::KillPostgres);
                }
            }
            Kind::Pause => {
                let from = millis(random, 500..1_500);
                self.events.push((from, Event::PauseHolder));
                self.events.push((from + millis(random, 7_000..8_000), Event::ResumeHolder));
            }
            Kind::Stall => {
                let from = millis(random, 500..1_500);
                self.events.push((from, Event::Stall));
                self.events.push((from + millis(random, 3_000..8_000), Event::StallEnds));
            }
            Kind::Receiver => {
                for _ in 0..3 {
                    let answers = [
                        Answers::Hang,
                        Answers::Late(millis(random, 100..2_500)),
                        Answers::TooMany,
                        Answers::Busy,
                        Answers::Unavailable,
                        Answers::AtOnce,
                        Answers::Partial,
                        Answers::ResetUnread,
                        Answers::AcceptThenReset,
                    ];
                    let answers = *answers.choose(random).expect("not empty");
                    self.during(random, Event::Receiver(answers), Event::ReceiverBack);
                }
            }
            Kind::Link => {
                for _ in 0..3 {
                    let breaks =
                        [Break::Refused, Break::ClosedAtRequest, Break::ClosedAtAnswer, Break::HalfClosed];
                    let how = *breaks.choose(random).expect("not empty");
                    self.during(random, Event::Link(how), Event::LinkBack);
                }
            }
            Kind::Cut => {
                for number in 0..random.random_range(6..=10) {
                    let cut = Cut::choose(self.seed, number, random);
                    self.at(random, Event::Cut(cut));
                }
            }
            Kind::Full => self.during(random, Event::Full, Event::FullEnds),
            Kind::Disabled => self.during(random, Event::Disable, Event::Attach),
            Kind::Swapped => self.during(random, Event::Swap, Event::Attach),
            // Once so much is read that a relay takes it up before the sequence gets there again.
            Kind::SetBack => self.events.push((millis(random, 3_000..4_500), Event::SetBack)),
            Kind::Clock => {
                self.clocks = [(); 2].map(|()| hours(random));
            }
            Kind::AppClock => self.app_clock = hours(random),
            Kind::ReadOnly => self.during(random, Event::ReadOnly, Event::ReadOnlyEnds),
            Kind::Collector => self.during(random, Event::CollectorAway, Event::CollectorBack),
            Kind::Poison | Kind::Pooled => {}
        }
    }

    /// At some moment while there is time for it to matter.
    fn at(&mut self, random: &mut StdRng, event: Event) {
        let latest = u64::try_from(self.lasts.as_millis()).expect("seconds") - 500;
        self.events.push((millis(random, 300..latest), event));
    }

    /// For a while.
    fn during(&mut self, random: &mut StdRng, begins: Event, ends: Event) {
        let latest = u64::try_from(self.lasts.as_millis()).expect("seconds") - 2_000;
        let from = millis(random, 300..latest);
        self.events.push((from, begins));
        self.events.push((from + millis(random, 300..1_800), ends));
    }
}

fn hours(random: &mut StdRng) -> i32 {
    let hours = random.random_range(1..=30);
    if random.random() { hours } else { -hours }
}

fn millis(random: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.kinds.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect();
        write!(f, "{} over {}", kinds.join(" + "), self.protocol)
    }
}
