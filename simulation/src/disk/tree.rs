//! Directories: their present entries, those on the platter, and the changes between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_kernel::env::DiskEntry;

use super::file::FileNode;
use crate::random::Stream;

/// A name's meaning.
#[derive(Clone)]
pub(super) enum Entry {
    File(Arc<FileNode>),
    Dir(Arc<DirNode>),
}

/// One change of one directory. Names go before the new one comes, so that a rename is one change.
struct Change {
    removed: Vec<String>,
    added: Option<(String, Entry)>,
}

#[derive(Default)]
struct Names {
    present: BTreeMap<String, Entry>,
    platter: BTreeMap<String, Entry>,
    unsynced: Vec<Change>,
}

impl Names {
    fn change(&mut self, change: Change) {
        apply(&mut self.present, &change);
        self.unsynced.push(change);
    }
}

fn apply(names: &mut BTreeMap<String, Entry>, change: &Change) {
    for name in &change.removed {
        names.remove(name);
    }
    if let Some((name, entry)) = &change.added {
        names.insert(name.clone(), entry.clone());
    }
}

/// A directory.
#[derive(Default)]
pub(super) struct DirNode(Mutex<Names>);

impl DirNode {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a loss of power took.
#[derive(Default)]
pub(super) struct Lost {
    pub(super) blocks: u64,
    pub(super) changes: u64,
}

/// All directories and files.
#[derive(Default)]
pub(super) struct Tree {
    root: Arc<DirNode>,
}

fn names_of(path: &Path) -> impl Iterator<Item = &str> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    })
}

fn split(path: &Path) -> io::Result<(&Path, String)> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok((path.parent().unwrap_or(Path::new("")), name.to_owned()))
}

impl Tree {
    pub(super) fn find(&self, path: &Path) -> Option<Entry> {
        let mut entry = Entry::Dir(self.root.clone());
        for name in names_of(path) {
            let Entry::Dir(dir) = entry else { return None };
            entry = dir.names().present.get(name)?.clone();
        }
        Some(entry)
    }

    fn dir(&self, path: &Path) -> io::Result<Arc<DirNode>> {
        match self.find(path) {
            Some(Entry::Dir(dir)) => Ok(dir),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Makes what is missing, durably, and says how many levels that were.
    pub(super) fn create_dir_all(&self, path: &Path) -> io::Result<u64> {
        let (mut dir, mut made) = (self.root.clone(), 0);
        for name in names_of(path) {
            let found = dir.names().present.get(name).cloned();
            dir = match found {
                Some(Entry::Dir(next)) => next,
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    let next = Arc::new(DirNode::default());
                    let added = Some((name.to_owned(), Entry::Dir(next.clone())));
                    let change = Change { removed: Vec::new(), added };
                    dir.names().change(change);
                    sync(&dir);
                    made += 1;
                    next
                }
            };
        }
        Ok(made)
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        let dir = self.dir(path)?;
        let names = dir.names();
        let entry =
            |(name, entry): (&String, &Entry)| DiskEntry { name: name.clone(), is_dir: matches!(entry, Entry::Dir(_)) };
        Ok(names.present.iter().map(entry).collect())
    }

    pub(super) fn link(&self, path: &Path, entry: Entry) -> io::Result<()> {
        let (parent, name) = split(path)?;
        self.dir(parent)?.names().change(Change { removed: Vec::new(), added: Some((name, entry)) });
        Ok(())
    }

    pub(super) fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = match self.find(from) {
            Some(Entry::File(file)) => {
                file.name_again();
                Entry::File(file)
            }
            Some(Entry::Dir(_)) => return Err(io::ErrorKind::PermissionDenied.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        if self.find(to).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.link(to, entry)
    }

    pub(super) fn remove_file(&self, path: &Path) -> io::Result<()> {
        match self.find(path) {
            Some(Entry::File(_)) => {}
            Some(Entry::Dir(_)) => return Err(io::ErrorKind::IsADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        let (parent, name) = split(path)?;
        self.dir(parent)?.names().change(Change { removed: vec![name], added: None });
        Ok(())
    }

    pub(super) fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let dir = self.dir(path)?;
        empty(&dir);
        let (parent, name) = split(path)?;
        self.dir(parent)?.names().change(Change { removed: vec![name], added: None });
        Ok(())
    }

    /// Within one directory a rename is one change, which survives whole or not at all. Between two it is made durable at
    /// once, as journalling file systems order it; half of one would be a file lost or doubled by the disk alone.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = self.find(from).ok_or(io::ErrorKind::NotFound)?;
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from)?, split(to)?);
        if from_dir == to_dir {
            if from_name != to_name {
                let change = Change { removed: vec![from_name], added: Some((to_name, entry)) };
                self.dir(from_dir)?.names().change(change);
            }
            return Ok(());
        }
        let (source, target) = (self.dir(from_dir)?, self.dir(to_dir)?);
        target.names().change(Change { removed: Vec::new(), added: Some((to_name, entry)) });
        source.names().change(Change { removed: vec![from_name], added: None });
        for dir in [target, source] {
            sync(&dir);
        }
        Ok(())
    }

    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        sync(&*self.dir(path)?);
        Ok(())
    }

    /// Every file with its path, in order.
    pub(super) fn files(&self) -> Vec<(PathBuf, Arc<FileNode>)> {
        let mut found = Vec::new();
        collect(&self.root, Path::new(""), &mut found);
        found
    }

    /// Bytes of all files; one that has several names counts once.
    pub(super) fn bytes(&self) -> u64 {
        let mut seen = BTreeSet::new();
        let files = self.files();
        files.iter().filter(|(_, file)| seen.insert(Arc::as_ptr(file).addr())).map(|(_, file)| file.len()).sum()
    }

    pub(super) fn lose_power(&mut self, survival: &mut Stream) -> Lost {
        let mut lost = Lost::default();
        lose_power(&self.root, survival, &mut lost);
        lost
    }
}

fn sync(dir: &DirNode) {
    let mut names = dir.names();
    names.unsynced.clear();
    names.platter = names.present.clone();
}

fn empty(dir: &DirNode) {
    let present: Vec<(String, Entry)> =
        dir.names().present.iter().map(|(name, entry)| (name.clone(), entry.clone())).collect();
    for (name, entry) in present {
        if let Entry::Dir(inner) = entry {
            empty(&inner);
        }
        dir.names().change(Change { removed: vec![name], added: None });
    }
}

fn collect(dir: &DirNode, path: &Path, found: &mut Vec<(PathBuf, Arc<FileNode>)>) {
    for (name, entry) in &dir.names().present {
        match entry {
            Entry::File(file) => found.push((path.join(name), file.clone())),
            Entry::Dir(inner) => collect(inner, &path.join(name), found),
        }
    }
}

fn lose_power(dir: &DirNode, survival: &mut Stream, lost: &mut Lost) {
    let mut names = dir.names();
    for change in std::mem::take(&mut names.unsynced) {
        if survival.chance(500) {
            apply(&mut names.platter, &change);
        } else {
            lost.changes += 1;
        }
    }
    names.present = names.platter.clone();
    for entry in names.present.values() {
        match entry {
            Entry::File(file) => lost.blocks += file.lose_power(survival),
            Entry::Dir(inner) => lose_power(inner, survival, lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Entry {
        Entry::File(Arc::new(FileNode::default()))
    }

    #[test]
    fn an_entry_survives_for_certain_only_after_its_directory_was_synced() {
        let mut survived = 0;
        for seed in 0..100 {
            let mut tree = Tree::default();
            tree.create_dir_all(Path::new("/a/b")).unwrap();
            tree.link(Path::new("/a/b/synced"), file()).unwrap();
            tree.sync_dir(Path::new("/a/b")).unwrap();
            tree.link(Path::new("/a/b/not"), file()).unwrap();
            tree.lose_power(&mut Stream::new(seed, "survival", 0));
            assert!(tree.find(Path::new("/a/b/synced")).is_some());
            survived += u32::from(tree.find(Path::new("/a/b/not")).is_some());
        }
        assert!((20..80).contains(&survived), "{survived}");
    }

    #[test]
    fn a_file_lives_as_long_as_one_of_its_names() {
        let mut tree = Tree::default();
        tree.create_dir_all(Path::new("/a")).unwrap();
        tree.create_dir_all(Path::new("/b")).unwrap();
        let (one, two) = (Path::new("/a/one"), Path::new("/b/two"));
        let node = Arc::new(FileNode::default());
        node.write(b"seven b", 0);
        node.sync();
        tree.link(one, Entry::File(node)).unwrap();
        tree.hard_link(one, two).unwrap();
        assert_eq!(tree.hard_link(one, two).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(tree.bytes(), 7, "two names are one file");
        tree.sync_dir(Path::new("/b")).unwrap();
        tree.remove_file(one).unwrap();
        tree.sync_dir(Path::new("/a")).unwrap();
        tree.lose_power(&mut Stream::new(1, "survival", 0));
        assert!(tree.find(one).is_none() && tree.find(two).is_some());
        assert_eq!(tree.bytes(), 7);
        assert_eq!(tree.hard_link(Path::new("/b"), one).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_rename_is_whole_or_not_at_all() {
        for seed in 0..100 {
            let mut tree = Tree::default();
            tree.link(Path::new("/old"), file()).unwrap();
            tree.sync_dir(Path::new("/")).unwrap();
            tree.rename(Path::new("/old"), Path::new("/new")).unwrap();
            tree.lose_power(&mut Stream::new(seed, "survival", 0));
            let found = [Path::new("/old"), Path::new("/new")].map(|path| tree.find(path).is_some());
            assert!(found[0] != found[1], "{found:?}");
        }
    }
}
