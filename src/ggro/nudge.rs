//! Which token: the top-k candidates, greedy or sampled choice, twins.
