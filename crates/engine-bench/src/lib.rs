//! Measures an engine: how fast it is, and how well its model predicts.
//!
//! * [`perplexity`]: how well a model predicts a text.
//! * [`run()`]: the table of a [`Plan`]: for each model, format and batch how long the first token
//!   takes, how many follow in a second, and how much of what the machine can do that is.
//! * [`ablation()`]: what each optimisation gains, one after the other.
//! * [`load`]: what becomes of latencies when requests arrive on their own clock.
//! * [`quality`]: what weights in few bits save, and what they lose.
//! * [`Machine`]: what the machine is and can do, measured before anything else.
//! * [`Shape`], [`RandomWeights`] and [`RandomModel`]: random weights in the shape of a real model,
//!   in memory or as files, for measuring without a download.
//!
//! ```no_run
//! use engine_bench::{Plan, Shape, Source, run};
//! let shape = Shape::named("tinyllama-1.1b")?;
//! let plan = Plan { prompt_lens: vec![512], ..Plan::new(vec![Source::Shape(shape)]) };
//! let report = run(&plan, &mut |stage| eprintln!("{stage:?}"))?;
//! println!("{}", report.markdown());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod ablation;
mod bandwidth;
mod error;
pub mod load;
mod machine;
mod measure;
pub mod perplexity;
mod plan;
mod plot;
pub mod quality;
mod random_model;
mod random_weights;
mod report;
mod run;
mod shape;
mod splitmix;

pub use ablation::ablation;
pub use bandwidth::read_bandwidth;
pub use error::BenchError;
pub use machine::{ArithmeticRate, Machine};
pub use plan::{Plan, Source, Stage};
pub use plot::ImageFormat;
pub use random_model::RandomModel;
pub use random_weights::RandomWeights;
pub use report::{Report, Row, Spread};
pub use run::run;
pub use shape::{Shape, ShapeFamily};
