//! The threads of the CPU kernels, and none where another device computes.

use std::fmt;

/// What loading and each step of an engine run on.
#[derive(Clone, Default)]
pub(crate) struct Threads {
    #[cfg(feature = "cpu")]
    pool: Option<std::sync::Arc<engine_quant::threads::Pool>>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Threads")
    }
}

impl Threads {
    /// So many threads for the kernels of the CPU.
    #[cfg(feature = "cpu")]
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let pool = engine_quant::threads::Pool::new(threads)?;
        Ok(Self { pool: Some(std::sync::Arc::new(pool)) })
    }

    /// Does the work of a step.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        #[cfg(feature = "cpu")]
        if let Some(pool) = &self.pool {
            return pool.enter(work);
        }
        work()
    }

    /// Does the work of loading: the kernels of a step are not all that runs there, so for its time
    /// as many threads of rayon are its own.
    pub fn load<R: Send>(
        &self,
        work: impl FnOnce() -> R + Send,
    ) -> Result<R, rayon::ThreadPoolBuildError> {
        #[cfg(feature = "cpu")]
        if let Some(pool) = &self.pool {
            let threads = rayon::ThreadPoolBuilder::new().num_threads(pool.threads());
            let threads = threads.thread_name(|i| format!("engine-load-{i}")).build()?;
            return Ok(threads.install(work));
        }
        Ok(work())
    }
}
