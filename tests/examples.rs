//! The examples, run as a reader would run them: each checks what it shows and ends with 0 only then.
//!
//! `cargo test` builds the examples first. `cargo test --test examples` alone does not: `cargo build --examples` does.

#[path = "protocol/server.rs"]
#[expect(
    dead_code,
    reason = "shared with the test of the protocol, which talks to the server without the library"
)]
mod server;

use server::Server;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

const RECIPES: [&str; 7] =
    ["leader_election", "job_claim", "shared_config", "migration", "worker_pool", "transfer", "stuck_worker"];

/// Runs an example to its end and gives what it printed.
fn run(name: &str, args: &[&str]) -> String {
    let test = std::env::current_exe().expect("a test is a file");
    // target/<profile>/deps/<this> and target/<profile>/examples/<name>
    let example: PathBuf = test.ancestors().nth(2).expect("it stands in deps").join("examples").join(name);
    assert!(example.exists(), "{} is not built: run `cargo build --examples`", example.display());
    let output =
        Command::new(&example).args(args).env_remove("TENURE_ADDR").output().expect("an example starts");
    let told = String::from_utf8(output.stdout).expect("an example prints text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?}: {}\n{told}\n{errors}", output.status);
    told
}

#[test]
fn five_clients_that_start_half_a_second_apart_write_each_line_once() {
    let told = run("multi_client", &["--kills", "0", "--stagger-ms", "500", "--pace-ms", "400"]);
    for (file, clients) in [(0, &[1, 3][..]), (2, &[2]), (3, &[4, 5])] {
        for client in clients {
            let line = format!("    Log entry from client_{client} writing to file_{file}\n");
            assert_eq!(told.matches(&line).count(), 1, "{line}{told}");
        }
    }
    // Each step of each client can be followed, with its name and file.
    for step in
        ["opens a session", "is granted file_2 with token", "has appended to file_2", "releases file_2"]
    {
        assert!(told.contains(&format!("client_2  {step}")), "{step}: {told}");
    }
    assert!(told.contains("client_2  closes its session"), "{told}");
    assert!(told.contains("waits for file_"), "overlapping clients wait for each other: {told}");
}

#[test]
fn the_demo_goes_through_a_kill_of_the_server() {
    let told = run("multi_client", &["--pace-ms", "50"]);
    assert!(told.contains("kill -9: 1; lines lost: 0; lines doubled: 0."), "{told}");
    assert!(told.contains("the server refuses"), "{told}");
}

#[test]
fn many_workers_count_to_exactly_workers_times_increments() {
    let told = run("counter", &["--workers", "4", "--increments", "10"]);
    assert!(told.contains("40 of 40 increments counted"), "{told}");
}

#[test]
fn a_leader_that_falls_silent_is_followed_by_the_next_and_cannot_give_orders_any_more() {
    let told = run("leader_election", &[]);
    assert_eq!(told.matches("has the seat").count(), 3, "{told}");
}

#[test]
fn each_job_is_done_once_though_a_worker_dies_with_one() {
    assert!(run("job_claim", &[]).contains("jobs were done by the three workers"));
}

#[test]
fn a_configuration_that_many_change_and_follow_loses_nothing() {
    let told = run("shared_config", &[]);
    assert_eq!(told.matches(" is added: version ").count(), 4, "{told}");
}

#[test]
fn one_instance_migrates_and_goes_on_where_a_dead_one_stopped() {
    let told = run("migration", &[]);
    assert_eq!(told.matches(" took 0 steps and runs on schema 4").count(), 3, "{told}");
}

#[test]
fn a_pool_is_never_overdrawn_and_forgets_no_slot() {
    let told = run("worker_pool", &[]);
    assert!(
        told.contains("all 4 slots are there in the end") && told.contains("misconfigured is told: "),
        "{told}"
    );
}

#[test]
fn clerks_killed_in_the_middle_lose_and_make_no_money() {
    let told = run("transfer", &[]);
    assert_eq!(told.matches("the accounts have 200 together").count(), 4, "{told}");
}

#[test]
fn a_stuck_worker_loses_its_lease_though_its_heartbeats_go_on() {
    let told = run("stuck_worker", &[]);
    assert!(told.contains("the heir has the job") && told.contains("is refused"), "{told}");
}

#[test]
fn recipes_can_be_told_to_a_server_that_runs_already_also_at_the_same_time() {
    let server = Server::start(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("the server starts");
    let addr = server.address.to_string();
    thread::scope(|scope| {
        for name in RECIPES {
            // Twice: nothing that the first leaves behind is in the way of the second.
            let addr = addr.as_str();
            scope.spawn(move || [(); 2].map(|()| run(name, &["--addr", addr])));
        }
    });
}

#[test]
fn the_tour_shows_keys_locks_leases_and_two_machines() {
    let told = run("tour", &[]);
    assert!(
        told.contains("shared_counter: Some(3)") && told.contains("had ended by themselves: 2"),
        "{told}"
    );
    assert!(told.contains("machine-2 sees: "), "{told}");
}

#[test]
fn the_state_machine_needs_no_server() {
    assert!(run("in_process", &[]).contains("refused, not_holder"));
}
