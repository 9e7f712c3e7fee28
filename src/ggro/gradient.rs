//! What the reward model is asked, and the first-order candidate scores.
