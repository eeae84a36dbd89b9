//! AMQP by hand, for what client libraries refuse to send.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::room::address;

/// `host:port` of the broker.
pub(crate) async fn broker() -> String {
    let address = address().await;
    let rest = address.split_once('@').unwrap().1;
    rest.split_once('/').unwrap().0.to_owned()
}

/// Publishes, by hand, a message with a header whose name is not UTF-8: the client libraries
/// refuse to.
pub(crate) async fn publish_unreadable(queue: &str) {
    let mut stream = TcpStream::connect(broker().await).await.unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    read_frame(&mut stream).await;
    // connection.start-ok: client properties, mechanism, response, locale
    method(
        &mut stream,
        0,
        (10, 11),
        &[&[0, 0, 0, 0], b"\x05PLAIN", b"\x00\x00\x00\x0c\x00guest\x00guest", b"\x05en_US"],
    )
    .await;
    read_frame(&mut stream).await;
    // connection.tune-ok: channel-max, frame-max, heartbeat
    method(&mut stream, 0, (10, 31), &[&[0, 1], &[0, 2, 0, 0], &[0, 0]]).await;
    // connection.open: vhost `/`
    method(&mut stream, 0, (10, 40), &[b"\x01/", &[0, 0]]).await;
    read_frame(&mut stream).await;
    // channel.open, confirm.select
    method(&mut stream, 1, (20, 10), &[&[0]]).await;
    read_frame(&mut stream).await;
    method(&mut stream, 1, (85, 10), &[&[0]]).await;
    read_frame(&mut stream).await;
    // basic.publish to the default exchange
    let key = [&[u8::try_from(queue.len()).unwrap()], queue.as_bytes()].concat();
    method(&mut stream, 1, (60, 40), &[&[0, 0], &[0], &key, &[0]]).await;
    // The content header: class 60, weight 0, size 1, flags for headers and delivery mode.
    let table = b"\x03\xff\xfe\xfdS\x00\x00\x00\x01x";
    let mut header = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x30, 0x00];
    header.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
    header.extend(table);
    header.push(2);
    frame(&mut stream, 2, 1, &header).await;
    frame(&mut stream, 3, 1, b"x").await;
    let confirmation = read_frame(&mut stream).await;
    assert_eq!(&confirmation[..4], &[0, 60, 0, 80], "the broker took it");
}

pub(crate) async fn method(
    stream: &mut TcpStream,
    channel: u16,
    (class, id): (u16, u16),
    parts: &[&[u8]],
) {
    let mut payload = [class.to_be_bytes(), id.to_be_bytes()].concat();
    payload.extend(parts.concat());
    frame(stream, 1, channel, &payload).await;
}

pub(crate) async fn frame(stream: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) {
    let mut bytes = vec![kind];
    bytes.extend(channel.to_be_bytes());
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes.push(0xce);
    stream.write_all(&bytes).await.unwrap();
}

/// The payload of the next frame.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; u32::from_be_bytes(head[3..7].try_into().unwrap()) as usize + 1];
    stream.read_exact(&mut payload).await.unwrap();
    payload.pop();
    payload
}
