"""vLLM engine: vLLM's offline engine, fed with prompt embeddings."""
