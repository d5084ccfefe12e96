//! Writes files of tensors as torch does: nested dictionaries in its two formats, and flattened as safetensors.

#![allow(dead_code)] // Each test file uses a part of it.

use std::io::{Cursor, Write};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// The contents of a pickle.
#[derive(Debug, Clone)]
pub enum Value {
    Tensor {
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: Vec<u8>,
    },
    Int(i32),
    /// What a call of this function returns, by its module and name.
    Object(&'static str, &'static str),
    List(Vec<Value>),
    /// Keys that are numbers become integers, as in the state of an optimizer.
    Dict(Vec<(String, Value)>),
}

pub fn int(number: i32) -> Value {
    Value::Int(number)
}

impl Value {
    pub fn floats(shape: &[usize], numbers: &[f32]) -> Self {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self::Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    pub fn integers(shape: &[usize], numbers: &[i64]) -> Self {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self::Tensor { dtype: Dtype::I64, shape: shape.to_vec(), bytes }
    }

    /// A tensor of the same type and shape.
    pub fn zeros(&self) -> Self {
        let Self::Tensor { dtype, shape, bytes } = self else { panic!("no tensor: {self:?}") };
        Self::Tensor { dtype: *dtype, shape: shape.clone(), bytes: vec![0; bytes.len()] }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Safetensors,
    /// torch since 1.6.
    Zip,
    /// torch before 1.6.
    Legacy,
}

impl Form {
    pub const ALL: [Self; 3] = [Self::Safetensors, Self::Zip, Self::Legacy];
}

/// The bytes of a file.
pub fn write(form: Form, value: &Value) -> Vec<u8> {
    match form {
        Form::Safetensors => safetensors(value),
        Form::Zip => zip(value),
        Form::Legacy => legacy(value),
    }
}

/// Tensors only, with their names joined by dots.
fn safetensors(value: &Value) -> Vec<u8> {
    fn flatten<'a>(name: String, value: &'a Value, found: &mut Vec<(String, TensorView<'a>)>) {
        let inside = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        match value {
            Value::Tensor { dtype, shape, bytes } => {
                found.push((name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
            }
            Value::Int(_) | Value::Object(..) => {}
            Value::List(items) => {
                items.iter().enumerate().for_each(|(key, item)| flatten(inside(&key.to_string()), item, found));
            }
            Value::Dict(entries) => entries.iter().for_each(|(key, item)| flatten(inside(key), item, found)),
        }
    }
    let mut found = Vec::new();
    flatten(String::new(), value, &mut found);
    safetensors::serialize(found, None).unwrap()
}

/// The pickle of a value, and the bytes and the element size of each storage.
fn pickled(form: Form, value: &Value) -> (Vec<u8>, Vec<(&[u8], usize)>) {
    let (mut program, mut storages) = (vec![0x80, 2], Vec::new());
    add(form, value, &mut program, &mut storages);
    program.push(b'.');
    (program, storages)
}

fn add<'a>(form: Form, value: &'a Value, program: &mut Vec<u8>, storages: &mut Vec<(&'a [u8], usize)>) {
    match value {
        Value::Tensor { dtype, shape, bytes } => {
            let kind = if *dtype == Dtype::F32 { "FloatStorage" } else { "LongStorage" };
            program.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text("storage", program);
            program.extend(format!("ctorch\n{kind}\n").bytes());
            text(&storages.len().to_string(), program);
            text("cpu", program);
            let size = dtype.bitsize() / 8;
            number(bytes.len() / size, program);
            if form == Form::Legacy {
                // No view of another storage.
                program.push(b'N');
            }
            program.extend(b"tQK\0");
            let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
            for extents in [shape.clone(), strides.collect()] {
                program.push(b'(');
                extents.into_iter().for_each(|extent: usize| number(extent, program));
                program.push(b't');
            }
            // Without gradient, and an empty dictionary of hooks.
            program.extend(b"\x89}tR");
            storages.push((bytes, size));
        }
        Value::Int(value) => number(*value as usize, program),
        Value::Object(module, name) => program.extend(format!("c{module}\n{name}\n)R").bytes()),
        Value::List(items) => {
            program.extend(b"](");
            items.iter().for_each(|item| add(form, item, program, storages));
            program.push(b'e');
        }
        Value::Dict(entries) => {
            program.extend(b"}(");
            for (key, item) in entries {
                match key.parse::<usize>() {
                    Ok(key) => number(key, program),
                    Err(_) => text(key, program),
                }
                add(form, item, program, storages);
            }
            program.push(b'u');
        }
    }
}

fn text(text: &str, program: &mut Vec<u8>) {
    program.push(b'X');
    program.extend((text.len() as u32).to_le_bytes());
    program.extend(text.bytes());
}

fn number(number: usize, program: &mut Vec<u8>) {
    program.push(b'J');
    program.extend((number as u32).to_le_bytes());
}

fn zip(value: &Value) -> Vec<u8> {
    let (program, storages) = pickled(Form::Zip, value);
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut member = |name: String, bytes: &[u8]| {
        archive.start_file(format!("archive/{name}"), stored).unwrap();
        archive.write_all(bytes).unwrap();
    };
    member("data.pkl".into(), &program);
    member("byteorder".into(), b"little");
    member("version".into(), b"3\n");
    storages.iter().enumerate().for_each(|(key, (bytes, _))| member(format!("data/{key}"), bytes));
    archive.finish().unwrap().into_inner()
}

fn legacy(value: &Value) -> Vec<u8> {
    let (program, storages) = pickled(Form::Legacy, value);
    let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    file.extend(b"\x80\x02M\xe9\x03.");
    let mut system = vec![0x80, 2, b'}'];
    text("little_endian", &mut system);
    file.extend(system.iter().chain(b"\x88s."));
    file.extend(program);
    let mut keys = b"\x80\x02](".to_vec();
    (0..storages.len()).for_each(|key| text(&key.to_string(), &mut keys));
    file.extend(keys.iter().chain(b"e."));
    for (bytes, size) in storages {
        file.extend(((bytes.len() / size) as u64).to_le_bytes());
        file.extend(bytes);
    }
    file
}
