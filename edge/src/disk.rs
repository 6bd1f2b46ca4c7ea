//! Snapshots that survive a restart: one file each, whole or absent.
//!
//! `snapshot.<namespace>.<environment>.<generation>.<revision>` holds the signed head and the
//! blob; id lists, policies and the client snapshot lie beside it as `list.<digest>`, shared between snapshots. A file is written
//! under another name, synced, renamed, and the folder synced, lists before the snapshot that
//! names them. What is read is believed only after signature and digests have been checked, by
//! the same code that checks what the feed brings (`sync.rs`); nothing here decides that.
//!
//! A file is `magic [u8; 8], role u8, head length u32, blob length u64, xxh3-64 of the signed head
//! u64, signed head, blob`, little endian. The checksum guards nothing, the signature does; it
//! tells rot from a head whose key is simply not trusted here (any more).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rules::blob::Digest;
use rules::head::{SignedHead, Version};
use seam::FileStep;
use xxhash_rust::xxh3::xxh3_64;

use crate::state::Name;

const MAGIC: &[u8; 8] = b"tgsnap\x00\x01";
const HEADER_BYTES: usize = 8 + 1 + 4 + 8 + 8;
/// Of each environment: the newest, and two to fall back to.
const KEPT: usize = 3;
/// Set aside per environment, for whoever wants to know what happened.
const BAD_KEPT: usize = 3;
const PIECE_BYTES: usize = 64 * 1024;
const NOTE_BYTES_MAX: u64 = 1 << 20;
/// A head in JSON inside JSON: each byte may be escaped.
const SIGNED_HEAD_BYTES_MAX: usize = 2 * rules::limits::HEAD_BYTES_MAX + 1024;

/// Which of a head's two snapshots a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Newest,
    /// What an edge serves that a staged rollout has not reached.
    Previous,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub head: SignedHead,
    pub role: Role,
    pub blob: Bytes,
}

/// A snapshot's file, known by name only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    pub version: Version,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the file cannot be read")]
    Io(#[from] io::Error),
    /// It was once written whole, so it rotted, or was meddled with.
    #[error("the file is damaged: {0}")]
    Damaged(&'static str),
}

#[derive(Debug, Clone)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Makes the folder if need be, and clears what a crash left half-written.
    pub fn open(dir: &Path) -> io::Result<Disk> {
        fs::create_dir_all(dir)?;
        for name in file_names(dir)? {
            if name.starts_with("tmp.") {
                fs::remove_file(dir.join(name))?;
            }
        }
        Ok(Disk { dir: dir.to_owned() })
    }

    /// Every environment's files, newest first. The names are hints; files say who they are.
    pub fn entries(&self) -> io::Result<Vec<Vec<Entry>>> {
        let mut found: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for name in file_names(&self.dir)? {
            if let Some((environment, version)) = parse_name(&name) {
                let path = self.dir.join(&name);
                found.entry(environment.to_owned()).or_default().push(Entry { path, version });
            }
        }
        let newest_first = |mut entries: Vec<Entry>| {
            entries.sort_by_key(|entry| Reverse(entry.version));
            if seam::planted("oldest-file-first") {
                entries.reverse();
            }
            entries
        };
        Ok(found.into_values().map(newest_first).collect())
    }

    pub fn read(&self, entry: &Entry) -> Result<Stored, ReadError> {
        let file = File::open(&entry.path)?;
        let most = HEADER_BYTES + SIGNED_HEAD_BYTES_MAX + rules::limits::SNAPSHOT_BYTES_MAX;
        let mut bytes = Vec::new();
        file.take(most as u64 + 1).read_to_end(&mut bytes)?;
        decode(Bytes::from(bytes)).map_err(ReadError::Damaged)
    }

    /// The blob of a snapshot that was saved under this name and version.
    pub fn blob(&self, name: &Name, version: Version) -> Result<Bytes, ReadError> {
        let path = self.dir.join(file_name(name, version));
        Ok(self.read(&Entry { path, version })?.blob)
    }

    pub fn list(&self, digest: Digest, bytes: u64) -> Result<Bytes, ReadError> {
        let mut content = Vec::new();
        File::open(self.list_path(digest))?
            .take(bytes.saturating_add(1))
            .read_to_end(&mut content)?;
        if content.len() as u64 != bytes || Digest::of(&content) != digest {
            return Err(ReadError::Damaged("not the list that its name says"));
        }
        Ok(Bytes::from(content))
    }

    /// Every list that there is, by the name that it has.
    pub fn lists(&self) -> io::Result<Vec<Digest>> {
        let names = file_names(&self.dir)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix("list.")?.parse().ok()).collect())
    }

    /// Whether a list is what its name says.
    pub fn is_whole(&self, digest: Digest) -> io::Result<bool> {
        use sha2::Digest as _;
        let mut file = File::open(self.list_path(digest))?;
        let mut hasher = sha2::Sha256::new();
        // Piece by piece: it may be long, and is not needed.
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(Digest(hasher.finalize().into()) == digest),
                read => hasher.update(piece.get(..read).unwrap_or_default()),
            }
        }
    }

    pub fn remove_list(&self, digest: Digest) -> io::Result<()> {
        fs::remove_file(self.list_path(digest))
    }

    pub fn has_list(&self, digest: Digest) -> bool {
        self.list_path(digest).exists()
    }

    pub fn has(&self, name: &Name, version: Version) -> bool {
        self.dir.join(file_name(name, version)).exists()
    }

    /// Writes lists, then the snapshot; gives its path. An error leaves every older file as it was.
    pub fn save(
        &self,
        name: &Name,
        version: Version,
        stored: &Stored,
        lists: &[(Digest, Bytes)],
    ) -> io::Result<PathBuf> {
        for (digest, bytes) in lists {
            let path = self.list_path(*digest);
            // A list that is there already may have rotted; reading it costs less than guessing.
            if self.list(*digest, bytes.len() as u64).is_err() {
                self.write(&path, &[bytes])?;
            }
        }
        let head = serde_json::to_vec(&stored.head)?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.push(match stored.role {
            Role::Newest => 0,
            Role::Previous => 1,
        });
        header.extend_from_slice(&(head.len() as u32).to_le_bytes());
        header.extend_from_slice(&(stored.blob.len() as u64).to_le_bytes());
        header.extend_from_slice(&xxh3_64(&head).to_le_bytes());
        let path = self.dir.join(file_name(name, version));
        self.write(&path, &[&header, &head, &stored.blob])?;
        Ok(path)
    }

    /// Removes what is no longer needed: all but the newest snapshots of each environment, and the
    /// lists that `named` does not hold. Nothing that is removed was ever the newest.
    pub fn prune(&self, lists_of: impl Fn(&Entry) -> Option<Vec<Digest>>) -> io::Result<()> {
        let mut named = HashSet::new();
        let mut complete = true;
        for entries in self.entries()? {
            let kept = entries.len().min(KEPT);
            let (kept, surplus) = entries.split_at(kept);
            for entry in surplus {
                fs::remove_file(&entry.path)?;
            }
            for entry in kept {
                match lists_of(entry) {
                    Some(lists) => named.extend(lists),
                    None => complete = false,
                }
            }
        }
        let mut bad: BTreeMap<String, Vec<(Version, String)>> = BTreeMap::new();
        for name in file_names(&self.dir)? {
            if let Some(digest) = name.strip_prefix("list.") {
                // An unreadable snapshot may name any list, so then none is removed.
                let wanted = digest.parse().is_ok_and(|digest: Digest| named.contains(&digest));
                if complete && !wanted {
                    fs::remove_file(self.dir.join(&name))?;
                }
            } else if let Some((environment, version)) =
                name.strip_suffix(".bad").and_then(parse_name)
            {
                bad.entry(environment.to_owned()).or_default().push((version, name.clone()));
            }
        }
        for mut files in bad.into_values() {
            files.sort_by_key(|(version, _)| Reverse(*version));
            for (_, name) in files.into_iter().skip(BAD_KEPT) {
                fs::remove_file(self.dir.join(name))?;
            }
        }
        Ok(())
    }

    /// Sets a file aside that is not what it claims to be.
    pub fn quarantine(&self, entry: &Entry) -> io::Result<()> {
        let mut name = entry.path.clone().into_os_string();
        name.push(".bad");
        fs::rename(&entry.path, name)?;
        self.sync_dir()
    }

    /// A small text beside the snapshots.
    pub fn note(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        File::open(self.dir.join(name))?.take(NOTE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    }

    pub fn write_note(&self, name: &str, text: &[u8]) -> io::Result<()> {
        self.write(&self.dir.join(name), &[text])
    }

    fn list_path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("list.{digest}"))
    }

    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
        let temporary = self.dir.join(format!("tmp.{name}"));
        let written = self.write_through(&temporary, path, parts);
        if written.is_err() {
            // On a full disk the half-written file is what fills it.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn write_through(&self, temporary: &Path, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        fail_at("edge-disk-create", FileStep::Create, temporary)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).open(temporary)?;
        for part in parts {
            fail_at("edge-disk-write", FileStep::Write, temporary)?;
            file.write_all(part)?;
        }
        if !seam::planted("no-file-sync") {
            fail_at("edge-disk-sync", FileStep::Sync, temporary)?;
            file.sync_all()?;
        }
        drop(file);
        fail_at("edge-disk-rename", FileStep::Rename, path)?;
        fs::rename(temporary, path)?;
        if seam::planted("no-folder-sync") {
            return Ok(());
        }
        self.sync_dir()
    }

    fn sync_dir(&self) -> io::Result<()> {
        fail_at("edge-disk-sync-dir", FileStep::SyncDir, &self.dir)?;
        File::open(&self.dir)?.sync_all()
    }
}

/// With the feature `failpoints` a test makes a step fail as a full or dying disk does.
fn fail_at(step: &str, at: FileStep, path: &Path) -> io::Result<()> {
    fail::fail_point!(step, |kind| Err(match kind.as_deref() {
        Some("eio") => io::Error::other("injected input/output error"),
        _ => io::Error::from(io::ErrorKind::StorageFull),
    }));
    let _ = step;
    seam::file(at, path)
}

/// A snapshot's file, or what is wrong with it. Neither signature nor digest is looked at.
pub fn decode(bytes: Bytes) -> Result<Stored, &'static str> {
    const CUT: &str = "the file is cut short";
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(CUT)?;
    if magic != MAGIC {
        return Err("the file does not begin as a snapshot's does");
    }
    let (role, rest) = rest.split_first().ok_or(CUT)?;
    let (head_len, rest) = rest.split_first_chunk().ok_or(CUT)?;
    let (blob_len, rest) = rest.split_first_chunk().ok_or(CUT)?;
    let (checksum, _) = rest.split_first_chunk().ok_or(CUT)?;
    let role = match role {
        0 => Role::Newest,
        1 => Role::Previous,
        _ => return Err("the file says nothing sensible of what it holds"),
    };
    let lengths = || {
        let head_end = HEADER_BYTES.checked_add(u32::from_le_bytes(*head_len) as usize)?;
        let blob_len = usize::try_from(u64::from_le_bytes(*blob_len)).ok()?;
        Some((head_end, head_end.checked_add(blob_len)?))
    };
    let (head_end, end) = lengths().ok_or(CUT)?;
    if end < bytes.len() {
        return Err("more follows the file's end");
    }
    let head = bytes.get(HEADER_BYTES..head_end).filter(|_| end == bytes.len()).ok_or(CUT)?;
    if xxh3_64(head) != u64::from_le_bytes(*checksum) {
        return Err("the head in the file does not have the checksum that it was written with");
    }
    let head = serde_json::from_slice(head).map_err(|_| "the head in the file is none")?;
    Ok(Stored { head, role, blob: bytes.slice(head_end..) })
}

fn file_name((namespace, environment): &Name, version: Version) -> String {
    let Version { generation, revision } = version;
    format!("snapshot.{}.{}.{generation}.{revision}", part(namespace), part(environment))
}

/// The environment's part of a snapshot file's name, and the version.
fn parse_name(name: &str) -> Option<(&str, Version)> {
    let rest = name.strip_prefix("snapshot.")?;
    let (rest, revision) = rest.rsplit_once('.')?;
    let (environment, generation) = rest.rsplit_once('.')?;
    let version =
        Version { generation: generation.parse().ok()?, revision: revision.parse().ok()? };
    (environment.split('.').count() == 2).then_some((environment, version))
}

/// A key as a part of a file name: no dots, no slashes, no surprises, at most 80 bytes, and never
/// the same for two keys.
fn part(key: &str) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(byte)),
            // Upper case too: there are file systems that cannot tell.
            _ => text.push_str(&format!("%{byte:02x}")),
        }
    }
    if text.len() > 80 || text.is_empty() {
        let digest = Digest::of(key.as_bytes()).to_string();
        text = format!("%{}", &digest[..40]);
    }
    text
}

fn file_names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(dir)? {
        // Not ours if it is not UTF-8.
        if let Ok(name) = file?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_file_name_of_its_own() {
        let long = "x".repeat(256);
        let keys = ["a", "A", "a.b", "a/b", "ä", "", "..", "%41", &long];
        let names: HashSet<String> = keys.iter().map(|key| part(key)).collect();
        assert_eq!(names.len(), keys.len(), "{names:?}");
        for key in keys {
            let version = Version { generation: 2, revision: 77 };
            let name = file_name(&(key.to_owned(), "prod.eu".to_owned()), version);
            assert_eq!(parse_name(&name).map(|(_, version)| version), Some(version), "{name}");
            assert!(name.len() < 255 && !name.contains('/'), "{name}");
        }
    }

    #[test]
    fn a_truncated_or_flipped_file_is_never_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let head =
            SignedHead { head: "{}".to_owned(), key_id: "k".to_owned(), signature: "s".to_owned() };
        let stored = Stored { head, role: Role::Newest, blob: Bytes::from_static(b"blob") };
        let version = Version { generation: 1, revision: 1 };
        disk.save(&("a".into(), "b".into()), version, &stored, &[]).unwrap();
        let entry = disk.entries().unwrap()[0][0].clone();
        assert_eq!(disk.read(&entry).unwrap(), stored);
        let whole = fs::read(&entry.path).unwrap();
        for len in 0..whole.len() {
            assert!(decode(Bytes::copy_from_slice(&whole[..len])).is_err(), "{len} bytes");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(decode(Bytes::from(longer)).is_err());
        // The blob's bytes are the digest's business.
        for at in 0..whole.len() - stored.blob.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                // The other role is the one flip that leaves a file whole; its head decides.
                let other =
                    decode(Bytes::from(flipped)).map_or(true, |read| read.role == Role::Previous);
                assert!(other, "byte {at}, bit {bit}");
            }
        }
    }
}
