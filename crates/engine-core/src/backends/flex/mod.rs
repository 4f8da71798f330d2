use burn_flex::Flex;

use crate::ops::CoreOps;

impl CoreOps for Flex {}
