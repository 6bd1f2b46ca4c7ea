//! The text of CEL conditions to the syntax tree that `rules` compiles. Only here is a parser: it
//! travels to no edge and to no browser.
//!
//! The parser recurses, and is somebody else's: what it is given is bounded first (length, nesting,
//! tokens), it runs on a thread of its own with a large stack, and a panic of it is an error.

use std::sync::Arc;

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, MapExpr, SourceInfo};
use cel::{Env, IdedExpr, ParseErrors};
use moka::sync::Cache;
use rules::cel::{At, Form, Mistake, Tree};
use rules::limits::{CEL_BYTES_MAX, CEL_NESTING_MAX};

/// Sources, some kB each with their trees.
const KEPT_MAX: u64 = 5_000;
const STACK_BYTES: usize = 64 << 20;
/// The parser's own trees are deeper than what is written: one level for each operand of a chain.
const TREE_LEVELS_MAX: usize = 4 * CEL_NESTING_MAX;

pub type Parsed = Result<Arc<Tree>, Vec<Mistake>>;

/// What was parsed before is not parsed again: every compilation asks for every condition.
#[derive(Debug)]
pub struct Trees(Cache<String, Parsed>);

impl Default for Trees {
    fn default() -> Trees {
        Trees(Cache::new(KEPT_MAX))
    }
}

impl Trees {
    pub fn parse(&self, source: &str) -> Parsed {
        // Longer ones are refused at once and not worth keeping.
        if source.len() > CEL_BYTES_MAX {
            return parse(source);
        }
        if let Some(parsed) = self.0.get(source) {
            return parsed;
        }
        let parsed = parse(source);
        self.0.insert(source.to_owned(), parsed.clone());
        parsed
    }
}

/// A syntax tree, or what is wrong with the text.
pub fn parse(source: &str) -> Parsed {
    guard(source).map_err(|mistake| vec![mistake])?;
    let owned = source.to_owned();
    let work = move || std::panic::catch_unwind(|| parse_guarded(&owned));
    let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK_BYTES);
    let outcome = thread.spawn(work).map_err(|error| error.to_string()).and_then(|thread| {
        let failed = |_| "the parser failed on this text".to_owned();
        thread.join().map_err(failed)?.map_err(failed)
    });
    match outcome {
        Ok(parsed) => parsed.map(Arc::new),
        Err(message) => Err(vec![Mistake::new(At { line: 1, column: 1 }, message)]),
    }
}

/// Bounds what the parser gets.
fn guard(source: &str) -> Result<(), Mistake> {
    let mut at = At { line: 1, column: 1 };
    let bytes = source.len();
    if bytes > CEL_BYTES_MAX {
        let message = format!("{bytes} bytes of CEL, the limit is {CEL_BYTES_MAX}");
        return Err(Mistake::new(at, message));
    }
    if source.trim().is_empty() {
        return Err(Mistake::new(at, "no expression here"));
    }
    let mut depth = 0usize;
    // Brackets inside of strings count as well: a text with 32 open ones is nobody's condition.
    for c in source.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > CEL_NESTING_MAX {
            let message = format!("brackets are nested deeper than {CEL_NESTING_MAX} levels");
            return Err(Mistake::new(at, message));
        }
        if c == '\n' {
            at = At { line: at.line + 1, column: 1 };
        } else {
            at.column += 1;
        }
    }
    Ok(())
}

fn parse_guarded(source: &str) -> Result<Tree, Vec<Mistake>> {
    // Without macros: `has`, `all` and the rest stay calls, which `rules` knows.
    let parser = Env::default().parser().enable_ident_escape_syntax(true);
    let (tree, info) = parser.parse_with_source_info(source).map_err(mistakes)?;
    Reader { info: &info, places: places(source) }.tree(&tree, 1).map_err(|mistake| vec![mistake])
}

fn mistakes(errors: ParseErrors) -> Vec<Mistake> {
    let number = |n: isize| u32::try_from(n).unwrap_or(0).max(1);
    let mut mistakes: Vec<Mistake> = errors
        .errors
        .into_iter()
        .map(|error| {
            let at = At { line: number(error.pos.0), column: number(error.pos.1) };
            let message = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
            // The parser's word for its own start rule's failing.
            let message = if message == "UNKNOWN" { "this is no CEL expression" } else { message };
            Mistake::new(at, shorten(message))
        })
        .collect();
    // What comes after the first few is mostly their consequence.
    mistakes.truncate(3);
    mistakes
}

/// The parser lists every token that it knows; the first few say as much.
fn shorten(message: &str) -> String {
    match message.split_once(" expecting {") {
        Some((found, _)) => found.to_owned(),
        None => message.chars().take(300).collect(),
    }
}

/// The line and column of each character.
fn places(source: &str) -> Vec<At> {
    let mut at = At { line: 1, column: 1 };
    let mut places = Vec::new();
    for c in source.chars() {
        places.push(at);
        at = match c {
            '\n' => At { line: at.line + 1, column: 1 },
            _ => At { line: at.line, column: at.column + 1 },
        };
    }
    places
}

struct Reader<'s> {
    info: &'s SourceInfo,
    places: Vec<At>,
}

impl Reader<'_> {
    fn at(&self, id: u64) -> At {
        let offset = self.info.offset_for(id).map_or(0, |(start, _)| start as usize);
        self.places.get(offset).copied().unwrap_or(At { line: 1, column: 1 })
    }

    fn tree(&self, of: &IdedExpr, depth: usize) -> Result<Tree, Mistake> {
        let at = self.at(of.id);
        if depth > TREE_LEVELS_MAX {
            let message = format!(
                "nested deeper than {CEL_NESTING_MAX} levels; each operand of a long chain of one \
                 operator is a level, but for && and ||"
            );
            return Err(Mistake::new(at, message));
        }
        let inner = depth + 1;
        let unsupported = |what: &str| Ok(Form::Unsupported(what.to_owned()));
        let is = match &of.expr {
            Expr::Literal(literal) => match literal {
                LiteralValue::Null => Ok(Form::Null),
                LiteralValue::Boolean(value) => Ok(Form::Bool(*value.inner())),
                LiteralValue::Int(value) => Ok(Form::Int(*value.inner())),
                LiteralValue::Double(value) => Ok(Form::Double(*value.inner())),
                LiteralValue::String(text) => Ok(Form::String(text.inner().to_owned())),
                LiteralValue::UInt(_) => unsupported(
                    "unsigned numbers are not supported: contexts are JSON, whose numbers are ints \
                     and doubles here; leave out the u",
                ),
                LiteralValue::Bytes(_) => {
                    unsupported("bytes are not supported: contexts are JSON, which has none")
                }
            },
            Expr::Ident(name) => Ok(Form::Name(name.clone())),
            Expr::Select(select) => {
                let operand = self.tree(&select.operand, inner)?;
                Ok(Form::Select(Box::new(operand), select.field.clone()))
            }
            Expr::Call(CallExpr { func_name, target, args }) => {
                let target = match target {
                    Some(target) => Some(Box::new(self.tree(target, inner)?)),
                    None => None,
                };
                Ok(Form::Call(func_name.clone(), target, self.trees(args, inner)?))
            }
            Expr::List(list) => Ok(Form::List(self.trees(&list.elements, inner)?)),
            Expr::Map(MapExpr { entries }) => {
                let mut pairs = Vec::with_capacity(entries.len());
                for entry in entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    pairs.push((self.tree(&entry.key, inner)?, self.tree(&entry.value, inner)?));
                }
                Ok(Form::Map(pairs))
            }
            Expr::Struct(_) => {
                unsupported("messages are not supported: contexts are JSON; write a map, {'a': 1}")
            }
            Expr::Comprehension(_) | Expr::Unspecified => unsupported("this is not understood"),
        };
        is.map(|is| Tree { at, is })
    }

    fn trees(&self, of: &[IdedExpr], depth: usize) -> Result<Vec<Tree>, Mistake> {
        of.iter().map(|one| self.tree(one, depth)).collect()
    }
}
