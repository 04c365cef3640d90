"""Server engine: sends prompt embeddings to a running vLLM server."""
