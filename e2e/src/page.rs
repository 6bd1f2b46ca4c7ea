//! A page of `docs/` as its reader follows it: the very lines of it, in their order, in one shell.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use crate::run;
use crate::world::workspace;

/// All of a page; it waits for states, and would wait for ever for one that never comes.
const PATIENCE: Duration = Duration::from_secs(300);

pub struct Page {
    script: String,
}

/// What came of a page whose lines all succeeded.
pub struct Followed {
    /// What its lines printed.
    pub said: String,
    /// That and all else there is, for a failure's words.
    pub told: String,
    folder: tempfile::TempDir,
}

impl Followed {
    /// A file that the page has left; empty if it did not.
    pub fn read(&self, file: &str) -> String {
        read(&self.folder, file)
    }
}

fn read(folder: &tempfile::TempDir, file: &str) -> String {
    std::fs::read_to_string(folder.path().join(file)).unwrap_or_default()
}

impl Page {
    /// Its blocks of `sh`, at least so many: a page that is written otherwise is not followed by nobody.
    pub fn of(path: &str, blocks_min: usize) -> Page {
        let page = std::fs::read_to_string(workspace().join(path)).expect("the page");
        let mut script = String::new();
        let mut blocks = 0;
        let mut rest = page.as_str();
        while let Some((_, fenced)) = rest.split_once("\n```sh\n") {
            let (text, after) = fenced.split_once("\n```").expect("an end");
            script.push_str(text);
            script.push('\n');
            blocks += 1;
            rest = after;
        }
        assert!(blocks >= blocks_min, "{path} has {blocks} blocks");
        Page { script }
    }

    /// What is the reader's own: an address, a port.
    pub fn with(mut self, of_the_page: &str, own: &str) -> Page {
        assert!(self.script.contains(of_the_page), "the page does not say {of_the_page}");
        self.script = self.script.replace(of_the_page, own);
        self
    }

    /// In an empty folder, with `tidegate` in the path. A line that fails ends it, and fails the test with
    /// all that was said, the files `control.log` and `edge.log` too.
    pub async fn follow(self) -> Followed {
        let folder = tempfile::tempdir().expect("a folder");
        // Whatever becomes of it, nothing that it started outlives it.
        let script = format!(
            "set -eu\nend() {{ set +e; for it in $(jobs -p); do kill $it; done; wait; }}\n\
             trap end EXIT\n{}\necho 'the page is done'",
            self.script
        );
        let binary = crate::process::binary();
        let tools = binary.parent().expect("a folder");
        let path = std::env::var("PATH").expect("a PATH");
        let mut shell = tokio::process::Command::new("bash");
        shell.arg("-c").arg(&script).current_dir(folder.path());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("TIDEGATE_") && name != run::COMPILED_DIR {
                shell.env_remove(&*name);
            }
        }
        shell
            .env("PATH", format!("{}:{path}", tools.display()))
            .env("TIDEGATE_SESSIONS_FILE", folder.path().join("sessions.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut shell = shell.spawn().expect("bash starts");
        let (mut said, mut errors) = (String::new(), String::new());
        let mut out = shell.stdout.take().expect("piped");
        let mut err = shell.stderr.take().expect("piped");
        let all = async {
            let (one, two) =
                tokio::join!(out.read_to_string(&mut said), err.read_to_string(&mut errors));
            one.and(two).expect("text");
            shell.wait().await.expect("an end")
        };
        let status = tokio::time::timeout(PATIENCE, all).await.expect("it ends in time");
        let (control_log, edge_log) = (read(&folder, "control.log"), read(&folder, "edge.log"));
        for log in ["control.log", "edge.log"] {
            run::keep_log(log, &folder.path().join(log));
        }
        let files = std::fs::read_dir(folder.path()).expect("the folder");
        let names = files.map(|file| file.expect("a file").file_name());
        for name in names.filter_map(|name| name.into_string().ok()) {
            run::secrets_in(&read(&folder, &name));
        }
        run::secrets_in(&read(&folder, "control/setup-token"));
        let told = format!("{said}\n{errors}\ncontrol: {control_log}\nedge: {edge_log}");
        assert!(status.success() && said.contains("the page is done"), "{told}");
        Followed { said, told, folder }
    }
}
