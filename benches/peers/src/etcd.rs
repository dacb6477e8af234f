//! etcd's own lock service, over gRPC: one lease and one connection a client.

use crate::figures::{Figures, Meter, Time};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;
use tokio::task::{LocalSet, spawn_local};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// A lease that outlives the run.
const LEASE_S: i64 = 600;

#[derive(Clone, PartialEq, prost::Message)]
struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    ttl: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeaseGrantResponse {
    #[prost(int64, tag = "2")]
    id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LockRequest {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(int64, tag = "2")]
    lease: i64,
}

/// Of an answer to a lock, and of a request to unlock it: the key that stands for the holder.
#[derive(Clone, PartialEq, prost::Message)]
struct LockResponse {
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnlockRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnlockResponse {}

/// One client.
struct Client {
    grpc: tonic::client::Grpc<Channel>,
    lease: i64,
}

impl Client {
    async fn connect(server: SocketAddr) -> Result<Client, String> {
        let endpoint =
            Endpoint::from_shared(format!("http://{server}")).map_err(|error| error.to_string())?;
        let channel =
            endpoint.connect().await.map_err(|error| format!("etcd takes no connection: {error}"))?;
        let mut client = Client { grpc: tonic::client::Grpc::new(channel), lease: 0 };
        let grant = LeaseGrantRequest { ttl: LEASE_S };
        let granted: LeaseGrantResponse = client.call("/etcdserverpb.Lease/LeaseGrant", grant).await?;
        client.lease = granted.id;
        Ok(client)
    }

    async fn call<Q, R>(&mut self, path: &'static str, request: Q) -> Result<R, String>
    where
        Q: prost::Message + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        self.grpc.ready().await.map_err(|error| format!("etcd is not ready: {error}"))?;
        let codec: ProstCodec<Q, R> = ProstCodec::default();
        let path = PathAndQuery::from_static(path);
        let reply = self.grpc.unary(tonic::Request::new(request), path, codec).await;
        reply.map(tonic::Response::into_inner).map_err(|status| format!("{path:?}: {status}", path = "etcd"))
    }

    async fn lock(&mut self, name: &[u8]) -> Result<Vec<u8>, String> {
        let request = LockRequest { name: name.to_vec(), lease: self.lease };
        let held: LockResponse = self.call("/v3lockpb.Lock/Lock", request).await?;
        Ok(held.key)
    }

    async fn unlock(&mut self, key: Vec<u8>) -> Result<(), String> {
        self.call::<_, UnlockResponse>("/v3lockpb.Lock/Unlock", UnlockRequest { key }).await.map(drop)
    }
}

/// Each client acquires and releases a lock of its own; or all want one, in rounds, and the wait is measured.
pub fn run(
    server: SocketAddr,
    clients: usize,
    one_lock: bool,
    time: &Time,
    pid: u32,
) -> Result<Figures, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    LocalSet::new().block_on(&runtime, measure(server, clients, one_lock, *time, pid))
}

async fn measure(
    server: SocketAddr,
    clients: usize,
    one_lock: bool,
    time: Time,
    pid: u32,
) -> Result<Figures, String> {
    let mut connected = Vec::with_capacity(clients);
    for _ in 0..clients {
        connected.push(Client::connect(server).await?);
    }
    let meter = Rc::new(RefCell::new(Meter::new(&time, pid)));
    let failed = Rc::new(RefCell::new(None));
    let round = Rc::new(Barrier::new(if one_lock { clients } else { 1 }));
    for (number, mut client) in connected.into_iter().enumerate() {
        let (meter, failed, round) = (meter.clone(), failed.clone(), round.clone());
        let name = format!("peers/lock/{:021}", if one_lock { 0 } else { number });
        spawn_local(async move {
            let mut turn = async || -> Result<(), String> {
                let began = Instant::now();
                let key = client.lock(name.as_bytes()).await?;
                if one_lock {
                    meter.borrow_mut().add(began.elapsed(), 1);
                }
                client.unlock(key).await?;
                if !one_lock {
                    meter.borrow_mut().add(began.elapsed(), 1);
                }
                round.wait().await;
                Ok(())
            };
            while let Ok(()) =
                turn().await.inspect_err(|sentence| *failed.borrow_mut() = Some(sentence.clone()))
            {
            }
        });
    }
    // What is still on its way at the end is dropped with its task.
    loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if let Some(sentence) = failed.borrow_mut().take() {
            return Err(sentence);
        }
        if meter.borrow_mut().is_over(Instant::now())? {
            break;
        }
    }
    let done = std::mem::replace(&mut *meter.borrow_mut(), Meter::new(&time, pid));
    done.figures()
}
