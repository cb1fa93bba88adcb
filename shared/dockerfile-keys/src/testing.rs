//! Trees in memory, for the tests.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::context::{Entry, Id, Kind, Tree, TreeError};
use crate::key::Maker;

type File = (Kind, String);

/// A tree in memory. It counts how often a directory is listed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    by_path: BTreeMap<String, File>,
    trees: HashMap<Id, Rc<[Entry]>>,
    contents: HashMap<Id, String>,
    root: Id,
    pub(crate) listed: Cell<usize>,
}

impl Files {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let mut all = Self::default();
        for (path, content) in files {
            all.by_path.insert((*path).to_owned(), (Kind::File, (*content).to_owned()));
        }
        all.store();
        all
    }

    pub(crate) fn file(&mut self, path: &str, content: &str) {
        self.put(path, Kind::File, content);
    }

    pub(crate) fn executable(&mut self, path: &str, content: &str) {
        self.put(path, Kind::Executable, content);
    }

    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.put(path, Kind::Link, to);
    }

    fn put(&mut self, path: &str, kind: Kind, content: &str) {
        self.by_path.insert(path.to_owned(), (kind, content.to_owned()));
        self.store();
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.by_path.remove(path);
        self.store();
    }

    pub(crate) fn root(&self) -> Id {
        self.root
    }

    fn store(&mut self) {
        let files = self.by_path.clone();
        self.root = self.tree(&files.iter().map(|(path, file)| (path.as_str(), file)).collect::<Vec<_>>());
    }

    fn tree(&mut self, files: &[(&str, &File)]) -> Id {
        let mut directories = BTreeMap::<&str, Vec<(&str, &File)>>::new();
        let mut entries = Vec::new();
        for (path, file) in files {
            if let Some((directory, rest)) = path.split_once('/') {
                directories.entry(directory).or_default().push((rest, file));
            } else {
                let id = *Maker::new("blob").text(&file.1).key().bytes();
                self.contents.insert(id, file.1.clone());
                entries.push(Entry { name: (*path).into(), kind: file.0, id });
            }
        }
        for (name, files) in directories {
            let id = self.tree(&files);
            entries.push(Entry { name: name.into(), kind: Kind::Directory, id });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let mut id = Maker::new("tree");
        for entry in &entries {
            id.text(&format!("{entry:?}"));
        }
        let id = *id.key().bytes();
        self.trees.insert(id, entries.into());
        id
    }
}

impl Tree for Files {
    fn entries(&self, directory: &Id) -> Result<Rc<[Entry]>, TreeError> {
        self.listed.set(self.listed.get() + 1);
        Ok(Rc::clone(&self.trees[directory]))
    }

    fn read(&self, file: &Id) -> Result<Vec<u8>, TreeError> {
        Ok(self.contents[file].clone().into_bytes())
    }
}
