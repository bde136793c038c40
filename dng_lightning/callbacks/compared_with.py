"""What the images of ``dng test`` are compared with: real ones, by the features of a network."""

from pathlib import Path

from lightning import Trainer

from dng_lightning.data.seeds import Seeds
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.comparison import LEAST
from dng_lightning.evaluation.features import ClassifierFeatures, FeatureExtractor, InceptionFeatures
from dng_lightning.evaluation.real import RealStatistics
from dng_lightning.modules.image_sampler import ImageSampler


def extractor(name: str | None, inception_weights: str | None, module: ImageSampler) -> FeatureExtractor | None:
    """The network that ``ResultsWriter`` was asked for, on the module's device; None for none.

    Raises:
        SettingError: it has no features, or there are no weights.
    """
    if name is None:
        return None
    if name == "inception":
        return InceptionFeatures(inception_weights).to(module.device)
    assert module.classifier is not None
    return ClassifierFeatures(module.classifier, module.classifier_name)


def real_images(trainer: Trainer, module: ImageSampler, data: Seeds, by: FeatureExtractor) -> RealStatistics:
    """Compute them from ``data.real``, in the trainer's folder, or find them there or beside the checkpoint, and check.

    Raises:
        SettingError: there are none, they are of other images or features, or of too few images.
    """
    folder = Path(trainer.default_root_dir)
    if data.real is not None:
        module.kinds.check_real(data.real)
        if (data.real.class_names, data.real.image_shape) != (module.kinds.names, tuple(module.image_shape)):
            raise SettingError(f"data.real: {type(data.real).__name__} has other images than the model: name another")
        if trainer.is_global_zero:
            assert module.classifier is not None
            data.real.prepare_data()
            data.real.setup("test")
            path = folder / RealStatistics.file(by)
            RealStatistics.cached(path, data.real, by, module.classifier).save(path)
        trainer.strategy.barrier("real images")
    real = RealStatistics.find([folder, module.folder], by)
    real.check(module.kinds.names, module.image_shape, by)
    if len(real.features(module.kinds.retained)) < LEAST:
        raise SettingError(f"the statistics know less than {LEAST} real images of {real.data} that are not forbidden")
    return real
