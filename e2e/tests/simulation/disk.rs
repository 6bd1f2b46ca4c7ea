//! What of an edge's folder survives a cut of its power: what was synced, under the names that were
//! in the folder when the folder was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use seam::FileStep;

#[derive(Default)]
pub struct Disks(BTreeMap<PathBuf, Disk>);

#[derive(Default)]
struct Disk {
    /// Names whose file was synced since it was last written, as they are now.
    synced: BTreeSet<String>,
    durable: BTreeMap<String, Vec<u8>>,
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Disks {
    /// A step that now succeeds.
    pub fn done(&mut self, step: FileStep, path: &Path) {
        let folder = match step {
            FileStep::SyncDir => path,
            _ => path.parent().unwrap_or(path),
        };
        let disk = self.0.entry(folder.to_owned()).or_default();
        let name = name_of(path);
        match step {
            FileStep::Create | FileStep::Write => drop(disk.synced.remove(&name)),
            FileStep::Sync => drop(disk.synced.insert(name)),
            FileStep::Rename => {
                let was = disk.synced.remove(&format!("tmp.{name}"));
                disk.synced.remove(&name);
                if was {
                    disk.synced.insert(name);
                }
            }
            FileStep::SyncDir => disk.durable = disk.read(folder),
        }
    }

    /// The folder as it is found when power is back.
    pub fn cut_power(&mut self, folder: &Path) {
        let disk = self.0.entry(folder.to_owned()).or_default();
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).expect("a folder");
        for (name, bytes) in &disk.durable {
            fs::write(folder.join(name), bytes).expect("a file");
        }
        disk.synced = disk.durable.keys().cloned().collect();
    }
}

impl Disk {
    fn read(&self, folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let Ok(files) = fs::read_dir(folder) else { return BTreeMap::new() };
        let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
        names
            .map(|name| {
                // The name is there; what was never synced may be anything, for example nothing.
                let bytes = match self.synced.contains(&name) {
                    true => fs::read(folder.join(&name)).unwrap_or_default(),
                    false => Vec::new(),
                };
                (name, bytes)
            })
            .collect()
    }
}
