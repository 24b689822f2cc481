"""Model families: a pipeline folder or hub id -> velocity field, conditioning and decoding."""
