//! What lies between the relays and the receiver, and breaks.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::plan::Break;

pub(crate) struct Link {
    address: SocketAddr,
    how: Arc<watch::Sender<Option<Break>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Link {
    pub(crate) async fn start(upstream: u16) -> Self {
        let how = Arc::new(watch::Sender::new(None));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, upstream, how.subscribe()));
        Self { address, how, _serving: AbortOnDropHandle::new(serving) }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn breaks(&self, how: Option<Break>) {
        self.how.send_replace(how);
    }
}

async fn serve(listener: TcpListener, upstream: u16, how: watch::Receiver<Option<Break>>) {
    while let Ok((client, _)) = listener.accept().await {
        if *how.borrow() == Some(Break::Refused) {
            // Reset, as from a port that nobody listens on.
            let _ = client.set_zero_linger();
            continue;
        }
        let mut how = how.clone();
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else { return };
            for stream in [&client, &server] {
                let _ = stream.set_nodelay(true);
            }
            let (client_reads, client_writes) = client.into_split();
            let (server_reads, server_writes) = server.into_split();
            let refused = {
                let mut how = how.clone();
                async move {
                    let _ = how.wait_for(|how| *how == Some(Break::Refused)).await;
                }
            };
            tokio::select! {
                () = requests(client_reads, server_writes, how.clone()) => {}
                () = answers(server_reads, client_writes, &mut how) => {}
                () = refused => {}
            }
        });
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, how: watch::Receiver<Option<Break>>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if *how.borrow() == Some(Break::ClosedAtRequest) || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, how: &mut watch::Receiver<Option<Break>>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let now = *how.borrow();
        match now {
            Some(Break::ClosedAtAnswer) => return,
            Some(Break::HalfClosed) => {
                let _ = to.shutdown().await;
                // The other half stays open until this is over, or the client has had enough.
                let _ = how.wait_for(|how| *how != Some(Break::HalfClosed)).await;
                return;
            }
            _ if to.write_all(&buffer[..length]).await.is_err() => return,
            _ => {}
        }
    }
}
