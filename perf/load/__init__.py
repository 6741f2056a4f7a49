"""Load on any endpoint by URL: KServe v2 over HTTP and gRPC, and OpenAI-style embeddings."""
