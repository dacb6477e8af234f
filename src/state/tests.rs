//! What the state machine promises, one sentence a test. More stands in the golden scripts (`tests/scripts`).
