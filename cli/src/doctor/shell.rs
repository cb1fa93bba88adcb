//! Shell as the shell reads it: the simple commands of a script, in the order of its text.
//!
//! What a branch of an `if`, a loop or a function does is taken for done. Scripts are hostile: one that is longer or
//! deeper than anybody writes is not read.

use brush_parser::ast::{
    AndOr, AssignmentName, AssignmentValue, Command as Parsed, CommandPrefixOrSuffixItem as Item,
    CompoundCommand, CompoundList, IoFileRedirectTarget, IoRedirect, Pipeline, RedirectList, SimpleCommand,
};
use brush_parser::word::{Parameter, ParameterExpr, SpecialParameter, WordPiece, WordPieceWithSource};
use brush_parser::{Parser, ParserOptions, SourceInfo, word};

/// Longest command that is read, in bytes.
const LONGEST: usize = 32 * 1024;
/// How deep brackets may be nested, and how many blocks a command may have: the parser goes down by recursion.
const DEEPEST: usize = 24;
const MOST_BLOCKS: usize = 100;
/// Room for that recursion.
const STACK: usize = 64 << 20;
/// How deep scripts may be within scripts, as in `sh -c`.
const MOST_SCRIPTS: usize = 4;

/// Commands before the command that is meant.
const WRAPPERS: [&str; 7] = ["sudo", "env", "command", "exec", "nohup", "time", "nice"];
const SHELLS: [&str; 3] = ["sh", "bash", "dash"];

/// A variable that a word needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    /// Whether its value stays one word.
    pub(crate) is_quoted: bool,
}

/// A word without its quotes, with `$NAME` for what is expanded in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) variables: Vec<Variable>,
}

/// A simple command. What comes before it, such as `sudo`, is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Command {
    /// Variables that are set: before the command, or by it where it only sets them.
    pub(crate) sets: Vec<(String, Word)>,
    pub(crate) words: Vec<Word>,
    /// Whether it has `<( )` or `>( )`.
    pub(crate) substitutes_processes: bool,
}

impl Command {
    /// The texts of its words.
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.words.iter().map(|word| word.text.as_str()).collect()
    }

    /// The variables of its words.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.words.iter().flat_map(|word| &word.variables)
    }
}

/// The commands of a script; `None` for one that cannot be read.
pub(crate) fn commands(script: &str) -> Option<Vec<Command>> {
    let script = script.to_owned();
    let read = move || {
        let mut reader = Reader { found: Vec::new(), depth: 0 };
        reader.script(&script).map(|()| reader.found)
    };
    std::thread::Builder::new().stack_size(STACK).spawn(read).ok()?.join().ok()?
}

/// Whether a script is one that somebody would write.
fn is_modest(script: &str) -> bool {
    let (mut depth, mut deepest) = (0_usize, 0);
    for c in script.chars() {
        match c {
            '(' | '{' => depth += 1,
            ')' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    let is_block = |word: &&str| ["if", "while", "until", "for", "case", "select"].contains(word);
    let blocks = script.split(|c: char| !c.is_ascii_alphanumeric()).filter(is_block).count();
    script.len() <= LONGEST && deepest <= DEEPEST && blocks <= MOST_BLOCKS && !script.contains('\0')
}

struct Reader {
    found: Vec<Command>,
    /// Scripts that are being read within each other.
    depth: usize,
}

impl Reader {
    fn script(&mut self, script: &str) -> Option<()> {
        if self.depth >= MOST_SCRIPTS || !is_modest(script) {
            return None;
        }
        let options = ParserOptions::default();
        let program =
            Parser::new(script.as_bytes(), &options, &SourceInfo::default()).parse_program().ok()?;
        self.depth += 1;
        for list in &program.complete_commands {
            self.list(list)?;
        }
        self.depth -= 1;
        Some(())
    }

    fn list(&mut self, list: &CompoundList) -> Option<()> {
        for item in &list.0 {
            self.pipeline(&item.0.first)?;
            for more in &item.0.additional {
                let (AndOr::And(pipeline) | AndOr::Or(pipeline)) = more;
                self.pipeline(pipeline)?;
            }
        }
        Some(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline) -> Option<()> {
        pipeline.seq.iter().try_for_each(|command| self.command(command))
    }

    fn command(&mut self, command: &Parsed) -> Option<()> {
        match command {
            Parsed::Simple(simple) => self.simple(simple),
            Parsed::Compound(compound, redirects) => {
                self.compound(compound)?;
                self.redirects(redirects.as_ref())
            }
            Parsed::Function(function) => self.compound(&function.body.0),
            Parsed::ExtendedTest(..) => Some(()),
        }
    }

    fn compound(&mut self, compound: &CompoundCommand) -> Option<()> {
        match compound {
            CompoundCommand::BraceGroup(group) => self.list(&group.list),
            CompoundCommand::Subshell(group) => self.list(&group.list),
            CompoundCommand::ForClause(of) => self.list(&of.body.list),
            CompoundCommand::ArithmeticForClause(of) => self.list(&of.body.list),
            CompoundCommand::CaseClause(of) => {
                of.cases.iter().filter_map(|case| case.cmd.as_ref()).try_for_each(|list| self.list(list))
            }
            CompoundCommand::IfClause(of) => {
                self.list(&of.condition)?;
                self.list(&of.then)?;
                of.elses.iter().flatten().try_for_each(|other| {
                    other.condition.as_ref().map_or(Some(()), |condition| self.list(condition))?;
                    self.list(&other.body)
                })
            }
            CompoundCommand::WhileClause(of) | CompoundCommand::UntilClause(of) => {
                self.list(&of.0)?;
                self.list(&of.1.list)
            }
            CompoundCommand::Arithmetic(_) => Some(()),
        }
    }

    fn redirects(&mut self, redirects: Option<&RedirectList>) -> Option<()> {
        redirects.iter().flat_map(|list| &list.0).try_for_each(|redirect| self.redirect(redirect).map(drop))
    }

    /// Whether it is of a process.
    fn redirect(&mut self, redirect: &IoRedirect) -> Option<bool> {
        if let IoRedirect::File(_, _, IoFileRedirectTarget::ProcessSubstitution(_, of)) = redirect {
            self.list(&of.list)?;
            return Some(true);
        }
        Some(false)
    }

    fn simple(&mut self, simple: &SimpleCommand) -> Option<()> {
        let mut command = Command::default();
        let prefix = simple.prefix.iter().flat_map(|prefix| &prefix.0);
        let suffix = simple.suffix.iter().flat_map(|suffix| &suffix.0);
        for item in prefix {
            self.item(item, true, &mut command)?;
        }
        if let Some(name) = &simple.word_or_name {
            let name = self.word(&name.value)?;
            command.words.push(name);
        }
        for item in suffix {
            self.item(item, false, &mut command)?;
        }
        unwrap(&mut command);
        let inner = inner_script(&command);
        self.found.push(command);
        inner.map_or(Some(()), |script| self.script(&script))
    }

    fn item(&mut self, item: &Item, is_prefix: bool, command: &mut Command) -> Option<()> {
        match item {
            Item::Word(word) => {
                let word = self.word(&word.value)?;
                command.words.push(word);
            }
            Item::AssignmentWord(assignment, whole) => {
                let AssignmentName::VariableName(name) = &assignment.name else { return Some(()) };
                let value = match &assignment.value {
                    AssignmentValue::Scalar(value) => {
                        let mut value = self.word(&value.value)?;
                        // Where it is used says whether it is split.
                        value.variables.iter_mut().for_each(|variable| variable.is_quoted = false);
                        value
                    }
                    AssignmentValue::Array(values) => {
                        let mut all = Word::default();
                        for (_, value) in values {
                            all.variables.extend(self.word(&value.value)?.variables);
                        }
                        all
                    }
                };
                command.sets.push((name.clone(), value));
                if !is_prefix {
                    let whole = self.word(&whole.value)?;
                    command.words.push(whole);
                }
            }
            Item::IoRedirect(redirect) => command.substitutes_processes |= self.redirect(redirect)?,
            Item::ProcessSubstitution(_, of) => {
                command.substitutes_processes = true;
                self.list(&of.list)?;
            }
        }
        Some(())
    }

    fn word(&mut self, value: &str) -> Option<Word> {
        let pieces = word::parse(value, &ParserOptions::default()).ok()?;
        let mut word = Word::default();
        self.pieces(&pieces, false, &mut word)?;
        Some(word)
    }

    fn pieces(&mut self, pieces: &[WordPieceWithSource], is_quoted: bool, word: &mut Word) -> Option<()> {
        for piece in pieces {
            match &piece.piece {
                WordPiece::Text(text)
                | WordPiece::SingleQuotedText(text)
                | WordPiece::AnsiCQuotedText(text) => {
                    word.text += text;
                }
                WordPiece::EscapeSequence(text) => {
                    let escaped = text.strip_prefix('\\').unwrap_or(text);
                    word.text += if escaped == "\n" { "" } else { escaped };
                }
                WordPiece::DoubleQuotedSequence(inner) | WordPiece::GettextDoubleQuotedSequence(inner) => {
                    self.pieces(inner, true, word)?;
                }
                WordPiece::TildePrefix(user) => word.text += &format!("~{user}"),
                WordPiece::ParameterExpansion(expansion) => self.expansion(expansion, is_quoted, word)?,
                WordPiece::CommandSubstitution(script) | WordPiece::BackquotedCommandSubstitution(script) => {
                    word.text += "$()";
                    self.script(script)?;
                }
                WordPiece::ArithmeticExpression(_) => word.text += "$(())",
            }
        }
        Some(())
    }

    fn expansion(&mut self, expansion: &ParameterExpr, is_quoted: bool, word: &mut Word) -> Option<()> {
        use ParameterExpr::{
            AssignDefaultValues, IndicateErrorIfNullOrUnset, Parameter as Plain, UseAlternativeValue,
            UseDefaultValues,
        };
        // What stands in the place of the value, and whether that is expanded, too.
        let (parameter, other) = match expansion {
            Plain { parameter, .. } | IndicateErrorIfNullOrUnset { parameter, .. } => (parameter, None),
            UseDefaultValues { parameter, default_value: other, .. }
            | AssignDefaultValues { parameter, default_value: other, .. }
            | UseAlternativeValue { parameter, alternative_value: other, .. } => (parameter, other.as_ref()),
            _ => {
                word.text += "$";
                return Some(());
            }
        };
        let (name, splits) = match parameter {
            Parameter::Named(name) | Parameter::NamedWithIndex { name, .. } => (name.clone(), false),
            Parameter::NamedWithAllIndices { name, concatenate } => (name.clone(), !concatenate),
            Parameter::Special(SpecialParameter::AllPositionalParameters { concatenate }) => {
                ("@".to_owned(), !concatenate)
            }
            Parameter::Positional(_) | Parameter::Special(_) => ("?".to_owned(), false),
        };
        let is_alternative = matches!(expansion, UseAlternativeValue { .. });
        if !is_alternative {
            word.text += &format!("${name}");
            word.variables.push(Variable { name, is_quoted: is_quoted && !splits });
        }
        if let Some(other) = other {
            let pieces = word::parse(other, &ParserOptions::default()).ok()?;
            let mut inner = Word::default();
            self.pieces(&pieces, is_quoted, &mut inner)?;
            word.variables.extend(inner.variables);
            if is_alternative {
                word.text += &inner.text;
            }
        }
        Some(())
    }
}

/// Takes off what only starts the command that is meant.
fn unwrap(command: &mut Command) {
    while let Some(first) = command.words.first() {
        let is_timeout = base_name(&first.text) == "timeout";
        if !is_timeout && !WRAPPERS.contains(&base_name(&first.text)) {
            return;
        }
        let mut words = std::mem::take(&mut command.words).into_iter().skip(1).peekable();
        while let Some(word) = words.next_if(|word| word.text.starts_with('-') || is_assignment(&word.text)) {
            if let Some((name, value)) = word.text.split_once('=').filter(|_| is_assignment(&word.text)) {
                let value = Word { text: value.to_owned(), variables: word.variables.clone() };
                command.sets.push((name.to_owned(), value));
            }
        }
        // Its duration.
        if is_timeout {
            words.next();
        }
        command.words = words.collect();
    }
}

fn is_assignment(text: &str) -> bool {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    text.split_once('=').is_some_and(|(name, _)| is_name(name))
}

/// The last part of a path.
pub(crate) fn base_name(text: &str) -> &str {
    text.rsplit('/').next().unwrap_or(text)
}

/// The script that a command runs which is written in its words, as `sh -c` and `eval` do.
fn inner_script(command: &Command) -> Option<String> {
    let (first, rest) = command.words.split_first()?;
    let name = base_name(&first.text);
    if name == "eval" {
        return Some(rest.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" "));
    }
    if !SHELLS.contains(&name) {
        return None;
    }
    let is_c =
        |word: &Word| word.text.starts_with('-') && !word.text.starts_with("--") && word.text.ends_with('c');
    let at = rest.iter().position(is_c)?;
    rest.get(at + 1).map(|word| word.text.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(script: &str) -> Vec<String> {
        let commands = commands(script).unwrap_or_else(|| panic!("{script} is not read"));
        commands.iter().map(|command| command.texts().join(" ")).filter(|text| !text.is_empty()).collect()
    }

    #[test]
    fn every_simple_command_is_found_wherever_it_stands() {
        for (script, expected) in [
            ("a 1 && b || c; d & e | f", vec!["a 1", "b", "c", "d", "e", "f"]),
            ("if a; then b; elif c; then d; else e; fi", vec!["a", "b", "c", "d", "e"]),
            ("for x in 1 2; do a $x; done; while a; do b; done", vec!["a $x", "a", "b"]),
            ("case $x in a) b ;; *) c ;; esac", vec!["b", "c"]),
            ("{ a; }; (b); f() { c; }", vec!["a", "b", "c"]),
            ("a \\\n  b \\\n  c # not d\ne", vec!["a b c", "e"]),
            ("sudo -E env A=1 timeout 10 a b", vec!["a b"]),
            (
                "sh -ec 'a \"b c\"'; bash -c \"d $X\"; eval 'e f'",
                vec!["sh -ec a \"b c\"", "a b c", "bash -c d $X", "d $X", "eval e f", "e f"],
            ),
            ("x=$(a b) c `d`", vec!["a b", "d", "c $()"]),
            ("a 'b  c' \"d\\\"e\" f\\ g", vec!["a b  c d\"e f g"]),
            ("a <(b c)", vec!["b c", "a"]),
            ("cat <<EOF >x\ndocker build .\nEOF\nb", vec!["cat", "b"]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(texts(script), expected, "{script}");
        }
        assert!(commands("a <(b)").unwrap().iter().any(|command| command.substitutes_processes));
    }

    #[test]
    fn a_variable_is_quoted_where_it_stays_one_word() {
        let variables = |script: &str| -> Vec<(String, bool)> {
            let commands = commands(script).unwrap();
            let of_words = commands.iter().flat_map(Command::variables);
            of_words.map(|variable| (variable.name.clone(), variable.is_quoted)).collect()
        };
        let one = |is_quoted: bool| vec![("X".to_owned(), is_quoted)];
        for split in ["a $X", "a ${X}", "a ${X-}", "a ${X:-b}", "a \"${X[@]}\"", "a b$X"] {
            assert_eq!(variables(split), one(false), "{split}");
        }
        for whole in ["a \"$X\"", "a \"${X}\"", "a \"${X:-}\"", "a \"b $X\"", "a \"${X[*]}\""] {
            assert_eq!(variables(whole), one(true), "{whole}");
        }
        assert_eq!(variables("a '$X' \\$X"), []);
        assert_eq!(variables("a ${Y:+--b $X}"), one(false));
        assert_eq!(variables("a \"$@\""), [("@".to_owned(), false)]);
        let sets = commands("A=\"$X\" B=(\"$Y\") c").unwrap().remove(0).sets;
        assert_eq!(sets[0].1.variables, [Variable { name: "X".to_owned(), is_quoted: false }]);
        assert_eq!(sets[1].1.variables, [Variable { name: "Y".to_owned(), is_quoted: true }]);
    }

    #[test]
    fn attack_a_script_that_nobody_would_write_is_not_read() {
        let deep = |open: &str, close: &str| format!("{}a{}", open.repeat(5000), close.repeat(5000));
        for script in [
            deep("(", ")"),
            deep("$(", ")"),
            deep("{ ", "; }"),
            deep("if a; then ", "; fi"),
            deep("sh -c '", "'"),
            "a ".repeat(LONGEST),
            "(".to_owned(),
            "a 'b".to_owned(),
            "if a; then".to_owned(),
            "a\0b".to_owned(),
        ] {
            assert_eq!(commands(&script), None, "{}", &script[..script.len().min(40)]);
        }
        for script in ["", "#", "\u{1b}[31m", "é \u{301}", "$", "${", "a | ", "\\"] {
            let _ = commands(script);
        }
    }
}
