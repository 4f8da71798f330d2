//! Every way to compute that this build has gives the same tokens: our kernels, plain Burn
//! operations, and these fused by Burn.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use engine::{Device, Engine, EngineError, Execution, Request};

const DEVICES: [Device; 2] = [Device::Cpu, Device::Wgpu];
const EXECUTIONS: [Execution; 3] = [Execution::Kernels, Execution::Composed, Execution::Fusion];

fn tokens(device: Device, execution: Execution, quant: &str) -> Result<Vec<u32>, EngineError> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/stories260K");
    let engine = Engine::builder(model.to_str().unwrap())
        .device(device)
        .execution(execution)
        .quantization(quant.parse().unwrap())
        .kv_cache_bytes(1 << 20)
        .load()?;
    let request = Request::tokens(vec![1, 403, 407, 261, 378]).max_tokens(12).ignore_eos();
    Ok(engine.generate(request).unwrap().tokens().to_vec())
}

#[test]
fn every_execution_gives_the_same_tokens() {
    for quant in ["none", "int8"] {
        let expected = tokens(Device::Cpu, Execution::Kernels, quant).unwrap();
        for device in DEVICES {
            for execution in EXECUTIONS {
                let case = format!("{device} {execution:?} {quant}");
                match tokens(device, execution, quant) {
                    Ok(found) => assert_eq!(found, expected, "{case}"),
                    Err(error) if device == Device::Cpu => {
                        assert!(!execution.is_available(device), "{case}: {error}");
                        assert!(error.to_string().contains("execution"), "{case}: {error}");
                    }
                    // No such device, or not in this build.
                    Err(error) => println!("{case}: {error}"),
                }
            }
        }
    }
}
