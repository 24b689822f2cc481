"""The mini world: pictures, captions, judges, and the recipe of its base."""
