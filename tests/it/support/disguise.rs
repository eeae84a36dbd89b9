//! A server that says it is something else: a line on which some of its words are replaced.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
};

/// Passes everything on, and what the server says with `truth` replaced by `told`, which is as
/// long: protocols count their bytes.
pub(crate) struct Disguise(SocketAddr);

impl Disguise {
    pub(crate) async fn start(server: SocketAddr, truth: &str, told: &str) -> Self {
        assert_eq!(truth.len(), told.len());
        let words = (truth.as_bytes().to_vec(), told.as_bytes().to_vec());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(server).await else { continue };
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                tokio::spawn(carry(near_in, far_out, None));
                tokio::spawn(carry(far_in, near_out, Some(words.clone())));
            }
        });
        Self(address)
    }

    /// The same URL by way of this.
    pub(crate) fn of(&self, url: &str) -> String {
        let (user, place) = url.rsplit_once('@').unwrap();
        let (_, path) = place.split_once('/').unwrap();
        format!("{user}@{}/{path}", self.0)
    }
}

/// A server's greeting comes in one piece, so nobody looks for words across two.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    words: Option<(Vec<u8>, Vec<u8>)>,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 65_536];
    loop {
        let read = from.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        if let Some((truth, told)) = &words {
            let found: Vec<usize> = bytes[..read]
                .windows(truth.len())
                .enumerate()
                .filter_map(|(at, window)| (window == truth).then_some(at))
                .collect();
            for at in found {
                bytes[at..at + told.len()].copy_from_slice(told);
            }
        }
        to.write_all(&bytes[..read]).await?;
    }
}
