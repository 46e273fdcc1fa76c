"""What runs inside the engine's own interpreter: standard library, vllm and torch only."""
