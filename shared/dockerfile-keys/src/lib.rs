//! The cache keys of a Dockerfile's steps, as `BuildKit` makes them, without building anything.
//!
//! A step is known by its parent's key, by its instruction after variables were expanded, and by the content of what
//! it copies or mounts. Two builds of two commits share a step's result if, and only if, its keys are equal. With the
//! trees of a git history this says which steps a build of each commit runs, whatever cache it is given.
//!
//! ```
//! use dockerfile_keys::{Context, Ignore, Key, Memory, Options, parse, plan, solve};
//! # use dockerfile_keys::{Entry, Id, Tree, TreeError};
//! # struct Empty;
//! # impl Tree for Empty {
//! #     fn entries(&self, _: &Id) -> Result<std::rc::Rc<[Entry]>, TreeError> { Ok([].into()) }
//! #     fn read(&self, _: &Id) -> Result<Vec<u8>, TreeError> { Ok(Vec::new()) }
//! # }
//! # let tree = &Empty;
//! let file = parse("FROM alpine\nRUN apk add curl\nCOPY . /app\n")?;
//! let (ignore, memory) = (Ignore::parse("*.log")?, Memory::default());
//! let context = Context { tree, root: [0; 32], ignore: &ignore, memory: &memory, git_directory: None };
//! let plan = plan(&file, &Options::default(), context, Key::from([1; 32]))?;
//! assert_eq!(solve(&plan, |_| false).ran.len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What it cannot know, it says: an instruction that it does not understand and a source that is in no commit count as
//! never cached ([`Plan::unknown`]). Some things are taken for granted: a tag of an image, and an address of an `ADD`,
//! name the same files all the time; a base image triggers nothing (`ONBUILD`); and a command's output differs exactly
//! where its key does, but for `cargo chef prepare`, whose output is known by the files that it reads.

mod changed;
mod content;
mod context;
mod folder;
mod glob;
mod ignore;
mod key;
mod made;
mod memory;
mod parse;
mod plan;
mod record;
mod solve;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod words;

pub use changed::changed_files;
pub use context::{Context, Entry, Id, Kind, Tree, TreeError, find, normal};
pub use folder::Folder;
pub use ignore::{Ignore, IgnoreError};
pub use key::Key;
pub use memory::Memory;
pub use parse::{Dockerfile, HereDocument, Instruction, ParseError, parse};
pub use plan::{
    CacheMount, Left, Node, Options, Plan, PlanError, Step, StepKind, Unknown, cache_mounts, plan,
};
pub use record::{image_record, record_of};
pub use solve::{Outcome, solve};
