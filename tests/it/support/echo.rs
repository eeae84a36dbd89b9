//! A line to the broker on which an acknowledgement arrives twice.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub(crate) struct Echo {
    pub(crate) addr: SocketAddr,
    armed: Arc<AtomicBool>,
    _lines: JoinSet<()>,
}

impl Echo {
    pub(crate) async fn start(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let armed = Arc::new(AtomicBool::new(false));
        let (mut lines, for_lines) = (JoinSet::new(), armed.clone());
        lines.spawn(async move {
            let mut lines = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(broker).await.unwrap();
                lines.spawn(carry(near, far, for_lines.clone()));
            }
        });
        Self { addr, armed, _lines: lines }
    }

    /// The next acknowledgement goes to the broker twice.
    pub(crate) fn once_more(&self) {
        self.armed.store(true, SeqCst);
    }
}

/// Until either end closes the line, which ends the other.
async fn carry(mut near: TcpStream, mut far: TcpStream, armed: Arc<AtomicBool>) {
    let (mut said, mut to_client) = near.split();
    let (mut answered, mut to_broker) = far.split();
    let there = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = said.read(&mut bytes).await {
            let bytes = &bytes[..read];
            if to_broker.write_all(bytes).await.is_err() {
                return;
            }
            if let Some(ack) = ack_at_the_end(bytes)
                && armed.swap(false, SeqCst)
                && to_broker.write_all(ack).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = there => {}
        _ended = copy(&mut answered, &mut to_client) => {}
    }
}

/// The whole frame of a `basic.ack` that these bytes end with: AMQP 0-9-1 §4.2.3, §1.8.3.13.
fn ack_at_the_end(bytes: &[u8]) -> Option<&[u8]> {
    let frame = bytes.last_chunk::<21>()?;
    let begins = frame[0] == 1 && frame[3..].starts_with(&[0, 0, 0, 13, 0, 60, 0, 80]);
    (begins && frame.ends_with(&[0xce])).then_some(frame.as_slice())
}
