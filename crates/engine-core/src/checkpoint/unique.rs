use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

/// A JSON object in which no key may appear twice; `__metadata__` is left out.
#[derive(Debug)]
pub(super) struct UniqueMap<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with tensor names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<UniqueMap<V>, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = access.next_key::<String>()? {
            if key == "__metadata__" {
                access.next_value::<IgnoredAny>()?;
                continue;
            }
            let named = |error| A::Error::custom(format_args!("tensor `{key}`: {error}"));
            let value = access.next_value().map_err(named)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("tensor `{key}` appears twice")));
            }
            map.insert(key, value);
        }
        Ok(UniqueMap(map))
    }
}
