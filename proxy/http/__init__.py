"""HTTP with our clients: the only package that knows ASGI and uvicorn."""
