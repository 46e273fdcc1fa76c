"""srfa: calibrate LLM-inference latency models from real engine traces."""

__version__ = "0.1.0"
