//! A socket that gives up on peers that hold it without using it.
//!
//! hyper's own header timeout also runs between requests, so one short enough for slow headers
//! would cut every polite client. Here the socket keeps the limits: nothing or a part of a
//! request's headers may last seconds, the rest between two requests a minute, an answer that is
//! not taken up half a minute. Bodies are timed where they are read (`http/extract.rs`).

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Sleep;

#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For all of a request's headers, also of a connection's first.
    pub header: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// For the peer to take up what is sent.
    pub write: Duration,
}

/// Where a connection is, as far as its limits go.
#[derive(Debug, Default)]
pub struct Phase(AtomicU8);

impl Phase {
    /// Nothing or only a part of a request's headers has come.
    const HEADERS: u8 = 0;
    /// A request is being answered; on HTTP/2, for good after the first: it has pings.
    const BUSY: u8 = 1;
    /// Between requests.
    const IDLE: u8 = 2;

    pub fn begin(&self) {
        self.0.store(Phase::BUSY, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.0.store(Phase::IDLE, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct Guarded {
    io: TokioIo<TcpStream>,
    phase: Arc<Phase>,
    timeouts: Timeouts,
    /// For which phase it was armed: another phase begins anew.
    read_due: Option<(u8, Pin<Box<Sleep>>)>,
    write_due: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    pub fn new(stream: TcpStream, phase: Arc<Phase>, timeouts: Timeouts) -> Guarded {
        let io = TokioIo::new(stream);
        Guarded { io, phase, timeouts, read_due: None, write_due: None }
    }

    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_due = None;
            return result;
        }
        let within = self.timeouts.write;
        let due = self.write_due.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        due.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        if result.is_ready() {
            if self.phase.get() == Phase::IDLE {
                self.phase.0.store(Phase::HEADERS, Ordering::Relaxed);
                self.read_due = None;
            }
            return result;
        }
        let phase = self.phase.get();
        let within = match phase {
            Phase::HEADERS => self.timeouts.header,
            Phase::IDLE => self.timeouts.idle,
            _ => {
                self.read_due = None;
                return Poll::Pending;
            }
        };
        if self.read_due.as_ref().is_none_or(|(of, _)| *of != phase) {
            self.read_due = Some((phase, Box::pin(tokio::time::sleep(within))));
        }
        match &mut self.read_due {
            Some((_, due)) => due.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => Poll::Pending,
        }
    }
}

impl Write for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.written(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(cx, result)
    }
}
