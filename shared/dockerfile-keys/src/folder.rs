//! A directory of the file system as a tree, for builds of what is checked out.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::context::{Entry, Id, Kind, Tree, TreeError};
use crate::key::Maker;

/// A directory with all that lay in it when it was read. Ids are made of the content, as git's are.
#[derive(Debug, Default)]
pub struct Folder {
    root: Id,
    trees: HashMap<Id, Rc<[Entry]>>,
    /// Where a file's content, or a symbolic link's target, can be read.
    files: HashMap<Id, PathBuf>,
}

impl Folder {
    /// Reads a directory.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut folder = Self::default();
        folder.root = folder.add(path)?;
        Ok(folder)
    }

    /// The id of the directory itself.
    #[must_use]
    pub fn root(&self) -> Id {
        self.root
    }

    fn add(&mut self, directory: &Path) -> io::Result<Id> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let (path, file_type) = (entry.path(), entry.file_type()?);
            let (kind, id) = if file_type.is_dir() {
                (Kind::Directory, self.add(&path)?)
            } else {
                let kind = if file_type.is_symlink() {
                    Kind::Link
                } else if is_executable(&entry.metadata()?) {
                    Kind::Executable
                } else {
                    Kind::File
                };
                let id = *Maker::new("file").bytes(&content(&path, kind)?).key().bytes();
                self.files.insert(id, path);
                (kind, id)
            };
            entries.push(Entry { name: entry.file_name().to_string_lossy().into(), kind, id });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let mut id = Maker::new("directory");
        for entry in &entries {
            id.text(&entry.name).text(&format!("{:?}", entry.kind)).bytes(&entry.id);
        }
        let id = *id.key().bytes();
        self.trees.insert(id, entries.into());
        Ok(id)
    }
}

impl Tree for Folder {
    fn entries(&self, directory: &Id) -> Result<Rc<[Entry]>, TreeError> {
        self.trees.get(directory).map(Rc::clone).ok_or_else(missing)
    }

    fn read(&self, file: &Id) -> Result<Vec<u8>, TreeError> {
        let path = self.files.get(file).ok_or_else(missing)?;
        let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        let kind = if is_link { Kind::Link } else { Kind::File };
        content(path, kind).map_err(|error| TreeError(Box::new(error)))
    }
}

fn missing() -> TreeError {
    TreeError(Box::new(io::Error::from(io::ErrorKind::NotFound)))
}

fn content(path: &Path, kind: Kind) -> io::Result<Vec<u8>> {
    if kind == Kind::Link {
        return Ok(fs::read_link(path)?.to_string_lossy().into_owned().into_bytes());
    }
    fs::read(path)
}

#[cfg(unix)]
fn is_executable(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o111 != 0
}

#[cfg(not(unix))]
fn is_executable(_: &fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    #[test]
    fn a_directory_is_known_by_what_lies_in_it() {
        let root = std::env::temp_dir().join(format!("folder-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/x", "1");
        write("b/x", "1");
        let folder = Folder::read(&root).unwrap();
        let at = |folder: &Folder, path: &str| find(folder, &folder.root(), path).unwrap().unwrap();
        assert_eq!(at(&folder, "a").id, at(&folder, "b").id);
        assert_eq!(folder.read(&at(&folder, "a/x").id).unwrap(), b"1");
        write("b/x", "2");
        let changed = Folder::read(&root).unwrap();
        assert_ne!(changed.root(), folder.root());
        assert_eq!(at(&changed, "a").id, at(&folder, "a").id);
        assert_ne!(at(&changed, "b").id, at(&folder, "b").id);
        fs::remove_dir_all(root).unwrap();
    }
}
