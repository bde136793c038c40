"""Evaluation of generated images: metrics and figures, independent of the guidance."""
