//! Which compiler builds for wasm32-unknown-unknown.
//!
//! The first way is the Rust toolchain that runs us, with the target added by rustup if it is
//! missing. Where rustup is not there or cannot fetch, the second way is Debian's `rustc-web` with
//! its sources: unpacked under the target directory, never installed, and the standard library
//! built from source, because no package ships it for wasm32. `TIDEGATE_WASM_TOOLCHAIN` forces one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::steps::{self, ask, run as run_program};
use crate::{cargo, root, target_dir};

pub const TARGET: &str = "wasm32-unknown-unknown";
const FORCE: &str = "TIDEGATE_WASM_TOOLCHAIN";
const HELP: &str = "install Rust with rustup (https://rustup.rs), or run as root on Debian: apt-get \
     update, with the security archive among its sources";

/// A compiler with a standard library for wasm32.
pub enum Toolchain {
    /// What runs us.
    Own,
    Debian(Debian),
}

/// Debian's compiler, unpacked.
pub struct Debian {
    rustc: PathBuf,
    libraries: PathBuf,
    linker: PathBuf,
    /// Its artefacts are kept apart: two compilers in one folder build everything twice.
    build: PathBuf,
}

impl Toolchain {
    /// Finds or fetches one; says on standard error which way is taken and why.
    pub fn find() -> anyhow::Result<Toolchain> {
        let forced = Force::parse(std::env::var_os(FORCE))?;
        let unpacked = unpacked()?;
        let facts = Facts {
            installed: target_installed(),
            rustup: ask(Command::new("rustup").arg("--version")).is_ok(),
            unpacked: unpacked.join("usr/bin/rustc").is_file(),
        };
        let (mut way, mut why) = choose(forced, facts);
        if way == Way::RustupAdd {
            eprintln!("    wasm32: rustup target add {TARGET} ({why})");
            match steps::fetch(Command::new("rustup").args(["target", "add", TARGET])) {
                Ok(()) => return Ok(Toolchain::Own),
                Err(error) if forced == Some(Force::Rustup) => {
                    return Err(error.context(format!("{FORCE}=rustup; {HELP}")));
                }
                Err(error) => (way, why) = (Way::Debian, format!("{error:#}")),
            }
        }
        match way {
            Way::Own | Way::RustupAdd => {
                eprintln!("    wasm32: this Rust toolchain ({why})");
                Ok(Toolchain::Own)
            }
            Way::Neither => bail!("no compiler for {TARGET}: {why}; {HELP}"),
            Way::Debian => {
                eprintln!("    wasm32: Debian's rustc-web with its std from source ({why})");
                let debian = Debian::unpack(&unpacked).with_context(|| {
                    format!(
                        "no compiler for {TARGET}: {why}, and Debian's cannot be had either; {HELP}"
                    )
                })?;
                Ok(Toolchain::Debian(debian))
            }
        }
    }

    /// A cargo that builds with it; the subcommand and `--target` are the caller's.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(root());
        if let Toolchain::Debian(debian) = self {
            command
                .env("RUSTC", &debian.rustc)
                .env("LD_LIBRARY_PATH", &debian.libraries)
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", &debian.linker)
                .env("CARGO_TARGET_DIR", &debian.build)
                // Stable cargo and compiler: only this lets them build their own std.
                .env("RUSTC_BOOTSTRAP", "1")
                .args(["-Z", "build-std=std,panic_abort"]);
        }
        command
    }

    /// Where `cargo` puts what it builds for the target.
    pub fn output(&self) -> anyhow::Result<PathBuf> {
        Ok(match self {
            Toolchain::Own => target_dir()?,
            Toolchain::Debian(debian) => debian.build.clone(),
        }
        .join(TARGET))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Force {
    Rustup,
    Debian,
}

impl Force {
    fn parse(value: Option<OsString>) -> anyhow::Result<Option<Force>> {
        let Some(value) = value else { return Ok(None) };
        match value.to_str() {
            Some("rustup") => Ok(Some(Force::Rustup)),
            Some("debian") => Ok(Some(Force::Debian)),
            Some("") => Ok(None),
            _ => bail!("{FORCE} is rustup or debian, not {value:?}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Own,
    RustupAdd,
    Debian,
    Neither,
}

/// What this machine has.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// The toolchain that runs us has the target, from wherever.
    installed: bool,
    rustup: bool,
    /// Debian's compiler was unpacked by an earlier run.
    unpacked: bool,
}

/// The way to go, and why. What is there goes before what has to be fetched.
fn choose(forced: Option<Force>, facts: Facts) -> (Way, String) {
    match (forced, facts) {
        (Some(Force::Debian), _) => (Way::Debian, format!("{FORCE}=debian")),
        (_, Facts { installed: true, .. }) => (Way::Own, format!("it has {TARGET}")),
        (Some(Force::Rustup), Facts { rustup: true, .. }) => {
            (Way::RustupAdd, format!("{FORCE}=rustup"))
        }
        (Some(Force::Rustup), _) => (Way::Neither, format!("{FORCE}=rustup, but no rustup")),
        (None, Facts { unpacked: true, .. }) => {
            (Way::Debian, format!("an earlier run unpacked it; this toolchain lacks {TARGET}"))
        }
        (None, Facts { rustup: true, .. }) => {
            (Way::RustupAdd, format!("this toolchain lacks {TARGET}"))
        }
        (None, _) => (Way::Debian, format!("this toolchain lacks {TARGET}, and no rustup")),
    }
}

fn rustc() -> OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

fn target_installed() -> bool {
    ask(Command::new(rustc()).args(["--print", "target-libdir", "--target", TARGET]))
        .is_ok_and(|folder| Path::new(&folder).is_dir())
}

/// The folder of Debian's compiler, whether it is there or not.
fn unpacked() -> anyhow::Result<PathBuf> {
    Ok(target_dir()?.join("wasm-debian/root"))
}

impl Debian {
    /// Uses what an earlier run unpacked, or fetches the packages.
    fn unpack(folder: &Path) -> anyhow::Result<Debian> {
        if !folder.join("usr/bin/rustc").is_file() {
            fetch(folder)?;
        }
        let host = host()?;
        let libraries = folder.join("usr/lib").join(multiarch(&host)?);
        let build = folder.parent().context("a folder above")?.join("build");
        let rustc = folder.join("usr/bin/rustc");
        let version = ask(Command::new(&rustc).arg("--version").env("LD_LIBRARY_PATH", &libraries))
            .context("Debian's compiler does not run")?;
        eprintln!("    {version}");
        Ok(Debian { rustc, libraries, linker: linker(folder, &host)?, build })
    }
}

fn host() -> anyhow::Result<String> {
    let shown = ask(Command::new(rustc()).arg("-vV"))?;
    let host = shown.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// Debian's name for the folder of the machine's libraries.
fn multiarch(host: &str) -> anyhow::Result<String> {
    let cpu = host.split('-').next().unwrap_or_default();
    if !matches!(cpu, "x86_64" | "aarch64") || !host.contains("-linux-gnu") {
        bail!("Debian's compiler is used on x86_64 and aarch64 Linux only, not {host}");
    }
    Ok(format!("{cpu}-linux-gnu"))
}

/// rustup ships a linker with every toolchain, on every host that it has; Debian's was unpacked
/// only if there was none.
fn linker(folder: &Path, host: &str) -> anyhow::Result<PathBuf> {
    let of_rustup = rust_lld(host)?;
    if of_rustup.is_file() {
        return Ok(of_rustup);
    }
    let versions = std::fs::read_dir(folder.join("usr/lib")).context("usr/lib")?;
    versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin/wasm-ld")))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("no linker for {TARGET}; remove {} and try again", folder.display())
        })
}

fn rust_lld(host: &str) -> anyhow::Result<PathBuf> {
    let sysroot = ask(Command::new(rustc()).args(["--print", "sysroot"]))?;
    Ok(Path::new(&sysroot).join("lib/rustlib").join(host).join("bin/rust-lld"))
}

/// Downloads and unpacks, all or nothing.
fn fetch(folder: &Path) -> anyhow::Result<()> {
    let parent = folder.parent().context("a folder above")?;
    let (archives, part) = (parent.join("archives"), parent.join("part"));
    for made in [&archives, &part] {
        if made.exists() {
            std::fs::remove_dir_all(made)?;
        }
        std::fs::create_dir_all(made)?;
    }
    let offered = ask(Command::new("apt-cache").args(["show", "--no-all-versions", "rustc-web"]))
        .context("rustc-web is not among apt's packages")?;
    new_enough(&offered, env!("CARGO_PKG_RUST_VERSION"))?;

    // rustc-web itself would bring the C compiler along, which the README asks for anyway.
    let closure = depends(&["libstd-rust-web-dev", "rust-web-src"])?;
    let mut packages = to_unpack(&closure, &|package| installed(package));
    packages.insert("rustc-web".to_owned());
    if !rust_lld(&host()?)?.is_file() {
        let lld = lld_of(&closure)?;
        packages.extend(to_unpack(&depends(&[&lld])?, &|package| installed(package)));
        packages.insert(lld);
    }
    eprintln!("    about 150 MB to download and 400 MB unpacked in {}", parent.display());
    run_program(
        Command::new("apt-get")
            .current_dir(&archives)
            .args(["--quiet", "download"])
            .args(&packages),
    )?;
    for entry in std::fs::read_dir(&archives)? {
        run_program(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(&part))?;
    }
    let (_, trees) = split_sources(&part)?;
    for tree in trees {
        // The compiler's own sources: nine tenths of the package, and std does not need them.
        std::fs::remove_dir_all(tree)?;
    }
    std::fs::remove_dir_all(&archives)?;
    std::fs::rename(&part, folder).with_context(|| folder.display().to_string())
}

/// In `usr/src/rustc-…`: the standard library, and the rest.
fn split_sources(unpacked: &Path) -> anyhow::Result<(PathBuf, Vec<PathBuf>)> {
    let library = unpacked.join("usr/lib/rustlib/src/rust/library");
    let sources = library.parent().context("a folder above")?.canonicalize()?;
    let mut rest = Vec::new();
    for entry in std::fs::read_dir(&sources)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != "library" {
            rest.push(entry.path());
        }
    }
    Ok((library, rest))
}

fn depends(packages: &[&str]) -> anyhow::Result<String> {
    ask(Command::new("apt-cache")
        .args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"])
        .args(["--no-breaks", "--no-replaces", "--no-enhances"])
        .args(packages))
}

fn installed(package: &str) -> bool {
    ask(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]))
        .is_ok_and(|status| status == "install ok installed")
}

/// The packages of `apt-cache depends --recurse` that this machine lacks. The C library is never
/// one of them: a second one beside the first would not run.
fn to_unpack(closure: &str, installed: &dyn Fn(&str) -> bool) -> BTreeSet<String> {
    closure
        .lines()
        .filter(|line| !line.starts_with([' ', '<', '|']) && !line.is_empty())
        .filter(|package| *package != "libc6" && !installed(package))
        .map(str::to_owned)
        .collect()
}

/// The linker of the LLVM that the compiler was built with: an older one cannot read its objects.
fn lld_of(closure: &str) -> anyhow::Result<String> {
    let number = closure.lines().find_map(|line| {
        line.strip_prefix("libllvm").filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    });
    Ok(format!("lld-{}", number.context("rustc-web depends on no libllvm")?))
}

/// Whether the version that apt offers can build this workspace.
fn new_enough(offered: &str, wanted: &str) -> anyhow::Result<()> {
    let version = offered
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .context("apt-cache show names no version")?;
    let numbers = |version: &str| -> Vec<u32> {
        version
            .split(|c: char| !c.is_ascii_digit())
            .map_while(|part| part.parse().ok())
            .take(2)
            .collect()
    };
    if numbers(version) < numbers(wanted) {
        bail!("apt offers rustc-web {version}, and Rust {wanted} is needed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Facts = Facts { installed: false, rustup: false, unpacked: false };

    #[test]
    fn what_is_there_goes_before_what_must_be_fetched() {
        let all = Facts { installed: true, rustup: true, unpacked: true };
        for (facts, expected) in [
            (all, Way::Own),
            (Facts { installed: true, ..NOTHING }, Way::Own),
            (Facts { rustup: true, unpacked: true, ..NOTHING }, Way::Debian),
            (Facts { rustup: true, ..NOTHING }, Way::RustupAdd),
            (NOTHING, Way::Debian),
        ] {
            assert_eq!(choose(None, facts).0, expected, "{facts:?}");
        }
    }

    #[test]
    fn a_forced_way_is_never_left_for_the_other() {
        for (installed, rustup, unpacked) in
            [(false, false, false), (false, true, true), (true, false, true), (true, true, false)]
        {
            let facts = Facts { installed, rustup, unpacked };
            assert_eq!(choose(Some(Force::Debian), facts).0, Way::Debian, "{facts:?}");
            assert_ne!(choose(Some(Force::Rustup), facts).0, Way::Debian, "{facts:?}");
        }
        assert_eq!(choose(Some(Force::Rustup), NOTHING).0, Way::Neither);
    }

    #[test]
    fn the_reason_names_what_is_missing() {
        let (_, why) = choose(None, NOTHING);
        assert_eq!(why, "this toolchain lacks wasm32-unknown-unknown, and no rustup");
        let (_, why) = choose(Some(Force::Rustup), NOTHING);
        assert_eq!(why, "TIDEGATE_WASM_TOOLCHAIN=rustup, but no rustup");
    }

    #[test]
    fn an_unknown_way_is_refused_by_name() {
        let error = Force::parse(Some("nix".into())).unwrap_err().to_string();
        assert_eq!(error, "TIDEGATE_WASM_TOOLCHAIN is rustup or debian, not \"nix\"");
        assert_eq!(Force::parse(None).unwrap(), None);
        assert_eq!(Force::parse(Some("".into())).unwrap(), None);
        assert_eq!(Force::parse(Some("debian".into())).unwrap(), Some(Force::Debian));
    }

    const CLOSURE: &str = "libstd-rust-web-dev\n  Depends: libstd-rust-web-1.96\nrust-web-src\n\
        libstd-rust-web-1.96\n  Depends: libc6\n  Depends: libllvm22\nlibc6\nlibllvm22\nlibxml2\n\
        <debconf-2.0>\nlibz3-4\n";

    #[test]
    fn only_libraries_that_the_machine_lacks_are_unpacked_and_never_the_c_library() {
        let packages = to_unpack(CLOSURE, &|package| package == "libxml2");
        let expected =
            ["libllvm22", "libstd-rust-web-1.96", "libstd-rust-web-dev", "libz3-4", "rust-web-src"];
        assert_eq!(packages.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_linker_is_of_the_compilers_llvm() {
        assert_eq!(lld_of(CLOSURE).unwrap(), "lld-22");
        assert!(lld_of("libstd-rust-web-dev\nlibllvm-dev\n").is_err());
    }

    #[test]
    fn a_compiler_older_than_the_workspace_wants_is_refused_with_both_versions() {
        let shown =
            |version: &str| format!("Package: rustc-web\nVersion: {version}\nSection: devel\n");
        assert!(new_enough(&shown("1.96.0+dfsg1-1~deb12u2"), "1.95").is_ok());
        assert!(new_enough(&shown("1.95.0+dfsg1-1"), "1.95").is_ok());
        assert!(new_enough(&shown("2.0.0-1"), "1.95").is_ok());
        let error = new_enough(&shown("1.85.0+dfsg3-1~deb12u3"), "1.95").unwrap_err().to_string();
        assert!(error.contains("1.85.0") && error.contains("1.95"), "{error}");
        assert!(new_enough("Package: rustc-web\n", "1.95").is_err());
    }

    #[test]
    fn a_host_that_debian_has_no_compiler_for_is_refused() {
        assert_eq!(multiarch("x86_64-unknown-linux-gnu").unwrap(), "x86_64-linux-gnu");
        assert_eq!(multiarch("aarch64-unknown-linux-gnu").unwrap(), "aarch64-linux-gnu");
        for host in ["aarch64-apple-darwin", "x86_64-unknown-linux-musl", ""] {
            assert!(multiarch(host).is_err(), "{host}");
        }
    }
}
