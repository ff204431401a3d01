//! Objects of the writer's own classes beside the weights.
//!
//! `pytorch-reader` keeps objects that it does not know as names, but refuses the file when one of them holds tensors (Distiller's thinning
//! recipes do), is filled like a list or dictionary, or when a dictionary has keys other than texts and numbers. [`without`] rewrites the
//! pickle so that such an object is made of nothing, each instruction that would fail becoming one that drops its arguments, and such a key
//! is a text. Everything else, the memo included, stays as it is, and nothing is executed here either: instructions are walked through with a
//! note, for every place of the stack, of what kind of thing would be there.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;

use pytorch_reader::OpCode;
use tempfile::NamedTempFile;

/// The checkpoint without what strangers hold, as `pytorch-reader` takes it, in a file that goes with the handle; none where nothing has to
/// be dropped, or it is no checkpoint that this knows.
pub(crate) fn without(path: &Path) -> std::io::Result<Option<NamedTempFile>> {
    let mut file = std::fs::File::open(path)?;
    let mut start = [0; 4];
    let zip = file.read_exact(&mut start).is_ok() && start == *b"PK\x03\x04";
    file.seek(SeekFrom::Start(0))?;
    if zip { of_zip(file) } else { of_legacy(file) }
}

fn of_zip(file: std::fs::File) -> std::io::Result<Option<NamedTempFile>> {
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file))?;
    let pickles = (0..archive.len()).filter_map(|i| Some((i, archive.name_for_index(i)?.ok()?.into_owned())));
    let pickle = pickles.filter(|(_, name)| name == "data.pkl" || name.ends_with("/data.pkl")).min_by_key(|(_, name)| name.len());
    let Some((index, name)) = pickle else { return Ok(None) };
    let mut bytes = Vec::new();
    archive.by_index(index)?.take(pytorch_reader::MAX_PICKLE_SIZE).read_to_end(&mut bytes)?;
    let Some(walked) = Walk::of(&bytes).filter(Walk::changed) else { return Ok(None) };

    let mut out = zip::ZipWriter::new(NamedTempFile::new()?);
    for i in 0..archive.len() {
        if i == index {
            let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            out.start_file(name.as_str(), stored)?;
            out.write_all(&walked.out)?;
        } else {
            out.raw_copy_file(archive.by_index_raw(i)?)?;
        }
    }
    Ok(Some(out.finish()?))
}

/// The format before zip: three pickles about the file, the object, the storages' keys, the storages.
fn of_legacy(mut file: std::fs::File) -> std::io::Result<Option<NamedTempFile>> {
    // The pickles come first; what follows them may be large and is copied as it stands.
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(pytorch_reader::MAX_PICKLE_SIZE).read_to_end(&mut head)?;
    let mut begin = 0;
    for _ in 0..3 {
        let Some(walked) = Walk::of(&head[begin..]) else { return Ok(None) };
        begin += walked.length;
    }
    let Some(walked) = Walk::of(&head[begin..]).filter(Walk::changed) else { return Ok(None) };
    let mut out = NamedTempFile::new()?;
    out.write_all(&head[..begin])?;
    out.write_all(&walked.out)?;
    out.write_all(&head[begin + walked.length..])?;
    std::io::copy(&mut file, &mut out)?;
    out.flush()?;
    Ok(Some(out))
}

/// What kind of thing is in a place of the stack, and whether there are tensors in it.
#[derive(Debug, Clone)]
struct Thing {
    kind: Kind,
    tensors: bool,
    /// Where in the rewritten pickle its making begins.
    start: usize,
    /// The memo's place that refers to it.
    memo: Option<u32>,
}

#[derive(Debug, Clone)]
enum Kind {
    Plain,
    Number,
    Text(Rc<str>),
    Class(Rc<str>),
    List,
    Tuple,
    /// A dictionary; which of a module's three tables are in it.
    Dict([bool; 3]),
    /// A tensor, or what one is made of.
    Tensor,
    /// An object of an unknown class.
    Stranger(Rc<str>),
}

/// The tables by which a pickled `torch.nn.Module` is known.
const TABLES: [&str; 3] = ["_parameters", "_buffers", "_modules"];

const POP: u8 = OpCode::Pop as u8;
const POP_MARK: u8 = OpCode::PopMark as u8;

/// A pickle on its way through.
#[derive(Debug, Default)]
struct Walk {
    out: Vec<u8>,
    stack: Vec<Thing>,
    /// Heights of the stack, and where in the rewritten pickle the marks are.
    marks: Vec<(usize, usize)>,
    memo: HashMap<u32, Thing>,
    /// Places in the rewritten pickle before which a key becomes a text.
    keys: BTreeSet<usize>,
    changed: bool,
    /// Where in the rewritten pickle the instruction at hand begins.
    at: usize,
    /// Bytes of the pickle.
    length: usize,
}

impl Walk {
    /// Walks through the pickle at the start of the bytes; none if it is damaged.
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut walk = Self::default();
        loop {
            let op = OpCode::try_from(*bytes.get(walk.length)?).ok()?;
            let argument = argument(op, &bytes[walk.length + 1..])?;
            // A length that is forged may reach beyond all numbers.
            let whole = bytes.get(walk.length..walk.length.checked_add(1)?.checked_add(argument)?)?;
            walk.length += whole.len();
            if op == OpCode::Stop {
                walk.out.push(whole[0]);
                walk.name_keys();
                return Some(walk);
            }
            walk.at = walk.out.len();
            walk.step(op, &whole[1..], whole)?;
        }
    }

    fn changed(&self) -> bool {
        self.changed
    }

    /// Puts texts in the place of the keys that are none.
    fn name_keys(&mut self) {
        let plain = std::mem::take(&mut self.out);
        let mut done = 0;
        for (number, place) in std::mem::take(&mut self.keys).into_iter().enumerate() {
            let name = format!("(key {number})");
            self.out.extend_from_slice(&plain[done..place]);
            self.out.extend_from_slice(&[POP, OpCode::BinUnicode as u8]);
            self.out.extend((name.len() as u32).to_le_bytes());
            self.out.extend(name.bytes());
            done = place;
        }
        self.out.extend_from_slice(&plain[done..]);
    }

    fn push(&mut self, kind: Kind) {
        self.made(kind, false, self.at);
    }

    fn made(&mut self, kind: Kind, tensors: bool, start: usize) {
        let tensors = tensors || matches!(kind, Kind::Tensor);
        self.stack.push(Thing { kind, tensors, start, memo: None });
    }

    fn on_mark(&self) -> bool {
        self.marks.last().is_some_and(|(height, _)| *height == self.stack.len())
    }

    fn pop(&mut self) -> Option<Thing> {
        if self.on_mark() { None } else { self.stack.pop() }
    }

    /// What lies above the last mark, and where that is.
    fn pop_to_mark(&mut self) -> Option<(Vec<Thing>, usize)> {
        let (height, start) = self.marks.pop()?;
        Some((self.stack.split_off(height), start))
    }

    fn replace(&mut self, by: &[u8]) {
        self.changed = true;
        self.out.extend_from_slice(by);
    }

    /// One instruction: what it does to the stack, and itself or what comes in its place.
    fn step(&mut self, op: OpCode, argument: &[u8], whole: &[u8]) -> Option<()> {
        use OpCode as O;
        match op {
            O::Append | O::Appends | O::AddItems | O::SetItem | O::SetItems => return self.fill(op, whole),
            O::Reduce | O::NewObj | O::NewObjEx => return self.call(op, whole),
            O::Build => return self.build(whole),
            _ => self.out.extend_from_slice(whole),
        }
        match op {
            O::Proto | O::Frame => {}
            O::Mark => self.marks.push((self.stack.len(), self.at)),
            O::None | O::NewTrue | O::NewFalse | O::Float | O::BinFloat => self.push(Kind::Plain),
            O::BinBytes | O::ShortBinBytes | O::BinBytes8 | O::ByteArray8 => self.push(Kind::Plain),
            O::Int | O::Long | O::BinInt | O::BinInt1 | O::BinInt2 | O::Long1 | O::Long4 => self.push(Kind::Number),
            O::Unicode => self.push(Kind::Text(line(argument)?.0.into())),
            O::ShortBinUnicode | O::ShortBinString => self.push(text(argument, 1)),
            O::BinUnicode | O::BinString => self.push(text(argument, 4)),
            O::BinUnicode8 => self.push(text(argument, 8)),
            O::EmptyTuple => self.push(Kind::Tuple),
            O::EmptyList | O::EmptySet => self.push(Kind::List),
            O::EmptyDict => self.push(Kind::Dict([false; 3])),
            O::Tuple | O::List | O::FrozenSet => {
                let (items, start) = self.pop_to_mark()?;
                self.made(if op == O::Tuple { Kind::Tuple } else { Kind::List }, hold(&items), start);
            }
            O::Tuple1 | O::Tuple2 | O::Tuple3 => {
                let count = [O::Tuple1, O::Tuple2, O::Tuple3].iter().position(|tuple| *tuple == op)? + 1;
                let items: Vec<Thing> = (0..count).map(|_| self.pop()).collect::<Option<_>>()?;
                self.made(Kind::Tuple, hold(&items), items[count - 1].start);
            }
            O::Dict => {
                let (items, start) = self.pop_to_mark()?;
                self.name(&items);
                self.made(Kind::Dict(tables([false; 3], &items)), hold(&items), start);
            }
            O::Pop if self.on_mark() => drop(self.marks.pop()),
            O::Pop => drop(self.pop()?),
            O::PopMark => drop(self.pop_to_mark()?),
            O::Dup => {
                let top = self.stack.last()?.clone();
                self.stack.push(Thing { start: self.at, ..top });
            }
            O::Get => self.fetch(line(argument)?.0.parse().ok()?)?,
            O::BinGet | O::LongBinGet => self.fetch(number(argument))?,
            O::Put => self.keep(line(argument)?.0.parse().ok()?)?,
            O::BinPut | O::LongBinPut => self.keep(number(argument))?,
            O::Memoize => self.keep(self.memo.len() as u32)?,
            O::Global => {
                let (module, rest) = line(argument)?;
                self.push(Kind::Class(format!("{module}.{}", line(rest)?.0).into()));
            }
            O::StackGlobal => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Kind::Text(name), Kind::Text(home)) = (name.kind, module.kind) else { return None };
                self.made(Kind::Class(format!("{home}.{name}").into()), false, module.start);
            }
            O::PersId => self.push(Kind::Tensor),
            O::BinPersId => {
                let id = self.pop()?;
                self.made(Kind::Tensor, true, id.start);
            }
            // Not read by the reader either.
            _ => return None,
        }
        Some(())
    }

    fn fetch(&mut self, at: u32) -> Option<()> {
        let kept = self.memo.get(&at)?.clone();
        self.stack.push(Thing { start: self.at, ..kept });
        Some(())
    }

    fn keep(&mut self, at: u32) -> Option<()> {
        let top = self.stack.last_mut()?;
        top.memo = Some(at);
        self.memo.insert(at, top.clone());
        Some(())
    }

    /// Marks the keys of these pairs that are neither texts nor numbers.
    fn name(&mut self, pairs: &[Thing]) {
        for pair in pairs.chunks_exact(2) {
            if !matches!(pair[0].kind, Kind::Text(_) | Kind::Number) {
                self.changed = true;
                self.keys.insert(pair[1].start);
            }
        }
    }

    /// Items for a list or dictionary; dropped where they are for something else.
    fn fill(&mut self, op: OpCode, whole: &[u8]) -> Option<()> {
        let single = matches!(op, OpCode::Append | OpCode::SetItem);
        let pairs = matches!(op, OpCode::SetItem | OpCode::SetItems);
        let items: Vec<Thing> = match (single, pairs) {
            (true, true) => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            (true, false) => vec![self.pop()?],
            (false, _) => self.pop_to_mark()?.0,
        };
        let top = self.stack.last_mut()?;
        match &mut top.kind {
            Kind::List if !pairs => top.tensors |= hold(&items),
            Kind::Dict(found) if pairs => {
                *found = tables(*found, &items);
                top.tensors |= hold(&items);
                self.name(&items);
            }
            Kind::Stranger(_) => {
                let drop: &[u8] = match (single, pairs) {
                    (true, true) => &[POP, POP],
                    (true, false) => &[POP],
                    (false, _) => &[POP_MARK],
                };
                self.replace(drop);
                return Some(());
            }
            Kind::Plain
            | Kind::Number
            | Kind::Text(_)
            | Kind::Class(_)
            | Kind::List
            | Kind::Tuple
            | Kind::Dict(_)
            | Kind::Tensor => return None,
        }
        self.out.extend_from_slice(whole);
        Some(())
    }

    /// A call of a class: what makes tensors and dictionaries is known, anything else is a stranger, whose arguments go if they hold tensors.
    fn call(&mut self, op: OpCode, whole: &[u8]) -> Option<()> {
        let keywords = if op == OpCode::NewObjEx { Some(self.pop()?) } else { None };
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let tensors = arguments.tensors || callable.tensors || keywords.is_some_and(|keywords| keywords.tensors);
        let start = callable.start;
        let class = match callable.kind {
            Kind::Class(class) | Kind::Stranger(class) => class,
            Kind::Plain | Kind::Number | Kind::Text(_) | Kind::List | Kind::Tuple | Kind::Dict(_) | Kind::Tensor => {
                "what a call gave".into()
            }
        };
        if callable.tensors {
            let pops = if op == OpCode::NewObjEx { 3 } else { 2 };
            self.replace(&[POP, POP, POP][..pops]);
            self.replace(&[OpCode::None as u8]);
            self.made(Kind::Plain, false, start);
            return Some(());
        }
        let known = match (op, &*class) {
            (OpCode::Reduce, "collections.OrderedDict") => Some(Kind::Dict([false; 3])),
            (OpCode::Reduce, "builtins.set" | "builtins.frozenset" | "__builtin__.set" | "__builtin__.frozenset") => {
                Some(Kind::List)
            }
            (OpCode::Reduce, class)
                if class.starts_with("torch._utils._rebuild_") && READ.iter().any(|read| class.ends_with(read)) =>
            {
                Some(Kind::Tensor)
            }
            (OpCode::Reduce, "torch._tensor._rebuild_from_type_v2") => Some(Kind::Tensor),
            _ => None,
        };
        match known {
            Some(kind) => {
                self.made(kind, tensors, start);
                self.out.extend_from_slice(whole);
            }
            // A dictionary but for what it gives to keys that are not there.
            None if op == OpCode::Reduce && &*class == "collections.defaultdict" => {
                self.made(Kind::Dict([false; 3]), false, start);
                self.replace(&[POP, POP, OpCode::EmptyDict as u8]);
            }
            None => {
                self.made(Kind::Stranger(class), false, start);
                if tensors {
                    let pops = if op == OpCode::NewObjEx { 2 } else { 1 };
                    self.replace(&[POP, POP][..pops]);
                    let call = if op == OpCode::Reduce { op } else { OpCode::NewObj };
                    self.replace(&[OpCode::EmptyTuple as u8, call as u8]);
                } else {
                    self.out.extend_from_slice(whole);
                }
            }
        }
        Some(())
    }

    /// The attributes of an object: a module's are read, a stranger's go if they hold tensors.
    fn build(&mut self, whole: &[u8]) -> Option<()> {
        let state = self.pop()?;
        let object = self.stack.last_mut()?;
        let module = matches!((&object.kind, &state.kind), (Kind::Stranger(_), Kind::Dict([true, true, true])));
        let merged = matches!((&object.kind, &state.kind), (Kind::Dict(_), Kind::Dict(_)));
        if module {
            object.kind = Kind::Dict([false; 3]);
        }
        if module || merged {
            object.tensors |= state.tensors;
        } else if state.tensors || (object.tensors && !matches!(object.kind, Kind::Dict(_))) {
            self.replace(&[POP]);
            return Some(());
        }
        // The memo refers to the object, not to what it was before.
        let built = object.clone();
        if let Some(at) = built.memo {
            self.memo.insert(at, built);
        }
        self.out.extend_from_slice(whole);
        Some(())
    }
}

/// What `pytorch-reader` makes tensors of.
const READ: [&str; 5] =
    ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_parameter_with_state"];

/// Whether there are tensors among these.
fn hold(items: &[Thing]) -> bool {
    items.iter().any(|item| item.tensors)
}

/// Which of a module's tables a dictionary has once it also has these items.
fn tables(mut found: [bool; 3], items: &[Thing]) -> [bool; 3] {
    for pair in items.chunks_exact(2) {
        if let (Kind::Text(key), Kind::Dict(_)) = (&pair[0].kind, &pair[1].kind)
            && let Some(table) = TABLES.iter().position(|table| **table == **key)
        {
            found[table] = true;
        }
    }
    found
}

/// Length of an instruction's argument.
fn argument(op: OpCode, rest: &[u8]) -> Option<usize> {
    use OpCode as O;
    let lines = |count: usize| {
        let mut ends = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        ends.nth(count - 1)
    };
    let counted = |width: usize| {
        let bytes = rest.get(..width)?.iter().rev().fold(0_u64, |length, byte| length << 8 | u64::from(*byte));
        usize::try_from(bytes).ok()?.checked_add(width)
    };
    match op {
        O::Proto | O::BinInt1 | O::BinGet | O::BinPut | O::Ext1 => Some(1),
        O::BinInt2 | O::Ext2 => Some(2),
        O::BinInt | O::LongBinGet | O::LongBinPut | O::Ext4 => Some(4),
        O::BinFloat | O::Frame => Some(8),
        O::Int | O::Long | O::Float | O::Unicode | O::Get | O::Put | O::PersId => lines(1),
        O::Global => lines(2),
        O::Long1 | O::ShortBinString | O::ShortBinUnicode | O::ShortBinBytes => counted(1),
        O::Long4 | O::BinString | O::BinUnicode | O::BinBytes => counted(4),
        O::BinUnicode8 | O::BinBytes8 | O::ByteArray8 => counted(8),
        _ => Some(0),
    }
}

/// The text of an argument up to the end of its line, and what follows.
fn line(argument: &[u8]) -> Option<(&str, &[u8])> {
    let end = argument.iter().position(|byte| *byte == b'\n')?;
    let text = std::str::from_utf8(&argument[..end]).ok()?;
    Some((text.trim_end_matches('\r'), &argument[end + 1..]))
}

/// A text behind a length of so many bytes; what is no text is bytes to the reader as well.
fn text(argument: &[u8], width: usize) -> Kind {
    std::str::from_utf8(&argument[width..]).map_or(Kind::Plain, |text| Kind::Text(text.into()))
}

fn number(argument: &[u8]) -> u32 {
    argument.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests;
