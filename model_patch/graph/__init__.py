"""The graph of a Keras model: rebuilt, flattened, and run in other ways; nothing here knows of tasks."""
