//! The helper process: puts itself under limits, reads one request, gives up what it may ask of the
//! kernel (`confine.rs`), compiles or admits, answers.
//!
//! Why a process: how long compiling takes is not bounded by wasmtime, and what cannot be bounded
//! can only be killed. A module that takes the helper down takes nothing else with it.
//!
//! On the pipes: four bytes of length (little endian), that much JSON, then raw bytes to the end:
//! wasm on the way in, compiled code on the way out. Both sides are of one build, so this is no
//! contract with anybody.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use rules::limits::{POLICY_BYTES_MAX, POLICY_MEMORY_BYTES_MAX};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};

use super::admission::{self, Vector, Verdict};
use super::confine::confine;
use super::run::PolicyEngine;
use super::shape::Refused;

/// Of real time, from the start of the process to its last byte.
const WALL: Duration = Duration::from_secs(5);
/// Of processor time: as much, for one that does nothing but work.
const CPU_S: u64 = 5;
/// By so much that may be over before the real time is: the helper's two threads work at once.
const CPU_AHEAD: Duration = Duration::from_millis(100);
/// Of address space. The program itself, one pool slot and a compiler within the shape's limits
/// need a fifth of it.
const ADDRESS_SPACE_BYTES: u64 = 512 * 1024 * 1024;
const FILES: u64 = 32;
/// wasmtime puts a memory's first contents into an anonymous file; nothing else is written.
const FILE_BYTES: u64 = POLICY_MEMORY_BYTES_MAX as u64;

/// Of the request's JSON: the vectors.
const REQUEST_BYTES: usize = 2 * 1024 * 1024;
/// Of the answer: code, and in a verdict what the policy answered.
const ANSWER_BYTES: u64 = 32 * 1024 * 1024;
/// Of what a helper says on its way down.
const COMPLAINT_BYTES: u64 = 2 * 1024;
/// For that, once it is gone.
const COMPLAINING: Duration = Duration::from_millis(200);
/// One helper at a time, and this many callers that wait for their turn.
const WAITING_MAX: usize = 16;
const WAITING: Duration = Duration::from_secs(30);

/// How the helper is started. `admit` and `compile` block for up to their turn and five seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The module's fault, and final.
    #[error("the module was refused: {0}")]
    Refused(Refused),
    #[error("the helper process {} cannot be started", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("too many modules wait for the helper process")]
    Busy,
    #[error("the helper process took longer than {} s and was stopped", WALL.as_secs())]
    Time,
    /// By a limit of its own, for the most part.
    #[error("the helper process died ({how})")]
    Died { how: String },
    #[error("the helper process gave no answer: {what}")]
    Answer { what: String },
}

#[derive(Serialize, Deserialize)]
enum Request {
    Admit { vectors: Vec<Vector> },
    Compile,
}

#[derive(Serialize, Deserialize)]
struct Answered {
    answer: Answer,
    /// Why its system calls are not filtered.
    unconfined: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Verdict(Verdict),
    /// The code follows.
    Code,
    Refused(Refused),
}

impl Helper {
    /// This program once more, as the product does it.
    pub fn of_this_program() -> Helper {
        // The link and not the path: it is the same program after an upgrade replaced the file.
        let program = PathBuf::from("/proc/self/exe");
        let program = if program.exists() {
            program
        } else {
            std::env::current_exe().unwrap_or_else(|_| PathBuf::from("tidegate"))
        };
        Helper { program, arguments: vec![SUBCOMMAND.to_owned()] }
    }

    /// For tests of crates without a binary of their own: the one that cargo built beside them.
    pub fn beside_this_test() -> Helper {
        let test = std::env::current_exe().unwrap_or_default();
        let folder = test.ancestors().nth(2).map(PathBuf::from).unwrap_or_default();
        Helper { program: folder.join("tidegate-sandbox-helper"), arguments: Vec::new() }
    }

    /// Whether the module may be used. A module that brings the helper down or takes too long is
    /// refused like any other; an error means that nobody can say.
    pub fn admit(&self, wasm: &[u8], vectors: &[Vector]) -> Result<Verdict, HelperError> {
        let request = Request::Admit { vectors: vectors.to_vec() };
        match self.ask(&request, wasm) {
            Ok((Answer::Verdict(verdict), _)) => Ok(verdict),
            Ok((Answer::Refused(refused), _)) => Ok(Verdict::refused(refused)),
            Ok((Answer::Code, _)) => {
                Err(HelperError::Answer { what: "it answered another question".to_owned() })
            }
            Err(HelperError::Refused(refused)) => Ok(Verdict::refused(refused)),
            Err(HelperError::Time) => {
                let what = format!("admission took longer than {} s", WALL.as_secs());
                Ok(Verdict::refused(Refused::new("time", what)))
            }
            Err(HelperError::Died { how }) => {
                let what = format!("admission needs more than its process may use ({how})");
                Ok(Verdict::refused(Refused::new("resources", what)))
            }
            Err(error) => Err(error),
        }
    }

    /// Code for this machine's engine. Only ever given to `Policies::load`.
    pub fn compile(&self, wasm: &[u8]) -> Result<Vec<u8>, HelperError> {
        match self.ask(&Request::Compile, wasm)? {
            (Answer::Code, code) => Ok(code),
            (Answer::Refused(refused), _) => Err(HelperError::Refused(refused)),
            (Answer::Verdict(_), _) => {
                Err(HelperError::Answer { what: "it answered another question".to_owned() })
            }
        }
    }

    fn ask(&self, request: &Request, wasm: &[u8]) -> Result<(Answer, Vec<u8>), HelperError> {
        if wasm.len() > POLICY_BYTES_MAX {
            let found = wasm.len();
            let what = format!("the module has {found} bytes; {POLICY_BYTES_MAX} are allowed");
            return Err(HelperError::Refused(Refused::new("size", what)));
        }
        let unusable = |error: serde_json::Error| HelperError::Answer { what: error.to_string() };
        let request = serde_json::to_vec(request).map_err(unusable)?;
        if request.len() > REQUEST_BYTES {
            let found = request.len();
            let what = format!("the test vectors have {found} bytes; {REQUEST_BYTES} are allowed");
            return Err(HelperError::Refused(Refused::new("vectors", what)));
        }
        let sent = framed(&request, wasm);
        let _turn = Turn::wait()?;
        let answer = self.run(sent)?;
        let (head, code) = unframed(&answer)
            .ok_or_else(|| HelperError::Answer { what: "it is cut short".to_owned() })?;
        let Answered { answer, unconfined } = serde_json::from_slice(head).map_err(unusable)?;
        if let Some(why) = unconfined {
            say_once(&why);
        }
        Ok((answer, code.to_vec()))
    }

    fn run(&self, sent: Vec<u8>) -> Result<Vec<u8>, HelperError> {
        let started = Instant::now();
        let not_started = |source| HelperError::Start { program: self.program.clone(), source };
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            // Nothing of ours is for it: no tokens, no settings.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(not_started)?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut child = Killed(child);
        let (Some(mut to), Some(from), Some(complaints)) = pipes else {
            return Err(not_started(io::Error::other("it has no pipes")));
        };
        // The three ends are served by threads: pipes are small, and a helper that does not read must
        // not hold up whoever writes. Nobody waits for these threads. They end when the pipes are
        // closed, which is when the process is gone, unless it has got itself a child after all.
        std::thread::spawn(move || {
            // A helper that died early is found out by its answer.
            let _ = to.write_all(&sent);
        });
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut answer = Vec::new();
            let read = from.take(ANSWER_BYTES.saturating_add(1)).read_to_end(&mut answer);
            // Whoever asked may have gone.
            let _ = tell.send(read.map(|_| answer));
        });
        let (complain, complained) = mpsc::channel();
        std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = complaints.take(COMPLAINT_BYTES).read_to_end(&mut said);
            let _ = complain.send(String::from_utf8_lossy(&said).trim().to_owned());
        });
        let told = told.recv_timeout(WALL.saturating_sub(started.elapsed()));
        let answer = match told {
            Ok(Ok(answer)) if answer.len() as u64 <= ANSWER_BYTES => answer,
            Ok(Ok(_)) => return Err(HelperError::Answer { what: "it is too long".to_owned() }),
            Ok(Err(error)) => return Err(HelperError::Answer { what: error.to_string() }),
            Err(RecvTimeoutError::Timeout) => return Err(HelperError::Time),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(HelperError::Answer { what: "it was not read".to_owned() });
            }
        };
        let status = child.wait(WALL.saturating_sub(started.elapsed())).ok_or(HelperError::Time)?;
        let ran = started.elapsed();
        if status.success() {
            return Ok(answer);
        }
        let by_a_clock = [Signal::KILL, Signal::XCPU].map(|signal| Some(signal.as_raw()));
        if by_a_clock.contains(&status.signal()) && ran.saturating_add(CPU_AHEAD) >= WALL {
            return Err(HelperError::Time);
        }
        let said = complained.recv_timeout(COMPLAINING).unwrap_or_default();
        if status.signal().is_some() {
            return Err(died(status, &said));
        }
        Err(HelperError::Answer { what: format!("{status}: {said}") })
    }
}

/// What `main` of the product looks for in its first argument.
pub const SUBCOMMAND: &str = "sandbox-helper";

fn died(status: ExitStatus, said: &str) -> HelperError {
    let said = said.lines().next().unwrap_or_default();
    let how = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
    HelperError::Died { how }
}

/// It is so for every module on this machine.
fn say_once(why: &str) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!(
            why,
            "system calls of the process that compiles policies are not filtered here; its other limits hold"
        );
    });
}

/// A process that does not outlive whoever started it.
struct Killed(Child);

impl Killed {
    /// Waits for a process that has said its last; nothing if it does not end.
    fn wait(&mut self, left: Duration) -> Option<ExitStatus> {
        let until = Instant::now().checked_add(left)?;
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => {
                    std::thread::park_timeout(Duration::from_millis(1))
                }
                _ => {
                    self.kill();
                    return None;
                }
            }
        }
    }

    fn kill(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two helpers at once would take twice the memory and each other's time.
struct Turn;

static TURNS: (Mutex<Waiting>, Condvar) =
    (Mutex::new(Waiting { is_taken: false, waiting: 0 }), Condvar::new());

struct Waiting {
    is_taken: bool,
    waiting: usize,
}

impl Turn {
    fn wait() -> Result<Turn, HelperError> {
        let (state, freed) = &TURNS;
        let mut turns = state.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.is_taken {
            if turns.waiting >= WAITING_MAX {
                return Err(HelperError::Busy);
            }
            turns.waiting = turns.waiting.saturating_add(1);
            let (mut again, _) = freed
                .wait_timeout_while(turns, WAITING, |turns| turns.is_taken)
                .unwrap_or_else(PoisonError::into_inner);
            again.waiting = again.waiting.saturating_sub(1);
            turns = again;
            if turns.is_taken {
                return Err(HelperError::Busy);
            }
        }
        turns.is_taken = true;
        Ok(Turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (state, freed) = &TURNS;
        state.lock().unwrap_or_else(PoisonError::into_inner).is_taken = false;
        freed.notify_one();
    }
}

fn framed(head: &[u8], body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(head.len()).unwrap_or(u32::MAX);
    [&len.to_le_bytes()[..], head, body].concat()
}

fn unframed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

/// The helper process. Says what went wrong on standard error, in one line.
pub fn main() -> ExitCode {
    main_with(answer)
}

/// As `main`, with other work in place of the request's: so that tests see what work in there can do.
#[doc(hidden)]
pub fn main_with(work: impl FnOnce(Confined<'_>) -> Result<Vec<u8>, String>) -> ExitCode {
    match serve(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            // Whoever started this reads it; if that fails there is nobody to tell.
            let _ = writeln!(io::stderr(), "{what}");
            ExitCode::FAILURE
        }
    }
}

/// All that is left once nothing can be opened any more.
#[doc(hidden)]
pub struct Confined<'a> {
    engine: Arc<PolicyEngine>,
    request: &'a [u8],
    /// Of this process; read when all is done.
    status: Option<File>,
    unconfined: Option<String>,
}

fn serve(work: impl FnOnce(Confined<'_>) -> Result<Vec<u8>, String>) -> Result<(), String> {
    limit_resources().map_err(|error| format!("limits: {error}"))?;
    let engine = PolicyEngine::new(1).map_err(|error| error.to_string())?;
    // After the thread that moves the epoch, before the first byte of a stranger: no more threads
    // and no processes. (The kernel does not hold root to this one; the filter below does.)
    limit(Resource::Nproc, 0).map_err(|error| format!("limits: {error}"))?;
    let mut request = Vec::new();
    let bytes_max = (REQUEST_BYTES as u64).saturating_add(POLICY_BYTES_MAX as u64);
    let bytes_max = bytes_max.saturating_add(4);
    io::stdin().lock().take(bytes_max).read_to_end(&mut request).map_err(|e| e.to_string())?;
    let status = File::open("/proc/self/status").ok();
    // Before anybody looks at what was read.
    let unconfined = confine().err();
    let answer = work(Confined { engine, request: &request, status, unconfined })?;
    let mut to = io::stdout().lock();
    to.write_all(&answer).and_then(|()| to.flush()).map_err(|e| e.to_string())
}

fn answer(confined: Confined<'_>) -> Result<Vec<u8>, String> {
    let Confined { engine, request, status, unconfined } = confined;
    let (head, wasm) = unframed(request).ok_or("the request is cut short")?;
    let request: Request = serde_json::from_slice(head).map_err(|e| format!("request: {e}"))?;
    let (answer, code) = match request {
        Request::Admit { vectors } => {
            let mut verdict = admission::admit(&engine, wasm, &vectors);
            verdict.peak_bytes = status.and_then(|status| peak_bytes(&status)).unwrap_or(0);
            (Answer::Verdict(verdict), Vec::new())
        }
        Request::Compile => {
            let compiled = admission::compile(&engine, wasm).and_then(|module| {
                module.serialize().map_err(|e| Refused::new("compile", e.to_string()))
            });
            match compiled {
                Ok(code) => (Answer::Code, code),
                Err(refused) => (Answer::Refused(refused), Vec::new()),
            }
        }
    };
    let answered = Answered { answer, unconfined };
    let head = serde_json::to_vec(&answered).map_err(|error| error.to_string())?;
    Ok(framed(&head, &code))
}

/// Of memory, that the process took at its height; nothing where the system does not say.
fn peak_bytes(status: &File) -> Option<u64> {
    let mut text = [0; 8 * 1024];
    let read = status.read_at(&mut text, 0).ok()?;
    let text = String::from_utf8_lossy(text.get(..read)?);
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn limit_resources() -> io::Result<()> {
    limit(Resource::Core, 0)?;
    limit(Resource::Cpu, CPU_S)?;
    limit(Resource::As, ADDRESS_SPACE_BYTES)?;
    limit(Resource::Nofile, FILES)?;
    limit(Resource::Fsize, FILE_BYTES)
}

/// Soft and hard alike, so that it cannot be taken back.
fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let limit = Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(resource, limit).map_err(io::Error::from)
}
