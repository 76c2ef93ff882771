"""One paper per file: pure reducers over the vocabulary of `core`."""
