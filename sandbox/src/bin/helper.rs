//! The helper process of uploaded policies on its own, for the tests of this workspace. The product
//! runs the same function as `tidegate sandbox-helper`.
//!
//! With an argument it does something else in its place: `probe` tries what a module that got out of
//! its sandbox would try, `probe-free` tries the same without any limit, and `without-seccomp` is the
//! helper on a kernel that knows no filters.

use std::process::ExitCode;

use sandbox::policy::helper;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => helper::main(),
        #[cfg(target_os = "linux")]
        Some("probe") => {
            let parent = probe::parent();
            helper::main_with(|_confined| Ok(probe::attempts(parent).into_bytes()))
        }
        #[cfg(target_os = "linux")]
        Some("probe-free") => {
            print!("{}", probe::attempts(probe::parent()));
            ExitCode::SUCCESS
        }
        #[cfg(target_os = "linux")]
        Some("without-seccomp") => {
            probe::forget_seccomp();
            helper::main()
        }
        Some(other) => {
            eprintln!("{other:?} is unknown");
            ExitCode::FAILURE
        }
    }
}

#[cfg(target_os = "linux")]
mod probe {
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use rustix::process::{Pid, Resource, Rlimit, getpid, getppid, setrlimit, test_kill_process};

    pub fn parent() -> Pid {
        getppid().unwrap_or_else(getpid)
    }

    /// One line for each attempt: its name, and `done` or the number of the error.
    pub fn attempts(parent: Pid) -> String {
        let scratch = format!("/tmp/tidegate-probe-{}", std::process::id());
        let attempts: [(&str, io::Result<()>); 18] = [
            ("listen", TcpListener::bind("127.0.0.1:0").map(drop)),
            // Nobody listens there; that it is refused by somebody else is what counts.
            ("connect", TcpStream::connect("127.0.0.1:1").map(drop)),
            ("datagram", UdpSocket::bind("127.0.0.1:0").map(drop)),
            ("socket pair", UnixStream::pair().map(drop)),
            ("read a file", File::open("/etc/passwd").map(drop)),
            (
                "read a setting",
                File::open(format!("/proc/{}/environ", parent.as_raw_nonzero())).map(drop),
            ),
            ("write a file", OpenOptions::new().write(true).open("/dev/null").map(drop)),
            ("make a file", File::create(&scratch).map(drop)),
            ("remove a file", std::fs::remove_file(&scratch)),
            ("list a folder", std::fs::read_dir("/").map(drop)),
            ("start a process", Command::new("/bin/true").status().map(drop)),
            ("start a thread", std::thread::Builder::new().spawn(|| ()).map(drop)),
            ("signal another", test_kill_process(parent).map_err(io::Error::from)),
            ("take a limit back", {
                let more = Rlimit { current: Some(33), maximum: Some(33) };
                setrlimit(Resource::Nofile, more).map_err(io::Error::from)
            }),
            // Flags that do not go together: what is allowed ends with EINVAL.
            ("fork", call(libc::SYS_clone, [libc::CLONE_SIGHAND.into(), 0, 0])),
            // Of processes that do not exist: what is allowed ends with ESRCH.
            ("trace another", call(libc::SYS_ptrace, [16, NOBODY, 0])),
            ("read another's memory", call(libc::SYS_process_vm_readv, [NOBODY, 0, 0])),
            ("signal another's thread", call(libc::SYS_tgkill, [NOBODY, NOBODY, 0])),
        ];
        let mut told = String::new();
        for (name, outcome) in attempts {
            let outcome = match outcome {
                Ok(()) => "done".to_owned(),
                Err(error) => {
                    error.raw_os_error().map_or(error.to_string(), |code| code.to_string())
                }
            };
            told.push_str(&format!("{name}: {outcome}\n"));
        }
        // If it can, it becomes that program, which says so in our place.
        let done = told.clone() + "run a program: done";
        let error = Command::new("/bin/echo").arg(done).exec();
        let code = error.raw_os_error().unwrap_or_default();
        told + &format!("run a program: {code}\n")
    }

    const NOBODY: libc::c_long = i32::MAX as libc::c_long;

    #[expect(unsafe_code, reason = "nothing safe asks for these")]
    fn call(number: libc::c_long, [a, b, c]: [libc::c_long; 3]) -> io::Result<()> {
        // SAFETY: no argument is an address; the calls fail before they look for one.
        match unsafe { libc::syscall(number, a, b, c, 0, 0, 0) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// From now on the kernel says that it has no such call.
    pub fn forget_seccomp() {
        use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

        let arch = TargetArch::try_from(std::env::consts::ARCH).expect("a known processor");
        let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let rules = [(libc::SYS_seccomp, Vec::new())].into_iter().collect();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, arch);
        let filter = filter.and_then(BpfProgram::try_from).expect("a filter");
        seccompiler::apply_filter_all_threads(&filter).expect("seccomp here");
    }
}
