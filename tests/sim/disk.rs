//! A second disk beside the real directory, one that knows what is durable: each step of the server's real code is seen
//! through [`tenure::disk::Witness`] and repeated here, with what a crash may take back remembered.
//!
//! The server writes into a directory in memory. What it does in one turn of a thread is done at once there, but takes
//! simulated time here: a crash in the middle of the turn keeps only the first part of its steps. Then the whole disk is
//! put into a fresh directory, as the crash left it, and the real recovery reads that.
//!
//! - Killed process: the kernel has all that was written.
//! - Power cut: of what no sync covered each 512-byte sector has the content of before, or after any one of the writes
//!   since; lengths likewise; names that no sync of their directory covered are lost from some step on, in each directory.
//! - A failed sync: what it should have covered may never reach the disk, though the next sync succeeds.

use fastrand::Rng;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use tenure::disk::{Change, Place, Step, Witness};

const SECTOR: u64 = 512;

type Id = u64;

/// What a crash does to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    Kill,
    PowerCut,
}

/// Content, without the zeros at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    bytes: Vec<u8>,
    length: u64,
}

#[derive(Clone, Debug)]
enum Edit {
    Write { offset: u64, bytes: Rc<[u8]> },
    Length(u64),
}

impl Content {
    fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::Write { offset, bytes } => {
                self.length = self.length.max(offset + bytes.len() as u64);
                self.put(*offset, bytes);
            }
            Edit::Length(length) => {
                self.bytes.truncate(*length as usize);
                self.length = *length;
            }
        }
    }

    fn put(&mut self, offset: u64, mut bytes: &[u8]) {
        if offset + bytes.len() as u64 > self.bytes.len() as u64 {
            // Zeros behind the end are there already.
            let inside = (self.bytes.len() as u64).saturating_sub(offset).min(bytes.len() as u64) as usize;
            let kept = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
            bytes = &bytes[..kept.max(inside)];
        }
        let end = offset as usize + bytes.len();
        if bytes.is_empty() {
            return;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset as usize..end].copy_from_slice(bytes);
    }

    fn sector(&self, sector: u64) -> Vec<u8> {
        let from = ((sector * SECTOR) as usize).min(self.bytes.len());
        let to = (((sector + 1) * SECTOR) as usize).min(self.bytes.len());
        let mut out = self.bytes[from..to].to_vec();
        out.resize(SECTOR as usize, 0);
        out
    }
}

#[derive(Clone, Debug, Default)]
struct FileNode {
    /// As the kernel shows it.
    cached: Content,
    /// What a power cut leaves for certain.
    durable: Content,
    /// What was done since the last sync.
    pending: Vec<Edit>,
}

#[derive(Clone, Debug)]
enum Node {
    File(FileNode),
    Dir { cached: BTreeMap<String, Id>, durable: BTreeMap<String, Id> },
}

/// A step as it is kept until it is certain that it was done.
#[derive(Clone, Debug)]
enum Op {
    MakeFile(Id),
    MakeDir(Id),
    Edit(Id, Edit),
    Synced(Id),
    SyncFailed(Id),
    /// Names of directories and what they are after it, all of them or none.
    Names(Vec<(Id, String, Option<Id>)>),
    DirSynced(Id),
}

/// What the disk is asked to do wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct DiskFaults {
    /// One in so many steps fails with an I/O error; 0: none.
    pub(crate) error_one_in: u64,
    /// No room for anything new.
    pub(crate) full: bool,
    /// A sync takes so long at least, in microseconds.
    pub(crate) sync_us: u64,
    /// One in so many syncs takes up to this longer.
    pub(crate) slow_one_in: u64,
    pub(crate) slow_us: u64,
}

struct Inner {
    rng: Rng,
    nodes: BTreeMap<Id, Node>,
    /// Names that are not durable yet, in order.
    names: Vec<Vec<(Id, String, Option<Id>)>>,
    /// Steps that may still turn out not to have been done, with the turn that did them.
    ops: Vec<(u64, Op)>,
    /// Turns that are not over.
    open: BTreeSet<u64>,
    turn: u64,
    last_turn: u64,
    last_id: Id,
    real: HashMap<u64, Id>,
    lengths: HashMap<Id, u64>,
    faults: DiskFaults,
    cost: u64,
    errors: u64,
    counts: BTreeMap<&'static str, u64>,
}

const ROOT: Id = 0;

/// The disk.
#[derive(Clone)]
pub(crate) struct Disk(Rc<RefCell<Inner>>);

impl Witness for Disk {
    fn before(&self, step: Step) -> io::Result<()> {
        self.0.borrow_mut().before(step)
    }

    fn after(&self, change: Change<'_>) {
        self.0.borrow_mut().after(change);
    }
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Disk {
        let mut nodes = BTreeMap::new();
        nodes.insert(ROOT, Node::Dir { cached: BTreeMap::new(), durable: BTreeMap::new() });
        Disk(Rc::new(RefCell::new(Inner {
            rng: Rng::with_seed(seed),
            nodes,
            names: Vec::new(),
            ops: Vec::new(),
            open: BTreeSet::new(),
            turn: 0,
            last_turn: 0,
            last_id: ROOT,
            real: HashMap::new(),
            lengths: HashMap::new(),
            faults: DiskFaults { sync_us: 100, ..DiskFaults::default() },
            cost: 0,
            errors: 0,
            counts: BTreeMap::new(),
        })))
    }

    pub(crate) fn set_faults(&self, faults: DiskFaults) {
        self.0.borrow_mut().faults = faults;
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.0.borrow_mut().faults.full = full;
    }

    /// How many errors were injected so far.
    pub(crate) fn errors(&self) -> u64 {
        self.0.borrow().errors
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.borrow().counts.clone()
    }

    /// Begins a turn of a thread: what it does from here on is done by it.
    pub(crate) fn begin(&self) -> u64 {
        let mut inner = self.0.borrow_mut();
        inner.last_turn += 1;
        inner.turn = inner.last_turn;
        let turn = inner.turn;
        inner.open.insert(turn);
        inner.cost = 0;
        turn
    }

    /// What the turn has cost, in microseconds.
    pub(crate) fn cost(&self) -> u64 {
        self.0.borrow().cost
    }

    /// A turn is over: all that it did is done.
    pub(crate) fn finish(&self, turn: u64) {
        let mut inner = self.0.borrow_mut();
        inner.open.remove(&turn);
        inner.settle();
    }

    /// What a crash leaves. Turns that are not over have done only a first part.
    pub(crate) fn crash(&self, crash: Crash) {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for (turn, _) in inner.ops.iter().filter(|(turn, _)| inner.open.contains(turn)) {
            *counts.entry(*turn).or_default() += 1;
        }
        for left in counts.values_mut() {
            *left = inner.rng.usize(0..=*left);
        }
        if !counts.is_empty() {
            *inner.counts.entry("crash in a turn").or_default() += 1;
        }
        for (turn, op) in std::mem::take(&mut inner.ops) {
            match counts.get_mut(&turn) {
                Some(0) => {}
                Some(left) => {
                    *left -= 1;
                    inner.apply(op);
                }
                None => inner.apply(op),
            }
        }
        inner.open.clear();
        if crash == Crash::PowerCut {
            inner.cut();
        }
        inner.collect();
    }

    /// Puts the disk into an empty directory.
    pub(crate) fn materialise(&self, path: &Path) {
        let mut inner = self.0.borrow_mut();
        assert!(inner.ops.is_empty(), "a disk is shown after a crash only");
        inner.real.clear();
        inner.lengths.clear();
        inner.show(ROOT, path);
    }

    /// The content of a file by its path, as the kernel shows it once all turns are over.
    pub(crate) fn read(&self, path: &str) -> Option<Vec<u8>> {
        let inner = self.0.borrow();
        let mut at = ROOT;
        for part in path.split('/') {
            match inner.nodes.get(&at) {
                Some(Node::Dir { cached, .. }) => at = *cached.get(part)?,
                _ => return None,
            }
        }
        match inner.nodes.get(&at) {
            Some(Node::File(file)) => {
                let mut bytes = file.cached.bytes.clone();
                bytes.resize(file.cached.length as usize, 0);
                Some(bytes)
            }
            _ => None,
        }
    }
}

impl Inner {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn before(&mut self, step: Step) -> io::Result<()> {
        if let Step::Sync { .. } | Step::SyncDir { .. } = step {
            self.count("syncs");
            self.cost += self.faults.sync_us + self.rng.u64(0..=self.faults.sync_us);
            if self.faults.slow_one_in > 0 && self.rng.u64(0..self.faults.slow_one_in) == 0 {
                self.count("slow sync");
                self.cost += self.rng.u64(0..=self.faults.slow_us);
            }
        } else {
            self.cost += 5;
        }
        if self.faults.error_one_in > 0 && self.rng.u64(0..self.faults.error_one_in) == 0 {
            self.errors += 1;
            self.count(match step {
                Step::Sync { .. } | Step::SyncDir { .. } => "error of a sync",
                Step::Write { .. } => "error of a write",
                Step::Create | Step::Allocate { .. } | Step::Name => "error of another call",
            });
            if let Step::Sync { inode } = step
                && let Some(&id) = self.real.get(&inode)
            {
                self.push(Op::SyncFailed(id));
            }
            return Err(io::Error::from_raw_os_error(5));
        }
        if self.faults.full {
            let grows = match step {
                Step::Write { inode, end } | Step::Allocate { inode, length: end } => {
                    let id = self.real.get(&inode).copied().unwrap_or(u64::MAX);
                    end > self.lengths.get(&id).copied().unwrap_or(0)
                }
                Step::Create => self.rng.bool(),
                Step::Sync { .. } | Step::Name | Step::SyncDir { .. } => false,
            };
            if grows {
                self.count("no room");
                return Err(io::Error::from_raw_os_error(28));
            }
        }
        Ok(())
    }

    fn push(&mut self, op: Op) {
        self.ops.push((self.turn, op));
    }

    fn fresh(&mut self, inode: u64) -> Id {
        self.last_id += 1;
        self.real.insert(inode, self.last_id);
        self.lengths.insert(self.last_id, 0);
        self.last_id
    }

    fn id(&self, inode: u64) -> Id {
        *self.real.get(&inode).unwrap_or_else(|| panic!("inode {inode} is not of this disk"))
    }

    fn after(&mut self, change: Change<'_>) {
        let place = |inner: &Inner, place: Place| (inner.id(place.dir), place.name);
        match change {
            Change::Created { place: at, inode } => {
                let (dir, name) = place(self, at);
                if let (Some(&id), true) =
                    (self.real.get(&inode), self.named(dir, &name) == self.real.get(&inode).copied())
                {
                    self.lengths.insert(id, 0);
                    return self.push(Op::Edit(id, Edit::Length(0)));
                }
                let id = self.fresh(inode);
                self.push(Op::MakeFile(id));
                self.push(Op::Names(vec![(dir, name, Some(id))]));
            }
            Change::DirMade { place: at, inode } => {
                let (dir, name) = place(self, at);
                let id = self.fresh(inode);
                self.push(Op::MakeDir(id));
                self.push(Op::Names(vec![(dir, name, Some(id))]));
            }
            Change::Written { inode, offset, bytes } => {
                let id = self.id(inode);
                let length = self.lengths.entry(id).or_default();
                *length = (*length).max(offset + bytes.len() as u64);
                self.cost += bytes.len() as u64 / 4_096;
                self.push(Op::Edit(id, Edit::Write { offset, bytes: bytes.into() }));
            }
            Change::Resized { inode, length } => {
                let id = self.id(inode);
                self.lengths.insert(id, length);
                self.push(Op::Edit(id, Edit::Length(length)));
            }
            Change::Synced { inode } => {
                let id = self.id(inode);
                self.push(Op::Synced(id));
            }
            Change::Renamed { from, to } => {
                let (from, to) = (place(self, from), place(self, to));
                let id = self.named(from.0, &from.1);
                self.push(Op::Names(vec![(from.0, from.1, None), (to.0, to.1, id)]));
            }
            Change::Exchanged { one, other } => {
                let (one, other) = (place(self, one), place(self, other));
                let (a, b) = (self.named(one.0, &one.1), self.named(other.0, &other.1));
                self.push(Op::Names(vec![(one.0, one.1, b), (other.0, other.1, a)]));
            }
            Change::Linked { from, to } => {
                let (from, to) = (place(self, from), place(self, to));
                let id = self.named(from.0, &from.1);
                self.push(Op::Names(vec![(to.0, to.1, id)]));
            }
            Change::Unlinked { place: at } => {
                let at = place(self, at);
                self.push(Op::Names(vec![(at.0, at.1, None)]));
            }
            Change::DirSynced { inode } => {
                // The directory above the data directory is not ours.
                if let Some(&id) = self.real.get(&inode) {
                    self.push(Op::DirSynced(id));
                }
            }
        }
    }

    /// What a name is now, with all steps done.
    fn named(&self, dir: Id, name: &str) -> Option<Id> {
        for (_, op) in self.ops.iter().rev() {
            if let Op::Names(changes) = op
                && let Some((.., id)) = changes.iter().find(|(of, what, _)| *of == dir && what == name)
            {
                return *id;
            }
        }
        match self.nodes.get(&dir) {
            Some(Node::Dir { cached, .. }) => cached.get(name).copied(),
            _ => None,
        }
    }

    /// Applies what is certain.
    fn settle(&mut self) {
        let first = self.open.first().copied().unwrap_or(u64::MAX);
        let certain = self.ops.iter().position(|(turn, _)| *turn >= first).unwrap_or(self.ops.len());
        let ops: Vec<(u64, Op)> = self.ops.drain(..certain).collect();
        for (_, op) in ops {
            self.apply(op);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::MakeFile(id) => drop(self.nodes.insert(id, Node::File(FileNode::default()))),
            Op::MakeDir(id) => {
                let node = Node::Dir { cached: BTreeMap::new(), durable: BTreeMap::new() };
                self.nodes.insert(id, node);
            }
            Op::Edit(id, edit) => {
                if let Some(Node::File(file)) = self.nodes.get_mut(&id) {
                    file.cached.apply(&edit);
                    file.pending.push(edit);
                }
            }
            Op::Synced(id) => {
                if let Some(Node::File(file)) = self.nodes.get_mut(&id) {
                    for edit in std::mem::take(&mut file.pending) {
                        file.durable.apply(&edit);
                    }
                }
            }
            Op::SyncFailed(id) => {
                let lost = self.rng.u8(0..3);
                if let Some(Node::File(file)) = self.nodes.get_mut(&id) {
                    // The kernel may call the pages clean that it did not write.
                    for edit in std::mem::take(&mut file.pending) {
                        if lost == 0 || (lost == 1 && self.rng.bool()) {
                            file.durable.apply(&edit);
                        }
                    }
                }
            }
            Op::Names(changes) => {
                for (dir, name, id) in &changes {
                    if let Some(Node::Dir { cached, .. }) = self.nodes.get_mut(dir) {
                        set(cached, name, *id);
                    }
                }
                self.names.push(changes);
            }
            Op::DirSynced(id) => {
                let mut dirs = BTreeSet::from([id]);
                let mut now = vec![false; self.names.len()];
                for (index, changes) in self.names.iter().enumerate().rev() {
                    if changes.iter().any(|(dir, ..)| dirs.contains(dir)) {
                        now[index] = true;
                        dirs.extend(changes.iter().map(|(dir, ..)| *dir));
                    }
                }
                let names = std::mem::take(&mut self.names);
                for (changes, now) in names.into_iter().zip(now) {
                    match now {
                        true => self.name(changes),
                        false => self.names.push(changes),
                    }
                }
            }
        }
    }

    /// Makes names durable.
    fn name(&mut self, changes: Vec<(Id, String, Option<Id>)>) {
        for (dir, name, id) in changes {
            if let Some(Node::Dir { durable, .. }) = self.nodes.get_mut(&dir) {
                set(durable, &name, id);
            }
        }
    }

    /// The power is cut.
    fn cut(&mut self) {
        let keep = [0, 50, 90, 100][self.rng.usize(0..4)];
        let mut blocked: BTreeSet<Id> = BTreeSet::new();
        for changes in std::mem::take(&mut self.names) {
            let lost = changes.iter().any(|(dir, ..)| blocked.contains(dir)) || self.rng.u8(0..100) >= keep;
            if lost {
                *self.counts.entry("lost name").or_default() += 1;
                blocked.extend(changes.iter().map(|(dir, ..)| *dir));
            } else {
                self.name(changes);
            }
        }
        let keep = [0, 50, 90, 100][self.rng.usize(0..4)];
        let (mut lost, mut torn) = (0, 0);
        for node in self.nodes.values_mut() {
            match node {
                Node::Dir { cached, durable } => *cached = durable.clone(),
                Node::File(file) => {
                    if !file.pending.is_empty() {
                        survive(&mut self.rng, file, keep, &mut lost, &mut torn);
                    }
                    file.cached = file.durable.clone();
                    file.pending.clear();
                }
            }
        }
        *self.counts.entry("lost write").or_default() += lost;
        *self.counts.entry("torn write").or_default() += torn;
    }

    /// Forgets what has no name any more.
    fn collect(&mut self) {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![ROOT]);
        while let Some(id) = todo.pop() {
            if seen.insert(id)
                && let Some(Node::Dir { cached, durable }) = self.nodes.get(&id)
            {
                todo.extend(cached.values().chain(durable.values()).copied());
            }
        }
        let named = self.names.iter().flatten().filter_map(|(.., id)| *id);
        seen.extend(named);
        self.nodes.retain(|id, _| seen.contains(id));
    }

    fn show(&mut self, id: Id, path: &Path) {
        match self.nodes.get(&id).expect("names lead to what is there").clone() {
            Node::Dir { cached, .. } => {
                if id != ROOT {
                    std::fs::create_dir(path).expect("the directory is ours");
                }
                for (name, below) in cached {
                    self.show(below, &path.join(name));
                }
            }
            Node::File(file) => {
                // A second name of a file is made as one.
                let first = self.real.iter().find(|(_, known)| **known == id).map(|(inode, _)| *inode);
                if let Some(inode) = first {
                    let other = path
                        .parent()
                        .into_iter()
                        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
                    for entry in other.flatten() {
                        if entry.metadata().is_ok_and(|found| found.ino() == inode) {
                            std::fs::hard_link(entry.path(), path).expect("a second name");
                            return;
                        }
                    }
                }
                let made = std::fs::File::create_new(path).expect("the directory is ours");
                std::os::unix::fs::FileExt::write_all_at(&made, &file.cached.bytes, 0)
                    .expect("there is memory");
                made.set_len(file.cached.length).expect("there is memory");
                self.lengths.insert(id, file.cached.length);
            }
        }
        let inode = std::fs::metadata(path).expect("it was just made").ino();
        self.real.insert(inode, id);
    }
}

fn set(names: &mut BTreeMap<String, Id>, name: &str, id: Option<Id>) {
    match id {
        Some(id) => drop(names.insert(name.into(), id)),
        None => drop(names.remove(name)),
    }
}

/// What is left of edits that no sync covered.
fn survive(rng: &mut Rng, file: &mut FileNode, keep: u8, lost: &mut u64, torn: &mut u64) {
    let versions: Vec<u64> = {
        let mut content = Content { bytes: Vec::new(), length: file.durable.length };
        let lengths = file.pending.iter().map(|edit| {
            match edit {
                Edit::Write { offset, bytes } => {
                    content.length = content.length.max(offset + bytes.len() as u64)
                }
                Edit::Length(length) => content.length = *length,
            }
            content.length
        });
        std::iter::once(file.durable.length).chain(lengths.collect::<Vec<_>>()).collect()
    };
    let last = versions.len() - 1;
    let mut choose = |most: usize| match rng.u8(0..100) {
        chance if chance < keep => most,
        _ => rng.usize(0..=most),
    };
    let length = versions[choose(last)];
    let mut touched: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, edit) in file.pending.iter().enumerate() {
        if let Edit::Write { offset, bytes } = edit
            && !bytes.is_empty()
        {
            for sector in offset / SECTOR..=(offset + bytes.len() as u64 - 1) / SECTOR {
                touched.entry(sector).or_default().push(index);
            }
        }
    }
    let mut out = file.durable.clone();
    let (mut kept, mut gone) = (0, 0);
    for (sector, edits) in touched {
        let chosen = choose(edits.len());
        let before = file.durable.sector(sector);
        let mut content = Content { bytes: before, length: SECTOR };
        for index in &edits[..chosen] {
            let Edit::Write { offset, bytes } = &file.pending[*index] else { continue };
            let start = sector * SECTOR;
            let from = start.saturating_sub(*offset) as usize;
            let to = ((start + SECTOR).saturating_sub(*offset) as usize).min(bytes.len());
            content.bytes.resize(SECTOR as usize, 0);
            let at = offset.saturating_sub(start) as usize;
            content.bytes[at..at + (to - from)].copy_from_slice(&bytes[from..to]);
        }
        out.put(sector * SECTOR, &content.bytes);
        match chosen == edits.len() {
            true => kept += 1,
            false => gone += 1,
        }
    }
    out.bytes.truncate(length as usize);
    out.length = length;
    file.durable = out;
    *lost += u64::from(gone > 0);
    *torn += u64::from(gone > 0 && kept > 0);
}
