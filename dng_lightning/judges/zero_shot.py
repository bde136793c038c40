"""CLIP-like models as judges: the class whose description fits an image best."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError
from dng_lightning.judges.base import PretrainedClassifier
from dng_lightning.judges.class_mapping import ClassMapping
from dng_lightning.judges.transformers import Processor, load


class ZeroShotClassifier(PretrainedClassifier):
    """A model of images and texts of transformers (CLIP, SigLIP; extra ``transformers``), with descriptions as classes.

    It has no features.

    Args:
        model: its folder, or one of the Hugging Face hub, `owner/model`, which is downloaded if it is not in its cache.
        class_names: what images may show, a list, or a text file with one a line.
        template: the description of a class, with {} in the place of its name.
        revision: a branch, tag or commit on the hub.
        classes: see ``PretrainedClassifier``.

    Raises:
        SettingError: transformers is not installed, there is no such model, or it is something else.
    """

    def __init__(
        self,
        model: str,
        class_names: list[str] | str,
        template: str = "a photo of {}",
        revision: str | None = None,
        classes: ClassMapping | None = None,
    ) -> None:
        names = names_of(class_names)
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise SettingError(f"class_names of {model} must be two or more different classes; got {', '.join(names)}")
        if "{}" not in template:
            raise SettingError(f"template must have {{}} in the place of a class; got {template!r}")
        kinds = ("AutoModel", "AutoImageProcessor", "AutoTokenizer")
        net, processor, tokenizer = load(model, revision, "model of images and texts", *kinds)
        texts = [template.format(name) for name in names]
        # SigLIP was trained on texts padded to its length; CLIP does not see the padding
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        described = _Described(net, dict(tokens))
        super().__init__(f"zero-shot-{Path(model).name}", described, names, classes, Processor(processor))


class _Described(nn.Module):
    """Logits of images over some texts."""

    def __init__(self, net: Any, tokens: dict[str, Tensor]) -> None:
        super().__init__()
        self.net, self.arguments = net, list(tokens)
        for name, rows in tokens.items():
            self.register_buffer(name, rows)

    def forward(self, pixels: Tensor) -> Tensor:
        texts = {name: getattr(self, name) for name in self.arguments}
        logits: Tensor = self.net(pixel_values=pixels, **texts).logits_per_image
        return logits
