//! As much of HTTP/1.1 as the programs measured here speak: bodies of known length, one request after the other.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read, Write};

/// A request.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// A header's value; empty where there is none. The name is in lower case.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str())
    }
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(body: &serde_json::Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/x-amz-json-1.1".to_owned())];
        Self { status: 200, headers, body: body.to_string().into_bytes() }
    }
}

/// Answers the requests of one connection until its client closes it.
pub(crate) fn serve(
    stream: impl Read + Write,
    mut answer: impl FnMut(Request) -> anyhow::Result<Answer>,
) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream)? {
        let Answer { status, headers, body } = answer(request)?;
        let mut text = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n")?;
        }
        text += "\r\n";
        let stream = stream.get_mut();
        // At once, as a server does that is not slowed by its own packets.
        stream.write_all(&[text.as_bytes(), &body].concat())?;
        stream.flush()?;
    }
    Ok(())
}

fn read(stream: &mut BufReader<impl Read>) -> anyhow::Result<Option<Request>> {
    let mut line = String::new();
    match stream.read_line(&mut line) {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        // Programs that are ended do not say goodbye.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, path, headers, body: Vec::new() };
    anyhow::ensure!(request.header("transfer-encoding").is_empty(), "{} is sent in chunks", request.path);
    let length = request.header("content-length").parse().unwrap_or(0);
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}
