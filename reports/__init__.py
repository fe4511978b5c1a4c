"""Tables, figures and pages: what is stored, rendered."""
