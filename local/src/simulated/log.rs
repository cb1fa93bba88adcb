//! The plain progress log, in `BuildKit`'s form.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::locked;

/// Where the log goes.
#[derive(Clone)]
pub struct Output(Arc<Mutex<State>>);

struct State {
    out: Box<dyn Write + Send>,
    vertices: u32,
    /// The vertex whose section is open, unless it is done.
    open: Option<u32>,
}

/// A numbered part of a build.
pub(crate) struct Vertex {
    output: Output,
    number: u32,
    name: String,
    started: Instant,
}

impl Output {
    /// A log that is written to `out`.
    #[must_use]
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(State { out: Box::new(out), vertices: 0, open: None })))
    }

    /// Writes a line of its own.
    pub(crate) fn say(&self, text: &str) {
        let mut state = locked(&self.0);
        state.write(text);
    }

    /// Starts a vertex.
    pub(crate) fn vertex(&self, name: impl Into<String>) -> Vertex {
        let mut state = locked(&self.0);
        state.vertices += 1;
        let number = state.vertices;
        let vertex = Vertex { output: self.clone(), number, name: name.into(), started: Instant::now() };
        state.section(&vertex);
        vertex
    }
}

impl State {
    fn write(&mut self, text: &str) {
        // Nobody is left to tell when the log cannot be written.
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    fn section(&mut self, vertex: &Vertex) {
        if self.open == Some(vertex.number) {
            return;
        }
        if let Some(other) = self.open.replace(vertex.number) {
            self.write(&format!("#{other} ..."));
        }
        self.write(&format!("\n#{} {}", vertex.number, vertex.name));
    }
}

impl Vertex {
    /// Writes a line of the vertex.
    pub(crate) fn line(&self, text: &str) {
        let mut state = locked(&self.output.0);
        state.section(self);
        state.write(&format!("#{} {text}", self.number));
    }

    /// Ends the vertex.
    pub(crate) fn done(self) {
        let text = format!("DONE {:.1}s", self.started.elapsed().as_secs_f64());
        self.end(&text);
    }

    /// Ends the vertex: its result was there.
    pub(crate) fn cached(self) {
        self.end("CACHED");
    }

    /// Ends the vertex with an error.
    pub(crate) fn failed(self, why: &str) {
        self.end(&format!("ERROR: {why}"));
    }

    fn end(self, text: &str) {
        self.line(text);
        locked(&self.output.0).open = None;
    }
}
