//! What the helper process may ask the kernel for once it has its request.
//!
//! A list of what is allowed: memory, its own pipes, waiting, and its own end. Not on it, and so
//! answered with EPERM: opening anything by a name (reading too: the same user could read control's
//! environment), sockets, new processes, threads and programs, signals to others, tracing others,
//! changing its own limits. An error and not the end of the process, since a library that asks for
//! something it can do without must not cost an author the upload.
//!
//! Each call here was seen in a run over all bombs and kits, or is what their C library uses instead
//! on another kernel or processor.

/// Holds for every thread there is and for the rest of the process's life. The error says why there is no
/// filter; everything else that limits the process holds without.
#[cfg(target_os = "linux")]
pub(super) fn confine() -> Result<(), String> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let allowed = allowed().map_err(|error| error.to_string())?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(allowed, refused, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())?;
    seccompiler::apply_filter_all_threads(&filter).map_err(|error| error.to_string())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn confine() -> Result<(), String> {
    Err(format!("{} has no seccomp", std::env::consts::OS))
}

#[cfg(target_os = "linux")]
type Rules = std::collections::BTreeMap<i64, Vec<seccompiler::SeccompRule>>;

#[cfg(target_os = "linux")]
fn allowed() -> Result<Rules, seccompiler::BackendError> {
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

    let mut rules: Rules = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let only_if = |argument: u8, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    // To abort: a thread of this process, not another process.
    rules.insert(libc::SYS_tgkill, vec![only_if(0, std::process::id().into())?]);
    rules.insert(libc::SYS_ioctl, vec![only_if(1, PAGEMAP_SCAN)?]);
    rules.insert(libc::SYS_fcntl, vec![only_if(1, F_ADD_SEALS)?, only_if(1, F_GETFD)?]);
    rules.insert(libc::SYS_prctl, vec![only_if(0, PR_SET_NAME)?]);
    Ok(rules)
}

#[cfg(target_os = "linux")]
const ALLOWED: &[i64] = &[
    // Memory, with the anonymous files that wasmtime keeps a module's first contents in.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    // What is open.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    // Time, waiting, and seeds of hash tables.
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    // Traps of wasm are signals; a panic and an abort are too.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // The thread that moves the epoch may only just have been born.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// `_IOWR('f', 16, struct pm_scan_arg)`: which pages of a slot were written.
#[cfg(target_os = "linux")]
const PAGEMAP_SCAN: u64 = 0xc060_6610;
#[cfg(target_os = "linux")]
const F_ADD_SEALS: u64 = libc::F_ADD_SEALS as u64;
/// A debug build asks whether what it closes is open.
#[cfg(target_os = "linux")]
const F_GETFD: u64 = libc::F_GETFD as u64;
#[cfg(target_os = "linux")]
const PR_SET_NAME: u64 = libc::PR_SET_NAME as u64;
