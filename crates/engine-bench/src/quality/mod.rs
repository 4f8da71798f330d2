//! The price of weights in few bits: what they save, and what they lose.
//!
//! One model is the reference: the weights as its file has them, keys and values in `f32`. Each
//! candidate runs over the same windows of a text and is compared position by position:
//!
//! * **perplexity**, `exp` of the mean negative log-likelihood of the scored tokens;
//! * **KL divergence**, the mean over the scored positions of
//!   `Σ p · ln(p / q)`, `p` the reference's probabilities and `q` the candidate's, in nats;
//! * **top-1 agreement**, the share of positions with the same most likely token;
//! * **layer error**, `‖W − Q‖ / ‖W‖` of each quantized tensor (Frobenius norms).
//!
//! Perplexity alone misleads: on a small text a damaged model can score better by chance. KL sees
//! every token's probability at every position, so the verdict ([`Loss`]) goes by it.
//!
//! ```no_run
//! use engine_bench::quality::QualityPlan;
//! let text = std::fs::read_to_string("text.txt")?;
//! let schemes = vec!["int8".parse()?, "int4:group=32:asym".parse()?];
//! let plan = QualityPlan { schemes, ..QualityPlan::new("models/small", text) };
//! let report = plan.run(&mut |stage| eprintln!("{stage:?}"))?;
//! println!("{}", report.markdown());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod candidate;
mod compare;
mod layers;
mod markdown;
mod plot;
mod reference;
mod report;
mod row_scales;
mod run;

pub use layers::MatrixError;
pub use report::{Loss, QualityReport, QualityRow};
pub use row_scales::{RowScales, RowScalesEntry, ScaleErrors};
pub use run::{QualityPlan, QualityStage, SpeedTask};
