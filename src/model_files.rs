//! What the files of a model hold, in either layout: a directory as on the Hub, or one GGUF file.

use std::path::Path;

use engine_core::{
    Checkpoint, GenerationConfig, GgufFile, GgufMetadata, LoadError, ModelConfig, WeightSource,
};

use crate::{EngineError, GgufVocabulary, Tokenizer, hub::is_gguf};

/// Everything of a model but its weights, and where these come from.
pub(crate) struct ModelFiles {
    pub config: ModelConfig,
    pub generation: Option<GenerationConfig>,
    /// Without one, prompts are token ids.
    pub tokenizer: Option<Tokenizer>,
    pub weights: Box<dyn WeightSource>,
}

impl ModelFiles {
    /// Opens a model's directory or GGUF file, whose weights stay mapped or are copied.
    pub(crate) fn open(path: &Path, mapped: bool) -> Result<Self, EngineError> {
        let files = match is_gguf(path) {
            true => Self::open_gguf(path, mapped),
            false => Self::open_directory(path, mapped),
        }?;
        if let Some(Err(error)) = files.tokenizer.as_ref().map(Tokenizer::chat_template) {
            return Err(EngineError::ChatTemplate(error.to_string()));
        }
        Ok(files)
    }

    fn open_directory(path: &Path, mapped: bool) -> Result<Self, EngineError> {
        let config = ModelConfig::load(path)?;
        let generation = GenerationConfig::load(path)?;
        let tokenizer = match path.join("tokenizer.json").is_file() {
            true => Some(Tokenizer::load(path)?),
            false => None,
        };
        let weights = Checkpoint::open(path)?.with_quantization(config.quantization.clone());
        let weights = if mapped { weights } else { weights.copied() };
        Ok(Self { config, generation, tokenizer, weights: Box::new(weights) })
    }

    fn open_gguf(path: &Path, mapped: bool) -> Result<Self, EngineError> {
        let file = GgufFile::open(path)?;
        let mut config = ModelConfig::from_gguf(&file)?;
        let vocabulary = GgufVocabulary::from_metadata(file.metadata())?;
        if let Some(vocabulary) = &vocabulary {
            config.eos_token_ids = vocabulary.end_ids();
        }
        let tokenizer = vocabulary.map(Tokenizer::from_vocabulary).transpose()?;
        let file = if mapped { file } else { file.copied() };
        Ok(Self { config, generation: None, tokenizer, weights: Box::new(file) })
    }
}

impl GgufVocabulary {
    /// What the metadata of a GGUF file say of its tokenizer, or `None` if they say nothing.
    ///
    /// ```
    /// use engine::{GgufFile, GgufVocabulary, Tokenizer};
    ///
    /// let file = GgufFile::open("tests/data/quant/gguf/stories260K.Q8_0.gguf")?;
    /// let vocabulary = GgufVocabulary::from_metadata(file.metadata())?.ok_or("no tokenizer")?;
    /// let tokenizer = Tokenizer::from_vocabulary(vocabulary)?;
    /// assert_eq!(tokenizer.encode("Once upon a time", true)?, [1, 403, 407, 261, 378]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If a key has a value of another type.
    pub fn from_metadata(metadata: &GgufMetadata) -> Result<Option<Self>, LoadError> {
        let key = |key: &str| format!("tokenizer.ggml.{key}");
        let Some(model) = metadata.text(&key("model"))? else { return Ok(None) };
        let id = |name: &str| -> Result<Option<u32>, LoadError> {
            let key = key(&format!("{name}_token_id"));
            let number = |id| u32::try_from(id).map_err(|_| metadata.error(&key, "a token id"));
            metadata.count(&key)?.map(number).transpose()
        };
        let texts = |name: &str| metadata.texts(&key(name)).map(|list| list.map(<[_]>::to_vec));
        let small = |list: &[i64]| -> Result<Vec<i32>, LoadError> {
            let no_types = |_| metadata.error(&key("token_type"), "a list of small numbers");
            list.iter().map(|&kind| i32::try_from(kind).map_err(no_types)).collect()
        };
        Ok(Some(Self {
            path: metadata.file().to_path_buf(),
            model_name: metadata.text("general.name")?.unwrap_or_default().to_owned(),
            model: model.to_owned(),
            pre: metadata.text(&key("pre"))?.map(str::to_owned),
            tokens: texts("tokens")?.unwrap_or_default(),
            scores: metadata.floats(&key("scores"))?.map(<[_]>::to_vec),
            token_types: metadata.integers(&key("token_type"))?.map(small).transpose()?,
            merges: texts("merges")?,
            bos_id: id("bos")?,
            eos_id: id("eos")?,
            unknown_id: id("unknown")?,
            padding_id: id("padding")?,
            eot_id: id("eot")?,
            eom_id: id("eom")?,
            add_bos: metadata.flag(&key("add_bos_token"))?,
            add_eos: metadata.flag(&key("add_eos_token"))?,
            add_space_prefix: metadata.flag(&key("add_space_prefix"))?,
            chat_templates: chat_templates(metadata)?,
        }))
    }
}

/// `tokenizer.chat_template` under the name `default`, and those with names of their own.
fn chat_templates(metadata: &GgufMetadata) -> Result<Vec<(String, String)>, LoadError> {
    const KEY: &str = "tokenizer.chat_template";
    let mut templates = Vec::new();
    for (key, _) in metadata.iter() {
        let name = match key.strip_prefix(KEY) {
            Some("") => "default",
            Some(rest) => match rest.strip_prefix('.') {
                Some(name) => name,
                None => continue,
            },
            None => continue,
        };
        if let Some(text) = metadata.text(key)? {
            templates.push((name.to_owned(), text.to_owned()));
        }
    }
    Ok(templates)
}
