"""Reference statistics in the features of a new classifier, so that an evaluation with it needs no data set."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dng_lightning.callbacks.requirements import expect, is_dry_run
from dng_lightning.data.base import ImageDataModule
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.modules.classifier import ClassifierModule


class ReferenceWriter(Callback):
    """Writes ``real-<classifier>.pt`` next to the ``model.ckpt`` of a classifier that ``Export`` wrote.

    ``dng test`` finds the statistics there. Place this callback after ``Export`` in ``trainer.callbacks``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable the callback in a dry run.

        Raises:
            SettingError: the module is not a classifier, or the data are not an image data set.
        """
        expect(ClassifierModule, pl_module, self)
        if not isinstance(getattr(trainer, "datamodule", None), ImageDataModule):
            raise SettingError("ReferenceWriter goes with a data set of images")
        is_dry_run(trainer, self)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and write the statistics, if there is a new classifier with features."""
        folder, data = Path(trainer.default_root_dir), trainer.datamodule  # type: ignore[attr-defined]  # set by fit
        if not (trainer.is_global_zero and (folder / "model.ckpt").exists()):
            return
        classifier = ClassifierModule.load(str(folder)).to(pl_module.device)
        if classifier.schedule is None and hasattr(classifier.net, "features"):
            extractor = ClassifierFeatures(classifier, folder.absolute().name)
            reference = ReferenceStatistics.compute(data, extractor, classifier)
            reference.save(folder / ReferenceStatistics.file(extractor))
