//! The linear layers of SmolVLM-256M's decoder by the number of rows: f32, 8 and 4 bits, and candle's own product of the same
//! blocks.
//!
//! ```sh
//! cargo run --release -p reground-learner --example linear_speed
//! ```
//! Each layer is one of several of its shape, so that none is found in a cache. Microseconds for a layer, the best of some rounds.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::quantized::QMatMul;
use candle_core::{Device, Module, Tensor};
use reground_learner::model::Quantisation;
use reground_learner::model::ops::{linear, quantised_linear};

/// Layers of each shape: together larger than the caches.
const LAYERS: usize = 60;
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    println!("out x in, rows: f32 | q8 | q8 by candle | q4 | q4 by candle");
    for (outputs, inputs) in [(576, 576), (1536, 576), (576, 1536)] {
        let random = |shape: (usize, usize), deviation| Tensor::randn(0_f32, deviation, shape, &Device::Cpu);
        let full: Vec<_> = (0..LAYERS).map(|_| random((outputs, inputs), 0.04)).collect::<candle_core::Result<_>>()?;
        let quantised = |bits: Quantisation| -> Result<Vec<_>> {
            full.iter().map(|weight| Ok(Arc::new(bits.quantise("weight", weight)?))).collect()
        };
        let (q8, q4) = (quantised(Quantisation::Q8)?, quantised(Quantisation::Q4)?);
        for rows in [1, 2, 4, 8, 16, 32, 33, 86, 256] {
            let x = random((rows, inputs), 1.0)?;
            print!("{outputs} x {inputs}, {rows}: {:.0}", best(ROUNDS, |at| linear(&x, &full[at], None))?);
            for blocks in [&q8, &q4] {
                print!(" | {:.0}", best(ROUNDS, |at| quantised_linear(&x, &blocks[at]))?);
                // Many rows take seconds there, and tell nothing more.
                if rows <= 8 {
                    let products: Vec<_> =
                        blocks.iter().map(|b| QMatMul::from_arc(b.clone())).collect::<candle_core::Result<_>>()?;
                    print!(" | {:.0}", best(3, |at| products[at].forward(&x))?);
                } else {
                    print!(" | -");
                }
            }
            println!();
        }
    }
    Ok(())
}

/// Microseconds of a product.
fn best(rounds: usize, product: impl Fn(usize) -> candle_core::Result<Tensor>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let began = Instant::now();
        for at in 0..LAYERS {
            product(at)?;
        }
        best = best.min(began.elapsed().as_secs_f64() * 1e6 / LAYERS as f64);
    }
    Ok(best)
}
