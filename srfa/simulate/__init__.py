"""A discrete-event vLLM: scheduler, KV cache, and an estimator as its clock."""
