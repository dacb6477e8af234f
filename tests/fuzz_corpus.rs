//! The bodies of the fuzz targets, run over their corpora: what fuzzing has found interesting stays an ordinary test.
//!
//! `fuzz/targets/` has the bodies and says what each checks, `fuzz/corpus/` the inputs, `docs/reliability.md` how to fuzz on.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../fuzz/targets/datagram.rs"]
mod datagram;
#[path = "../fuzz/targets/journal.rs"]
mod journal;
#[path = "../fuzz/targets/name.rs"]
mod name;
#[path = "../fuzz/targets/node.rs"]
mod node;
#[path = "model/mod.rs"]
mod reference;
#[path = "../fuzz/targets/snapshot.rs"]
mod snapshot;
#[path = "../fuzz/targets/state.rs"]
mod state;

use std::path::Path;

/// Bytes that the corpora may have together, so that the repository stays small.
const CORPUS_BYTES_MAX: u64 = 1 << 20;

/// Runs a target over its corpus; a failure tells the file.
fn run(target: &str, body: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus in {} has {} inputs", directory.display(), inputs.len());
    for input in inputs {
        let bytes = std::fs::read(&input).unwrap();
        // Standard error is shown with a failure: its last line tells the input.
        eprintln!("{}", input.display());
        body(&bytes);
    }
}

#[test]
fn datagrams() {
    run("datagram", datagram::run);
}

#[test]
fn segments_of_the_journal() {
    let records = std::cell::Cell::new(0);
    run("journal", |bytes| {
        journal::run(bytes);
        let Ok(segment) = tenure::segment::Segment::read(bytes) else { return };
        let read = segment.batches.iter().filter_map(|placed| segment.entries(bytes, placed).ok());
        records.set(records.get() + read.map(|entries| entries.len()).sum::<usize>());
    });
    // Those of another layout than that of this version say nothing about records.
    assert!(records.get() > 100, "the corpus has {} records that can be read", records.get());
}

#[test]
fn names_and_paths() {
    run("name", name::run);
}

#[test]
fn snapshots() {
    run("snapshot", snapshot::run);
}

#[test]
fn states_and_the_model() {
    run("state", state::run);
}

#[test]
fn nodes_and_the_model() {
    run("node", node::run);
}

/// The corpora stay small: what a change of the targets adds is minimised before it is kept.
#[test]
fn the_corpora_are_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let files = root.read_dir().unwrap().flat_map(|target| target.unwrap().path().read_dir().unwrap());
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "the corpora have {bytes} bytes");
}

/// Writes seeds for the readers of journals and snapshots: what a random run of the state leaves behind, and random choices
/// for the runs themselves. `TENURE_SEEDS=directory cargo test --test fuzz_corpus -- --ignored seeds`
#[test]
#[ignore = "it writes files"]
fn seeds() {
    use reference::random::{Draw, Random};
    use reference::run::Run;
    use tenure::batch::{self, SegmentId};
    use tenure::segment;
    use tenure::snapshot::{self, ServerId, Snapshot};

    let root =
        std::path::PathBuf::from(std::env::var("TENURE_SEEDS").expect("TENURE_SEEDS names a directory"));
    let write = |target: &str, name: String, bytes: &[u8]| {
        std::fs::create_dir_all(root.join(target)).unwrap();
        std::fs::write(root.join(target).join(name), bytes).unwrap();
    };
    for seed in 1..=12 {
        let mut run = Run::new(format!("seed {seed}"), Draw::new(Random::seeded(seed)));
        let (server, id) = (ServerId(9), SegmentId(77));
        let mut segment = Vec::new();
        let (mut body, mut count, mut seq) = (Vec::new(), 0, 0);
        for number in 0..60 * seed {
            let before = run.op;
            run.step(number);
            let (op, entry) = run.last_command.clone().unwrap();
            if count > 0 && (count == 1 + seed as u32 % 4 || op != before + 1) {
                seal(&mut segment, id, &mut seq, before + 1 - u64::from(count), &mut count, &mut body);
            }
            tenure::record::encode(&entry, &mut body);
            count += 1;
            if segment.is_empty() {
                segment = segment::Header::new(server, 1, id, 1, op - 1, 1 << 16).encode().to_vec();
            }
            if number % 60 == 59 {
                let mut bytes = Vec::new();
                let parts = run.state.parts();
                let taken = Snapshot { server, clean: seed % 2 == 0, parts, redo: Vec::new() };
                snapshot::encode(&taken, &mut bytes).unwrap();
                write("snapshot", format!("{seed}-{number}"), &bytes);
            }
        }
        segment.resize(segment.len() + 64, 0);
        segment.truncate(16 << 10);
        write("journal", format!("{seed}"), &segment);
        let mut random = Random::seeded(seed);
        let choices: Vec<u8> = (0..100 * seed).map(|_| random.below(256) as u8).collect();
        write("state", format!("{seed}"), &choices);
        write("node", format!("{seed}"), &choices);
    }

    fn seal(
        out: &mut Vec<u8>,
        id: SegmentId,
        seq: &mut u64,
        first_op: u64,
        count: &mut u32,
        body: &mut Vec<u8>,
    ) {
        *seq += 1;
        let header = batch::Header {
            seq: *seq,
            first_op,
            count: *count,
            synced: *seq - 1,
            digest_op: first_op - 1,
            digest: 0,
            body_bytes: 0,
            body_crc: 0,
        };
        batch::encode(id, &header, body, out);
        (*count, *body) = (0, Vec::new());
    }
}
