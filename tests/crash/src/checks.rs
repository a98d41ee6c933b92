//! The checkers, each a function of a seed.

use crate::{
    Finding,
    life::{Conduct, CrashPoint, lead},
    model::Model,
    node::{Images, Setup},
    verify::{Fixed, verify},
};
use drover_sim::runtime::Generator;

/// Lives and crashes in turn, every crash point looked at.
pub fn crash_run(seed: u64, lives: u64, conduct: Conduct) -> Result<usize, Finding> {
    let mut random = Generator::new(seed, "run");
    let setup = Setup::draw(&mut random);
    let mut images = Images::new(setup.slots);
    let mut model = Model::default();
    let mut fixed = Fixed::new();
    let mut looked = 0;
    for life in 0..lives {
        let points = lead(seed, life, &setup, &images, model.clone(), conduct)
            .map_err(|finding| Finding(format!("seed {seed}, life {life}: {finding}")))?;
        let next = random.below(points.len().max(1) as u64) as usize;
        for (at, point) in points.iter().enumerate() {
            let recovered = check_point(seed, life, &setup, point, &mut fixed)?;
            looked += 1;
            if at == next {
                model = recovered;
                images = point.images.clone();
            }
        }
    }
    Ok(looked)
}

fn check_point(seed: u64, life: u64, setup: &Setup, point: &CrashPoint, fixed: &mut Fixed) -> Result<Model, Finding> {
    verify(seed, setup, point, fixed).map_err(|finding| Finding(format!("seed {seed}, life {life}: {finding}")))
}
