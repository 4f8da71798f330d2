//! Bytes with many readers and no writer.

use std::{
    fmt,
    ops::{Deref, Range},
    sync::Arc,
};

use burn_tensor::{AllocationProperty, Bytes};
use bytemuck::NoUninit;

/// What [`SharedBytes`] are a part of: a mapped file, or numbers in memory.
pub trait ByteSource: Send + Sync + 'static {
    /// All of them, the same ones at each call.
    fn bytes(&self) -> &[u8];

    /// Hears that one reader of these bytes is gone; others may be there.
    fn release(&self, _range: Range<usize>) {}

    /// Hears that few of these bytes will be read, here and there.
    fn scatter(&self, _range: Range<usize>) {}
}

/// Bytes that are read and never written, in memory of their own or where a file is mapped.
///
/// A clone or a slice is another reader of the same bytes.
///
/// ```
/// use engine_quant::SharedBytes;
/// let all = SharedBytes::from(vec![1_u8, 2, 3, 4]);
/// let (a, b) = (all.slice(0..2), all.slice(2..4));
/// assert_eq!(*b, [3, 4]);
/// // Neighbours in memory become one without a copy.
/// assert_eq!(a.followed_by(&b).unwrap().as_ptr(), all.as_ptr());
/// assert!(b.followed_by(&a).is_none());
/// ```
#[derive(Clone)]
pub struct SharedBytes(Arc<Part>);

struct Part {
    source: Arc<dyn ByteSource>,
    range: Range<usize>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.source.release(self.range.clone());
    }
}

impl SharedBytes {
    /// A part of what `source` has.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn new(source: Arc<dyn ByteSource>, range: Range<usize>) -> Self {
        let len = source.bytes().len();
        assert!(range.start <= range.end && range.end <= len, "bytes {range:?} of {len}");
        Self(Arc::new(Part { source, range }))
    }

    /// The bytes of numbers in memory.
    pub fn from_elems<E: NoUninit + Send + Sync>(values: Vec<E>) -> Self {
        let source = Elements(values);
        let len = source.bytes().len();
        Self::new(Arc::new(source), 0..len)
    }

    /// A part of these bytes.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let len = self.len();
        assert!(range.start <= range.end && range.end <= len, "bytes {range:?} of {len}");
        let start = self.0.range.start;
        Self::new(self.0.source.clone(), start + range.start..start + range.end)
    }

    /// These bytes and the next ones as one, if they are neighbours in the same source.
    pub fn followed_by(&self, next: &Self) -> Option<Self> {
        let (first, second) = (&*self.0, &*next.0);
        let neighbours =
            Arc::ptr_eq(&first.source, &second.source) && first.range.end == second.range.start;
        neighbours.then(|| Self::new(first.source.clone(), first.range.start..second.range.end))
    }

    /// All parts one after the other: without a copy if they are neighbours, or else copied if they
    /// have at most `max_copy` bytes.
    pub fn join(parts: &[Self], max_copy: usize) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        let neighbours = rest.iter().try_fold(first.clone(), |all, part| all.followed_by(part));
        neighbours.or_else(|| {
            let len: usize = parts.iter().map(|part| part.len()).sum();
            (len <= max_copy).then(|| {
                let mut all = Vec::with_capacity(len);
                parts.iter().for_each(|part| all.extend_from_slice(part));
                Self::from(all)
            })
        })
    }

    /// Tells the source that few of these bytes will be read, here and there, so that it need not
    /// have those between them at hand.
    pub fn scatter(&self) {
        self.0.source.scatter(self.0.range.clone());
    }

    /// Whether the first byte is at a multiple of `align`.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.as_ptr().addr().is_multiple_of(align)
    }

    /// The same bytes for tensors.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_shared(bytes::Bytes::from_owner(self), AllocationProperty::Other)
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_elems(bytes)
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.source.bytes()[self.0.range.clone()]
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for SharedBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for SharedBytes {}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.len())
    }
}

impl ByteSource for Bytes {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Numbers in memory.
struct Elements<E>(Vec<E>);

impl<E: NoUninit + Send + Sync> ByteSource for Elements<E> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
