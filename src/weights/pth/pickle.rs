//! Python's pickle machine, without Python: a stack, a memo, and objects that are only data.
//!
//! Objects lie in one list and refer to each other by their index, so that neither depth nor cycles cost anything.

use std::collections::HashMap;

use safetensors::Dtype;

/// More objects than any state dict has; a pickle of a few bytes must not fill the memory.
const MOST_OBJECTS: usize = 4_000_000;

/// An index into a pickle's objects.
pub type Id = usize;

/// A tensor's bytes: a part of the file by its key.
#[derive(Debug, Clone)]
pub struct StorageReference {
    pub key: String,
    pub dtype: Dtype,
}

/// The arguments of `torch._utils._rebuild_tensor_v2`.
#[derive(Debug, Clone)]
pub struct TensorReference {
    pub storage: StorageReference,
    pub offset: usize,
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<usize>,
}

/// The meaning of a global name of Python.
#[derive(Debug, Clone, Copy)]
pub enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Dict,
    /// A class or function that is not known here, and the number of its name if it has one. Calling it gives [`Object::Other`].
    Foreign(Option<u8>),
    Storage(Dtype),
}

/// What a pickle refers to by a persistent ID.
enum Persistent {
    Storage(StorageReference),
    /// A storage of elements of an unknown type; the number of the type's name if it has one.
    OtherStorage(Option<u8>),
    Class(Global),
}

/// Small, because a file may hold one for every few bytes: what is large is boxed.
#[derive(Debug, Clone)]
pub enum Object {
    None,
    Bool(bool),
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Box<StorageReference>),
    Tensor(Box<TensorReference>),
    /// Anything else, without its value: a large number, a float, bytes, an object of an unknown class. The number of the class is
    /// that of [`Global::Foreign`].
    Other(Option<u8>),
}

/// A pickle that has been run.
pub struct Pickle {
    objects: Vec<Object>,
    storages: HashMap<String, StorageReference>,
    /// Names of classes and functions that are not known here, and whether they deserve no notice.
    names: Vec<(String, bool)>,
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    pickle: Pickle,
}

impl Pickle {
    /// Runs a pickle; returns what it built and how many bytes it took.
    pub fn run(bytes: &[u8]) -> Result<(Self, Id, usize), String> {
        let pickle = Self { objects: Vec::new(), storages: HashMap::new(), names: Vec::new() };
        let mut machine =
            Machine { bytes, position: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), pickle };
        let found = machine.run()?;
        Ok((machine.pickle, found, machine.position))
    }

    pub fn object(&self, id: Id) -> &Object {
        &self.objects[id]
    }

    /// The value of a dict's key.
    pub fn entry(&self, dict: Id, key: &str) -> Option<&Object> {
        let Object::Dict(entries) = self.object(dict) else { return None };
        let is_key = |id: Id| matches!(self.object(id), Object::Text(text) if text == key);
        entries.iter().find(|(name, _)| is_key(*name)).map(|&(_, value)| self.object(value))
    }

    /// Names of classes and functions that are not known here and deserve a notice, each once, the first few of them.
    pub fn foreign_names(&self) -> Vec<String> {
        const LISTED: usize = 16;
        self.names.iter().filter(|(_, is_plain)| !is_plain).map(|(name, _)| name.clone()).take(LISTED).collect()
    }

    /// Whether it makes arrays of NumPy.
    pub fn has_arrays(&self) -> bool {
        self.names.iter().any(|(name, _)| name.ends_with("multiarray._reconstruct"))
    }

    /// The name of an unknown class by its number.
    pub fn foreign_name(&self, number: u8) -> Option<&str> {
        self.names.get(usize::from(number)).map(|(name, _)| name.as_str())
    }

    /// The storage of that key.
    pub fn storage(&self, key: &str) -> Option<&StorageReference> {
        self.storages.get(key)
    }
}

/// The meaning of a name; `None` for an unknown one.
fn global(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("collections", "defaultdict") => Global::Dict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "Size") => Global::Size,
        ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
        ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
        ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
        ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
        ("torch", "LongStorage") => Global::Storage(Dtype::I64),
        ("torch", "IntStorage") => Global::Storage(Dtype::I32),
        ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
        ("torch", "CharStorage") => Global::Storage(Dtype::I8),
        ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
        ("torch", "BoolStorage") => Global::Storage(Dtype::BOOL),
        _ => return None,
    })
}

/// Names that deserve no notice: those of numbers and containers of Python and torch.
fn is_plain(module: &str, name: &str) -> bool {
    matches!(
        (module, name),
        (
            "torch",
            "device"
                | "float32"
                | "float64"
                | "float16"
                | "bfloat16"
                | "int64"
                | "int32"
                | "int16"
                | "int8"
                | "uint8"
                | "bool"
        ) | ("_codecs", "encode")
            | ("__builtin__" | "builtins", "set" | "frozenset" | "complex" | "bytearray" | "slice" | "range")
            | ("collections", "Counter" | "deque")
            | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
            | ("numpy", "dtype" | "ndarray")
    )
}

fn printable(text: &str) -> String {
    let end = text.char_indices().nth(80).map_or(text.len(), |(end, _)| end);
    crate::printable::printable(&text[..end]).into_owned()
}

const DAMAGED: &str = "its pickle is damaged";

impl Machine<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], String> {
        let end = self.position.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or("it is truncated")?;
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned number of this many bytes, little-endian.
    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, String> {
        usize::try_from(self.number(bytes)?).map_err(|_| DAMAGED.to_string())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("it is truncated")?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.position += length + 1;
        Ok(line)
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Object::Text(text))
    }

    fn push(&mut self, object: Object) -> Result<(), String> {
        if self.pickle.objects.len() >= MOST_OBJECTS {
            return Err(format!("its pickle builds more than {MOST_OBJECTS} objects"));
        }
        self.pickle.objects.push(object);
        self.stack.push(self.pickle.objects.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        // Objects below a mark are out of reach.
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return Err(DAMAGED.into());
        }
        self.stack.pop().ok_or_else(|| DAMAGED.into())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| DAMAGED.into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len()).ok_or(DAMAGED)?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, length: usize) -> Result<(), String> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Object::Tuple(items))
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = global(module, name).unwrap_or_else(|| {
            let shown = format!("{}.{}", printable(module), printable(name));
            let names = &mut self.pickle.names;
            let known = names.iter().position(|(name, _)| *name == shown);
            let number = u8::try_from(known.unwrap_or(names.len())).ok();
            if known.is_none() && number.is_some() {
                names.push((shown, is_plain(module, name)));
            }
            Global::Foreign(number)
        });
        self.push(Object::Global(global))
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.pickle.objects[list] {
            Object::List(list) => list.extend_from_slice(items),
            Object::Other(_) => {}
            _ => return Err(DAMAGED.into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.pickle.objects[dict] {
            Object::Dict(dict) if rest.is_empty() => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Object::Other(_) => {}
            _ => return Err(DAMAGED.into()),
        }
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or(DAMAGED)?;
        self.stack.push(id);
        Ok(())
    }

    fn run(&mut self) -> Result<Id, String> {
        loop {
            // References are limited like objects.
            if self.stack.len() > MOST_OBJECTS {
                return Err(format!("its pickle stacks more than {MOST_OBJECTS} objects"));
            }
            match self.byte()? {
                b'.' => return self.pop(),
                0x80 => {
                    let protocol = self.byte()?;
                    if protocol > 5 {
                        return Err(format!("its pickle has protocol {protocol}, expected at most 5"));
                    }
                }
                0x95 => {
                    self.take(8)?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.pop_to_mark()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Object::None)?,
                0x88 => self.push(Object::Bool(true))?,
                0x89 => self.push(Object::Bool(false))?,
                b'J' => {
                    let number = self.number(4)? as u32 as i32;
                    self.push(Object::Int(number.into()))?;
                }
                b'K' => {
                    let number = self.number(1)? as i64;
                    self.push(Object::Int(number))?;
                }
                b'M' => {
                    let number = self.number(2)? as i64;
                    self.push(Object::Int(number))?;
                }
                opcode @ (0x8a | 0x8b) => {
                    let length = self.length(if opcode == 0x8a { 1 } else { 4 })?;
                    let bytes = self.take(length)?;
                    let object = match length {
                        0 => Object::Int(0),
                        1..=8 => {
                            let mut extended = [if bytes[length - 1] & 0x80 == 0 { 0 } else { 0xff }; 8];
                            extended[..length].copy_from_slice(bytes);
                            Object::Int(i64::from_le_bytes(extended))
                        }
                        _ => Object::Other(None),
                    };
                    self.push(object)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Object::Other(None))?;
                }
                b'I' => {
                    let object = match self.line()?.as_str() {
                        "00" => Object::Bool(false),
                        "01" => Object::Bool(true),
                        line => line.parse().map_or(Object::Other(None), Object::Int),
                    };
                    self.push(object)?;
                }
                b'L' => {
                    let line = self.line()?;
                    self.push(line.trim_end_matches('L').parse().map_or(Object::Other(None), Object::Int))?;
                }
                b'F' => {
                    self.line()?;
                    self.push(Object::Other(None))?;
                }
                b'V' => {
                    let line = self.line()?;
                    self.push(Object::Text(line))?;
                }
                b'S' => {
                    let line = self.line()?;
                    self.push(Object::Text(line.trim_matches(['\'', '"']).into()))?;
                }
                b'X' | b'T' => {
                    let length = self.length(4)?;
                    self.text(length)?;
                }
                0x8c | b'U' => {
                    let length = self.length(1)?;
                    self.text(length)?;
                }
                0x8d => {
                    let length = self.length(8)?;
                    self.text(length)?;
                }
                opcode @ (b'C' | b'B' | 0x8e | 0x96) => {
                    let length = self.length(match opcode {
                        b'C' => 1,
                        b'B' => 4,
                        _ => 8,
                    })?;
                    self.take(length)?;
                    self.push(Object::Other(None))?;
                }
                b')' => self.push(Object::Tuple(Vec::new()))?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Object::Tuple(items))?;
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b']' => self.push(Object::List(Vec::new()))?,
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Object::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(&items)?;
                }
                b'}' => self.push(Object::Dict(Vec::new()))?,
                b'd' => {
                    let items = self.pop_to_mark()?;
                    self.push(Object::Dict(Vec::new()))?;
                    self.set_items(&items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                0x8f => self.push(Object::Other(None))?,
                0x90 => {
                    self.pop_to_mark()?;
                }
                0x91 => {
                    self.pop_to_mark()?;
                    self.push(Object::Other(None))?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Object::Text(module), Object::Text(name)) =
                        (self.pickle.object(module), self.pickle.object(name))
                    else {
                        return Err(DAMAGED.into());
                    };
                    let (module, name) = (module.clone(), name.clone());
                    self.global(&module, &name)?;
                }
                // With keyword arguments, which no known class takes.
                0x92 => {
                    self.pop()?;
                    self.pop()?;
                    let class = self.pop()?;
                    self.push(Object::Other(self.class(class)))?;
                }
                // Protocol 0's way to make an object: its arguments lie above a mark.
                b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.pop_to_mark()?;
                    self.global(&module, &name)?;
                    let class = self.pop()?;
                    self.push(Object::Other(self.class(class)))?;
                }
                b'o' => {
                    let class = self.pop_to_mark()?.first().and_then(|&class| self.class(class));
                    self.push(Object::Other(class))?;
                }
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let object = self.call(function, arguments)?;
                    self.push(object)?;
                }
                // The state of an object: attributes such as an OrderedDict's `_metadata`.
                b'b' => {
                    self.pop()?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let object = match self.storage(id)? {
                        Persistent::Storage(storage) => {
                            self.pickle.storages.insert(storage.key.clone(), storage.clone());
                            Object::Storage(Box::new(storage))
                        }
                        Persistent::OtherStorage(class) => Object::Other(class),
                        Persistent::Class(class) => Object::Global(class),
                    };
                    self.push(object)?;
                }
                b'q' => {
                    let key = self.number(1)?;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.number(4)?;
                    self.remember(key)?;
                }
                b'p' => {
                    let key = self.line()?.parse().map_err(|_| DAMAGED.to_string())?;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => {
                    let key = self.number(1)?;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.number(4)?;
                    self.recall(key)?;
                }
                b'g' => {
                    let key = self.line()?.parse().map_err(|_| DAMAGED.to_string())?;
                    self.recall(key)?;
                }
                opcode => {
                    return Err(format!(
                        "its pickle contains the instruction {opcode:#04x}, which no state dict needs"
                    ));
                }
            }
        }
    }

    /// The number of an unknown class, or of that which an unknown object came from.
    fn class(&self, id: Id) -> Option<u8> {
        match *self.pickle.object(id) {
            Object::Global(Global::Foreign(class)) | Object::Other(class) => class,
            _ => None,
        }
    }

    fn items(&self, id: Id) -> Result<&[Id], String> {
        match self.pickle.object(id) {
            Object::Tuple(items) | Object::List(items) => Ok(items),
            _ => Err(DAMAGED.into()),
        }
    }

    fn call(&self, function: Id, arguments: Id) -> Result<Object, String> {
        let function = match *self.pickle.object(function) {
            Object::Global(function) => function,
            // What another foreign function returned, such as a class.
            Object::Other(class) => Global::Foreign(class),
            _ => return Err(DAMAGED.into()),
        };
        let arguments = self.items(arguments)?;
        match function {
            Global::OrderedDict => {
                let mut entries = Vec::new();
                if let Some(&pairs) = arguments.first() {
                    for &pair in self.items(pairs)? {
                        let &[key, value] = self.items(pair)? else { return Err(DAMAGED.into()) };
                        entries.push((key, value));
                    }
                }
                Ok(Object::Dict(entries))
            }
            Global::Dict => Ok(Object::Dict(Vec::new())),
            Global::RebuildTensor => self.tensor(arguments),
            Global::RebuildParameter => match arguments.first().map(|&id| self.pickle.object(id)) {
                Some(Object::Tensor(tensor)) => Ok(Object::Tensor(tensor.clone())),
                Some(&Object::Other(class)) => Ok(Object::Other(class)),
                _ => Err(DAMAGED.into()),
            },
            Global::Size => {
                let sizes = arguments.first().map_or(Ok([].as_slice()), |&sizes| self.items(sizes))?;
                Ok(Object::Tuple(sizes.to_vec()))
            }
            // Its last argument is an element type without a storage class of its own, which says more than the function.
            Global::Foreign(class) => {
                let name = class.and_then(|class| self.pickle.foreign_name(class));
                let has_type = name == Some("torch._utils._rebuild_tensor_v3");
                let element_type = arguments.get(6).filter(|_| has_type).and_then(|&id| self.class(id));
                Ok(Object::Other(element_type.or(class)))
            }
            Global::Storage(_) => Err(DAMAGED.into()),
        }
    }

    fn tensor(&self, arguments: &[Id]) -> Result<Object, String> {
        let &[storage, offset, shape, strides, ..] = arguments else { return Err(DAMAGED.into()) };
        let storage = match self.pickle.object(storage) {
            Object::Storage(storage) => storage,
            &Object::Other(class) => return Ok(Object::Other(class)),
            _ => return Err(DAMAGED.into()),
        };
        let number = |id: Id| match *self.pickle.object(id) {
            Object::Int(number) => usize::try_from(number).map_err(|_| "a tensor has a negative size".to_string()),
            _ => Err(DAMAGED.into()),
        };
        let numbers = |id: Id| self.items(id)?.iter().map(|&id| number(id)).collect::<Result<Vec<usize>, String>>();
        let (offset, shape, strides) = (number(offset)?, numbers(shape)?, numbers(strides)?);
        if shape.len() > 16 {
            return Err(format!("a tensor has {} dimensions, expected at most 16", shape.len()));
        }
        let storage = StorageReference::clone(storage);
        Ok(Object::Tensor(Box::new(TensorReference { storage, offset, shape, strides })))
    }

    /// `('storage', type, key, device, elements)`, and in the old form a view, which torch has not written since 0.4.
    /// Or `('module', class, file, source)`, the class of a part of a whole model, in the old form.
    fn storage(&self, id: Id) -> Result<Persistent, String> {
        let (kind, dtype, key, view) = match *self.items(id)? {
            [kind, class, _, _] => match (self.pickle.object(kind), self.pickle.object(class)) {
                (Object::Text(kind), Object::Global(class)) if kind == "module" => {
                    return Ok(Persistent::Class(*class));
                }
                _ => return Err(DAMAGED.into()),
            },
            [kind, dtype, key, _, _, ref view @ ..] => (kind, dtype, key, view),
            _ => return Err(DAMAGED.into()),
        };
        match (self.pickle.object(kind), self.pickle.object(dtype), self.pickle.object(key)) {
            (Object::Text(kind), Object::Global(Global::Storage(dtype)), Object::Text(key)) if kind == "storage" => {
                if view.iter().any(|&view| !matches!(self.pickle.object(view), Object::None)) {
                    return Err("it contains a view of a storage, which torch no longer writes; save it again".into());
                }
                Ok(Persistent::Storage(StorageReference { key: key.clone(), dtype: *dtype }))
            }
            (Object::Text(kind), &Object::Global(Global::Foreign(class)), Object::Text(_)) if kind == "storage" => {
                Ok(Persistent::OtherStorage(class))
            }
            _ => Err(DAMAGED.into()),
        }
    }
}
