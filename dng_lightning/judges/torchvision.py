"""Classifiers of torchvision."""

from torchvision import models

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason
from dng_lightning.judges.base import PretrainedClassifier
from dng_lightning.judges.class_mapping import ClassMapping
from dng_lightning.judges.preprocessing import Preprocessing
from dng_lightning.storage import weights as files


class TorchvisionClassifier(PretrainedClassifier):
    """A model of ``torchvision.models``, with torchvision's weights or your own.

    Args:
        model: name of the model, such as `resnet50`.
        weights: name of torchvision's weights, such as `DEFAULT` or `IMAGENET1K_V2`; or a file with a state dict,
            `.pth` or `.safetensors`.
        class_names: class names of weights from a file, a list or a text file with one name per line; None for
            ImageNet's.
        classes: {class of the diffusion model: class or classes of this classifier}; None to match by name.
        preprocessing: preprocessing of the images; None for that of torchvision's weights of this model.
        head: layer whose input is the features; None to find it.

    Raises:
        SettingError: the model is missing, or the weights cannot be read or do not fit.
    """

    def __init__(
        self,
        model: str,
        weights: str = "DEFAULT",
        class_names: list[str] | str | None = None,
        classes: ClassMapping | None = None,
        preprocessing: Preprocessing | None = None,
        head: str | None = None,
    ) -> None:
        if model not in models.list_models(module=models):
            raise SettingError(f"torchvision has no classifier {model!r}: see torchvision.models.list_models()")
        known = models.get_model_weights(model)
        is_known, name = weights in known.__members__, f"torchvision-{model}"
        pretrained = known[weights if is_known else "DEFAULT"]
        own_names = tuple(pretrained.meta["categories"])
        if is_known:
            try:
                net = models.get_model(model, weights=pretrained)
            except Exception as error:  # no connection, a damaged download
                raise SettingError(
                    f"torchvision's weights of {model} cannot be downloaded, set weights to a file: {reason(error)}"
                ) from error
        else:
            state = files.state_dict(weights)
            own_names = names_of(class_names) or own_names
            settings = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
            net = models.get_model(model, weights=None, num_classes=len(own_names), **settings)
            files.fit(net, state, weights)
        super().__init__(name, net, own_names, classes, preprocessing or pretrained.transforms())
        self.watch_head(head)
