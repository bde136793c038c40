"""How diffusers' pipelines call their networks: one layout for each pipeline class."""

from dng_lightning.text_to_image.layouts import batched, lists, two_calls, unets
from dng_lightning.text_to_image.layouts.layout import Layout, NetworkCall

LAYOUTS: dict[str, Layout] = unets.LAYOUTS | batched.LAYOUTS | two_calls.LAYOUTS | lists.LAYOUTS

__all__ = ["LAYOUTS", "Layout", "NetworkCall"]
