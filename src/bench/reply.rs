//! What a datagram of the server says, read no further than the load needs it.
//!
//! Fields are found by name, in whatever order they stand. The text is the server's own and its checksum was right, so
//! nothing here looks for mistakes in it: what is not understood is simply not found.

/// One message of the server.
#[derive(Debug, Default)]
pub(super) struct Reply<'a> {
    /// The request it answers; none for a notification.
    pub(super) id: Option<u64>,
    /// The result, from its first byte on.
    pub(super) result: Option<&'a [u8]>,
    /// The error, from its first byte on.
    pub(super) error: Option<&'a [u8]>,
    /// What a notification is called.
    pub(super) method: Option<&'a [u8]>,
    /// What a notification says, from its first byte on.
    pub(super) params: Option<&'a [u8]>,
}

/// Calls with each message of a datagram: one, or those of an array.
pub(super) fn each(message: &[u8], mut call: impl FnMut(Reply<'_>)) {
    if message.first() != Some(&b'[') {
        call(read(message));
        return;
    }
    let mut rest = &message[1..];
    while rest.first() == Some(&b'{') {
        call(read(rest));
        rest = &rest[length(rest)..];
        rest = rest.strip_prefix(b",").unwrap_or(rest);
    }
}

fn read(message: &[u8]) -> Reply<'_> {
    let mut reply = Reply::default();
    for (name, value) in Members::of(message) {
        match name {
            b"id" => reply.id = number(value),
            b"result" => reply.result = Some(value),
            b"error" => reply.error = Some(value),
            b"method" => reply.method = Some(text(value)),
            b"params" => reply.params = Some(value),
            _ => {}
        }
        if reply.id.is_some() && (reply.result.is_some() || reply.error.is_some()) {
            break;
        }
    }
    reply
}

/// The value of a field, from its first byte on.
pub(super) fn field<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    Members::of(object).find(|(member, _)| *member == name).map(|(_, value)| value)
}

/// The number of a field.
pub(super) fn number_of(object: &[u8], name: &[u8]) -> Option<u64> {
    field(object, name).and_then(number)
}

/// The text of a field. What is escaped in it stays so.
pub(super) fn text_of<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    field(object, name).map(text)
}

/// Whether a field is `true`.
pub(super) fn is_true(object: &[u8], name: &[u8]) -> bool {
    field(object, name).is_some_and(|value| value.starts_with(b"true"))
}

/// The fields of an object; a value is passed over only if the one behind it is asked for.
struct Members<'a> {
    rest: &'a [u8],
    /// Where the value that was given last begins.
    value: Option<&'a [u8]>,
}

impl<'a> Members<'a> {
    fn of(object: &'a [u8]) -> Members<'a> {
        Members { rest: object.strip_prefix(b"{").unwrap_or_default(), value: None }
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(value) = self.value.take() {
            self.rest = value[length(value)..].strip_prefix(b",")?;
        }
        if self.rest.first() != Some(&b'"') {
            return None;
        }
        let name = text(self.rest);
        let value = self.rest.get(name.len() + 2..)?.strip_prefix(b":")?;
        self.value = Some(value);
        Some((name, value))
    }
}

fn number(value: &[u8]) -> Option<u64> {
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let sum = |sum: u64, digit: &u8| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    if digits == 0 { None } else { value[..digits].iter().try_fold(0, sum) }
}

/// What stands between the quotes.
fn text(value: &[u8]) -> &[u8] {
    let length = length(value);
    if length < 2 || value[0] != b'"' { b"" } else { &value[1..length - 1] }
}

/// How long the value is that begins here.
fn length(value: &[u8]) -> usize {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for (at, &byte) in value.iter().enumerate() {
        if in_text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    in_text = false;
                    if depth == 0 {
                        return at + 1;
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 1 => depth -= 1,
            b'}' | b']' if depth == 1 => return at + 1,
            // The end of what stands around a number or a word.
            b',' | b'}' | b']' if depth == 0 => return at,
            _ => {}
        }
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_any_order_behind_values_of_any_kind() {
        for text in [
            r#"{"jsonrpc":"2.0","id":17,"result":{"granted":true,"token":5}}"#,
            r#"{"result":{"keys":[{"key":"a\"}]","x":[[1],{}]}],"n":null,"token":5,"granted":true},"id":17}"#,
        ] {
            let mut seen = 0;
            each(text.as_bytes(), |reply| {
                seen += 1;
                let result = reply.result.unwrap();
                assert_eq!((reply.id, number_of(result, b"token")), (Some(17), Some(5)), "{text}");
                assert!(is_true(result, b"granted") && !is_true(result, b"token"));
                assert!(field(result, b"absent").is_none() && reply.error.is_none());
            });
            assert_eq!(seen, 1);
        }
    }

    #[test]
    fn an_array_is_read_message_by_message() {
        let text = br#"[{"id":1,"result":{"found":true,"value":"a]b","version":3}},{"id":2,"error":{"code":-1,"data":{"kind":"busy","retry_ms":10}}},{"method":"pending","params":{"client":1,"id":3}}]"#;
        let mut seen = Vec::new();
        each(text, |reply| {
            let data = reply.error.and_then(|error| field(error, b"data"));
            seen.push((
                reply.id,
                data.and_then(|data| text_of(data, b"kind")).map(<[u8]>::to_vec),
                reply.method.map(<[u8]>::to_vec),
                reply.params.and_then(|params| number_of(params, b"id")),
            ));
        });
        assert_eq!(
            seen,
            [
                (Some(1), None, None, None),
                (Some(2), Some(b"busy".to_vec()), None, None),
                (None, None, Some(b"pending".to_vec()), Some(3)),
            ]
        );
    }

    #[test]
    fn what_is_no_message_is_nothing() {
        for text in [
            "",
            "[",
            "{",
            "{}",
            "[]",
            "{\"",
            "{\"id\"",
            "{\"id\":",
            "{\"id\":x",
            "[{\"id\":1}",
            "[[[",
            "\"",
            "{\"a\":\"\\",
        ] {
            each(text.as_bytes(), |reply| assert!(reply.result.is_none() && reply.error.is_none(), "{text}"));
        }
    }
}
