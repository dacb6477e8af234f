//! One request at a time, for what is done beside the load and looked at by hand.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use tenure::datagram;

/// A request without a reply is sent again after this.
const RESEND_AFTER: Duration = Duration::from_secs(1);

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket that hears this server and nobody else.
pub(crate) fn connect(server: SocketAddr) -> Result<UdpSocket, String> {
    let bind = || {
        let socket = UdpSocket::bind((server.ip(), 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(RESEND_AFTER))?;
        Ok(socket)
    };
    bind().map_err(|error: io::Error| format!("no socket for a client: {error}"))
}

/// Opens a session; its id.
pub(crate) fn open_session(socket: &UdpSocket, number: usize, ttl_ms: u64) -> Result<String, String> {
    let reply = call(
        socket,
        &format!(
            r#"{{"jsonrpc":"2.0","id":0,"method":"open_session","params":{{"nonce":"{:032x}","ttl_ms":{ttl_ms}}}}}"#,
            number + 1
        ),
    )?;
    let id = reply["result"]["session"].as_str().ok_or_else(|| format!("no session: {reply}"))?;
    Ok(id.to_owned())
}

/// Sends one request until a reply comes.
///
/// # Errors
/// A sentence, if none comes or it is an error.
pub(crate) fn call(socket: &UdpSocket, request: &str) -> Result<serde_json::Value, String> {
    let mut bytes = request.as_bytes().to_vec();
    datagram::seal(&mut bytes);
    let mut buffer = vec![0; 65_536];
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        socket.send(&bytes).map_err(|error| format!("the server cannot be asked: {error}"))?;
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let opened =
            datagram::open(&buffer[..length]).map_err(|dropped| format!("a reply is {dropped:?}"))?;
        let reply: serde_json::Value =
            serde_json::from_slice(opened.message).map_err(|error| error.to_string())?;
        if reply.get("error").is_some() {
            return Err(format!("the server says {reply}"));
        }
        return Ok(reply);
    }
    Err(format!("no reply to {request}"))
}

/// A figure of `status` that the server counts, by its name.
///
/// # Errors
/// A sentence, if it does not answer, or does not say.
pub(crate) fn count(server: SocketAddr, what: &str) -> Result<u64, String> {
    let status = call(&connect(server)?, r#"{"jsonrpc":"2.0","id":1,"method":"status"}"#)?;
    status["result"]["counts"][what].as_u64().ok_or_else(|| format!("the server does not say its {what}"))
}
