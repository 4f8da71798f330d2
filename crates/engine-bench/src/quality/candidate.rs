//! What is compared with the reference.

use std::path::{Path, PathBuf};

use engine::SchemePlan;

use super::QualityPlan;
use crate::BenchError;

/// A model, and what becomes of it while it is loaded.
pub(super) struct Candidate {
    pub name: String,
    pub path: PathBuf,
    pub plan: SchemePlan,
    /// Whether `path` is not the reference's.
    pub is_other_model: bool,
}

impl Candidate {
    /// The reference's own file under a plan.
    pub fn of_plan(path: &Path, plan: &SchemePlan) -> Self {
        Self {
            name: plan.to_string(),
            path: path.to_owned(),
            plan: plan.clone(),
            is_other_model: false,
        }
    }

    /// Another file of the same model, as it is.
    pub fn of_file(path: &Path) -> Self {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let plan = SchemePlan::default();
        Self { name, path: path.to_owned(), plan, is_other_model: true }
    }

    /// All candidates of a plan for the model at `path`.
    pub fn all(plan: &QualityPlan, path: &Path) -> Result<Vec<Self>, BenchError> {
        let mut all = Vec::new();
        for scheme in plan.schemes.iter().filter(|scheme| !scheme.keeps_all()) {
            if scheme.needs_calibration() {
                return Err(BenchError::NeedsCalibration { plan: scheme.to_string() });
            }
            all.push(Self::of_plan(path, scheme));
        }
        all.extend(plan.models.iter().map(|model| Self::of_file(model)));
        Ok(all)
    }
}
