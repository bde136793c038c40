"""Files: shipped configs and checkpoints, downloads, and formats that carry no code."""
