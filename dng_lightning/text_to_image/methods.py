"""The guidances that a sampler of prompts compares."""

from collections.abc import Sequence

import torch

from dng_lightning.errors import SettingError
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.serialization import display_name, display_name_with_scale
from dng_lightning.modules.checkpoint_settings import chosen, load_settings
from dng_lightning.modules.image_sampler import ImageSampler
from dng_lightning.text_to_image.prompts import check_guidance


def set_methods(
    module: ImageSampler,
    default: Guidance,
    guidance: Guidance | None,
    guidances: Sequence[Guidance] | None,
    baselines: Sequence[Guidance],
    conditions: int,
    shape: Sequence[int],
    has_observer: bool = False,
    in_pipeline: bool = False,
) -> None:
    """Set the methods of a sampler of prompts, with the settings in its folder.

    Args:
        module: the sampler, with its ``folder`` and ``unguided``.
        default: guidance if none is given.
        guidance: guidance of ``dng predict``; None for the first of ``guidances``.
        guidances: guidances of ``dng test``; None for ``guidance`` only.
        baselines: other methods.
        conditions: number of negative prompts per image.
        shape: shape of a state of the chain.
        has_observer: whether there is an observer of the denoised images.
        in_pipeline: whether a pipeline of diffusers has the loop over the steps.

    Raises:
        SettingError: a method does not fit the prompts, two baselines have one name, or ``guidances`` is empty.
    """
    given = chosen(default, guidance, guidances)
    module.guidance, *module.guidances = (load_settings(method, module.folder) for method in given)
    module.baselines = [load_settings(method, module.folder) for method in baselines]
    if module.unguided.needs().avoids:
        raise SettingError(f"unguided is {display_name(module.unguided)}, which avoids something: name another")
    groups = {"guidance": [module.guidance], "guidances": module.guidances, "baselines": module.baselines}
    for setting, methods in (groups | {"unguided": [module.unguided]}).items():
        for method in methods:
            check_guidance(method, has_observer, in_pipeline, tuple(shape) == tuple(module.image_shape))
            if method.needs().avoids and not conditions:
                name = display_name(method)
                raise SettingError(f"{name} avoids something: set negative_prompt, or {setting} to null")
            method.start(torch.empty(1, *shape), conditions)  # raises for priors that do not fit
    if len(set(map(display_name_with_scale, module.baselines))) < len(module.baselines):
        raise SettingError("baselines names a method twice: give them other scales, which tell them apart")
