"""Sampling with any diffusers pipeline that ``guided`` supports, away from negative prompts."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dng_lightning.class_labels import labels_of
from dng_lightning.errors import SettingError, reason
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.evaluation.runs import Samples
from dng_lightning.guidance import ClassifierFreeGuidance, DynamicNegativeGuidance, Guidance, PositiveAndNegative
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.modules.compatibility import check_same
from dng_lightning.modules.image_sampler import ImageSampler, check_finite
from dng_lightning.modules.judges import AnyClassifier, load_classifier, sort_into
from dng_lightning.sampling import Recorder, Sampler
from dng_lightning.text_to_image.layouts import LAYOUTS
from dng_lightning.text_to_image.methods import set_methods
from dng_lightning.text_to_image.optional_deps import Precision
from dng_lightning.text_to_image.pipeline_folder import open_pipeline
from dng_lightning.text_to_image.pipelines import guided
from dng_lightning.text_to_image.prompt_file import PromptRow, read_prompts
from dng_lightning.text_to_image.prompts import texts_of
from dng_lightning.text_to_image.scheduler_kinds import SchedulerKind, ancestral

KINDS = [kind for kind in LAYOUTS if kind != "WanPipeline"]  # those of images


class PipelineSampler(ImageSampler):
    """Samples with a diffusers pipeline, away from negative prompts; for ``dng predict`` and ``dng test``.

    The class of the pipeline is that of the checkpoint's ``model_index.json``: one of ``layouts.LAYOUTS``. The noise of
    an image depends on its own seed only.

    Args:
        checkpoint: a folder in diffusers' format, or a model of the Hugging Face hub.
        prompt: the prompt, or several, which the images take in turn.
        negative_prompt: the text or texts to avoid; null for none.
        prompts: a ``.csv`` or ``.jsonl`` file in place of both, with columns ``prompt``, ``negative_prompt`` and
            ``seed``; image i is that of row i.
        guidance: guidance method of ``dng predict``; None for Dynamic Negative Guidance with classifier-free guidance
            on both branches, or for ``unguided`` without a negative prompt.
        guidances: guidance methods that ``dng test`` compares; None for ``guidance`` only.
        unguided: method without negative prompt, for comparison; None for classifier-free guidance of ``cfg_scale``.
        baselines: other methods to compare with in ``dng predict``.
        cfg_scale: scale of the classifier-free guidance of the defaults above.
        steps: number of sampling steps.
        eta: 1 for ancestral sampling, which tracked posteriors need; 0 for the pipeline's own scheduler.
        height: height of the images in pixels.
        width: width of the images in pixels.
        precision: precision of all networks, "fp32" or "bf16".
        save_memory: keep only the network that computes on the GPU, and decode images one by one in tiles; slower.
        call: further arguments of the pipeline's call, such as ``true_cfg_scale``.
        classifier: classifier that labels the images; see ``GuidedSampler``; None for no labels.
        forbidden: the classes of ``classifier`` that count as forbidden, by name or number.

    Raises:
        SettingError: the checkpoint, the prompts or the classifier cannot be used, or a setting is out of its range.
    """

    offloads = False
    parts: nn.ModuleList
    folder: Path = Path()
    judge: AnyClassifier | None = None

    def __init__(
        self,
        checkpoint: str,
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        prompts: str | None = None,
        guidance: Guidance | None = None,
        guidances: list[Guidance] | None = None,
        unguided: Guidance | None = None,
        baselines: list[Guidance] | None = None,
        cfg_scale: float = 4.5,
        steps: int = 28,
        eta: float = 1.0,
        height: int = 1024,
        width: int = 1024,
        precision: Precision = "bf16",
        save_memory: bool = False,
        call: dict[str, Any] | None = None,
        classifier: PretrainedClassifier | str | None = None,
        forbidden: str | int | list[str | int] | None = None,
    ) -> None:
        super().__init__(Sampler(steps, eta))
        if eta not in (0, 1):
            raise SettingError(f"eta must be 0, the pipeline's own scheduler, or 1, an ancestral one; got {eta}")
        texts, negatives = texts_of(prompt, negative_prompt)
        self.rows = read_prompts(prompts, negatives) if prompts else [PromptRow(t, tuple(negatives)) for t in texts]
        self.has_file, self.checkpoint, self.call = prompts is not None, checkpoint, dict(call or {})

        # The pipeline and its scheduler
        self.pipeline, self.folder = open_pipeline(checkpoint, precision, KINDS)
        if eta == 1:
            self.pipeline.scheduler = ancestral(self.pipeline.scheduler)
        self.save_memory = save_memory
        if save_memory:
            self.pipeline.vae.enable_slicing()
            self.pipeline.vae.enable_tiling()
        parts = nn.ModuleList(p for p in self.pipeline.components.values() if isinstance(p, nn.Module))
        self.keep_apart(parts=parts)  # moved by the pipeline
        self.schedule = SchedulerKind(self.pipeline.scheduler).schedule
        self.image_shape = self.chain_shape = (3, height, width)

        # The guidances
        conditions, self.unguided = len(self.rows[0].negatives), unguided or ClassifierFreeGuidance(cfg_scale)
        default = PositiveAndNegative(DynamicNegativeGuidance(), cfg_scale) if conditions else self.unguided
        given = (default, guidance, guidances, baselines or [])
        set_methods(self, *given, conditions, (1, 1, 1), in_pipeline=True)

        # The classes: prompts to sample, and those of the classifier
        self.class_names = tuple(dict.fromkeys(row.prompt for row in self.rows))
        self.class_labels = [self.class_names.index(row.prompt) for row in self.rows]
        self.forbidden, judge = [], load_classifier(classifier) if classifier else None
        self.keep_apart(judge=judge)
        if judge is not None:
            if isinstance(judge, TrainedModule):
                check_same(f"classifier {judge.name}", judge, "the pipeline", self, "image_shape")
            sort_into(judge, judge.class_names, self.image_shape)
            self.forbidden = labels_of(forbidden, judge.class_names, range(len(judge.class_names)))
        self.draws = self.all_draws()

    @property
    def label_space(self) -> LabelSpace:
        """The classes of the classifier; without one, the prompts."""
        return LabelSpace.of_classes(self.judge.class_names if self.judge else self.class_names, self.forbidden)

    def networks(self) -> dict[str, nn.Module | None]:
        """See ``ImageSampler.networks``."""
        return {"checkpoint": self.parts, "classifier": self.judge}

    def inputs(self, calibration: bool) -> dict[str, str]:
        """See ``ImageSampler.inputs``; also the rows of the file of prompts."""
        rows = {"file of prompts": hashlib.sha256(repr(self.rows).encode()).hexdigest()[:12]} if self.has_file else {}
        return super().inputs(calibration) | rows

    def row(self, number: int) -> PromptRow:
        """The texts and the seed of image ``number``.

        Raises:
            SettingError: the file of prompts has fewer rows.
        """
        if self.has_file and number >= len(self.rows):
            raise SettingError(f"prompts has {len(self.rows)} rows: set data.num_samples to {len(self.rows)}")
        return self.rows[number % len(self.rows)]

    def draw(
        self, seeds: Sequence[int], guidance: Guidance | None = None, recorders: Sequence[Recorder] = ()
    ) -> Samples:
        """See ``ImageSampler.draw``; images of the same negative prompts share a call of the pipeline."""
        guidance = guidance or self.guidance
        parts = [
            self._call(list(group), negatives if guidance.needs().avoids else (), guidance, recorders)
            for negatives, group in groupby(seeds, lambda number: self.row(number).negatives)
        ]
        posteriors = [part.posterior for part in parts if part.posterior is not None]
        return Samples(
            list(seeds),
            torch.cat([part.images for part in parts]),
            parts[0].times,
            torch.cat([part.scale for part in parts]),
            torch.cat(posteriors) if posteriors else None,
            sum(part.nfe * len(part.seeds) for part in parts) / len(seeds),
        )

    def _place(self) -> None:
        """Move the networks to the module's device, all or, to save memory, one after the other."""
        self.pipeline.set_progress_bar_config(disable=True)
        if not self.save_memory or self.device.type == "cpu":
            self.pipeline.to(self.device)
        elif not self.offloads:
            self.pipeline.enable_model_cpu_offload(device=self.device)
            self.offloads = True

    def _call(
        self, numbers: Sequence[int], negatives: Sequence[str], guidance: Guidance, recorders: Sequence[Recorder]
    ) -> Samples:
        """The images of one call of the pipeline."""
        rows = [self.row(number) for number in numbers]
        seeds = [number if row.seed is None else row.seed for number, row in zip(numbers, rows, strict=True)]
        _, height, width = self.image_shape
        given: Mapping[str, Any] = {
            "prompt": [row.prompt for row in rows],
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "num_inference_steps": self.sampler.steps,
            "height": height,
            "width": width,
            "output_type": "pt",
            "return_dict": True,
        }
        if own := ", ".join(self.call.keys() & given.keys()):
            raise SettingError(f"call: {own} follows from the other settings of the PipelineSampler")
        self._place()
        every = [*self.recorders, *recorders]
        with torch.no_grad(), guided(self.pipeline, guidance, None, list(negatives), every) as hosted:
            try:
                images = self.pipeline(**given, **self.call).images
            except SettingError:
                raise
            except (TypeError, ValueError) as error:  # of its arguments: an unknown one, a size
                raise SettingError(f"{type(self.pipeline).__name__}: {reason(error)}") from error
        check_finite(images, numbers)
        found = hosted.trajectories
        times = [self.schedule.fraction(level) for level in found.levels]
        return Samples(numbers, 2 * images.float() - 1, times, found.scale, found.posterior, hosted.nfe / len(numbers))
