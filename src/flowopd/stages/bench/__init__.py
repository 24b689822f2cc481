"""How fast an update of distillation is, what it asks of the models, and how that compares to the field's schedule."""
