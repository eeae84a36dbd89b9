//! A connection's patience: how long a client may take to send a request, to take an answer, and
//! to do nothing between the two.
//!
//! hyper's header timeout alone cannot tell a connection that rests from one that sends a byte now
//! and then; here the first is allowed more than the second.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tokio_io_timeout::TimeoutWriter;

use super::server::Limits;

/// A stream that fails with [`io::ErrorKind::TimedOut`] when its client is too slow.
pub(super) struct Socket<S> {
    stream: Pin<Box<TimeoutWriter<S>>>,
    read_timeout: Duration,
    idle_timeout: Duration,
    /// Nothing of a further request has come since the last answer.
    idle: bool,
    /// When waiting for the client to send ends. Bytes that trickle in do not move it.
    deadline: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite> Socket<S> {
    pub(super) fn new(stream: S, limits: &Limits) -> Self {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(limits.write_timeout));
        Self {
            stream: Box::pin(stream),
            read_timeout: limits.read_timeout,
            idle_timeout: limits.idle_timeout,
            idle: false,
            deadline: Box::pin(sleep(limits.read_timeout)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Poll::Ready(read) = self.stream.as_mut().poll_read(cx, buf) {
            if self.idle && buf.filled().len() > before {
                self.idle = false;
                let until = Instant::now() + self.read_timeout;
                self.deadline.as_mut().reset(until);
            }
            return Poll::Ready(read);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite> Socket<S> {
    fn rest_after(&mut self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(_))) {
            self.idle = true;
            let until = Instant::now() + self.idle_timeout;
            self.deadline.as_mut().reset(until);
        }
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write(cx, bytes);
        self.rest_after(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write_vectored(cx, bytes);
        self.rest_after(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };

    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(3600);
    const LIMITS: Limits = Limits {
        read_timeout: Duration::from_secs(15),
        write_timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(60),
        max_connections: 1,
    };

    fn pair() -> (Socket<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(8);
        (Socket::new(near, &LIMITS), far)
    }

    async fn waits_for(socket: &mut Socket<DuplexStream>) -> Duration {
        let began = Instant::now();
        let mut bytes = [0; 8];
        let read = async {
            loop {
                if let Err(error) = socket.read(&mut bytes).await {
                    return error;
                }
            }
        };
        let error = timeout(FOR_EVER, read).await.expect("its patience ends");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        began.elapsed()
    }

    fn seconds(waited: Duration) -> f64 {
        waited.as_secs_f64().round()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_waited_for_as_long_as_one_may_send() {
        let (mut socket, _far) = pair();
        assert_eq!(seconds(waits_for(&mut socket).await), 15.0);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_trickle_in_gain_no_time() {
        let (mut socket, mut far) = pair();
        let trickle = tokio::spawn(async move {
            loop {
                if far.write_all(b"x").await.is_err() {
                    return;
                }
                sleep(Duration::from_secs(2)).await;
            }
        });
        assert_eq!(seconds(waits_for(&mut socket).await), 15.0);
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_rest_longer_after_an_answer_until_the_next_byte() {
        let (mut socket, mut far) = pair();
        socket.write_all(b"answer").await.unwrap();
        assert_eq!(seconds(waits_for(&mut socket).await), 60.0);

        let (mut socket, mut far_too) = pair();
        socket.write_all(b"answer").await.unwrap();
        far_too.write_all(b"G").await.unwrap();
        assert_eq!(seconds(waits_for(&mut socket).await), 15.0);
        far.shutdown().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off() {
        let (mut socket, _far) = pair();
        let began = Instant::now();
        let written = timeout(FOR_EVER, socket.write_all(b"more than fits")).await;
        let error = written.expect("its patience ends").unwrap_err();
        assert_eq!((error.kind(), seconds(began.elapsed())), (io::ErrorKind::TimedOut, 20.0));
    }
}
