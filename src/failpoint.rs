//! Points at which a test may stop or fail the server. (Placeholder: no point is armed.)

/// Says whether the work at `point` may go on. Changes nothing.
///
/// # Errors
/// What a test asked for at this point; without a test, never.
pub fn hit(point: &str) -> std::io::Result<()> {
    let _ = point;
    Ok(())
}
