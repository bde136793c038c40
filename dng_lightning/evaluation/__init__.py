"""Judging generated images: metrics and figures. Knows nothing of guidance."""
