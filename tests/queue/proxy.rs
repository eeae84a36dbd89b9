//! A line to the broker with which things can go wrong.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::{
    raw::{broker, method},
    room::address,
};

/// A line to the broker with which things can go wrong.
pub(crate) struct Proxy {
    port: u16,
    fault: watch::Sender<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    None,
    /// The lines that are open now are cut.
    Cut,
    /// The consuming line that is open now carries nothing towards the worker any more.
    Mute,
    /// The consuming line brings word that the broker closed channel 1.
    CloseChannel,
    /// The next acknowledgement reaches the broker twice.
    AckTwice,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = watch::Sender::new(Fault::None);
        let faults = fault.clone();
        let broker = broker().await;
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut faults = faults.subscribe();
                faults.mark_unchanged();
                tokio::spawn(Self::carry(near, broker.clone(), faults));
            }
        });
        Self { port, fault }
    }

    pub(crate) async fn carry(
        mut near: TcpStream,
        broker: String,
        mut faults: watch::Receiver<Fault>,
    ) -> std::io::Result<()> {
        let mut far = TcpStream::connect(broker).await?;
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        // The name of a connection is part of its greeting.
        let (mut publishes, mut muted, mut twice) = (false, false, false);
        loop {
            tokio::select! {
                read = near.read(&mut up) => {
                    let read = read?;
                    publishes |= up[..read].windows(9).any(|text| text == b"(publish)");
                    if read == 0 { return Ok(()) }
                    far.write_all(&up[..read]).await?;
                    if twice && let Some(ack) = ack_at_the_end(&up[..read]) {
                        twice = false;
                        far.write_all(ack).await?;
                    }
                }
                read = far.read(&mut down) => {
                    let read = read?;
                    if read == 0 { return Ok(()) }
                    if !muted {
                        near.write_all(&down[..read]).await?;
                    }
                }
                Ok(()) = faults.changed() => {
                    let fault = *faults.borrow_and_update();
                    match fault {
                        Fault::None => {}
                        Fault::Cut => return Ok(()),
                        Fault::Mute => muted = !publishes,
                        Fault::AckTwice => twice = true,
                        Fault::CloseChannel if publishes => {}
                        Fault::CloseChannel => {
                            let close = [&[1, 150][..], b"\x05TIMED", &[0, 0, 0, 0]];
                            method(&mut near, 1, (20, 40), &close).await;
                        }
                    }
                }
            }
        }
    }

    pub(crate) async fn url(&self) -> String {
        address().await.replace(&broker().await, &format!("127.0.0.1:{}", self.port))
    }

    pub(crate) fn cause(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

/// The whole frame of a `basic.ack` on channel 1 that these bytes end with: AMQP 0-9-1 §4.2.3 and
/// §1.8.3.13 (its tag, and whether it means all before it).
fn ack_at_the_end(bytes: &[u8]) -> Option<&[u8]> {
    let frame = bytes.last_chunk::<21>()?;
    let begins = frame.starts_with(&[1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80]);
    (begins && frame.ends_with(&[0xce])).then_some(frame.as_slice())
}
