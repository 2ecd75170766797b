//! Checks a gradient against differences of the function itself, and an operation's two forms against each other.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use rand::{Rng, SeedableRng};

/// Values in −1 … 1 that depend on the seed alone.
pub(crate) fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Checks the gradient of `Σ w·f(inputs)` (`w` fixed random weights) with respect to each input along random directions.
///
/// The difference is taken in f64 arithmetic over f32 function values, so a step of 1e-2 and a tolerance of 1 % of the
/// larger of gradient and 0.1 is what f32 allows; a wrong formula is off by far more.
pub(crate) fn check(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let detached: Vec<Tensor> = inputs.iter().map(|input| (*input).clone()).collect();
    let weights = random(f(&detached).unwrap().shape(), 99);
    let value = |inputs: &[Tensor]| -> f64 {
        let y: Vec<f32> = f(inputs).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let w: Vec<f32> = weights.flatten_all().unwrap().to_vec1().unwrap();
        y.iter().zip(&w).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
    };
    let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tracked: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let loss = (f(&tracked).unwrap() * &weights).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    for (index, variable) in variables.iter().enumerate() {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("input {index} has no gradient"));
        for seed in 0..4 {
            let direction = random(inputs[index].shape(), 1000 + seed);
            let step = 1e-2;
            let shifted = |sign: f64| {
                let mut moved = detached.clone();
                moved[index] = (&moved[index] + (&direction * (sign * step)).unwrap()).unwrap();
                value(&moved)
            };
            let difference = (shifted(1.0) - shifted(-1.0)) / (2.0 * step);
            let product: f32 = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar().unwrap();
            let error = (difference - f64::from(product)).abs();
            assert!(
                error < 1e-2 * difference.abs().max(0.1),
                "input {index}, direction {seed}: gradient {product}, difference {difference}"
            );
        }
    }
}

/// Checks that both forms of an operation give the same values and gradients: the kernel, which f32 on the CPU takes, and the one
/// composed of candle's operations, which everything else takes: f64 here, and a GPU.
pub(crate) fn forms_agree(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = |dtype: DType| {
        let variables: Vec<Var> =
            inputs.iter().map(|input| Var::from_tensor(&input.to_dtype(dtype).unwrap()).unwrap()).collect();
        let tracked: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
        let value = f(&tracked).unwrap().to_dtype(dtype).unwrap();
        let weights = random(value.shape(), 99).to_dtype(dtype).unwrap();
        let gradients = (&value * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let single = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap();
        let gradients: Vec<Option<Tensor>> =
            variables.iter().map(|variable| gradients.get(variable).map(single)).collect();
        (single(&value), gradients)
    };
    let ((kernel, kernel_gradients), (composed, composed_gradients)) = (run(DType::F32), run(DType::F64));
    assert!(distance(&kernel, &composed) < 1e-5, "values differ by {}", distance(&kernel, &composed));
    for (index, pair) in kernel_gradients.iter().zip(&composed_gradients).enumerate() {
        match pair {
            (Some(kernel), Some(composed)) => {
                let difference = distance(kernel, composed);
                assert!(difference < 5e-5, "gradients of input {index} differ by {difference}");
            }
            (None, None) => {}
            _ => panic!("one form has a gradient of input {index}, the other has not"),
        }
    }
}

/// Largest absolute difference of two tensors of the same shape.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}
