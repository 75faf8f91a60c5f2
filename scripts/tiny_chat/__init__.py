"""The built-in model `tiny-chat`: what it reads, how it is trained and how it is examined."""
