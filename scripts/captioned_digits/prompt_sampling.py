"""Samples of fixed prompts during the training of a text-to-image model."""

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from dng_lightning.callbacks.requirements import expect
from dng_lightning.callbacks.validation_sampling import ValidationSampling
from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.errors import SettingError, check_at_least
from dng_lightning.evaluation import boards, figures
from dng_lightning.guidance import ClassifierFreeGuidance, Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.modules.image_sampler import draw_samples
from dng_lightning.sampling import Sampler
from dng_lightning.text_to_image.predictor import TextPredictor
from scripts.captioned_digits.attribute_classifier import AttributeClassifier
from scripts.captioned_digits.captions import parse_caption
from scripts.captioned_digits.training import TextToImageModule
from scripts.captioned_images import networks
from scripts.captioned_images.prompt_adherence import shows


class PromptSampling(ValidationSampling):
    """Draws images of fixed prompts at fixed seeds during validation, and logs them to TensorBoard, a row a prompt.

    With classifiers of their attributes ``metrics/obeyed`` is the share of the images that are all that their prompt
    asks for; those that are not have a red frame.

    Args:
        prompts: one a row.
        guidance: the method, one that knows of nothing forbidden; None for classifier-free guidance of scale 3.
        every_n_epochs: draw at the validations of each n-th epoch.
        num_samples: how many images of each prompt, from seed 0 on.
        steps: sampling steps.
        reader: classifiers of the attributes, see ``AttributeClassifier.load``; None for pictures only.

    Raises:
        SettingError: there is nothing to draw, the guidance needs more than prompts, or the classifiers cannot be used
            or do not understand a prompt.
    """

    def __init__(
        self,
        prompts: list[str],
        guidance: Guidance | None = None,
        every_n_epochs: int = 1,
        num_samples: int = 8,
        steps: int = 50,
        reader: str | None = None,
    ) -> None:
        counts = {"prompts": len(prompts), "every_n_epochs": every_n_epochs, "num_samples": num_samples}
        check_at_least(1, **{f"PromptSampling's {name}": value for name, value in counts.items()})
        self.guidance: Guidance = guidance or ClassifierFreeGuidance(3.0)
        needs = self.guidance.needs()
        if needs.negatives or needs.classifier or needs.observer is not None:
            raise SettingError(
                f"PromptSampling has prompts and nothing else: {display_name(self.guidance)} is not for it"
            )
        self.prompts, self.every_n_epochs, self.num_samples = list(prompts), every_n_epochs, num_samples
        self.sampler = Sampler(steps)
        self.reader = AttributeClassifier.load(reader) if reader else None
        self.parsed = [parse_caption(prompt) for prompt in self.prompts] if reader else []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse more steps than levels before the training, not after its first epoch."""
        expect(TextToImageModule, pl_module, self).schedule.levels(self.sampler.steps)

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log."""
        module = expect(TextToImageModule, pl_module, self)
        if module.scale is None:  # nothing was trained
            return
        with networks.eager(module.compile_net):
            images = self._draw(module)
        obeyed = self._obeyed(images)
        if obeyed:
            module.log("metrics/obeyed", sum(obeyed) / len(obeyed), batch_size=len(obeyed))
        if (writer := boards.board_of(trainer)).loggers:
            grid = figures.framed_grid(images.cpu(), [not right for right in obeyed] or None, self.num_samples)
            writer.add_image("samples/prompts", grid, trainer.global_step)
            writer.flush()

    def _draw(self, module: TextToImageModule) -> Tensor:
        """The images of each prompt, of the same seeds on every device, uint8."""
        model, seeds = module.model(), list(range(self.num_samples)) * len(self.prompts)
        prompts = torch.arange(len(self.prompts), device=module.device).repeat_interleave(self.num_samples)
        predictor = TextPredictor(model, model.encode(self.prompts).to(module.device), prompts)
        shape, decode = model.latent_shape(), model.decode
        return to_uint8(draw_samples(module, predictor, seeds, self.guidance, self.sampler, shape, (), decode).images)

    def _obeyed(self, images: Tensor) -> list[bool]:
        """Whether each image is all that its prompt asks for; empty if nobody can say."""
        if self.reader is None:
            return []
        read = self.reader.to(images.device).read(to_float(images)).view(len(self.parsed), self.num_samples, -1)
        return [right for rows, said in zip(read, self.parsed, strict=True) for right in shows(rows, said).tolist()]
