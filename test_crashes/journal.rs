//! The journal of a real run, cut at every byte and with a bit flipped in every byte. The server must start with an exact
//! prefix of what was done, or refuse and name file and offset; never start with anything else.
//!
//! By default a spread of the bytes is tried; `TENURE_EVERY_BYTE=1` tries each.

use crate::harness::{Exit, Raw, Server, let_pass, places};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

/// Requests of the run, beside the opening of the session and the grant.
const STEPS: u64 = 24;

/// A run that was killed, and where its records stand.
struct Run {
    server: Server,
    raw: Raw,
    /// The segment that the records stand in, relative to the data directory.
    segment: PathBuf,
    bytes: Vec<u8>,
    /// The first byte behind everything that was written.
    end: usize,
}

/// Step n sets key n to n, and every third appends a line; so what stands after a cut tells how far it went.
fn run(sealed: bool) -> Run {
    let mut server = Server::start();
    let mut raw = server.client(600_000);
    let token = raw.acquire("f");
    for step in 1..=STEPS {
        if step % 3 == 0 {
            raw.append("f", token, &line(step));
        } else {
            raw.set(&format!("key_{step:03}"), json!(step));
        }
    }
    if sealed {
        // Idle for longer than the 100 ms after which the last batch is sealed.
        let_pass(600);
    }
    server.kill();
    let (segment, bytes, end) = written_last(&server);
    Run { server, raw, segment, bytes, end }
}

fn line(step: u64) -> String {
    format!("line {step}\n")
}

/// The segment with the records of the run: the one that says the most. The rest of it is zeros.
fn written_last(server: &Server) -> (PathBuf, Vec<u8>, usize) {
    let found = server.segments().into_iter().map(|path| {
        let bytes = fs::read(&path).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        (path.strip_prefix(server.directory()).unwrap().to_owned(), bytes, end)
    });
    found.max_by_key(|(_, _, end)| *end).expect("there is a segment")
}

/// How far a server got: the last step that shows, if exactly the steps up to it do.
fn prefix(raw: &mut Raw) -> Result<u64, String> {
    let keys = raw.ok("prefix", json!({"prefix": "key_", "limit": 1000}));
    assert!(keys.get("next").is_none(), "the keys of the run fit one page");
    let shown: BTreeMap<String, u64> = keys["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["key"].as_str().unwrap().to_owned(), item["value"].as_u64().unwrap()))
        .collect();
    let info = raw.call("file_info", json!({"file": "f"}));
    let length = match info.kind() {
        Some("not_found") => 0,
        _ => info.ok()["length"].as_u64().unwrap(),
    };
    let state = |last: u64| {
        let set = (1..=last).filter(|step| step % 3 != 0).map(|step| (format!("key_{step:03}"), step));
        let appended: String = (1..=last).filter(|step| step % 3 == 0).map(line).collect();
        (set.collect::<BTreeMap<_, _>>(), appended)
    };
    let matches = |last: &u64| {
        let (set, appended) = state(*last);
        set == shown && appended.len() as u64 == length
    };
    let Some(last) = (0..=STEPS).rev().find(matches) else {
        return Err(format!("no prefix of the run has the keys {shown:?} and {length} bytes in the file"));
    };
    // Bytes on disk behind the prefix are somebody else's to the server: noticed, or cut. What it gives out is the prefix.
    let read = raw.call("read_file", json!({"file": "f", "offset": 0, "limit": 10_000}));
    match read.kind() {
        Some("not_found" | "file_fault") => {}
        _ if read.ok()["data"] == json!(state(last).1) => {}
        _ => return Err(format!("after step {last} the file reads {}", read.0)),
    }
    Ok(last)
}

/// What became of a damaged copy.
enum Fate {
    /// It serves the first so many steps.
    Serves(u64),
    /// It refused to start.
    Refused,
}

fn start_damaged(run: &mut Run, what: &str, damaged: &[u8]) -> Fate {
    let mut copy = run.server.copy();
    fs::write(copy.directory().join(&run.segment), damaged).unwrap();
    match copy.launch() {
        Ok(()) => {
            run.raw.to = copy.address();
            Fate::Serves(
                prefix(&mut run.raw).unwrap_or_else(|fault| panic!("{what}: {fault}\n{}", copy.stderr())),
            )
        }
        Err(exit) => {
            assert_explained(what, &exit, &run.segment);
            Fate::Refused
        }
    }
}

/// A refusal names the file and says where in it.
fn assert_explained(what: &str, exit: &Exit, segment: &std::path::Path) {
    assert_eq!(exit.status.signal(), None, "{what}: it crashed: {exit:?}");
    assert!(!exit.status.success() && !exit.stderr.contains("panicked"), "{what}: {}", exit.stderr);
    let name = segment.file_name().unwrap().to_str().unwrap();
    let said = &exit.stderr;
    // Damage to the header of a segment is at its beginning, and said so.
    let placed = ["offset", "begin", "header"].iter().any(|word| said.contains(word));
    // With too little journal left, the snapshot is the one that knows more.
    let behind = said.contains("server_state.json") && said.contains("newer than the journal");
    assert!(said.contains(name) && placed || behind, "{what}: it names no file and place: {said}");
}

#[test]
fn the_run_without_damage_starts_with_everything() {
    let mut run = run(false);
    let bytes = run.bytes.clone();
    assert!(matches!(start_damaged(&mut run, "no damage", &bytes), Fate::Serves(STEPS)));
}

#[test]
fn a_journal_cut_at_any_byte_starts_with_an_exact_prefix() {
    let mut run = run(false);
    let bytes = run.bytes.clone();
    let mut last = 0;
    let mut refused = 0;
    for cut in places(run.end, 60) {
        match start_damaged(&mut run, &format!("cut at byte {cut}"), &bytes[..cut]) {
            Fate::Serves(steps) => {
                assert!(steps >= last, "cut at byte {cut}: {steps} steps, and {last} with a shorter journal");
                last = steps;
            }
            // Less than the header of the segment, or less than the snapshot rests on.
            Fate::Refused => {
                refused += 1;
                assert_eq!(last, 0, "cut at byte {cut}: refused, though a shorter journal starts");
            }
        }
    }
    println!("{} bytes, refused {refused} cuts", run.end);
    assert!(last > STEPS / 2, "the cuts never got past step {last}");
}

#[test]
fn a_tail_of_garbage_behind_a_cut_is_cut_off() {
    let mut run = run(false);
    let bytes = run.bytes.clone();
    let mut started = 0;
    for cut in places(run.end, 12) {
        let mut damaged = bytes[..cut].to_vec();
        damaged.extend((0..4_096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8));
        match start_damaged(&mut run, &format!("garbage from byte {cut}"), &damaged) {
            Fate::Serves(_) => started += 1,
            // In the header of the segment, or in what the snapshot rests on.
            Fate::Refused => assert_eq!(started, 0, "garbage from byte {cut} was taken for corruption"),
        }
    }
    assert!(started >= 8, "only {started} starts");
}

#[test]
fn a_flipped_bit_anywhere_in_a_sealed_journal_loses_nothing_silently() {
    let mut run = run(true);
    let bytes = run.bytes.clone();
    let (mut refused, mut whole) = (0, 0);
    for at in places(run.end, 60) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        match start_damaged(&mut run, &format!("a bit flipped in byte {at}"), &damaged) {
            Fate::Refused => refused += 1,
            // The seal itself, or bytes that say nothing.
            Fate::Serves(STEPS) => whole += 1,
            Fate::Serves(steps) => {
                panic!("a bit flipped in byte {at} of {} silently lost all after step {steps}", run.end)
            }
        }
    }
    println!("{} bytes: refused {refused}, started with everything {whole}", run.end);
    assert!(refused > whole, "most of the journal is records, and damage to them is refused");
}

#[test]
fn a_flipped_bit_in_an_unsealed_journal_leaves_an_exact_prefix() {
    let mut run = run(false);
    let bytes = run.bytes.clone();
    for at in places(run.end, 40) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        // Whatever it decides: `start_damaged` fails on anything but an exact prefix or a refusal that explains itself.
        start_damaged(&mut run, &format!("a bit flipped in byte {at}"), &damaged);
    }
}

#[test]
fn zeroed_doubled_and_swapped_sectors_are_refused_or_leave_an_exact_prefix() {
    let mut run = run(true);
    let bytes = run.bytes.clone();
    let sectors = run.end.div_ceil(512);
    for sector in 0..sectors {
        let at = sector * 512;
        let to = (at + 512).min(bytes.len());
        let mut zeroed = bytes.clone();
        zeroed[at..to].fill(0);
        start_damaged(&mut run, &format!("sector {sector} zeroed"), &zeroed);
        if sector + 1 < sectors && at + 1_024 <= bytes.len() {
            let mut swapped = bytes.clone();
            let (left, right) = swapped[at..at + 1_024].split_at_mut(512);
            left.swap_with_slice(right);
            start_damaged(&mut run, &format!("sectors {sector} and {} swapped", sector + 1), &swapped);
            let mut doubled = bytes.clone();
            doubled.copy_within(at..to, at + 512);
            start_damaged(&mut run, &format!("sector {sector} doubled"), &doubled);
        }
    }
}

#[test]
fn an_old_segment_copied_back_is_refused_or_changes_nothing() {
    let mut run = run(true);
    // A second life, so that there are segments of two.
    run.server.start_again();
    run.raw.to = run.server.address();
    run.raw.set("later", json!(true));
    run.server.terminate();
    let mut copy = run.server.copy();
    fs::write(copy.directory().join(&run.segment), &run.bytes).unwrap();
    match copy.launch() {
        Ok(()) => {
            run.raw.to = copy.address();
            assert_eq!(run.raw.value("later"), json!(true), "the second life is gone");
            assert_eq!(prefix(&mut run.raw), Ok(STEPS));
        }
        Err(exit) => assert_eq!(exit.status.signal(), None, "{exit:?}"),
    }
}
