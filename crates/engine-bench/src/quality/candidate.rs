//! What is compared with the reference.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use engine::{CheckpointLayout, QuantizeEvent, QuantizeOptions, SchemePlan, quantize};
use tempfile::TempDir;

use super::QualityPlan;
use crate::BenchError;

/// A model, and what becomes of it while it is loaded.
#[derive(Clone)]
pub(super) struct Candidate {
    pub name: String,
    pub path: PathBuf,
    pub plan: SchemePlan,
    /// Whether `path` is not the reference's.
    pub is_other_model: bool,
}

/// A candidate whose file lasts as long as this.
pub(super) struct Calibrated {
    pub candidate: Candidate,
    _folder: TempDir,
}

impl Candidate {
    /// The model at `path` under a plan.
    pub fn of_plan(path: &Path, plan: &SchemePlan) -> Self {
        Self {
            name: plan.to_string(),
            path: path.to_owned(),
            plan: plan.clone(),
            is_other_model: false,
        }
    }

    /// All candidates of a plan for the model at `path`.
    pub fn all(plan: &QualityPlan, path: &Path) -> Result<Vec<Self>, BenchError> {
        let needs_text = |scheme: &&SchemePlan| scheme.needs_calibration();
        if let (Some(scheme), None) = (plan.schemes.iter().find(needs_text), &plan.calibration) {
            return Err(BenchError::NeedsCalibration { plan: scheme.to_string() });
        }
        let schemes = plan.schemes.iter().filter(|scheme| !scheme.keeps_all());
        let schemes = schemes.map(|scheme| Self::of_plan(path, scheme));
        Ok(schemes.chain(plan.models.iter().map(|model| Self::of_file(model))).collect())
    }

    /// Carries out a plan that calibrates: into a temporary directory, from which the model is then
    /// loaded and measured as what users get. `None` for all others.
    pub fn calibrate(
        &self,
        plan: &QualityPlan,
        progress: &mut (dyn FnMut(String) + Send),
    ) -> Result<Option<Calibrated>, BenchError> {
        if !self.plan.needs_calibration() {
            return Ok(None);
        }
        let scratch = |source| BenchError::Scratch { folder: std::env::temp_dir(), source };
        let folder = tempfile::tempdir().map_err(scratch)?;
        let path = folder.path().join("model");
        let options = QuantizeOptions {
            calibration: plan.calibration.clone(),
            layout: CheckpointLayout::Engine,
            device: plan.device,
            threads: plan.threads,
            ..QuantizeOptions::new(self.plan.clone(), &path)
        };
        quantize(&self.path.display().to_string(), &options, &mut |event| {
            if let QuantizeEvent::Matrix { matrix, number, total } = event {
                progress(format!("{}: {number} of {total}, {}", self.name, matrix.name));
            }
            ControlFlow::Continue(())
        })?;
        let plan = SchemePlan::default();
        let candidate = Self { path, plan, is_other_model: true, ..self.clone() };
        Ok(Some(Calibrated { candidate, _folder: folder }))
    }

    /// Another file of the same model, as it is.
    fn of_file(path: &Path) -> Self {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let plan = SchemePlan::default();
        Self { name, path: path.to_owned(), plan, is_other_model: true }
    }
}
