//! Writes safetensors files tensor by tensor.
//!
//! The header of such a file stands first and names every tensor, yet tensors are known one at a
//! time. So room for it is left at the beginning and filled in at the end, with spaces after it, as
//! the format allows.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{QuantizeError, directory::NewDirectory};

const LENGTH_BYTES: u64 = 8;
/// More than an entry has beside its name: type, two lengths, two offsets and punctuation.
pub(super) const ENTRY_BYTES: usize = 128;

/// A tensor as a safetensors file has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct TensorBytes<'a> {
    pub name: &'a str,
    /// The format's name of the element type, such as `BF16`.
    pub dtype: &'a str,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// Files of weights in the making.
pub(super) struct Shards<'a> {
    directory: &'a NewDirectory,
    /// Bytes that a header may have.
    header_len: u64,
    max_bytes: u64,
    done: Vec<Shard>,
    open: Option<(Shard, BufWriter<File>)>,
}

struct Shard {
    path: PathBuf,
    entries: Vec<Entry>,
    len: u64,
}

struct Entry {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    start: u64,
    end: u64,
}

impl<'a> Shards<'a> {
    /// `header_len` is enough for the header of all tensors, `max_bytes` the most bytes of a file
    /// with more than one tensor.
    pub fn new(directory: &'a NewDirectory, header_len: usize, max_bytes: u64) -> Self {
        // Tensors begin a cache line, as mapped ones should.
        let header_len = (LENGTH_BYTES + header_len as u64).next_multiple_of(64) - LENGTH_BYTES;
        Self { directory, header_len, max_bytes, done: Vec::new(), open: None }
    }

    /// Adds a tensor.
    pub fn write(&mut self, tensor: TensorBytes<'_>) -> Result<(), QuantizeError> {
        let len = tensor.bytes.len() as u64;
        let full = |shard: &Shard| shard.len > 0 && shard.len + len > self.max_bytes;
        if self.open.as_ref().is_some_and(|(shard, _)| full(shard)) {
            self.close()?;
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.create()?,
        };
        let (shard, file) = &mut open;
        file.write_all(tensor.bytes).map_err(self.failed())?;
        let (start, end) = (shard.len, shard.len + len);
        shard.len = end;
        shard.entries.push(Entry {
            name: tensor.name.to_owned(),
            dtype: tensor.dtype.to_owned(),
            shape: tensor.shape.to_vec(),
            start,
            end,
        });
        self.open = Some(open);
        Ok(())
    }

    /// Changes tensors that have been written, those whose names end like this.
    pub fn edit(&mut self, suffix: &str, edit: fn(&mut [u8])) -> Result<(), QuantizeError> {
        self.close()?;
        for shard in &self.done {
            let mut options = OpenOptions::new();
            let mut file =
                options.read(true).write(true).open(&shard.path).map_err(self.failed())?;
            for entry in shard.entries.iter().filter(|entry| entry.name.ends_with(suffix)) {
                let start = LENGTH_BYTES + self.header_len + entry.start;
                let mut bytes = vec![0; (entry.end - entry.start) as usize];
                let mut replace = || {
                    file.seek(SeekFrom::Start(start))?;
                    file.read_exact(&mut bytes)?;
                    edit(&mut bytes);
                    file.seek(SeekFrom::Start(start))?;
                    file.write_all(&bytes)
                };
                replace().map_err(self.failed())?;
            }
            file.sync_all().map_err(self.failed())?;
        }
        Ok(())
    }

    /// Gives the files their names, writes the index of several, and returns the bytes of all
    /// tensors.
    pub fn finish(mut self) -> Result<u64, QuantizeError> {
        self.close()?;
        let total: u64 = self.done.iter().map(|shard| shard.len).sum();
        let count = self.done.len();
        let mut weight_map = Map::new();
        for (i, shard) in self.done.iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            let path = self.directory.path().join(&name);
            fs::rename(&shard.path, path).map_err(self.failed())?;
            for entry in &shard.entries {
                weight_map.insert(entry.name.clone(), Value::from(name.as_str()));
            }
        }
        if count > 1 {
            weight_map.sort_keys();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            let index = format!("{index:#}\n");
            self.directory.write("model.safetensors.index.json", index.as_bytes())?;
        }
        Ok(total)
    }

    fn create(&self) -> Result<(Shard, BufWriter<File>), QuantizeError> {
        let path = self.directory.path().join(format!("part-{:05}", self.done.len() + 1));
        let create = |path: &Path| {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
            let room = vec![b' '; (LENGTH_BYTES + self.header_len) as usize];
            file.write_all(&room)?;
            Ok(file)
        };
        let file = create(&path).map_err(self.failed())?;
        Ok((Shard { path, entries: Vec::new(), len: 0 }, file))
    }

    fn close(&mut self) -> Result<(), QuantizeError> {
        let Some((shard, file)) = self.open.take() else { return Ok(()) };
        let header = header(&shard.entries).into_bytes();
        let close = || {
            if header.len() as u64 > self.header_len {
                let problem = "the header has not the room that was left for it";
                return Err(io::Error::other(problem));
            }
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&self.header_len.to_le_bytes())?;
            file.write_all(&header)?;
            file.sync_all()
        };
        close().map_err(self.failed())?;
        self.done.push(shard);
        Ok(())
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> QuantizeError + use<> {
        QuantizeError::io("write", self.directory.shown("model.safetensors"))
    }
}

fn header(entries: &[Entry]) -> String {
    let mut header = Map::new();
    // What transformers asks for before it reads a file.
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    for Entry { name, dtype, shape, start, end } in entries {
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    Value::Object(header).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use engine_core::Checkpoint;

    /// Writes tensors of so many numbers each and returns where they are.
    fn written(max_bytes: u64, lens: &[usize]) -> (PathBuf, u64) {
        let dir = std::env::temp_dir().join(format!("shards-{}-{max_bytes}", std::process::id()));
        let directory = NewDirectory::create(&dir, &std::env::temp_dir(), true).unwrap();
        let mut shards = Shards::new(&directory, 4096, max_bytes);
        for (i, &len) in lens.iter().enumerate() {
            let bytes: Vec<u8> =
                (0..len).flat_map(|k| ((100 * i + k) as f32).to_le_bytes()).collect();
            let (name, shape) = (&format!("t{i}"), &[len]);
            shards.write(TensorBytes { name, dtype: "F32", shape, bytes: &bytes }).unwrap();
        }
        shards.edit("t1", |bytes| bytes.fill(0)).unwrap();
        let total = shards.finish().unwrap();
        directory.finish().unwrap();
        (dir, total)
    }

    #[test]
    fn one_file_or_several_hold_the_same_tensors() {
        for (max_bytes, files) in [(1 << 20, 1), (40, 3), (1, 4)] {
            let (dir, total) = written(max_bytes, &[3, 5, 20, 1]);
            assert_eq!(total, 4 * 29);
            let checkpoint = Checkpoint::open(&dir).unwrap();
            for (i, len) in [3, 5, 20, 1].into_iter().enumerate() {
                let found = checkpoint.load(&format!("t{i}"), &[len]).unwrap();
                let first = if i == 1 { 0.0 } else { 100.0 * i as f32 };
                assert_eq!(found.iter::<f32>().next(), Some(first), "{max_bytes} {i}");
            }
            let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
            let count = names.filter(|n| n.to_str().unwrap().ends_with(".safetensors")).count();
            assert_eq!(count, files, "{max_bytes}");
            fs::remove_dir_all(dir).unwrap();
        }
    }
}
