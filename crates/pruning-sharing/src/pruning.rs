//! Pruning and sharing: section 2.B of the survey.

pub mod apoz;
pub mod biased_decay;
pub mod channel_lasso;
pub mod data_free;
pub mod empty;
pub mod entropy;
pub mod filter_l1;
pub mod fpgm;
pub mod group_brain_damage;
pub mod hashed;
pub mod less_is_more;
pub mod magnitude;
pub mod mixture;
pub mod movement;
pub mod n_m;
pub mod optimal_brain_damage;
pub mod optimal_brain_surgeon;
pub mod proximal;
pub mod random;
pub mod slimming;
pub mod soft_weight_sharing;
pub mod structured_sparsity;
pub mod taylor;
pub mod thinet;
