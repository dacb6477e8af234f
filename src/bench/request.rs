//! Requests as bytes, put together from pieces.

use super::Workload;

/// One call of the protocol, as the load makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Open,
    Close,
    Heartbeat,
    Ping,
    /// Tries.
    Acquire,
    /// Waits.
    Await,
    Release,
    Put,
    Get,
    Append,
    Delete,
    DeleteFile,
}

impl Call {
    /// Whether it gets a place in the log: it needs an id of its own for good, and may carry `ack`.
    pub(super) fn is_logged(self) -> bool {
        !matches!(self, Call::Open | Call::Close | Call::Heartbeat | Call::Ping | Call::Get)
    }

    fn method(self) -> &'static [u8] {
        match self {
            Call::Open => b"open_session",
            Call::Close => b"close_session",
            Call::Heartbeat => b"heartbeat",
            Call::Ping => b"ping",
            Call::Acquire | Call::Await => b"acquire_lock",
            Call::Release => b"release_lock",
            Call::Put => b"set",
            Call::Get => b"get",
            Call::Append => b"append_file",
            Call::Delete => b"delete",
            Call::DeleteFile => b"delete_file",
        }
    }
}

/// What one request in flight does: before anything is measured, as one operation, and at the end.
pub(super) struct Script {
    pub(super) prepare: &'static [Call],
    pub(super) operation: &'static [Call],
    pub(super) tidy: &'static [Call],
}

impl Script {
    pub(super) fn of(workload: Workload) -> Script {
        use Call::{Acquire, Append, Await, Delete, DeleteFile, Get, Ping, Put, Release};
        let script = |prepare, operation, tidy| Script { prepare, operation, tidy };
        match workload {
            Workload::Cycle => script(&[], &[Acquire, Release], &[]),
            Workload::HandOff | Workload::Several => script(&[], &[Await, Release], &[]),
            Workload::Put => script(&[], &[Put], &[Delete]),
            Workload::Get => script(&[Put], &[Get], &[Delete]),
            Workload::Append => script(&[Acquire], &[Append], &[DeleteFile, Release]),
            // The heartbeats go by the clock; closing the session lets go of what it holds.
            Workload::Heartbeat => script(&[Acquire], &[], &[]),
            Workload::Mixed => {
                script(&[], &[Acquire, Put, Get, Append, Release], &[Acquire, Delete, DeleteFile, Release])
            }
            Workload::Ping => script(&[], &[Ping], &[]),
        }
    }
}

/// What stands in a request beside its method. What a call does not need is not looked at.
pub(super) struct Ask<'a> {
    pub(super) call: Call,
    pub(super) id: u64,
    /// 32 hex digits; empty for none.
    pub(super) session: &'a [u8],
    /// 0 for none.
    pub(super) ack: u64,
    /// The wait whose answer has arrived; 0 for none.
    pub(super) got: u64,
    /// The numbers of the names.
    pub(super) names: &'a [usize],
    /// Who waits, where a session has several that may; none says nothing.
    pub(super) owner: Option<usize>,
    /// 0 for none.
    pub(super) token: u64,
    pub(super) nonce: u128,
    pub(super) ttl_ms: u64,
    /// Empty for none.
    pub(super) cookie: &'a [u8],
}

/// What all requests of a run have in common.
pub(super) struct Writer {
    /// Of every name.
    prefix: Vec<u8>,
    /// A value, as JSON.
    pub(super) value: Vec<u8>,
}

impl Writer {
    /// Names are of 32 bytes and no other run's.
    pub(super) fn new(run: u32, value_bytes: usize) -> Writer {
        let value = format!("\"{}\"", "x".repeat(value_bytes));
        Writer { prefix: format!("bench/{run:08x}/").into_bytes(), value: value.into_bytes() }
    }

    /// Writes a request behind what is there.
    pub(super) fn write(&self, out: &mut Vec<u8>, ask: &Ask<'_>) {
        out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
        number(out, ask.id);
        out.extend_from_slice(br#","method":""#);
        out.extend_from_slice(ask.call.method());
        if ask.call == Call::Ping {
            out.extend_from_slice(br#""}"#);
            return;
        }
        out.extend_from_slice(br#"","params":{"#);
        if ask.call == Call::Open {
            out.extend_from_slice(
                format!(r#""nonce":"{:032x}","name":"tenure bench","ttl_ms":{}"#, ask.nonce, ask.ttl_ms)
                    .as_bytes(),
            );
        } else {
            out.extend_from_slice(br#""session":""#);
            out.extend_from_slice(ask.session);
            out.push(b'"');
        }
        if ask.ack > 0 {
            out.extend_from_slice(br#","ack":"#);
            number(out, ask.ack);
        }
        if ask.got > 0 {
            out.extend_from_slice(br#","got":["#);
            number(out, ask.got);
            out.push(b']');
        }
        match ask.call {
            Call::Open | Call::Close | Call::Heartbeat | Call::Ping | Call::Release => {}
            Call::Await if ask.names.len() > 1 => {
                for (nth, name) in ask.names.iter().enumerate() {
                    out.extend_from_slice(if nth == 0 { br#","keys":["# } else { b"," });
                    self.name(out, *name);
                }
                out.push(b']');
            }
            Call::Append | Call::DeleteFile => self.named(out, br#","file":"#, ask.names[0]),
            Call::Acquire | Call::Await | Call::Put | Call::Get | Call::Delete => {
                self.named(out, br#","key":"#, ask.names[0]);
            }
        }
        if ask.call == Call::Await {
            out.extend_from_slice(br#","wait_ms":60000"#);
            if let Some(owner) = ask.owner {
                out.extend_from_slice(br#","owner":""#);
                number(out, owner as u64);
                out.push(b'"');
            }
        }
        if ask.call == Call::Put {
            out.extend_from_slice(br#","value":"#);
            out.extend_from_slice(&self.value);
        }
        if ask.call == Call::Append {
            out.extend_from_slice(br#","data":"#);
            out.extend_from_slice(&self.value);
        }
        if ask.token > 0 {
            out.extend_from_slice(br#","token":"#);
            number(out, ask.token);
        }
        out.extend_from_slice(b"}}");
        prove(out, ask.cookie);
    }

    fn named(&self, out: &mut Vec<u8>, field: &[u8], name: usize) {
        out.extend_from_slice(field);
        self.name(out, name);
    }

    fn name(&self, out: &mut Vec<u8>, name: usize) {
        out.push(b'"');
        out.extend_from_slice(&self.prefix);
        let mut digits = [b'0'; 17];
        let mut rest = name;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits);
        out.push(b'"');
    }
}

/// Puts the cookie into a request, in place of one that it has.
pub(super) fn prove(request: &mut Vec<u8>, cookie: &[u8]) {
    const FIELD: &[u8] = br#","cookie":""#;
    if !cookie.is_empty() && request.ends_with(b"}}") {
        let before = request.windows(FIELD.len()).rposition(|piece| piece == FIELD);
        request.truncate(before.unwrap_or(request.len() - 2));
        request.extend_from_slice(FIELD);
        request.extend_from_slice(cookie);
        request.extend_from_slice(br#""}}"#);
    }
}

/// Puts `ack` into a request that names its session, in place of one that it has.
pub(super) fn acknowledge(request: &mut Vec<u8>, ack: u64) {
    const SESSION: &[u8] = br#","params":{"session":""#;
    const FIELD: &[u8] = br#","ack":"#;
    let Some(at) = request.windows(SESSION.len()).position(|piece| piece == SESSION) else { return };
    // Behind the session's digits and its quote.
    let at = at + SESSION.len() + 33;
    let mut field = FIELD.to_vec();
    number(&mut field, ack);
    let old = match request[at..].strip_prefix(FIELD) {
        Some(rest) => FIELD.len() + rest.iter().take_while(|byte| byte.is_ascii_digit()).count(),
        None => 0,
    };
    request.splice(at..at + old, field);
}

/// Writes a number in decimal.
fn number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: [Call; 12] = [
        Call::Open,
        Call::Close,
        Call::Heartbeat,
        Call::Ping,
        Call::Acquire,
        Call::Await,
        Call::Release,
        Call::Put,
        Call::Get,
        Call::Append,
        Call::Delete,
        Call::DeleteFile,
    ];

    #[test]
    fn every_call_is_a_request_that_the_server_reads() {
        let writer = Writer::new(7, 3);
        let (session, cookie) = ("0123456789abcdef0123456789abcdef".as_bytes(), &b"abcd"[..]);
        for call in CALLS {
            for count in [1, 3] {
                let token = if matches!(call, Call::Release | Call::Put | Call::Append | Call::DeleteFile) {
                    5
                } else {
                    0
                };
                let got = if call.is_logged() { 8 } else { 0 };
                // Once without and once with one.
                let ack = if call.is_logged() && count > 1 { 9 } else { 0 };
                let names = [0, 1, 10_000_000];
                let ask = Ask {
                    call,
                    id: 10,
                    session,
                    ack,
                    got,
                    names: &names[..count],
                    owner: Some(3),
                    token,
                    nonce: 1,
                    ttl_ms: 10_000,
                    cookie,
                };
                let mut out = Vec::new();
                writer.write(&mut out, &ask);
                let text = String::from_utf8(out.clone()).unwrap();
                let value: serde_json::Value =
                    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert_eq!(value["id"], 10);
                let message = crate::wire::decode(&out).unwrap();
                if let Err(refusal) = &message.elements[0].request {
                    panic!("{text}: {refusal:?}");
                }
                if call != Call::Ping {
                    assert_eq!(value["params"]["cookie"], "abcd", "{text}");
                }
                if let Some(name) = value["params"]["key"].as_str() {
                    assert_eq!(name.len(), 32);
                }
                if call.is_logged() {
                    acknowledge(&mut out, 10);
                    let mut expected = value.clone();
                    expected["params"]["ack"] = 10.into();
                    assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), expected);
                }
            }
        }
    }

    #[test]
    fn numbers_are_decimal() {
        for (value, text) in [(0, "0"), (9, "9"), (10, "10"), (u64::MAX, "18446744073709551615")] {
            let mut out = Vec::new();
            number(&mut out, value);
            assert_eq!(out, text.as_bytes());
        }
    }
}
