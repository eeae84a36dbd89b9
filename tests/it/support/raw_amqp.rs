//! A few frames of AMQP 0-9-1 written by hand, for messages that no client library sends or reads.
//! Frames and methods: <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf> §2.3, §4.2.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::PATIENCE;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;
const FRAME_MAX: u32 = 131_072;

/// One connection with one channel in confirm mode.
pub(crate) struct RawAmqp(TcpStream);

/// A message as its bytes came: the content header frame's payload, and the body.
pub(crate) struct RawFound {
    pub(crate) header: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl RawAmqp {
    pub(crate) async fn connect(url: &str) -> Self {
        let url = reqwest::Url::parse(url).unwrap();
        let address = (url.host_str().unwrap(), url.port().unwrap_or(5672));
        let mut raw = Self(TcpStream::connect(address).await.unwrap());
        raw.0.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
        raw.expect(10, 10).await;
        let login = [b"\0", url.username().as_bytes(), b"\0", url.password().unwrap().as_bytes()];
        // start-ok: no client properties, PLAIN
        let start_ok = [&[0; 4][..], &short(b"PLAIN"), &long(&login.concat()), &short(b"en_US")];
        raw.method(0, 10, 11, &start_ok.concat()).await;
        raw.expect(10, 30).await;
        // tune-ok: no heartbeats, for it never stays long
        let tune_ok = [&1_u16.to_be_bytes()[..], &FRAME_MAX.to_be_bytes(), &[0, 0]];
        raw.method(0, 10, 31, &tune_ok.concat()).await;
        raw.method(0, 10, 40, &[&short(b"/")[..], &short(b""), &[0]].concat()).await;
        raw.expect(10, 41).await;
        raw.method(1, 20, 10, &short(b"")).await;
        raw.expect(20, 11).await;
        raw.method(1, 85, 10, &[0]).await;
        raw.expect(85, 11).await;
        raw
    }

    /// Publishes a persistent message with this header table, and waits for the confirmation.
    pub(crate) async fn publish(&mut self, exchange: &str, headers: &[u8], body: &[u8]) {
        let (exchange, key) = (short(exchange.as_bytes()), short(b"any"));
        self.method(1, 60, 40, &[&[0, 0][..], &exchange, &key, &[1]].concat()).await;
        let (size, flags) = (body.len() as u64, 0x3000_u16.to_be_bytes());
        let start = [&[0, 60, 0, 0][..], &size.to_be_bytes(), &flags];
        self.frame(HEADER, 1, &[&start.concat()[..], &long(headers), &[2]].concat()).await;
        for part in body.chunks(FRAME_MAX as usize - 8) {
            self.frame(BODY, 1, part).await;
        }
        self.expect(60, 80).await;
    }

    /// The next message of a queue, taken off it.
    pub(crate) async fn take(&mut self, queue: &str) -> RawFound {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let no_ack = [1];
            self.method(1, 60, 70, &[&[0, 0][..], &short(queue.as_bytes()), &no_ack].concat())
                .await;
            let (_, answer) = self.read().await;
            if answer.starts_with(&[0, 60, 0, 71]) {
                let (_, header) = self.read().await;
                let size = u64::from_be_bytes(header[4..12].try_into().unwrap());
                let mut body = Vec::new();
                while (body.len() as u64) < size {
                    body.extend(self.read().await.1);
                }
                return RawFound { header, body };
            }
            assert!(Instant::now() < give_up, "no message came into {queue}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn expect(&mut self, class: u16, method: u16) {
        let (kind, payload) = self.read().await;
        let wanted = [class.to_be_bytes(), method.to_be_bytes()].concat();
        let found = String::from_utf8_lossy(&payload);
        assert!(kind == METHOD && payload.starts_with(&wanted), "not {class}.{method}: {found:?}");
    }

    async fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let start = [class.to_be_bytes(), method.to_be_bytes()].concat();
        self.frame(METHOD, channel, &[&start[..], arguments].concat()).await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(long(payload));
        frame.push(FRAME_END);
        self.0.write_all(&frame).await.unwrap();
    }

    /// The next frame that says something.
    async fn read(&mut self) -> (u8, Vec<u8>) {
        loop {
            let mut start = [0; 7];
            timeout(PATIENCE, self.0.read_exact(&mut start)).await.unwrap().unwrap();
            let size = u32::from_be_bytes(start[3..7].try_into().unwrap());
            let mut payload = vec![0; size as usize + 1];
            timeout(PATIENCE, self.0.read_exact(&mut payload)).await.unwrap().unwrap();
            assert_eq!(payload.pop(), Some(FRAME_END));
            if start[0] != HEARTBEAT {
                return (start[0], payload);
            }
        }
    }
}

/// A table with one entry whose value is a text.
pub(crate) fn text_header(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&short(key)[..], b"S", &long(value)].concat()
}

/// A table with one entry: arrays in arrays, this many.
pub(crate) fn nested_header(key: &[u8], depth: usize) -> Vec<u8> {
    let mut value = vec![b't', 1];
    for _ in 0..depth {
        value = [b"A", &long(&value)[..]].concat();
    }
    [short(key), value].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}
